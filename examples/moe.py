"""A decoder of mixture-of-experts layers, on jax_nano's grouped products and on XLA's.

The shape is that of today's small expert models: 128 experts, 8 of them chosen for each token by a router, 2048 wide,
768 hidden elements in an expert, 32 heads of 128 that share 4 of keys and values. Weights are random, so what it writes
means nothing; how fast it reads a prompt and writes after it does. Compared are

    jax_nano     the program by jax_nano.accelerate: one kernel for the gated layer of the rows that each expert has
    ragged_dot   the same program by XLA, whose lax.ragged_dot multiplies all rows by each expert
    dense masks  every expert computes every token by XLA, and the router's weights, mostly zero, add them up

Experts may be of 8 or 4 bits, beside all else in bf16: kernels read the integers, XLA the floats that they stand for.
Prints tokens per second and how far memory grew, and draws examples/moe.png.

usage: python examples/moe.py [--layers 1 --tokens 128 --count 16 --types bf16 int8 int4]
"""

import argparse
import functools
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
from jax import Array, lax
from matplotlib.figure import Figure
from rich.progress import Progress
from rich.table import Table

import jax_nano

COLORS = {"jax_nano": "#1565c0", "ragged_dot": "#e65100", "dense masks": "#9e9e9e"}
TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "int8": jnp.bfloat16, "int4": jnp.bfloat16}
QUANTIZED: dict[str, Any] = {"int8": {"bits": 8}, "int4": {"bits": 4, "group": 64}}
VOCABULARY = 1024
HEAD = 128  # elements of a head
EXPERT = ("expert_gate", "expert_up", "expert_out")  # what gates, what is gated, and the way out of an expert
QUERIES_PER_KEY = 8  # heads of queries that share one of keys and values

Layer = dict[str, Any]  # arrays, and experts that may be quantized
Params = list[Layer]  # the table of tokens, then the layers
Memory = tuple[Array, Array]  # of a layer the keys and values so far, (tokens, heads, HEAD)
Cache = list[Memory]
Experts = Callable[[Layer, Array, Array, Array], Array]  # (weights, x, which experts, how much they count)


# The model


def norm(x: Array) -> Array:
    """Rows of x with a mean square of 1."""
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def grouped_experts(layer: Layer, x: Array, chosen: Array, weights: Array) -> Array:
    """The chosen experts' sum for each row of x (T, D): rows sorted by expert, multiplied, and added where they belong.

    Args:
      layer: `expert_gate` and `expert_up` (E, D, H), `expert_out` (E, H, D).
      x: the rows.
      chosen: (T, C), the experts of each row.
      weights: (T, C), how much each of them counts.
    """
    experts, count = chosen.reshape(-1), chosen.shape[1]
    order = jnp.argsort(experts, stable=True)
    gate, up, out = (jnp.asarray(layer[name]) for name in EXPERT)
    sizes = jnp.bincount(experts, length=len(gate))
    rows = order // count
    sorted_rows = x[rows]
    hidden = jax.nn.silu(lax.ragged_dot(sorted_rows, gate, sizes)) * lax.ragged_dot(sorted_rows, up, sizes)
    made = lax.ragged_dot(hidden, out, sizes) * weights.reshape(-1)[order][:, None]
    return jnp.zeros_like(x).at[rows].add(made)


def dense_experts(layer: Layer, x: Array, chosen: Array, weights: Array) -> Array:
    """What grouped_experts computes, of every row by every expert."""
    gate, up, out = (jnp.asarray(layer[name]) for name in EXPERT)
    share = jnp.zeros((len(x), len(gate)), x.dtype).at[jnp.arange(len(x))[:, None], chosen].add(weights)
    hidden = jax.nn.silu(jnp.einsum("td,edh->teh", x, gate)) * jnp.einsum("td,edh->teh", x, up)
    return jnp.einsum("teh,ehd,te->td", hidden, out, share)


def attention(layer: Layer, x: Array, memory: Memory, position: Array) -> tuple[Array, Memory]:
    """Mixes x with all tokens up to each row's own; gives the keys and values with its own among them."""
    heads = layer["query"].shape[1] // HEAD
    query = (x @ layer["query"]).reshape(1, len(x), heads, HEAD)
    key, value = (
        lax.dynamic_update_slice_in_dim(old, (x @ layer[name]).reshape(len(x), -1, HEAD), position, 0)
        for name, old in zip(("key", "value"), memory, strict=True)
    )
    seen = jnp.arange(len(key)) <= position + jnp.arange(len(x))[:, None]
    mixed = jax.nn.dot_product_attention(query, key[None], value[None], mask=seen[None, None])
    return mixed.reshape(len(x), -1) @ layer["out"], (key, value)


class Model(NamedTuple):
    """How experts are computed, and how many a token chooses."""

    experts: Experts
    choices: int


def step(model: Model, params: Params, cache: Cache, tokens: Array, position: Array) -> tuple[Array, Cache]:
    """Reads tokens that stand at `position` and after, and says which is the likeliest to follow."""
    x, filled = params[0]["table"][tokens], []
    for layer, memory in zip(params[1:], cache, strict=True):
        mixed, longer = attention(layer, norm(x), memory, position)
        x = x + mixed
        y = norm(x)
        scores, chosen = lax.top_k((y @ layer["router"]).astype(jnp.float32), model.choices)
        x = x + model.experts(layer, y, chosen, jax.nn.softmax(scores).astype(x.dtype))
        filled.append(longer)
    return jnp.argmax(norm(x[-1:]) @ params[0]["table"].T), filled


