"""Greedy text generation by a decoder of GPT-2's shape, in several types, on jax_nano's products and on XLA's.

The model is plain JAX; jax_nano.accelerate gives it its products, fused with biases, gelu and residual sums, and its
attention as one kernel, which jax_nano.inspect shows. Weights are random, or those of a checkpoint of GPT-2: a file
model.safetensors, as Hugging Face has them, with vocab.json and merges.txt beside it. Prints how many tokens per second
it reads of a prompt, and writes after it, and draws both into examples/gpt.png.

usage: python examples/gpt.py [--checkpoint model.safetensors --prompt "Once upon a time"] [--types f32 int4]
"""

import argparse
import functools
import itertools
import json
import math
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
from jax import Array, lax
from matplotlib.figure import Figure
from rich.progress import Progress
from rich.table import Table
from safetensors.numpy import load_file

import jax_nano

HEAD = 64  # elements of a head, in GPT-2 of every size
CONTEXT = 1024
PREFILLS = 3  # times that the prompt is read; the fastest counts

QUANTIZED: dict[str, Any] = {"int8": {"bits": 8}, "int4": {"bits": 4, "group": 64}}
TYPES = ("f32", "bf16", *QUANTIZED)

Params = dict[str, Any]  # arrays and quantized weights, by the names of GPT-2's checkpoints
Cache = list[tuple[Array, Array]]  # of each layer the keys and values so far, (tokens, heads, HEAD)
Step = Callable[[Params, Cache, Array, Array], tuple[Array, Cache]]


# The model


def step(params: Params, cache: Cache, tokens: Array, position: Array) -> tuple[Array, Cache]:
    """Reads tokens that stand at `position` and after, and says which is the likeliest to follow."""
    x = params["wte.weight"][tokens] + lax.dynamic_slice_in_dim(params["wpe.weight"], position, tokens.size)
    filled = []
    for i, memory in enumerate(cache):
        mixed, longer = attention(params, f"h.{i}.attn", norm(params, f"h.{i}.ln_1", x), memory, position)
        x = x + mixed
        hidden = jax.nn.gelu(linear(params, f"h.{i}.mlp.c_fc", norm(params, f"h.{i}.ln_2", x)))
        x = x + linear(params, f"h.{i}.mlp.c_proj", hidden)
        filled.append(longer)
    scores = norm(params, "ln_f", x[-1:]) @ params["head.weight"]
    return likeliest(scores), filled


def attention(
    params: Params, name: str, x: Array, memory: tuple[Array, Array], position: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Attends to all tokens up to each token's own; gives the memory with theirs."""
    tokens, width = x.shape
    q, *new = (part.reshape(tokens, -1, HEAD) for part in jnp.split(linear(params, f"{name}.c_attn", x), 3, axis=1))
    keys, values = (lax.dynamic_update_slice(old, x, (position, 0, 0)) for old, x in zip(memory, new, strict=True))
    scores = jnp.einsum("qhd,khd->hqk", q, keys).astype(jnp.float32) / math.sqrt(HEAD)
    seen = jnp.arange(len(keys)) <= position + jnp.arange(tokens)[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min)).astype(x.dtype)
    mixed = jnp.einsum("hqk,khd->qhd", weights, values)
    return linear(params, f"{name}.c_proj", mixed.reshape(tokens, width)), (keys, values)


def likeliest(scores: Array) -> Array:
    """The first of each row's highest scores. argmax finds it too, one by one, in 5 to 13 times the time."""
    numbers = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return jnp.where(scores == scores.max(-1, keepdims=True), numbers, scores.shape[-1] - 1).min(-1)


def linear(params: Params, name: str, x: Array) -> Array:
    """A dense layer."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def norm(params: Params, name: str, x: Array) -> Array:
    """Layer normalisation, in f32."""
    wide = x.astype(jnp.float32)
    unit = (wide - wide.mean(-1, keepdims=True)) * lax.rsqrt(wide.var(-1, keepdims=True) + 1e-5)
    return unit.astype(x.dtype) * params[f"{name}.weight"] + params[f"{name}.bias"]


def empty_cache(params: Params, tokens: int) -> Cache:
    """A cache for that many tokens."""
    embedding = params["wpe.weight"]
    memory = jnp.zeros((tokens, embedding.shape[1] // HEAD, HEAD), embedding.dtype)
    layers = sum(name.endswith(".attn.c_attn.bias") for name in params)
    return [(memory.copy(), memory.copy()) for _ in range(layers)]


# Its weights


def random_params(layers: int, width: int, vocabulary: int) -> Params:
    """Weights of GPT-2's shapes: normal, of a deviation that keeps activations near 1."""
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (CONTEXT, width)}
    for i in range(layers):
        for name, m, n in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)):
            shapes |= {f"h.{i}.{name}.weight": (m * width, n * width), f"h.{i}.{name}.bias": (n * width,)}
    norms = ["ln_f", *(f"h.{i}.ln_{j}" for i in range(layers) for j in (1, 2))]
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape, np.float32) / np.float32(width) ** 0.5 for name, shape in shapes.items()}
    params |= {f"{name}.weight": np.ones(width, np.float32) for name in norms}
    params |= {f"{name}.bias": np.zeros(width, np.float32) for name in norms}
    return jax.tree.map(jnp.asarray, params)


