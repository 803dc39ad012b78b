"""Tuning: the plans that the cost model likes best, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.dtypes import FLOAT8, NUMPY_TYPES
from jax_nano.machine.isa import Isa, Machine
from jax_nano.runtime.compiler import CompilationFailed, compile_plan
from jax_nano.runtime.kernel import TARGET_NAME, Kernel, processor_for
from jax_nano.schedule.choose import ranked_plans
from jax_nano.schedule.plan import Plan

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

    problem: Dot
    seconds: tuple[tuple[Plan, float], ...]
    chosen: float

    def __str__(self) -> str:
        plan, best = self.seconds[0]
        b, m, n, k = self.problem.sizes
        gain = f"{self.chosen / best:.2f} times as fast as the cost model's choice"
        return f"{b} x ({m} x {n} x {k}): {plan.mr}x{plan.nr}, {1e6 * best:.1f} us, {gain}"

    __repr__ = __str__


def tune(dot: Dot, machine: Machine, isa: Isa) -> Tuned:
    """Measures the candidates for one product on this machine. Those that do not compile are left out.

    Raises:
      UnsupportedDot: there is none, or none compiles.
    """
    kernels, failed = [], UnsupportedDot("there is no plan")
    for plan in ranked_plans(dot, machine, isa, CANDIDATES):
        try:
            kernels.append(compile_plan(dot, plan, processor_for(plan, machine)))
        except CompilationFailed as reason:
            failed = reason
    if not kernels:
        raise failed
    seconds = measure_kernels(kernels)
    order = sorted(range(len(kernels)), key=seconds.__getitem__)
    return Tuned(problem=dot, seconds=tuple((kernels[i].plan, seconds[i]) for i in order), chosen=seconds[0])


def measure_kernels(kernels: list[Kernel]) -> list[float]:
    """The best seconds of each kernel, in turns, so that all meet the same disturbances."""
    runs = [make_runnable(kernel) for kernel in kernels]
    counts, best = [], [math.inf] * len(runs)
    for run in runs:
        run()
        counts.append(max(1, int(TURN_SECONDS / mean_seconds(run, 1))))
    for _ in range(TURNS):
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
    """Runs a kernel on zeros. Its operands are flat: kernels know the shapes."""
    operands, result = kernel.arrays
    with jax.enable_x64(new_val=True):
        zeros = [jnp.zeros(elements, DTYPES[dtype]) for dtype, elements in operands]
        shape = jax.ShapeDtypeStruct((result[1],), DTYPES[result[0]])
        call = jax.jit(lambda *arrays: jax.ffi.ffi_call(TARGET_NAME, shape)(*arrays, **kernel.attributes()))
        compiled = call.lower(*zeros).compile()
    return lambda: compiled(*zeros)
