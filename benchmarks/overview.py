"""The picture on README's first screen: programs through jax_nano beside plain JAX, in turns in one run.

`python -m benchmarks.overview` measures, writes docs/images/speed.json, and draws docs/images/speed.svg of it; with
`--draw` it only draws.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure

import jax_nano
from benchmarks import report
from benchmarks.timing import best_of

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "images"
TURNS = 5
NHWC = ("NHWC", "HWIO", "NHWC")
NDHWC = ("NDHWC", "DHWIO", "NDHWC")
COLORS = {"f32": "#90caf9", "bf16": "#1565c0"}
TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


class Program(NamedTuple):
    """What is measured: a function, the shapes of its arguments, and further arguments as they are."""

    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    further: tuple[np.ndarray, ...] = ()


def convolution(numbers: tuple[str, str, str], groups: int = 1) -> Callable[..., Any]:
    """A convolution of stride 1 that keeps the size."""
    stride = (1,) * (len(numbers[0]) - 2)
    return lambda x, w: lax.conv_general_dilated(
        x, w, stride, "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention as jax.nn has it."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def mlp(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """Two layers and what stands between them."""
    return jax.nn.gelu(x @ up) @ down


PROGRAMS = (
    Program("product, 1024 cubed", jnp.matmul, ((1024, 1024), (1024, 1024))),
    Program("two layers, 128 rows, 768 - 3072 - 768", mlp, ((128, 768), (768, 3072), (3072, 768))),
    Program("product of one row, 4096 x 4096", jnp.matmul, ((1, 4096), (4096, 4096))),
    Program("causal attention, 2048 tokens, 12 heads", causal, ((1, 2048, 12, 64),) * 3),
    Program("decoding attention, 2048 keys, 8 rows",
            jax.nn.dot_product_attention, ((8, 1, 32, 128), (8, 2048, 8, 128), (8, 2048, 8, 128))),
    Program("convolution 3 x 3, 8 x 28 x 28 x 128", convolution(NHWC), ((8, 28, 28, 128), (3, 3, 128, 128))),
    Program("depthwise 3 x 3, 8 x 56 x 56 x 128", convolution(NHWC, 128), ((8, 56, 56, 128), (3, 3, 1, 128))),
    Program("convolution in 3-D, 2 x 16 x 32 x 32 x 32", convolution(NDHWC), ((2, 16, 32, 32, 32), (3, 3, 3, 32, 32))),
)  # fmt: skip


def times(program: Program, dtype: Any, turns: int) -> tuple[float, float]:
    """The seconds of a program by plain JAX, and through jax_nano."""
    keys = jax.random.split(jax.random.key(0), len(program.shapes))
    arrays = [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, program.shapes, strict=True)]
    arrays += map(jnp.asarray, program.further)
    plain, ours = (
        jax.jit(f).lower(*arrays).compile() for f in (program.function, jax_nano.accelerate(program.function))
    )
    theirs, nano = best_of([lambda f=f: jax.block_until_ready(f(*arrays)) for f in (plain, ours)], turns)
    return theirs, nano


def ratio(program: Program, dtype: Any, turns: int) -> float:
    """How many times as fast as plain JAX a program is."""
    theirs, nano = times(program, dtype, turns)
    return theirs / nano


def measure(turns: int) -> dict[str, Any]:
    """Measures all programs in all types, and says where and when."""
    rows = []
    for program in PROGRAMS:
        rows.append({"name": program.name} | {name: ratio(program, dtype, turns) for name, dtype in TYPES.items()})
        print(rows[-1], flush=True)
    return report.circumstances() | {"date": datetime.date.today().isoformat(), "rows": rows}


def draw(found: dict[str, Any]) -> Figure:
    """All programs."""
    machine, versions = found["machine"], found["versions"]
    where = f"{machine['threads']} cores of {machine['processor']} ({machine['target']})"
    return ratio_bars(found["rows"], tuple(COLORS), f"Times as fast as plain JAX {versions['jax']}: {where}")


def ratio_bars(rows: Sequence[dict[str, Any]], types: Sequence[str], title: str) -> Figure:
    """Bars, one for each program and type, on a logarithmic scale on which 1 is plain JAX."""
    rows, height = rows[::-1], 0.76 / len(types)
    figure = Figure(figsize=(7.2, 0.8 + 0.48 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, dtype in enumerate(types):
        places = [j + height * ((len(types) - 1) / 2 - i) for j in range(len(rows))]
        bars = axes.barh(places, [row[dtype] for row in rows], height=height, color=COLORS[dtype], label=dtype)
        axes.bar_label(bars, [label(row[dtype]) for row in rows], padding=3, fontsize=8)
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_xscale("log")
    ratios = [row[dtype] for row in rows for dtype in types]
    largest = max(ratios)
    axes.set_xlim(min(0.5, 0.8 * min(ratios)), 2.2 * largest)
    axes.set_xticks(
        ticks := [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n <= 2 * largest], [f"{n}x" for n in ticks]
    )
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if len(types) > 1:
        figure.legend(loc="outside lower right", ncols=len(types), frameon=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def label(value: float) -> str:
    """Two digits, or as many as stand before the point."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def measured_or_kept(
    name: str, description: str | None, measure: Callable[[int], Any], file: str
) -> tuple[Any, pathlib.Path]:
    """What the program `benchmarks.<name>` measures or, with --draw, has measured; and the folder of its pictures."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each program; the best one counts")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    options = parser.parse_args()
    data = options.folder / file
    if not options.draw:
        data.write_text(json.dumps(measure(options.turns), indent=1) + "\n")
    return json.loads(data.read_text()), options.folder


def main() -> None:
    """Measures and draws."""
    found, folder = measured_or_kept("overview", __doc__, measure, "speed.json")
    draw(found).savefig(folder / "speed.svg")


if __name__ == "__main__":
    main()
