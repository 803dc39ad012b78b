"""What packing takes."""

from __future__ import annotations

import math

from jax_nano.ir.dot import extent
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.program import INSTRUCTIONS
from jax_nano.machine.isa import Core, Machine
from jax_nano.schedule.cost.memory import (
    PACKING_RATE,
    PUSHED_OUT,
    RUN_BYTES,
    asked_in_time,
    footprint,
    lhs_wait_cycles,
    line_fetch_cycles,
    lines,
)
from jax_nano.schedule.cost.microkernel import beside
from jax_nano.schedule.plan import LINE_BYTES, Plan

# The share of an A that would fit the last cache and yet comes from memory: less than of B, as it was just made.
LHS_PUSHED_OUT = 0.25
# The share of the wait for A, asked for beside products, that is left as nothing is asked for while it is packed.
MEANWHILE = 0.4
# What a run of bytes costs beside its own length where it comes from memory, and the share of that where it was asked
# for ahead.
FAR_RUN_BYTES = 256
AHEAD_RUN = 0.6


def packing_cycles(plan: Plan, machine: Machine) -> tuple[float, float]:
    """Cycles of all packing on one thread: the work, and the wait for B that asking for it ahead can hide."""
    core = machine.vector_core(plan.isa)
    m, n, k, outer = plan.m.size, plan.n.size, plan.k.size * extent(plan.k_outer), extent(plan.outer)
    cycles = waiting = 0.0
    if plan.packs_rhs:
        times = outer * (plan.m_tasks if plan.rhs == "per_task" else 1)  # shared panels have no outer axes
        cycles += times * rhs_copy_cycles(plan, machine)
        columns = plan.pack_panels * plan.nr if plan.rhs == "per_round" else plan.block_columns
        far = footprint(plan) > machine.llc.bytes
        if plan.overlap_packing and far:
            columns = plan.nr
        run = bytes_of(plan.dot.rhs, min(columns, n) if plan.n.rhs == 1 else plan.kc)
        waiting += times * lines(k * n, plan.dot.rhs) * line_fetch_cycles(plan, machine, PUSHED_OUT)
        if far:
            cycles += waiting * FAR_RUN_BYTES / run * (AHEAD_RUN if plan.prefetches_rhs else 1)
        else:  # prefetchers bring it at the full rate
            cycles += waiting * RUN_BYTES / run
            waiting *= PACKING_RATE
    if plan.lhs != "unpacked":
        times = outer * plan.n_tasks * plan.rounds * plan.lhs_packings
        cycles += times * m * k * plan.dot.bf16_splits[0] * prologue_cycles(plan, core)
        by_rows = plan.lhs == "rows" and plan.k.lhs == 1
        copied, turned = plan.m.lhs == 1 and plan.lhs == "columns", plan.k.lhs == 1 or plan.m.lhs == 1
        panel = bytes_of(plan.instruction.lhs, plan.lhs_panel * plan.instruction.vnni)
        stores = max(1.0, LINE_BYTES / panel) if plan.lhs == "columns" else 1.0
        converted = plan.dot.lhs != plan.instruction.lhs
        copying = stores * line_cycles(core, plan, by_rows or copied, turned, converted, plain=by_rows)
        cycles += times * lines(m * k * plan.dot.bf16_splits[0], plan.instruction.lhs) * copying
        run = bytes_of(plan.dot.lhs, min(plan.mc, m) if plan.m.lhs == 1 else plan.kc)
        fetching = line_fetch_cycles(plan, machine, LHS_PUSHED_OUT) * (1 + RUN_BYTES / run)
        if asked_in_time(plan, machine):
            cycles += times * MEANWHILE * lhs_wait_cycles(plan, machine)
        else:
            cycles += times * lines(m * k, plan.dot.lhs) * fetching
    return cycles, waiting


def hidden_packing_cycles(plan: Plan, machine: Machine, products: float) -> float:
    """Cycles of packing that go on beside products: of all panels but a task's first, beside its first rows' products.

    Where those are of components, it is the last ones.
    """
    if not plan.overlap_packing:
        return 0.0
    panels = extent(plan.outer) * plan.m_tasks * (1 - plan.nr / plan.nt)
    alone, units = (panels * rhs_copy_cycles(plan, machine, alone) for alone in (True, False))
    first_rows = products / plan.dot.terms * plan.mr / max(plan.mr, min(plan.mt, plan.m.size))
    return max(0.0, first_rows + alone - beside(first_rows, units))


def rhs_copy_cycles(plan: Plan, machine: Machine, alone: bool = True) -> float:
    """Cycles of packing B once."""
    core, k = machine.vector_core(plan.isa), plan.k.size * extent(plan.k_outer)
    padded = -(-plan.n.size // plan.nr) * plan.nr * plan.dot.bf16_splits[1]
    converted = plan.dot.rhs != plan.instruction.rhs
    in_order = plan.n.rhs == 1 and not plan.inner_product
    copying = line_cycles(core, plan, in_order, 1 in (plan.n.rhs, plan.k.rhs), converted, alone=alone)
    return lines(k * padded, plan.instruction.rhs) * copying


def line_cycles(
    core: Core, plan: Plan, copied: bool, transposed: bool, converted: bool, plain: bool = False, alone: bool = True
) -> float:
    """Cycles of packing one line's worth of elements; unless `alone`, those of the units that it keeps busy most."""
    lanes, group = plan.instruction.shape[1], plan.instruction.vnni
    registers = LINE_BYTES / (lanes * bytes_of(plan.instruction.acc))
    if copied:
        shuffles = 0.0 if plain else 2.0 * (group - 1)
    elif transposed:
        shuffles = math.log2(lanes) * 1.5
    else:
        return 4.0 * LINE_BYTES / bytes_of(plan.instruction.rhs)
    operations = shuffles + (2.0 * group if converted else 0.0)
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
