"""Whether a loop is worth a kernel: its predicted time beside that of XLA's code and of a kernel for each product."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.pipeline import (
    Access,
    Contraction,
    Loop,
    Map,
    Pipeline,
    Stage,
    UnsupportedPipeline,
    instructions_of,
    repeated,
)
from jax_nano.lowering.xla_inline import Product, byte_threshold, rules
from jax_nano.machine.isa import Machine
from jax_nano.schedule.cost.inline import VECTOR_ROW_BYTES, inline_seconds
from jax_nano.schedule.cost.pipeline import stage_cycles
from jax_nano.schedule.pipelines.plan import PipelinePlan

FASTER = "XLA's loop is predicted to be as fast: {xla:.1f} us beside {kernel:.1f}"
LARGE_BYTES = 1 << 22  # of a result before a loop, from where on its pages count: smaller ones are in the caches still
# Of each sum of a matrix times a vector in XLA's code, beside reading the matrix: its lanes are added up. On Zen 5 of
# 4.2 GHz, steps of 16, 32, 48 and 64 rows took 10, 30, 32 and 22 ns longer than to read the matrix.
ROW_CYCLES = 2.0
# XLA has operations of their own for cumulative sums and gathers: sums of 16 and of 256 elements in a step took 4 to 7
# cycles an element on Zen 5.
SCALAR_CYCLES = 4.0
SCALAR_INSTRUCTIONS = 4
WHILE_STEPS = 20  # of a loop of unknown length, when its call is weighed


def check_is_faster(plan: PipelinePlan, whole: Pipeline, machine: Machine, outer: float = 0.0) -> None:
    """Checks that a loop's plan is predicted to take less time than what would run without it.

    Args:
      plan: of the loop.
      whole: the loop with the products that stand before and behind it.
      machine: where it runs.
      outer: seconds that a call adds to what is around it.

    Raises:
      UnsupportedPipeline: it is not.
    """
    xla = other_seconds(plan, whole, machine)
    moved = whole.multiplications - plan.problem.multiplications
    own = outer + plan.predicted_seconds + moved / (machine.fitted.kernel_share * peak(plan, machine))
    steps = WHILE_STEPS if any(isinstance(stage, Loop) and stage.length is None for stage in plan.program.stages) else 1
    if own / steps >= xla:
        raise UnsupportedPipeline(FASTER.format(xla=1e6 * xla, kernel=1e6 * own / steps))


def before_seconds(multiplications: int, size: int, plan: PipelinePlan, machine: Machine) -> float:
    """The predicted time of products before a loop, whose results have a size in bytes."""
    fitted = machine.fitted
    computing = multiplications / (fitted.kernel_share * peak(plan, machine))
    return 1e-6 * fitted.kernel_us + computing + 1e-9 * fitted.fresh_byte_ns * size


def other_seconds(plan: PipelinePlan, whole: Pipeline, machine: Machine) -> float:
    """The predicted time of a loop without a kernel for all of it."""
    products = [product_of(stage, whole) for stage, _ in whole.contractions]
    is_function = all(map(rules().inline, products)) and sum(p.bytes for p in products) < byte_threshold()
    scale = plan.task_count
    seconds = 0.0
    scalars = set(map(id, scalar_stages(plan.program.stages)))
    for stage, times in repeated(plan.program.stages):
        if work := stage.epilogue if isinstance(stage, Contraction) else stage:
            cycles = scale * stage_cycles(work, plan, machine) + machine.fitted.function_cycles
            seconds += times * (SCALAR_CYCLES if id(stage) in scalars else cycles) / (machine.ghz * 1e9)
    across = gone_across([stage for stage, _ in whole.contractions])
    for (stage, times), product, is_across in zip(whole.contractions, products, across, strict=True):
        slow = across_seconds(product, machine) if is_across and rules().inline(product) else 0.0
        seconds += times * max(slow, product_seconds(stage, product, plan, machine))
    if not is_function:
        seconds += 1e-6 * machine.fitted.operation_us * sum(times for _, times in repeated(whole.stages))
    return seconds


def scalar_stages(stages: Sequence[Stage], depth: int = 0) -> Iterator[Map]:
    """Stages of one element and few instructions in loops within the loop: cumulative sums, and gathers of elements."""
    for stage in stages:
        if isinstance(stage, Loop):
            yield from scalar_stages(stage.stages, depth + 1)
        elif isinstance(stage, Map) and depth > 1 and is_scalar(stage):
            yield stage


def is_scalar(stage: Map) -> bool:
    """Whether a stage does little to one element."""
    return math.prod(stage.sizes) == 1 and instructions_of(stage.program) <= SCALAR_INSTRUCTIONS


def gone_across(products: Sequence[Contraction]) -> list[bool]:
    """Which products sum along another dimension of an operand than those before do, as steps with w and w.T have.

    XLA lays out an array of a loop once, for one of them, and goes through it across its rows for the other.
    """
    known: dict[int, tuple[int, ...]] = {}
    found = []
    for stage in products:
        is_across = False
        for x in (stage.lhs, stage.rhs):
            dims = [dim for dim, place in enumerate(x.places) if any(a >= len(stage.sizes) for a, _ in place.terms)]
            if len(x.places) > 1 and dims:
                is_across |= known.setdefault(x.value, tuple(dims)) != tuple(dims)
        found.append(is_across)
    return found


def across_seconds(product: Product, machine: Machine) -> float:
    """The predicted time of a product by XLA's code, across the rows of an operand: without vectors."""
    return math.prod(product.sizes) / (machine.fitted.inline_products_per_cycle * machine.ghz * 1e9)