def load_params(path: pathlib.Path) -> Params:
    """The weights of a checkpoint; masks that some hold beside them are left out."""
    params = {name.removeprefix("transformer."): jnp.asarray(x) for name, x in load_file(path).items()}
    return {name: x for name, x in params.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}


def in_type(params: Params, name: str) -> Params:
    """The model with its numbers in a type; of int8 and int4 are the matrices, with the rest in bf16."""
    dtype = jnp.float32 if name == "f32" else jnp.bfloat16
    params = {key: x.astype(dtype) for key, x in params.items()}
    params["head.weight"] = params["wte.weight"].T
    if name in QUANTIZED:
        matrices = [key for key, x in params.items() if x.ndim == 2 and not key.startswith(("wte", "wpe"))]
        params |= {key: jax_nano.quantize(params[key], **QUANTIZED[name]) for key in matrices}
    return params


# Its text

PACKED_INT4 = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


class Tokenizer:
    """GPT-2's: a word's bytes, written as printable characters, are joined pair by pair, in the order of merges.txt."""

    def __init__(self, folder: pathlib.Path):
        self.numbers: dict[str, int] = json.loads((folder / "vocab.json").read_text())
        merges = (line for line in (folder / "merges.txt").read_text().splitlines() if not line.startswith("#version"))
        self.ranks = {tuple(merge.split()): rank for rank, merge in enumerate(merges)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = sorted(set(range(256)) - set(printable))
        self.characters = {byte: chr(byte) for byte in printable} | {x: chr(256 + i) for i, x in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [self.numbers[part] for word in PACKED_INT4.findall(text) for part in self.joined(word)]

    def joined(self, word: str) -> list[str]:
        """The parts of a word that are tokens."""
        parts = [self.characters[byte] for byte in word.encode()]
        while known := [pair for pair in itertools.pairwise(parts) if pair in self.ranks]:
            first, i = min(known, key=self.ranks.__getitem__), 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == first:
                    parts[i : i + 2] = ["".join(first)]
                i += 1
        return parts

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        parts = {number: part for part, number in self.numbers.items()}
        byte_of = {character: byte for byte, character in self.characters.items()}
        return bytes(byte_of[x] for token in tokens for x in parts[token]).decode(errors="replace")


class Numbers:
    """Tokens written as their numbers, where there is no vocabulary."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [int(number) for number in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return " ".join(map(str, tokens))


# Generating, and how long it takes


class Run(NamedTuple):
    """What a model wrote, and how fast, in tokens per second."""

    tokens: list[int]
    compile_seconds: float
    reading: float
    writing: float


def generate(step: Step, params: Params, prompt: Sequence[int], count: int, advance: Callable[[], None]) -> Run:
    """Reads the prompt and writes `count` tokens, each the likeliest; `advance` is told of each."""
    start = time.perf_counter()
    fresh = functools.partial(empty_cache, params, len(prompt) + count)
    tokens, cache, at = jnp.array(prompt, jnp.int32), fresh(), jnp.int32(0)
    jitted = jax.jit(step, donate_argnames="cache")
    read = jitted.lower(params, cache, tokens, at).compile()
    write = jitted.lower(params, cache, tokens[:1], at).compile()
    compiled = time.perf_counter() - start

    reading = math.inf
    for _ in range(PREFILLS):
        cache = jax.block_until_ready(fresh())
        start = time.perf_counter()
        token, cache = jax.block_until_ready(read(params, cache, tokens, at))
        reading = min(reading, time.perf_counter() - start)
    written = [int(token[0])]
    advance()
    start = time.perf_counter()
    while len(written) < count:
        token, cache = write(params, cache, token, jnp.int32(len(prompt) + len(written) - 1))
        written.append(int(token[0]))
        advance()
    writing = time.perf_counter() - start
    return Run(written, compiled, len(prompt) / reading, (count - 1) / writing)


def compare(params: Params, types: Sequence[str], prompt: Sequence[int], count: int) -> dict[tuple[str, str], Run]:
    """Runs the model in every type, on jax_nano's products and on XLA's."""
    runs = {}
    with Progress() as progress:
        for name in types:
            typed = in_type(params, name)
            for products, f in (("jax_nano", jax_nano.accelerate(step)), ("XLA", step)):
                bar = progress.add_task(f"{name:5s}{products}", total=count)
                runs[name, products] = generate(f, typed, prompt, count, functools.partial(progress.advance, bar))
    return runs


def attention_kernels(params: Params, name: str, tokens: int) -> str:
    """What the attention of all layers runs as when a token is written."""
    typed = in_type(params, name)
    one, cache = jnp.zeros(1, jnp.int32), empty_cache(typed, tokens)
    reports = jax_nano.inspect(jax_nano.accelerate(step), typed, cache, one, jnp.int32(0))
    found = [report for report in reports if report.equation.startswith("attention")]
    kernels = {report.kernel.name for report in found if report.kernel}
    return (
        f"{sum(report.ran_as == 'kernel' for report in found)} of {len(cache)} layers by {', '.join(kernels) or 'XLA'}"
    )


def table(runs: dict[tuple[str, str], Run]) -> Table:
    """A row for each run; what was written is compared with what the first one wrote."""
    result = Table("type", "products", "compiling", "reading", "writing", "the same", title="tokens per second")
    first = next(iter(runs.values())).tokens
    for (name, products), run in runs.items():
        same = next((i for i, (x, y) in enumerate(zip(first, run.tokens, strict=True)) if x != y), len(first))
        speeds = f"{run.reading:,.0f}", f"{run.writing:,.1f}"
        result.add_row(name, products, f"{run.compile_seconds:.1f} s", *speeds, f"first {same}")
    return result


def draw(runs: dict[tuple[str, str], Run], path: pathlib.Path) -> None:
    """Draws two bar charts: tokens per second when reading the prompt, and when writing."""
    types = list(dict.fromkeys(name for name, _ in runs))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("reading", "writing"), strict=True):
        for shift, (products, color) in enumerate({"XLA": "#e65100", "jax_nano": "#1565c0"}.items()):
            speeds = [getattr(runs[name, products], what) for name in types]
            bars = axes.bar(np.arange(len(types)) + 0.4 * shift, speeds, 0.38, color=color, label=products)
            axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=2, fontsize=9)
        axes.set(title={"reading": "Reading the prompt", "writing": "Writing"}[what], ylabel="tokens per second")
        axes.set_xticks(np.arange(len(types)) + 0.2, types)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a file of GPT-2's weights")
    parser.add_argument("--prompt", help="a text, or numbers of tokens without a vocabulary (default: 128 at random)")
    parser.add_argument("--count", type=int, default=32, help="how many tokens to write, two or more")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--layers", type=int, default=12, help="of random weights")
    parser.add_argument("--width", type=int, default=768, help="of random weights, a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=50257, help="of random weights")
    return parser.parse_args()


def has_vocabulary(checkpoint: pathlib.Path | None) -> bool:
    """Whether what makes tokens of text stands beside a checkpoint."""
    return checkpoint is not None and all((checkpoint.parent / name).exists() for name in ("vocab.json", "merges.txt"))


def main() -> None:
    """Generates and reports."""
    args = arguments()
    if args.checkpoint:
        params = load_params(args.checkpoint)
    else:
        params = random_params(args.layers, args.width, args.vocabulary)
    vocabulary, positions = len(params["wte.weight"]), len(params["wpe.weight"])
    tokenizer = Tokenizer(args.checkpoint.parent) if has_vocabulary(args.checkpoint) else Numbers()
    prompt = tokenizer.encode(args.prompt or "") or np.random.default_rng(1).integers(vocabulary, size=128).tolist()
    if not 0 <= min(prompt) <= max(prompt) < vocabulary or len(prompt) + args.count > positions:
        raise SystemExit(f"tokens are numbers below {vocabulary}, at most {positions} with those to write")
    print(f"{sum(x.size for x in params.values()):,} weights; {len(prompt)} tokens to read, {args.count} to write\n")
    runs = compare(params, args.types, prompt, args.count)
    rich.print(table(runs))
    print(f"written by the first: {tokenizer.decode(next(iter(runs.values())).tokens)}")
    print(f"attention of {args.types[0]}: {attention_kernels(params, args.types[0], len(prompt) + args.count)}")
    print(f"products that ran as jax_nano's kernels: {jax_nano.executed_kernels():,}")
    path = pathlib.Path(__file__).with_name("gpt.png")
    draw(runs, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
