"""The roofline: a program's kernels by what they compute for each byte, under what this machine allows."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from jax_nano.machine.isa import Machine
from jax_nano.runtime.program_profile import KernelUse, ProgramProfile

COLORS = {
    "products": "#1565c0", "attention": "#e65100", "convolutions": "#2e7d32", "grouped products": "#8e24aa",
    "loops": "#6d4c41",
}  # fmt: skip
LARGEST = 600.0  # points squared: the mark of a kernel with all of the time
SMALLEST = 12.0


def draw(profile: ProgramProfile, machine: Machine) -> Figure:
    """A mark for each kernel, as large as its share of the kernels' time; a roof for each instruction they use."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    intensities = [intensity(use) for use in profile.kernels]
    span = np.geomspace(min(0.1, *intensities) / 2, max(1000.0, *intensities) * 2, 200)
    roofs = {(use.report.plan.instruction.name, use.roof.peak): use.roof for use in profile.kernels}
    for (name, _), roof in sorted(roofs.items(), key=lambda item: -item[1].peak):
        axes.plot(span, 1e-9 * np.minimum(span * roof.bandwidth, roof.peak), color="#555555", linewidth=1.2, zorder=1)
        axes.annotate(name, (span[-1], 1e-9 * roof.peak), ha="right", va="bottom", fontsize=8, color="#555555")
    for kind in dict.fromkeys(use.kind for use in profile.kernels):
        uses = [use for use in profile.kernels if use.kind == kind]
        areas = [max(SMALLEST, LARGEST * use.seconds / profile.kernel_seconds) for use in uses]
        heights = [1e-9 * use.roof.flops * use.runs / use.seconds for use in uses]
        axes.scatter(
            [intensity(use) for use in uses], heights, s=areas, label=kind, color=COLORS[kind], alpha=0.6,
            edgecolors="white", zorder=3,
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="operations for each byte of operands and results", ylabel="GFLOP/s",
        title=f"Kernels under the roof of {machine.name}, {machine.threads} threads",
    )  # fmt: skip
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    for handle in axes.legend(loc="lower right", frameon=False).legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([60.0])
    figure.supxlabel("the larger a mark, the more of the kernels' time; above the slope, operands come from a cache",
                     fontsize=8, color="#666666")  # fmt: skip
    return figure


def intensity(use: KernelUse) -> float:
    """Operations for each byte."""
    return use.roof.flops / use.roof.bytes
