"""The cost of packing operands."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax_nano.ir.axes import Axis
from jax_nano.ir.convolution import LONGEST_STEP
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.program import INSTRUCTIONS
from jax_nano.machine.isa import Core, Machine
from jax_nano.schedule.cost.memory import (
    lhs_wait_cycles,
    line_count,
    line_fetch_cycles,
    lost_share,
    prefetched_in_time,
)
from jax_nano.schedule.cost.microkernel import overlap
from jax_nano.schedule.loop_nest import window_columns, window_rows, window_steps
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.scratch import LINE_BYTES


def packing_cycles(plan: Plan, machine: Machine) -> tuple[float, float]:
    """Cycles of all packing on one thread: the work, and the wait for B that prefetching it can hide."""
    cycles, waiting = rhs_packing_cycles(plan, machine)
    return cycles + lhs_packing_cycles(plan, machine), waiting


def rhs_packing_cycles(plan: Plan, machine: Machine) -> tuple[float, float]:
    """Cycles of packing B as often as tasks do: the work, and the wait for its lines."""
    if not plan.packs_rhs:
        return 0.0, 0.0
    fitted, n, k = machine.fitted, plan.n.size, plan.sum_steps
    times = plan.outer_elements * (plan.m_tasks if plan.rhs == "per_task" else 1)  # shared panels have no outer axes
    cycles = times * rhs_copy_cycles(plan, machine)
    size = min(k * n, plan.dot.rhs_elements)  # windows that overlap are fetched once
    waiting = times * line_count(size, plan.dot.rhs) * line_fetch_cycles(plan, machine, fitted.rhs_evicted_share)
    far = plan.dot.bytes > machine.llc.bytes
    columns = plan.pack_panels * plan.nr if plan.rhs == "per_round" else plan.block_columns
    if plan.overlap_packing and far:
        columns = plan.nr
    run = bytes_of(plan.dot.rhs, min(columns, n) if plan.n.rhs == 1 else plan.kc)
    if plan.dot.bytes > machine.l2.bytes:
        cycles += times * lost_fetch_cycles(plan, machine)
    if far:
        left = fitted.prefetched_run_share if plan.prefetches_rhs else 1
        return cycles + waiting * fitted.far_run_overhead_bytes / run * left, waiting
    # Prefetchers bring it at the full rate.
    return cycles + waiting * fitted.run_overhead_bytes / run, waiting * fitted.packing_bandwidth_share


def lost_fetch_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of waiting for runs of B on more pages than prefetchers follow, as it is packed panel by panel."""
    depth = plan.k.size if plan.rhs == "per_round" else plan.kc
    along_n = plan.n.rhs == 1
    rows, stride = (depth, plan.k.rhs) if along_n else (plan.nr, plan.n.rhs)
    runs = plan.sum_steps * -(-plan.n.size // plan.nr) if along_n else plan.n.size * -(-plan.sum_steps // depth)
    pages = rows * min(1.0, bytes_of(plan.dot.rhs, stride) / machine.page_bytes)
    return runs * machine.fitted.lost_fetch_cycles * lost_share(machine, pages)


def lhs_packing_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of packing A as often as tasks do: a prologue's work, the copies, and the wait for its lines."""
    if plan.lhs == "unpacked":
        return 0.0
    core, fitted, splits = machine.vector_core(plan.isa), machine.fitted, plan.dot.bf16_splits[0]
    m, k = plan.m.size, plan.sum_steps
    times = plan.outer_elements * plan.n_tasks * plan.rounds * plan.lhs_packings
    cycles = times * m * k * splits * prologue_cycles(plan, core)
    cycles += times * line_count(m * k * splits, plan.instruction.lhs) * lhs_copy_cycles(plan, core)
    if prefetched_in_time(plan, machine):
        return cycles + times * fitted.lhs_prefetch_gap_share * lhs_wait_cycles(plan, machine)
    run = bytes_of(plan.dot.lhs, lhs_run(plan))
    fetching = line_fetch_cycles(plan, machine, fitted.lhs_evicted_share) * (1 + fitted.run_overhead_bytes / run)
    size = min(m * k, plan.dot.lhs_elements)  # windows that overlap are fetched once
    return cycles + times * line_count(size, plan.dot.lhs) * fetching


def lhs_run(plan: Plan) -> int:
    """How many neighbours of A are copied one after the other."""
    along_m = plan.m.lhs == 1
    size = min(plan.mc, plan.m.size) if along_m else plan.kc
    parts: tuple[Axis, ...] = ()
    if plan.dot.has_window("lhs"):
        parts = window_rows(plan.dot) if along_m else window_steps(plan.dot)
    return min(size, parts[-1].size) if parts else size


def hidden_packing_cycles(plan: Plan, machine: Machine, products: float) -> float:
    """Cycles of packing that go on beside products: of all panels but a task's first, beside its first rows' products.

    Where those are of bf16 splits, it is the last ones.
    """
    if not plan.overlap_packing:
        return 0.0
    panels = plan.outer_elements * plan.m_tasks * (1 - plan.nr / plan.nt)
    alone = panels * rhs_copy_cycles(plan, machine)
    units = panels * rhs_copy_cycles(plan, machine, alone=False)
    first_rows = products / plan.dot.terms * plan.mr / max(plan.mr, min(plan.mt, plan.m.size))
    return max(0.0, first_rows + alone - overlap(machine.fitted, first_rows, units))


class Copy(NamedTuple):
    """How elements get from where they are into panels."""

    in_order: bool  # whole registers, as they are in memory
    transposed: bool  # if not that, registers whose elements change places; else they are copied one by one
    converted: bool
    plain: bool = False  # in order, and not interleaved


def rhs_copy_cycles(plan: Plan, machine: Machine, *, alone: bool = True) -> float:
    """Cycles of packing B once; unless `alone`, of the units that this keeps busy most."""
    k, padded = plan.sum_steps, -(-plan.n.size // plan.nr) * plan.nr * plan.dot.bf16_splits[1]
    copy = Copy(
        in_order=plan.n.rhs == 1 and not plan.inner_product,
        transposed=1 in (plan.n.rhs, plan.k.rhs),
        converted=plan.dot.rhs != plan.instruction.rhs,
    )
    core = machine.vector_core(plan.isa)
    copying = line_cycles(core, plan, copy, alone=alone)
    if plan.dot.has_window("rhs") and 1 <= plan.n.rhs <= LONGEST_STEP:
        copying = run_copy_cycles(machine, plan, copy)
    return line_count(k * padded, plan.instruction.rhs) * copying


def run_copy_cycles(machine: Machine, plan: Plan, copy: Copy) -> float:
    """Cycles of packing one line's worth of a window B by runs of places.

    Of places that are a step apart, so many registers are loaded and put together. Where a run begins, and what of it
    is within bounds, is found once for all steps along an axis of the sum that moves along no bound.
    """
    core, placing = machine.vector_core(plan.isa), machine.fitted.window_placing_cycles
    step, shared = plan.n.rhs, 1.0
    if along := plan.shared_steps:
        run = min(plan.nr, window_columns(plan.dot)[-1].size)
        shared = window_steps(plan.dot)[along.axis].size * max(1.0, run / plan.instruction.shape[1])
    apart = (step - 1) * (1.0 / core.loads_per_cycle + 1.0 / core.shuffles_per_cycle)
    return line_cycles(core, plan, copy._replace(in_order=True)) + apart + placing / shared


def lhs_copy_cycles(plan: Plan, core: Core) -> float:
    """Cycles of packing one line's worth of A: panels by columns may be narrower than a line."""
    by_rows = plan.lhs == "rows" and plan.k.lhs == 1
    copy = Copy(
        in_order=by_rows or (plan.m.lhs == 1 and plan.lhs == "columns"),
        transposed=plan.k.lhs == 1 or plan.m.lhs == 1,
        converted=plan.dot.lhs != plan.instruction.lhs,
        plain=by_rows,
    )
    panel = bytes_of(plan.instruction.lhs, plan.lhs_panel * plan.instruction.vnni)
    stores = max(1.0, LINE_BYTES / panel) if plan.lhs == "columns" else 1.0
    return stores * line_cycles(core, plan, copy)


def line_cycles(core: Core, plan: Plan, copy: Copy, *, alone: bool = True) -> float:
    """Cycles of packing one line's worth of elements; unless `alone`, those of the units that it keeps busy most."""
    lanes, group = plan.instruction.shape[1], plan.instruction.vnni
    registers = LINE_BYTES / (lanes * bytes_of(plan.instruction.acc))
    if copy.in_order:
        shuffles = 0.0 if copy.plain else 2.0 * (group - 1)
    elif copy.transposed:
        shuffles = math.log2(lanes) * 1.5
    else:
        return 4.0 * LINE_BYTES / bytes_of(plan.instruction.rhs)
    operations = shuffles + (2.0 * group if copy.converted else 0.0)
    stores, shuffled = 1.0 / core.stores_per_cycle, operations / core.shuffles_per_cycle
    return registers * (stores + shuffled + 1.0 if alone else max(stores, shuffled, 1.0))


def prologue_cycles(plan: Plan, core: Core) -> float:
    """Cycles of work on an element of A: of a register of f32, unless elements are copied one by one."""
    prologue = plan.dot.prologue
    if not prologue:
        return 0.0
    lanes = plan.instruction.shape[1] if 1 in (plan.m.lhs, plan.k.lhs) else 1
    instructions = sum(INSTRUCTIONS.get(operation.name, 1) for operation in prologue.program.operations)
    return (2.0 * instructions / core.vector_per_cycle + len(prologue.extras) / core.loads_per_cycle) / lanes