def product_of(stage: Contraction, problem: Pipeline) -> Product:
    """A product as XLA sees it."""
    moves = [axes_of(access) for access in (stage.lhs, stage.rhs)]
    count = {"b": 1, "m": 1, "n": 1}
    for axis, size in enumerate(stage.sizes):
        kind: Literal["b", "m", "n"] = "b" if axis in moves[0] & moves[1] else "m" if axis in moves[0] else "n"
        count[kind] *= size
    k = math.prod(stage.summed)
    last = stage.lhs.places[-1].terms if stage.lhs.places else ()
    return Product(
        sizes=(count["b"], count["m"], count["n"], k),
        types=(stage.dtype, stage.dtype, stage.dtype),
        contiguous_rows=any(axis >= len(stage.sizes) for axis, _ in last),
        bytes=sum(8 * problem.values[x.value].elements for x in (stage.lhs, stage.rhs) if not x.steps),
    )


def axes_of(access: Access) -> set[int]:
    """The axes along which an access moves."""
    return {axis for place in access.places for axis, _ in place.terms if axis >= 0}


def product_seconds(stage: Contraction, product: Product, plan: PipelinePlan, machine: Machine) -> float:
    """The predicted time of a product by XLA's code, by a library or by a kernel of its own, whichever is faster."""
    if rules().inline(product):
        b, m, n, k = product.sizes
        has_vectors = 1 in (m, n) and bytes_of(stage.dtype, min(m * n, k)) >= VECTOR_ROW_BYTES
        adding = b * m * n * ROW_CYCLES / (machine.ghz * 1e9) if has_vectors else 0.0
        return inline_seconds(product.sizes, stage.dtype, machine) + adding
    alone = stage.multiplications / peak(plan, machine)
    fitted = machine.fitted
    library = 1e-6 * fitted.library_us + alone / fitted.library_share
    return min(library, 1e-6 * fitted.kernel_us + alone / fitted.kernel_share)


def peak(plan: PipelinePlan, machine: Machine) -> float:
    """Multiply-accumulates a second, on all threads."""
    core = machine.vector_core(plan.isa)
    return core.dots_per_cycle * plan.lanes(plan.instruction.acc) * machine.ghz * 1e9 * machine.threads
