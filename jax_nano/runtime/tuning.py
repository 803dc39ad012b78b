"""Tuning: the plans that the cost model likes best, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jax_nano.ir.attention import Attention, Problem
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import FLOAT8, NUMPY_TYPES
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.ir.pipeline import Pipeline
from jax_nano.machine.isa import Isa, Machine
from jax_nano.runtime.compiler import CompilationFailed, compile_plan
from jax_nano.runtime.kernel import TARGET_NAME, Kernel, processor_for
from jax_nano.runtime.progress import Bar, progress
from jax_nano.runtime.report import describe
from jax_nano.schedule.attention.plan import AnyPlan
from jax_nano.schedule.choose import ranked_plans
from jax_nano.schedule.pipelines.plan import PipelinePlan

CANDIDATES = 8  # plans that are measured for a product
TURNS = 5
TURN_SECONDS = 0.01
DTYPES = NUMPY_TYPES | {"s4": jnp.int4, "u4": jnp.uint4} | {f8: getattr(jnp, f"float8_{f8[2:]}") for f8 in FLOAT8}


@dataclass(frozen=True, kw_only=True, repr=False)
class Tuned:
    """What was measured for one product.

    Attributes:
      problem: the product.
      seconds: the plans, fastest first, with the seconds each took.
      chosen: the seconds that the cost model's own choice took.
    """

    problem: Problem
    seconds: tuple[tuple[AnyPlan, float], ...]
    chosen: float

    def __str__(self) -> str:
        plan, _ = self.seconds[0]
        if isinstance(self.problem, Pipeline) or isinstance(plan, PipelinePlan):
            return f"{name_of(self.problem)}: {self.summary}"
        if isinstance(self.problem, Attention | Grouped | Gated):
            sizes = self.problem.label
        else:
            b, m, n, k = self.problem.sizes
            sizes = f"{b} x ({m} x {n} x {k})"
        return f"{sizes}: {plan.mr}x{plan.nr}, {self.summary}"

    __repr__ = __str__

    @property
    def best(self) -> float:
        """The seconds of the fastest plan."""
        return self.seconds[0][1]

    @property
    def gain(self) -> float:
        """How many times as fast the fastest plan is as the cost model's choice."""
        return self.chosen / self.best

    @property
    def summary(self) -> str:
        """What was found, in a few words."""
        return f"{microseconds(self.best)}, {self.gain:.2f} times as fast as the cost model's choice"


class Tunings(tuple[Tuned, ...]):
    """What was measured of a program's products, in their order; prints as a table of what that gained."""

    @property
    def chosen(self) -> float:
        """The seconds of the cost model's choices, each product counted once."""
        return sum(tuned.chosen for tuned in self)

    @property
    def best(self) -> float:
        """The seconds of the fastest plans, likewise."""
        return sum(tuned.best for tuned in self)

    def __str__(self) -> str:
        if not self:
            return "no product was measured"
        rows = [(name_of(tuned.problem), tuned.chosen, tuned.best) for tuned in self]
        total = f"{len(self)} product{'s' * (len(self) != 1)}, each counted once"
        rows.append((total, self.chosen, self.best))
        width = max(len(name) for name, *_ in rows)
        header = f"{'product':{width}}{'cost model':>14}{'best found':>14}{'gain':>7}"
        return "\n".join([header, *(
            f"{name:{width}}{microseconds(chosen):>14}{microseconds(best):>14}{chosen / best:7.2f}"
            for name, chosen, best in rows
        )])  # fmt: skip

    __repr__ = __str__


def name_of(problem: Problem) -> str:
    """What tells a product from the others of a program, in words."""
    if isinstance(problem, Attention | Grouped | Gated | Pipeline):
        return describe(problem)
    fused = {"a prologue": problem.prologue, "an epilogue": problem.epilogue}
    names = " and ".join(name for name, work in fused.items() if work)
    return f"{describe(problem)}; with {names}" if names else describe(problem)


def microseconds(seconds: float) -> str:
    """As in `1,234.5 us`."""
    return f"{1e6 * seconds:,.1f} us"


