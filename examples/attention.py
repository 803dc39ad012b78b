"""An encoder and decoder of Whisper's shape, and time and memory of its attention against length, with XLA beside.

The encoder reads a spectrogram, and the decoder writes tokens that attend to each other and to what was heard; both are
plain JAX, in which jax_nano.accelerate finds attention. Then one layer of self-attention by
jax_nano.dot_product_attention is measured against length, causal and with a soft cap of scores, beside the same by XLA:
the time, and the memory that a call takes beyond its operands and result. Draws both into examples/attention.png.

usage: python examples/attention.py [--layers 4] [--width 384] [--lengths 256 512 1024 2048 4096] [--types f32 bf16]
"""

import argparse
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
from jax import Array, lax
from matplotlib.figure import Figure
from rich.table import Table

import jax_nano
from jax_nano.machine import host
from jax_nano.runtime.progress import progress

HEAD = 64  # elements of a head
BANDS = 80  # of the spectrogram
TURNS = 5
CAP = 30.0  # of scores
DTYPES: dict[str, Any] = {"f32": jnp.float32, "bf16": jnp.bfloat16}
COLORS = {"XLA": "#e65100", "jax_nano": "#1565c0"}
Params = dict[str, Any]


# The model


def linear(params: Params, name: str, x: Array) -> Array:
    """A dense layer."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def norm(x: Array) -> Array:
    """Layer normalisation, in f32."""
    wide = x.astype(jnp.float32)
    unit = (wide - wide.mean(-1, keepdims=True)) * lax.rsqrt(wide.var(-1, keepdims=True) + 1e-5)
    return unit.astype(x.dtype)


def attention(params: Params, name: str, x: Array, source: Array, *, causal: bool = False) -> Array:
    """Attention of x to a source, both (B, T, width)."""
    q, k, v = (
        linear(params, f"{name}.{part}", given).reshape(*given.shape[:2], -1, HEAD)
        for part, given in (("q", x), ("k", source), ("v", source))
    )
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    return linear(params, f"{name}.out", mixed.reshape(x.shape))


def layer(params: Params, name: str, x: Array, heard: Array | None = None) -> Array:
    """A layer of the encoder, or of the decoder where there is something that was heard."""
    rest = norm(x)
    x = x + attention(params, f"{name}.self", rest, rest, causal=heard is not None)
    if heard is not None:
        x = x + attention(params, f"{name}.cross", norm(x), heard)
    return x + linear(params, f"{name}.down", jax.nn.gelu(linear(params, f"{name}.up", norm(x))))


def whisper(params: Params, spectrogram: Array, tokens: Array, *, layers: int) -> Array:
    """Scores of the token that follows each: of a spectrogram (B, 2 T, BANDS) and tokens (B, count)."""
    dimensions = ("NHC", "HIO", "NHC")
    x = jax.nn.gelu(
        lax.conv_general_dilated(spectrogram, params["listen"], (2,), [(1, 1)], dimension_numbers=dimensions)
    )
    x = x + params["places"][: x.shape[1]]
    for i in range(layers):
        x = layer(params, f"encoder.{i}", x)
    heard = norm(x)
    y = params["embedding"][tokens] + params["places"][: tokens.shape[1]]
    for i in range(layers):
        y = layer(params, f"decoder.{i}", y, heard)
    return norm(y) @ params["embedding"].T


def random_params(layers: int, width: int, vocabulary: int, places: int) -> Params:
    """Weights of Whisper's shapes: normal, of a deviation that keeps activations near 1."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) / np.float32(width) ** 0.5)

    params: Params = {"listen": normal(3, BANDS, width), "places": normal(places, width)}
    params["embedding"] = normal(vocabulary, width)
    for part, kinds in (("encoder", ("self",)), ("decoder", ("self", "cross"))):
        for i in range(layers):
            shapes = {f"{kind}.{name}": (width, width) for kind in kinds for name in ("q", "k", "v", "out")}
            shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
            for name, shape in shapes.items():
                params[f"{part}.{i}.{name}.weight"] = normal(*shape)
                params[f"{part}.{i}.{name}.bias"] = jnp.zeros(shape[1])
    return params


# Measuring


def fastest(f: Callable[..., Any], *arguments: Any) -> float:
    """The seconds of the fastest of a few calls."""
    jax.block_until_ready(f(*arguments))
    seconds = []
    for _ in range(TURNS):
        start = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Point(NamedTuple):
    """What a call takes at a length."""

    milliseconds: float
    mebibytes: float  # beyond operands and result


def soft_cap(score: Array, *_: Array) -> Array:
    """Keeps scores within the cap."""
    return CAP * jnp.tanh(score / CAP)


