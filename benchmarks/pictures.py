"""The pictures of docs/performance.md: attention, convolutions, grouped products and loops beside plain JAX.

`python -m benchmarks.pictures` measures for less than three minutes, writes docs/images/performance.json, and draws
attention.svg, convolutions.svg, grouped.svg and loops.svg beside it; with `--draw` it only draws. Programs take turns
in one run; the best turn counts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.overview import (
    COLORS,
    NDHWC,
    NHWC,
    TYPES,
    Program,
    causal,
    convolution,
    measured_or_kept,
    ratio_bars,
    times,
)
from jax_nano.runtime.progress import Bar, progress

LENGTHS = (256, 512, 1024, 2048, 4096)  # of attention
HEADS = 12, 64  # how many, and the elements of each


def sum_of(f: Callable[..., Array]) -> Callable[..., Array]:
    """The sum of a result: what gradients are taken of."""
    return lambda *arguments: f(*arguments).astype(jnp.float32).sum()


def with_gradients(f: Callable[..., Array]) -> Callable[..., Any]:
    """The gradients of the first two arguments."""
    return jax.grad(sum_of(f), (0, 1))


# Convolutions


def strided(x: Array, w: Array) -> Array:
    """A stem: every second place."""
    return lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=NHWC)


def rectified(x: Array, w: Array, bias: Array) -> Array:
    """A convolution with what stands behind it."""
    return jax.nn.relu(convolution(NHWC)(x, w) + bias)


CONVOLUTIONS = (
    Program("3 x 3, 8 x 56 x 56, 64 channels", convolution(NHWC), ((8, 56, 56, 64), (3, 3, 64, 64))),
    Program("3 x 3, 8 x 28 x 28, 128 channels, bias and relu", rectified,
            ((8, 28, 28, 128), (3, 3, 128, 128), (128,))),
    Program("3 x 3, 8 x 14 x 14, 256 channels", convolution(NHWC), ((8, 14, 14, 256), (3, 3, 256, 256))),
    Program("3 x 3, 8 x 7 x 7, 512 channels", convolution(NHWC), ((8, 7, 7, 512), (3, 3, 512, 512))),
    Program("1 x 1, 8 x 56 x 56, 64 to 256 channels", convolution(NHWC), ((8, 56, 56, 64), (1, 1, 64, 256))),
    Program("7 x 7, stride 2, 8 x 224 x 224, 3 to 64 channels", strided, ((8, 224, 224, 3), (7, 7, 3, 64))),
    Program("32 groups of 4 channels, 3 x 3, 8 x 28 x 28", convolution(NHWC, 32), ((8, 28, 28, 128), (3, 3, 4, 128))),
    Program("depthwise, 3 x 3, 8 x 56 x 56, 128 channels", convolution(NHWC, 128),
            ((8, 56, 56, 128), (3, 3, 1, 128))),
    Program("3 x 3 x 3, 2 x 16 x 32 x 32, 32 channels", convolution(NDHWC), ((2, 16, 32, 32, 32), (3, 3, 3, 32, 32))),
)  # fmt: skip


# Grouped products


def evenly(rows: int, groups: int) -> np.ndarray:
    """The sizes of groups that share rows out evenly."""
    return np.full(groups, rows // groups, np.int32)


def by_power_law(rows: int, groups: int) -> np.ndarray:
    """The sizes of groups of which the n-th wants 1 / n of what the first has."""
    shares = 1 / np.arange(1, groups + 1)
    ends = np.round(rows * np.cumsum(shares) / shares.sum()).astype(np.int32)
    return np.diff(ends, prepend=0)


GROUPED = (
    Program("8 groups, 512 x 1024 x 1024, evenly", lax.ragged_dot, ((512, 1024), (8, 1024, 1024)), (evenly(512, 8),)),
    Program("the same, its two gradients", with_gradients(lax.ragged_dot), ((512, 1024), (8, 1024, 1024)),
            (evenly(512, 8),)),
    Program("8 groups, 16 x 2048 x 2048, evenly", lax.ragged_dot, ((16, 2048), (8, 2048, 2048)), (evenly(16, 8),)),
    Program("64 groups, 1024 x 768 x 768, by a power law", lax.ragged_dot, ((1024, 768), (64, 768, 768)),
            (by_power_law(1024, 64),)),
)  # fmt: skip


# Loops


def kalman(f: Array, h: Array, gain: Array, seen: Array) -> Array:
    """A filter whose gain is known."""

    def step(state: Array, y: Array) -> tuple[Array, Array]:
        state = 0.1 * (f @ state)
        state = state + 0.1 * (gain @ (y - h @ state))
        return state, state

    return lax.scan(step, jnp.zeros(f.shape[0]), seen)[1]


def runge_kutta(start: Array, into: Array, out: Array) -> Array:
    """200 steps of the classical method along a network's field."""

    def field(y: Array) -> Array:
        return jnp.tanh(y @ into) @ out

    def step(_: int, y: Array) -> Array:
        h = 0.01
        a = field(y)
        b = field(y + 0.5 * h * a)
        c = field(y + 0.5 * h * b)
        return y + h / 6 * (a + 2 * b + 2 * c + field(y + h * c))

    return lax.fori_loop(0, 200, step, start)


