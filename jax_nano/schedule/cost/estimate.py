"""What a plan costs: plain arithmetic on facts about a processor, without JAX or MLIR.

The shares and cycles that are constants here, and not facts of targets/, were fitted to products measured on 2 cores of
Zen 5; `python -m benchmarks.regret` shows how well they do on a machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax_nano.ir.dot import extent
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Machine
from jax_nano.schedule.cost.memory import (
    PACKED,
    STREAM_BYTES,
    InPlace,
    fetch_cycles,
    lhs_refetch_cycles,
    lhs_stalls,
    lhs_wait_cycles,
    memory_seconds,
    rhs_block_bytes,
    rhs_stalls,
    stream_cycles,
)
from jax_nano.schedule.cost.microkernel import (
    BLOCK_OVERHEAD_CYCLES,
    Coming,
    Extra,
    beside,
    block_cycles,
    extra_work,
    inner_cycles,
    panels,
)
from jax_nano.schedule.cost.packing import hidden_packing_cycles, packing_cycles
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.plan import lines as whole_lines

# The share of fetching B for packing that is left where it is asked for ahead.
UNHIDDEN = 0.1
# The share of the time that a panel of B takes to come which is waited for, where nothing asked for it before.
UNASKED = 0.5
# Handing out one task, where several threads take part.
TASK_US = 0.2
# The share of a task that a thread waits for the others at the end, on a machine with other work to do.
IMBALANCE = 0.06


@dataclass(frozen=True)
class Estimate:
    """Predicted times, in seconds."""

    compute: float  # of all tasks, on one thread
    packing: float
    memory: float  # for reading the operands and writing the result once
    total: float  # with all threads


def seconds(plan: Plan, machine: Machine, threads: int | None = None) -> Estimate:
    """Predicts the time of a plan on a machine."""
    threads = threads or machine.threads
    hertz = machine.ghz * 1e9
    compute = compute_cycles(plan, machine) / hertz
    work, fetching = packing_cycles(plan, machine)
    if plan.prefetches_rhs:
        pieces = plan.nr if plan.overlap_packing else plan.block_columns
        first = pieces / plan.nt if plan.rhs == "per_task" else 0.0  # of a task: nothing asks for it
        hidden = min((1 - UNHIDDEN) * fetching, compute * hertz)
        fetching -= (1 - first) * hidden
    packing = (work - hidden_packing_cycles(plan, machine, compute * hertz) + fetching) / hertz
    tasks = plan.rounds * plan.tasks["compute"]
    workers = min(threads, tasks)
    memory = memory_seconds(plan, machine, workers)
    share = min(1.0, math.ceil(tasks / workers) * largest_task(plan)) * (compute + packing)
    total = beside(share, memory)
    if workers > 1:
        total += IMBALANCE * total * workers / tasks
        total += 1e-6 * (machine.wake_us * (len(plan.tasks) * plan.rounds) + TASK_US * tasks / workers)
    return Estimate(compute, packing, memory, total)


def largest_task(plan: Plan) -> float:
    """The share of all work that the largest task has: the others may be ragged."""
    parts = (
        (plan.mt, plan.m.size),
        (min(plan.nt, plan.nc), plan.n.size),
        (plan.outer_per_task, extent(plan.outer)),
        (plan.blocks_per_split, plan.k_blocks),
    )
    return math.prod(min(1.0, part / max(whole, 1)) for part, whole in parts)


def compute_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of all microkernels, on one thread.

    The first panel of rows of every block of A fetches a panel of B from where B's block is, unless that is the only
    one or it was asked for before. The others find it nearer, and so do all but the first of the products of one
    component of B.
    """
    core, instruction = machine.cores[plan.isa], plan.instruction
    if plan.inner_product:
        steps = -(-plan.kc // (instruction.shape[2] * instruction.shape[1]))
        cycles = sum(
            r_count * c_count * inner_cycles(machine.isa(plan.isa), machine, instruction, r, c, steps, plan.m.size)
            for r, r_count in panels(plan.m.size, plan.mr)
            for c, c_count in panels(plan.n.size, plan.nr)
        )
        return cycles * extent(plan.outer) * plan.k_blocks
    terms, components = plan.dot.terms, plan.dot.bf16_splits[1]
    lanes, steps = instruction.shape[1], terms * -(-plan.kc // instruction.shape[2])
    blocks = -(-plan.m.size // plan.mc) if plan.n.size > plan.nr else 1
    b_bytes = rhs_block_bytes(plan)
    extra = extra_for(plan, machine)
    in_place = InPlace.of(plan.dot, plan.n, plan.k, plan.prefetch_rhs) if plan.rhs == "unpacked" else PACKED
    cycles = unasked = 0.0
    for cols, col_count in panels(plan.n.size, plan.nr):
        registers = -(-cols // lanes)
        step_bytes = bytes_of(instruction.rhs, registers * lanes * instruction.shape[2])
        row_bytes, rows_in_step = bytes_of(plan.dot.rhs, registers * lanes), instruction.shape[2]
        held = steps * components // terms + (instruction.lhs_offset != 0)  # with the starting values
        again = steps * fetch_cycles(machine, held * step_bytes, step_bytes)
        if plan.rhs == "unpacked":
            first = steps * stream_cycles(machine, b_bytes, row_bytes, rows_in_step, plan.m.size)
            first *= 1 + STREAM_BYTES / bytes_of(plan.dot.rhs, plan.nt)
        elif plan.rhs == "panels":
            first = steps * stream_cycles(machine, b_bytes, row_bytes * rows_in_step, 1, plan.m.size)
        else:
            share = components / terms
            first = share * steps * fetch_cycles(machine, b_bytes, step_bytes) + (1 - share) * again
        waits = rhs_stalls(machine, in_place, plan.kc, row_bytes, again=plan.m.size > plan.mr)
        near = steps * rows_in_step * whole_lines(row_bytes) / machine.l2_bytes_per_cycle
        coming = Coming(first, near, again, stalled=steps * rows_in_step * waits, far=plan.prefetch_rhs)
        column = 0.0
        for rows, row_count in panels(plan.m.size, plan.mr):
            tall = -(-rows // instruction.shape[0])
            block = block_cycles(core, instruction, tall, registers, steps, extra)
            block += tile_pass_cycles(plan, machine, rows, registers) + steps * lhs_stalls(plan, machine, rows)
            block += (terms - 1) * BLOCK_OVERHEAD_CYCLES
            if plan.k_blocks > 1:
                block += tall * registers / core.stores_per_cycle
            waiting = steps * lhs_refetch_cycles(plan, machine, tall)
            column += coming.rows(block, row_count, min(blocks, row_count), waiting)
        cycles += col_count * coming.column(column)
        unasked = max(unasked, first)
    cycles *= extent(plan.outer) * plan.k_blocks
    if plan.prefetch_rhs:  # nothing asks for a task's first panel
        cycles += extent(plan.outer) * plan.m_tasks * plan.n_tasks * UNASKED * unasked
    cycles = beside(cycles, lhs_wait_cycles(plan, machine))
    cycles += extent(plan.outer) * plan.m.size * (plan.n_tasks * plan.rounds - 1) * machine.row_cycles
    return cycles + plan.rounds * plan.tasks["compute"] * core.setup_cycles


def extra_for(plan: Plan, machine: Machine) -> Extra:
    """What a plan's steps need beside loads and multiply-accumulates."""
    in_place = plan.lhs == "unpacked", not plan.reads_panels
    core = machine.vector_core(plan.isa)
    return extra_work(machine, core, plan.dot, plan.m, plan.instruction, *in_place, plan.inner_product)


def tile_pass_cycles(plan: Plan, machine: Machine, rows: int, registers: int) -> float:
    """Cycles of the vectors that sums by tiles go through: before C, unless that takes tiles, and after small terms.

    From there, they go back into tiles.
    """
    if not plan.instruction.tiles:
        return 0.0
    tiles, core = machine.cores[plan.isa], machine.vector_core(plan.isa)
    height, lanes, _ = plan.instruction.shape
    whole = rows % height == 0 and plan.n.size % lanes == 0
    as_they_are = whole and plan.dot.out == plan.instruction.acc and not plan.dot.epilogue and not plan.dot.scaling
    through = 1 / core.loads_per_cycle + 1 / core.stores_per_cycle + 2 / core.vector_per_cycle
    cycles = 0.0 if as_they_are else rows * registers * through
    if plan.dot.terms > 1:
        there_and_back = -(-rows // height) * registers * (1 / tiles.stores_per_cycle + 1 / tiles.loads_per_cycle)
        cycles += rows * registers * through + there_and_back + BLOCK_OVERHEAD_CYCLES
    return cycles