def tune(problem: Problem, machine: Machine, isa: Isa, label: str = "") -> Tuned:
    """Measures the candidates for one product on this machine. Those that do not compile are left out.

    Args:
      problem: the product.
      machine: this machine.
      isa: one of its instruction sets.
      label: what stands beside a progress bar; none is shown where it is empty.

    Raises:
      UnsupportedDot: there is none, or none compiles.
    """
    plans = ranked_plans(problem, machine, isa, CANDIDATES)
    with progress(len(plans) + TURNS, label) as bar:
        kernels = compile_plans(problem, plans, machine, bar)
        seconds = measure_kernels(kernels, bar)
        order = sorted(range(len(kernels)), key=seconds.__getitem__)
        found = tuple((kernels[i].plan, seconds[i]) for i in order)
        tuned = Tuned(problem=problem, seconds=found, chosen=seconds[0])
        bar.finish(tuned.summary)
    return tuned


def compile_plans(problem: Problem, plans: Sequence[AnyPlan], machine: Machine, bar: Bar | None = None) -> list[Kernel]:
    """The kernels of those plans that compile.

    Raises:
      UnsupportedDot: none does.
    """
    kernels, failed = [], UnsupportedDot("there is no plan")
    for i, plan in enumerate(plans):
        if bar:
            bar.advance(f"compiling plan {i + 1} of {len(plans)}")
        try:
            kernels.append(compile_plan(problem, plan, processor_for(plan, machine)))
        except CompilationFailed as reason:
            failed = reason
    if not kernels:
        raise failed
    return kernels


def measure_kernels(kernels: list[Kernel], bar: Bar | None = None) -> list[float]:
    """The best seconds of each kernel."""
    return best_seconds([make_runnable(kernel) for kernel in kernels], bar)


def best_seconds(runs: Sequence[Callable[[], Any]], bar: Bar | None = None) -> list[float]:
    """The best seconds of each run, in turns, so that all meet the same disturbances."""
    counts, best = [], [math.inf] * len(runs)
    for run in runs:
        run()
        counts.append(max(1, int(TURN_SECONDS / mean_seconds(run, 1))))
    for turn in range(TURNS):
        if bar:
            bar.advance(f"measuring, turn {turn + 1} of {TURNS}")
        for i, run in enumerate(runs):
            best[i] = min(best[i], mean_seconds(run, counts[i]))
    return best


def mean_seconds(run: Callable[[], Any], times: int) -> float:
    """Seconds of a run, the mean of several."""
    start = time.perf_counter()
    result = None
    for _ in range(times):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / times


def make_runnable(kernel: Kernel) -> Callable[[], Any]:
    """Runs a kernel on zeros."""
    arrays = zeros(kernel)
    compiled = program(kernel, arrays)
    return lambda: compiled(*arrays)


def zeros(kernel: Kernel) -> list[jax.Array]:
    """Operands of a kernel. They are flat: kernels know the shapes.

    Groups have sizes that share out all rows, and rows that are gathered or scattered are all that are stored, in turn.
    """
    with jax.enable_x64(new_val=True):
        arrays = [jnp.zeros(elements, DTYPES[dtype]) for dtype, elements in kernel.arrays[0]]
        problem = kernel.problem.first if isinstance(kernel.problem, Gated) else kernel.problem
        if isinstance(problem, Grouped):
            arrays[2] = jnp.asarray(problem.even_sizes, arrays[2].dtype)
            if gather := problem.gather:
                arrays[3] = (jnp.arange(problem.rows) % gather.stored).astype(arrays[3].dtype)
            if scatter := problem.scatter:
                at = next(i for i, x in enumerate(problem.arrays) if x.role == "targets")
                modulus = problem.rows if scatter.choices else scatter.stored
                arrays[at] = (jnp.arange(len(arrays[at])) % modulus).astype(arrays[at].dtype)
        return arrays


def program(kernel: Kernel, operands: Sequence[jax.Array]) -> Callable[..., list[jax.Array]]:
    """A compiled program of the kernel alone, for operands such as these."""
    with jax.enable_x64(new_val=True):
        shapes = [jax.ShapeDtypeStruct((elements,), DTYPES[dtype]) for dtype, elements in kernel.arrays[1]]
        call = jax.jit(lambda *arrays: jax.ffi.ffi_call(TARGET_NAME, shapes)(*arrays, **kernel.attributes()))
        return call.lower(*operands).compile()