def by_jax_nano(q: Array, k: Array, v: Array) -> Array:
    """Causal attention with a soft cap."""
    return jax_nano.dot_product_attention(q, k, v, score=soft_cap, is_causal=True)


def by_xla(q: Array, k: Array, v: Array) -> Array:
    """The same, as its definition says it."""
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) / np.sqrt(HEAD)
    seen = jnp.tri(q.shape[1], k.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(seen, soft_cap(scores), jnp.finfo(jnp.float32).min))
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)


def measure(f: Callable[..., Any], length: int, heads: int, dtype: Any) -> Point:
    """The time of a call, and its memory: what XLA plans, and what a kernel's scratch takes."""
    q, k, v = (
        jax.random.normal(key, (1, length, heads, HEAD)).astype(dtype) for key in jax.random.split(jax.random.key(0), 3)
    )
    compiled = jax.jit(f).lower(q, k, v).compile()
    memory: Any = compiled.memory_analysis()
    reports = jax_nano.inspect(f, q, k, v)
    scratch = sum(
        report.plan.shared_bytes + report.plan.local_bytes * host.machine().threads
        for report in reports
        if report.kernel
    )
    return Point(1e3 * fastest(compiled, q, k, v), (memory.temp_size_in_bytes + scratch) / 2**20)


Curves = dict[tuple[str, str], list[Point]]  # by type, and by who computes


def curves(types: Sequence[str], lengths: Sequence[int], heads: int) -> Curves:
    """A point for each length."""
    found: Curves = {}
    ways = {"XLA": by_xla, "jax_nano": by_jax_nano}
    with progress(len(types) * len(ways) * len(lengths), "measuring attention") as bar:
        for name, (products, f), length in itertools.product(types, ways.items(), lengths):
            found.setdefault((name, products), []).append(measure(f, length, heads, DTYPES[name]))
            bar.advance(f"{name}, {products}, T = {length}")
        bar.finish(f"{len(found)} curves")
    return found


def table(found: Curves, lengths: Sequence[int]) -> Table:
    """A row for each curve."""
    result = Table("type", "by", *(f"T = {length}" for length in lengths), title="ms, and MiB beyond operands")
    for (name, products), points in found.items():
        result.add_row(name, products, *(f"{x.milliseconds:,.1f} ms, {x.mebibytes:,.1f} MiB" for x in points))
    return result


def draw(found: Curves, lengths: Sequence[int], path: pathlib.Path) -> None:
    """Draws time and memory against length."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, what, label in ((left, "milliseconds", "ms"), (right, "mebibytes", "MiB")):
        for (name, products), points in found.items():
            values, style = [getattr(point, what) for point in points], "-" if name == "f32" else "--"
            axes.loglog(lengths, values, style, marker="o", color=COLORS[products], label=f"{products}, {name}")
        axes.set_xticks(lengths, map(str, lengths))
        axes.minorticks_off()
        axes.set(xlabel="queries and keys", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("Time of a call")
    right.set_title("Memory beyond operands and result")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(found), frameon=False)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the encoder, and of the decoder")
    parser.add_argument("--width", type=int, default=384, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=51865)
    parser.add_argument("--frames", type=int, default=1500, help="that the encoder attends to")
    parser.add_argument("--tokens", type=int, default=64, help="of the decoder")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--types", nargs="+", choices=DTYPES, default=list(DTYPES))
    return parser.parse_args()


def main() -> None:
    """Runs the model, measures, and draws."""
    args = arguments()
    params = random_params(args.layers, args.width, args.vocabulary, max(args.frames, args.tokens))
    model = functools.partial(whisper, layers=args.layers)
    spectrogram = jax.random.normal(jax.random.key(0), (1, 2 * args.frames, BANDS))
    tokens = jnp.zeros((1, args.tokens), jnp.int32)
    reports = jax_nano.inspect(jax_nano.accelerate(model), params, spectrogram, tokens)
    found = [report for report in reports if report.equation.startswith("attention")]
    count = sum(report.ran_as == "kernel" for report in found)
    print(f"attention by kernels: {count} of {3 * args.layers}")
    for products, f in (("XLA", model), ("jax_nano", jax_nano.accelerate(model))):
        print(f"{products:9}{1e3 * fastest(jax.jit(f), params, spectrogram, tokens):8,.1f} ms for {args.frames} frames")
    result = curves(args.types, args.lengths, args.width // HEAD)
    rich.print(table(result, args.lengths))
    path = pathlib.Path(__file__).with_name("attention.png")
    draw(result, args.lengths, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
