"""Where the time of a program goes: its kernels, and what XLA computes beside them."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from jax_nano import _native
from jax_nano.machine.isa import Machine
from jax_nano.runtime.report import Report, reports
from jax_nano.runtime.trace import Trace, traced
from jax_nano.schedule.roofline import Roof, roof_of

# Operations that XLA names as the primitives that became kernels, or that are products of its own. What it gives to
# YNNPACK is not among them: most of that is reductions.
PRODUCTS = ("nano_", "dot", "conv_general", "convolution", "ragged_dot", "custom-call")


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """A kernel that ran.

    Attributes:
      report: what it computes.
      runs: how often it ran.
      seconds: of all runs.
      roof: what bounds a run.
    """

    report: Report
    runs: int
    seconds: float
    roof: Roof

    @property
    def kind(self) -> str:
        """What it is, in the plural: the row of the table that it counts in."""
        return self.report.kind

    @property
    def share_of_roof(self) -> float:
        """The least time that it could take, as a share of what it took: above 1 where operands were in a cache."""
        return self.roof.seconds * self.runs / self.seconds if self.seconds else 0.0


@dataclass(kw_only=True)
class ProgramProfile:
    """What became of a program's time.

    Attributes:
      seconds: from its start to its end.
      system_seconds: of all threads, in Linux: clearing pages for the most part.
      kernels: those that ran, by time, longest first.
      left: reports of what has no kernel, each once.
      trace: what XLA ran.
    """

    seconds: float = 0.0
    system_seconds: float = 0.0
    kernels: list[KernelUse] = field(default_factory=list)
    left: list[Report] = field(default_factory=list)
    trace: Trace = field(default_factory=Trace)

    @property
    def kernel_seconds(self) -> float:
        """Of all kernels."""
        return sum(use.seconds for use in self.kernels)

    @property
    def others(self) -> dict[str, tuple[int, float]]:
        """{operation that XLA computes, beside products: (how often, seconds)}, longest first."""
        found = {name: row for name, row in self.trace.seconds.items() if not name.startswith(PRODUCTS)}
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    @property
    def left_seconds(self) -> float:
        """Of products that XLA computes: what operations with their names took beyond the kernels.

        Where no product is left to XLA, it is what calling kernels took.
        """
        named = sum(seconds for name, (_, seconds) in self.trace.seconds.items() if name.startswith(PRODUCTS))
        return max(0.0, named - self.kernel_seconds)

    @property
    def computing_seconds(self) -> float:
        """Of all operations of compiled programs, side by side or not."""
        return self.kernel_seconds + self.left_seconds + sum(seconds for _, seconds in self.others.values())


@contextlib.contextmanager
def profiled(machine: Machine) -> Iterator[ProgramProfile]:
    """Watches what runs inside the block. The profile is filled in when it ends, however it does."""
    profile = ProgramProfile()
    start, system = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
    _native.count_times(wanted=True)
    try:
        with reports() as found, traced() as profile.trace:
            try:
                yield profile
            finally:
                profile.seconds = time.perf_counter() - start
                profile.system_seconds = resource.getrusage(resource.RUSAGE_SELF).ru_stime - system
    finally:
        _native.count_times(wanted=False)
    profile.kernels = uses(found, machine)
    profile.left = list({report.equation: report for report in found if not report.kernel}.values())


def uses(found: list[Report], machine: Machine) -> list[KernelUse]:
    """The kernels that ran, of all that were made."""
    counted, made = _native.counted_times(), {r.kernel.key: r for r in found if r.kernel}
    ran = [(made[key], *times) for key, times in counted.items() if key in made]
    rows = [
        KernelUse(report=report, runs=runs, seconds=seconds, roof=roof_of(report.plan, machine))
        for report, runs, seconds in ran
    ]
    return sorted(rows, key=lambda use: -use.seconds)