def gru(x: Array, w: Array, u: Array) -> Array:
    """The states of a gated recurrent unit: x (steps, rows, width), w and u (width, 3 width)."""

    def step(h: Array, row: Array) -> tuple[Array, Array]:
        (za, ra, na), (zb, rb, nb) = jnp.split(row @ w, 3, -1), jnp.split(h @ u, 3, -1)
        z = jax.nn.sigmoid(za + zb)
        h = z * h + (1 - z) * jnp.tanh(na + jax.nn.sigmoid(ra + rb) * nb)
        return h, h

    return lax.scan(step, jnp.zeros(x.shape[1:]), x)[1]


LOOPS = (
    Program("filter of 6 states, 2000 steps", kalman, ((6, 6), (2, 6), (6, 2), (2000, 2))),
    Program("Runge-Kutta, 4 - 32 - 4, 64 at once, 200 steps", runge_kutta, ((64, 4), (4, 32), (32, 4))),
    Program("GRU of 64, one row, 500 steps", gru, ((500, 1, 64), (64, 192), (64, 192))),
    Program("GRU of 256, 32 rows, 100 steps", gru, ((100, 32, 256), (256, 768), (256, 768))),
    Program("its gradients", with_gradients(gru), ((100, 32, 256), (256, 768), (256, 768))),
)

BARS = {  # by the picture's name: its title, its programs, their types
    "convolutions": ("Convolutions", CONVOLUTIONS, ("f32", "bf16")),
    "grouped": ("Grouped products", GROUPED, ("f32", "bf16")),
    "loops": ("Loops", LOOPS, ("f32",)),
}


def attention_of(length: int) -> Program:
    """Causal attention of so many queries and keys."""
    return Program(f"{length}", causal, ((1, length, *HEADS),) * 3)


def measured(programs: Sequence[Program], types: Sequence[str], turns: int, bar: Bar) -> list[dict[str, Any]]:
    """A row for each program: its name, and by type the milliseconds of plain JAX and of jax_nano."""
    rows = []
    for program in programs:
        row: dict[str, Any] = {"name": program.name}
        for dtype in types:
            row[dtype] = [round(1e3 * seconds, 4) for seconds in times(program, TYPES[dtype], turns)]
            bar.advance(f"{program.name}, {dtype}")
        rows.append(row)
    return rows


def measure(turns: int) -> dict[str, Any]:
    """All that is drawn, and where and when it was measured."""
    groups = {"attention": ([attention_of(length) for length in LENGTHS], tuple(TYPES))}
    groups |= {name: (list(programs), types) for name, (_, programs, types) in BARS.items()}
    found = report.circumstances()
    with progress(sum(len(programs) * len(types) for programs, types in groups.values()), "measuring") as bar:
        rows = {name: measured(programs, types, turns, bar) for name, (programs, types) in groups.items()}
        bar.finish(f"{bar.total} programs")
    return found | rows


def where(found: dict[str, Any]) -> str:
    """The machine and the versions, for a title."""
    machine = found["machine"]
    return f"{machine['threads']} cores of {machine['processor']} ({machine['target']}), JAX {found['versions']['jax']}"


def draw_attention(found: dict[str, Any]) -> Figure:
    """Time against length, on logarithmic scales."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = found["attention"]
    for by, (marker, name) in enumerate((("s--", "plain JAX"), ("o-", "jax_nano"))):
        for dtype, color in COLORS.items():
            values = [row[dtype][by] for row in rows]
            axes.loglog([int(row["name"]) for row in rows], values, marker, color=color, label=f"{name}, {dtype}")
    axes.set_xticks(LENGTHS, map(str, LENGTHS))
    axes.minorticks_off()
    axes.set(xlabel="queries and keys", ylabel="ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(f"Causal attention, {HEADS[0]} heads of {HEADS[1]}: {where(found)}", fontsize=10, loc="left")
    return figure


def draw(found: dict[str, Any], folder: pathlib.Path) -> None:
    """Draws all pictures into a folder."""
    draw_attention(found).savefig(folder / "attention.svg")
    for name, (title, _, types) in BARS.items():
        rows = [
            {"name": row["name"]} | {dtype: row[dtype][0] / row[dtype][1] for dtype in types} for row in found[name]
        ]
        text = f"{title}, times as fast as plain JAX: {where(found)}"
        ratio_bars(rows, types, text).savefig(folder / f"{name}.svg")


def main() -> None:
    """Measures and draws."""
    draw(*measured_or_kept("pictures", __doc__, measure, "performance.json"))


if __name__ == "__main__":
    main()