def random_params(args: argparse.Namespace, name: str) -> Params:
    """Weights of a type, that keep the size of what goes through them."""
    dtype = TYPES[name]
    heads = max(QUERIES_PER_KEY, args.width // 64) // QUERIES_PER_KEY * QUERIES_PER_KEY
    d, kv = args.width, heads // QUERIES_PER_KEY
    shapes = {
        "query": (d, heads * HEAD), "key": (d, kv * HEAD), "value": (d, kv * HEAD), "out": (heads * HEAD, d),
        "router": (d, args.experts), "expert_gate": (args.experts, d, args.hidden),
        "expert_up": (args.experts, d, args.hidden), "expert_out": (args.experts, args.hidden, d),
    }  # fmt: skip

    @functools.partial(jax.jit, static_argnames="shape")
    def normal(key: Array, shape: tuple[int, ...]) -> Array:
        return (jax.random.normal(key, shape) * np.sqrt(1 / shape[-2])).astype(dtype)

    def weight(key: Array, of: str) -> Any:
        w = normal(key, shapes[of])
        return jax_nano.quantize(w, **QUANTIZED[name]) if name in QUANTIZED and of.startswith("expert") else w

    keys = iter(jax.random.split(jax.random.key(0), 1 + args.layers * len(shapes)))
    layers = [{of: weight(next(keys), of) for of in shapes} for _ in range(args.layers)]
    return jax.block_until_ready([{"table": normal(next(keys), (VOCABULARY, d))}, *layers])


# Speed


class Run(NamedTuple):
    """What one way to compute it did."""

    reading: float  # tokens per second
    writing: float
    grown: float  # by how many GB the process's largest memory grew
    tokens: list[int]


def peak_gb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def generate(f: Callable[..., Any], params: Params, prompt: Array, count: int, advance: Callable[[], None]) -> Run:
    """Reads a prompt, twice as the first time compiles, and writes `count` tokens after it."""
    width = params[1]["key"].shape[1]
    empty = jnp.zeros((len(prompt) + count, width // HEAD, HEAD), params[1]["key"].dtype)
    cache: Cache = [(empty, empty) for _ in params[1:]]
    before, fast = peak_gb(), jax.jit(f)
    jax.block_until_ready(fast(params, cache, prompt, jnp.int32(0)))
    advance()
    start = time.perf_counter()
    token, filled = jax.block_until_ready(fast(params, cache, prompt, jnp.int32(0)))
    reading = len(prompt) / (time.perf_counter() - start)
    advance()
    written = [int(token)]
    jax.block_until_ready(fast(params, filled, token[None], jnp.int32(len(prompt))))
    start = time.perf_counter()
    for i in range(count - 1):
        token, filled = fast(params, filled, token[None], jnp.int32(len(prompt) + i))
        written.append(int(token))
        advance()
    return Run(reading, (count - 1) / (time.perf_counter() - start), peak_gb() - before, written)


def compare(args: argparse.Namespace) -> dict[tuple[str, str], Run]:
    """Runs every type every way."""
    prompt = jnp.asarray(np.random.default_rng(1).integers(VOCABULARY, size=args.tokens), jnp.int32)
    by_groups = functools.partial(step, Model(grouped_experts, args.choices))
    ways = {
        "jax_nano": jax_nano.accelerate(by_groups),
        "ragged_dot": by_groups,
        "dense masks": functools.partial(step, Model(dense_experts, args.choices)),
    }
    runs = {}
    with Progress() as progress:
        for name in args.types:
            params = random_params(args, name)
            for way, f in ways.items():
                bar = progress.add_task(f"{name:5s}{way}", total=args.count + 1)
                runs[name, way] = generate(f, params, prompt, args.count, functools.partial(progress.advance, bar))
    return runs


def table(runs: dict[tuple[str, str], Run]) -> Table:
    """A row for each run; what was written is compared with what the first one of the type wrote."""
    result = Table("type", "experts by", "reading", "writing", "memory", "the same", title="tokens per second")
    for (name, way), run in runs.items():
        first = runs[name, "jax_nano"].tokens
        same = next((i for i, (x, y) in enumerate(zip(first, run.tokens, strict=True)) if x != y), len(first))
        result.add_row(name, way, f"{run.reading:,.1f}", f"{run.writing:,.2f}", f"+{run.grown:.2f} GB", f"first {same}")
    return result


def draw(runs: dict[tuple[str, str], Run], path: pathlib.Path) -> None:
    """Draws two bar charts: tokens per second when reading the prompt, and when writing."""
    types = list(dict.fromkeys(name for name, _ in runs))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, what in zip(both, ("reading", "writing"), strict=True):
        for shift, (way, color) in enumerate(COLORS.items()):
            speeds = [getattr(runs[name, way], what) for name in types]
            bars = axes.bar(np.arange(len(types)) + 0.27 * shift, speeds, 0.25, color=color, label=way)
            axes.bar_label(bars, [f"{speed:,.1f}" for speed in speeds], padding=2, fontsize=9)
        axes.set(title={"reading": "Reading the prompt", "writing": "Writing"}[what], ylabel="tokens per second")
        axes.set_xticks(np.arange(len(types)) + 0.27, types)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1, help="of 1.2 GB each in bf16")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--choices", type=int, default=8, help="experts of a token")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=768, help="elements within an expert")
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt")
    parser.add_argument("--count", type=int, default=16, help="how many tokens to write, two or more")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["bf16", *QUANTIZED])
    return parser.parse_args()


def main() -> None:
    """Generates and reports."""
    args = arguments()
    runs = compare(args)
    rich.print(table(runs))
    print(f"products that ran as jax_nano's kernels: {jax_nano.executed_kernels():,}")
    path = pathlib.Path(__file__).with_name("moe.png")
    draw(runs, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
