"""The predicted time of a plan: plain arithmetic on facts about a processor, without JAX or MLIR.

What was fitted to measurements is in machine.fitted; `python -m benchmarks.regret` shows how well it does on a machine.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from jax_nano.ir.dot import extent
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Machine
from jax_nano.schedule.channels import channels_of
from jax_nano.schedule.cost.memory import (
    PACKED,
    UnpackedRhs,
    fetch_cycles,
    lhs_refetch_cycles,
    lhs_stalls,
    lhs_wait_cycles,
    lost_out_cycles,
    memory_seconds,
    result_leaves,
    rhs_block_bytes,
    rhs_stalls,
    stream_cycles,
)
from jax_nano.schedule.cost.microkernel import (
    BlockCost,
    PanelFetch,
    Rows,
    Unit,
    block_cycles,
    extra_work,
    inner_product_cycles,
    loop_cycles,
    overlap,
    panels,
)
from jax_nano.schedule.cost.packing import hidden_packing_cycles, packing_cycles
from jax_nano.schedule.cost.turns import turns
from jax_nano.schedule.loop_nest import window_rows, window_steps
from jax_nano.schedule.places import placewise_cycles
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.scratch import whole_lines

PLACES_HELD = 8  # of rows, in general registers beside those of loops and of B: x86 has 16


class Estimate(NamedTuple):
    """Predicted times, in seconds."""

    compute: float  # of all tasks, on one thread
    packing: float
    memory: float  # for reading the operands and writing the result once
    total: float  # with all threads


def seconds(plan: Plan, machine: Machine, threads: int | None = None) -> Estimate:
    """Predicts the time of a plan on a machine: all work on one thread, shared out, beside the way from memory."""
    return KernelCost(plan, machine).seconds(plan, threads)


class KernelCost:
    """The cost of a kernel, however it is divided into tasks: what all divisions share is computed once."""

    def __init__(self, kernel: Plan, machine: Machine):
        """Takes any plan of the kernel."""
        self.machine, self.fitted = machine, machine.fitted
        self.unit = unit_of(kernel, machine)
        self.kernel = kernel
        self.block = functools.cache(self._block)
        self._fetches: dict[tuple, PanelFetch] = {}

    def seconds(self, plan: Plan, threads: int | None = None) -> Estimate:
        """Predicts the time of a plan that differs from the kernel in its tasks only."""
        machine, fitted, hertz = self.machine, self.fitted, self.machine.ghz * 1e9
        threads = threads or machine.threads
        cycles = self.compute_cycles(plan)
        compute, packing = cycles / hertz, exposed_packing_cycles(plan, machine, cycles) / hertz
        tasks = plan.rounds * plan.tasks["compute"]
        workers = min(threads, tasks)
        memory = memory_seconds(plan, machine, workers)
        share = min(1.0, turns(tasks, workers, machine) * largest_task(plan)) * (compute + packing)
        total = overlap(fitted, share, memory)
        if workers > 1:
            total += fitted.imbalance_share * total * workers / tasks
            total += 1e-6 * (fitted.wake_us * (len(plan.tasks) * plan.rounds) + fitted.task_us * tasks / workers)
        return Estimate(compute, packing, memory, total)

    def compute_cycles(self, plan: Plan) -> float:
        """Cycles of all microkernels, on one thread: every block of the sum, for each element of the outer axes.

        Beside them comes A where it is not packed; then there are the rows of C that several tasks share, and the first
        panel of each task's B, which nothing prefetches.
        """
        unit, fitted = self.unit, self.fitted
        if plan.channelwise:
            return channelwise_cycles(plan, unit)
        if plan.placewise:
            return placewise_cycles(plan, unit)
        blocks_of_sums = plan.outer_elements * plan.k_blocks
        if plan.inner_product:
            sizes, held = (plan.m.size, plan.n.size), plan.mc * plan.dot.has_window("lhs")
            cycles = inner_product_cycles(unit, (plan.mr, plan.nr), steps_in_lanes(plan), sizes, held)
            if plan.window_runs.longest:
                blocks = -(-plan.m.size // plan.mr) * -(-plan.n.size // plan.nr)
                cycles += blocks * self.placing_cycles(plan.mr)
            return blocks_of_sums * cycles
        columns = [(cols, count, self.fetch(plan, cols)) for cols, count in panels(plan.n.size, plan.nr)]
        # With one panel of B, only the first block of A fetches it.
        blocks = -(-plan.m.size // plan.mc) if plan.n.size > plan.nr else 1
        rows = Rows(panels(plan.m.size, plan.mr), lhs_blocks=blocks, ragged_fetches=True)
        cycles = loop_cycles(columns, rows, functools.partial(self.block_cost, plan)) * blocks_of_sums
        if plan.prefetch_rhs:
            first = max(fetch.first for _, _, fetch in columns)
            cycles += plan.outer_elements * plan.m_tasks * plan.n_tasks * fitted.first_panel_wait_share * first
        cycles = overlap(fitted, cycles, lhs_wait_cycles(plan, self.machine))
        cycles += plan.outer_elements * plan.m.size * (plan.n_tasks * plan.rounds - 1) * fitted.out_row_cycles
        return cycles + plan.rounds * plan.tasks["compute"] * unit.core.setup_cycles

    def block_cost(self, plan: Plan, rows: int, cols: int) -> BlockCost:
        """The cost of one microkernel, with what it waits for as others of its task take up the caches."""
        cycles = self.block(rows, cols) + rows * lost_out_cycles(plan, self.machine, cols)
        tall = -(-rows // self.unit.instruction.shape[0])
        return BlockCost(cycles, waiting=self.steps * lhs_refetch_cycles(plan, self.machine, tall))

    def fetch(self, plan: Plan, cols: int) -> PanelFetch:
        """How a panel of B comes: that depends on where a task's block of B is, and on how wide it is."""
        key = cols, plan.rhs, plan.nt, rhs_block_bytes(plan)
        if key not in self._fetches:
            self._fetches[key] = panel_fetch(plan, self.unit, cols)
        return self._fetches[key]

    @functools.cached_property
    def steps(self) -> int:
        """Instructions along k of a microkernel."""
        return self.kernel.dot.terms * self.unit.steps(self.kernel.kc)

    def placing_cycles(self, rows: int, registers: int = 0) -> float:
        """Cycles of finding the runs of so many rows that are read in place: long ones once for all of them.

        Where there are more rows than registers for their places, those are loaded again in every step.
        """
        runs, share = self.kernel.window_runs, strided_share(self.kernel, rows)
        runs_of_step = share / runs.longest + (1 - share) * rows / runs.shortest
        placing = self.fitted.window_run_cycles * self.kernel.kc * runs_of_step
        if rows <= PLACES_HELD:
            return placing
        core, steps = self.unit.core, self.unit.steps(self.kernel.kc)
        loads = (2 * rows + registers) / core.loads_per_cycle
        busy = rows * registers / core.rate(self.unit.instruction.name)[0]
        return placing + (1 - share) * steps * max(0.0, loads - busy)

    def _block(self, rows: int, cols: int) -> float:
        """Cycles of a microkernel: all terms of its sum, tiles' way through vectors, sums carried on, waits for A."""
        plan, unit, machine = self.kernel, self.unit, self.machine
        tall, registers = -(-rows // unit.instruction.shape[0]), -(-cols // unit.lanes)
        cycles = block_cycles(unit, tall, registers, self.steps, carried_on=plan.k_blocks > 1)
        cycles += tile_pass_cycles(plan, unit, rows, registers) + self.steps * lhs_stalls(plan, machine, rows)
        cycles += (plan.dot.terms - 1) * self.fitted.block_overhead_cycles
        if plan.window_runs.longest:
            cycles += self.placing_cycles(rows, registers)
        if plan.k_blocks > 1:
            cycles += tall * registers / unit.core.stores_per_cycle
        return cycles


def steps_in_lanes(plan: Plan) -> float:
    """Steps of a block of the sum with K in the lanes: a window's runs are in registers of their own, unless packed."""
    runs, width = plan.window_runs, plan.instruction.shape[1] * plan.instruction.vnni
    if not runs.longest:
        return plan.kc
    share = strided_share(plan, plan.mr)
    long, short = (plan.kc / run * -(-run // width) * width for run in (runs.longest, runs.shortest))
    return share * long + (1 - share) * short


def strided_share(plan: Plan, rows: int) -> float:
    """The share of blocks of so many rows of a window that are one matrix: see codegen.window_rows."""
    dot, steps = plan.dot, window_steps(plan.dot)
    window, places = dot.window, window_rows(dot)
    if not window or not places:
        return 1.0
    along, begins = places[-1], places[-1].size - (rows - 1 if len(places) > 1 else 0)
    for number, bound in enumerate(window.bounds):
        if step := along.window[number]:
            room = bound.size - sum((axis.size - 1) * axis.window[number] for axis in steps) - (rows - 1) * step
            first, last = -bound.begin / step, (room - 1 - bound.begin) / step  # of the blocks that are inside
            begins = min(begins, math.floor(last) + 1) - max(0, math.ceil(first))
    return max(0.0, begins / along.size)


def channelwise_cycles(plan: Plan, unit: Unit) -> float:
    """Cycles of all microkernels with channels in the lanes: of each run of taps, loads, shuffles and products."""
    found = channels_of(plan.dot)
    assert found
    channels, core = found[1], unit.core
    used = channels.groups(unit.lanes) * channels.outputs
    inputs = channels.inputs if channels.is_summed else 1
    runs = plan.outer_elements * extent(plan.k_outer) * plan.k.size / plan.unroll
    total = 0.0
    for cols, col_count in panels(plan.n.size, plan.nr):
        registers = -(-cols // used)
        for rows, row_count in panels(plan.m.size, plan.mr):
            seen = rows + plan.unroll - 1 if channels.is_summed else plan.unroll
            loads = registers * (seen + plan.unroll * inputs)
            products = registers * rows * plan.unroll * inputs
            shuffles = registers * seen * channels.inputs * (channels.inputs * channels.outputs > 1)
            per_cycle, latency = core.rate(unit.instruction.name)
            waiting = plan.unroll * inputs * latency
            busy = max(loads / core.loads_per_cycle, products / per_cycle, waiting)
            total += row_count * col_count * (busy + shuffles / core.shuffles_per_cycle)
    return runs * total + plan.rounds * plan.tasks["compute"] * core.setup_cycles


def exposed_packing_cycles(plan: Plan, machine: Machine, compute: float) -> float:
    """Cycles of packing that do not go on beside `compute` cycles of products."""
    work, fetching = packing_cycles(plan, machine)
    if plan.prefetches_rhs:
        pieces = plan.nr if plan.overlap_packing else plan.block_columns
        first = pieces / plan.nt if plan.rhs == "per_task" else 0.0  # of a task: nothing prefetches it
        hidden = min((1 - machine.fitted.packing_exposed_share) * fetching, compute)
        fetching -= (1 - first) * hidden
    if plan.overlap_packing:
        work *= machine.fitted.overlapped_work
        fetching *= machine.fitted.overlapped_fetch
    return work - hidden_packing_cycles(plan, machine, compute) + fetching


def largest_task(plan: Plan) -> float:
    """The share of all work that the largest task has: the others may be ragged."""
    parts = (
        (plan.mt, plan.m.size),
        (min(plan.nt, plan.nc), plan.n.size),
        (plan.outer_per_task, plan.outer_elements),
        (plan.blocks_per_split, plan.k_blocks),
    )
    return math.prod([min(1.0, part / max(whole, 1)) for part, whole in parts])


def unit_of(plan: Plan, machine: Machine) -> Unit:
    """The unit that computes a plan's blocks of C."""
    unit = Unit(machine, machine.isa(plan.isa), plan.instruction)
    unpacked = {"lhs_unpacked": plan.lhs == "unpacked", "rhs_unpacked": not plan.reads_panels}
    extra = extra_work(unit, plan, **unpacked, inner_product=plan.inner_product)
    far = plan.row_by_row and result_leaves(plan.dot, machine)
    return unit.having(extra.row_by_row(machine.fitted) if far else extra)


def panel_fetch(plan: Plan, unit: Unit, cols: int) -> PanelFetch:
    """How a panel of B of so many columns comes to the microkernels that read it.

    Of several products of bf16 splits, only the first of each split of B fetches it.
    """
    machine, instruction, dtype = unit.machine, unit.instruction, plan.dot.rhs
    terms, splits, depth = plan.dot.terms, plan.dot.bf16_splits[1], instruction.shape[2]
    steps = terms * unit.steps(plan.kc)
    lanes = -(-cols // unit.lanes) * unit.lanes
    step_bytes, row_bytes = bytes_of(instruction.rhs, lanes * depth), bytes_of(dtype, lanes)
    held = steps * splits // terms + (instruction.lhs_offset != 0)  # with the compensation
    again = steps * fetch_cycles(machine, held * step_bytes, step_bytes)
    b_bytes, unpacked = rhs_block_bytes(plan), PACKED
    if plan.rhs == "unpacked":
        unpacked = UnpackedRhs.of(plan, prefetched=plan.prefetch_rhs)
        first = steps * stream_cycles(machine, b_bytes, (depth, row_bytes), plan.m.size)
        first *= 1 + machine.fitted.stream_overhead_bytes / bytes_of(dtype, plan.nt)
    elif plan.rhs == "panels":
        first = steps * stream_cycles(machine, b_bytes, (1, row_bytes * depth), plan.m.size)
    else:
        share = splits / terms
        first = share * steps * fetch_cycles(machine, b_bytes, step_bytes) + (1 - share) * again
    waits = rhs_stalls(machine, unpacked, plan.kc, row_bytes, again=plan.m.size > plan.mr)
    l2 = steps * depth * whole_lines(row_bytes) / machine.l2_bytes_per_cycle
    return PanelFetch(machine.fitted, first, l2, again, steps * depth * waits, plan.prefetch_rhs)


def tile_pass_cycles(plan: Plan, unit: Unit, rows: int, registers: int) -> float:
    """Cycles of the vectors that sums by tiles go through: before C, unless that takes tiles, and after small terms.

    From there, they go back into tiles.
    """
    if not plan.instruction.tiles:
        return 0.0
    tiles, core = unit.core, unit.machine.vector_core(plan.isa)
    height, lanes, _ = plan.instruction.shape
    whole = rows % height == 0 and plan.n.size % lanes == 0
    as_they_are = whole and plan.dot.out == plan.instruction.acc and not plan.dot.epilogue and not plan.dot.scaling
    through = 1 / core.loads_per_cycle + 1 / core.stores_per_cycle + 2 / core.vector_per_cycle
    cycles = 0.0 if as_they_are else rows * registers * through
    if plan.dot.terms > 1:
        there_and_back = -(-rows // height) * registers * (1 / tiles.stores_per_cycle + 1 / tiles.loads_per_cycle)
        cycles += rows * registers * through + there_and_back + unit.machine.fitted.block_overhead_cycles
    return cycles
