"""Pictures of results: GFLOP/s against size, a panel a type, under the roof."""

import math
import pathlib
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.report import Results
from benchmarks.suite import Row

COLORS = {"jax_nano": "#1565c0", "XLA": "#e65100", "NumPy": "#2e7d32", "PyTorch": "#8e24aa"}
COLUMNS = 3


def save(results: Results, path: pathlib.Path) -> pathlib.Path | None:
    """Draws the cubes among the products; None where no type has any."""
    cubes = [row for row in results.rows if len(row.sizes) > 1 and len(set(row.sizes.values())) == 1]
    if not cubes:
        return None
    draw(results, cubes).savefig(path, dpi=150)
    return path


def draw(results: Results, cubes: Sequence[Row]) -> Figure:
    """A panel for each type."""
    kinds = list(dict.fromkeys(row.kind for row in cubes))
    columns = min(COLUMNS, len(kinds))
    lines = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(1.2 + 5.4 * columns, 0.6 + 4.0 * lines), layout="constrained")
    machine, versions = results.found["machine"], results.found["versions"]
    figure.suptitle(f"Square matrices on {machine['processor']} ({machine['target']}), {machine['threads']} threads")
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    figure.supxlabel(f"{software}; {results.found['date'][:10]}", fontsize=8, color="#666666")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in list(panels)[len(kinds) :]:
        axes.remove()
    for axes, kind in zip(figure.axes, kinds, strict=True):
        chosen = sorted((row for row in cubes if row.kind == kind), key=lambda row: row.flops)
        draw_panel(axes, kind, chosen, results.roof.read_gb_per_s[1])
    return figure


def draw_panel(axes: Axes, kind: str, rows: Sequence[Row], gb_per_s: float) -> None:
    """The libraries' rates on one type."""
    sizes = [next(iter(row.sizes.values())) for row in rows]
    draw_roof(axes, rows, sizes, gb_per_s)
    for name in rows[0].turns:
        front = name == "jax_nano"
        axes.plot(
            sizes, [row.gflops(name) for row in rows], label=name, color=COLORS[name], zorder=4 if front else 3,
            marker="o", markersize=5 if front else 4, linewidth=2.2 if front else 1.4,
        )  # fmt: skip
    axes.set(xscale="log", title=kind, xlabel="size (M = N = K)", ylabel="GFLOP/s")
    axes.set_xticks([size for size in sizes if size.bit_count() == 1] or sizes)
    axes.set_ylim(0)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")


def draw_roof(axes: Axes, rows: Sequence[Row], sizes: Sequence[int], gb_per_s: float) -> None:
    """The peak, and the bound where operands and result cross the memory bus once each."""
    peak = max((row.peak_gflops for row in rows if row.peak), default=math.inf)
    if rows[0].peak:
        axes.axhline(peak, color="#444444", linewidth=1, linestyle="--", zorder=2)
        words = f"{rows[0].peak}, {peak:.0f}"
        axes.annotate(words, (sizes[0], peak), (0, 3), textcoords="offset points", fontsize=8)
    bounds = [(size, gb_per_s * row.flops / row.bytes) for size, row in zip(sizes, rows, strict=True)]
    below = [(size, bound) for size, bound in bounds if bound < peak]
    if below:
        axes.plot(*zip(*below, strict=True), color="#999999", linewidth=1, linestyle=":", label="bound from memory")
