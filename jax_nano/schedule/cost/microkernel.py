"""The cost of microkernels, and of the loops around them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from jax_nano.ir.dtypes import LARGEST, PACKED_INT4
from jax_nano.machine.coefficients import Fitted
from jax_nano.machine.isa import Core, DotInstruction, Isa, Machine
from jax_nano.schedule.cost.memory import fetch_cycles, run_cycles
from jax_nano.schedule.loop_nest import LoopNest
from jax_nano.schedule.plan import Plan

LOOKUP_REGISTERS = 3  # for pairs of 4-bit integers as bf16, which a table gives


class Extra(NamedTuple):
    """Vector instructions that a step of k needs beside the loads and the multiply-accumulates."""

    per_row: float = 0  # of A's elements, as broadcast
    per_register: float = 0  # of B
    loads: int = 1  # that a register of B takes
    registers: int = 0  # for constants, and between loads and multiply-accumulates
    held: int = 0  # registers of B that stay while several steps are taken out of them, for each that a step reads
    per_run: float = 0  # cycles from a row of C that is stored to the next

    def row_by_row(self, fitted: Fitted) -> Extra:
        """Where C is written row by row: few rows are written in turn, too few to push each other out of caches."""
        return self._replace(per_run=min(self.per_run, fitted.out_row_cycles))


NOTHING_MORE = Extra()


@dataclass(frozen=True)
class Unit:
    """An instruction on a machine, which computes blocks of C, and the extra work of its steps."""

    machine: Machine
    isa: Isa
    instruction: DotInstruction
    extra: Extra = NOTHING_MORE

    @functools.cached_property
    def core(self) -> Core:
        """The throughputs of the machine's core for this instruction set."""
        return self.machine.cores[self.isa.name]

    @property
    def lanes(self) -> int:
        """Columns of C in a register."""
        return self.instruction.shape[1]

    def steps(self, depth: int) -> int:
        """Instructions along k, by columns, for a sum of `depth`."""
        return -(-depth // self.instruction.shape[2])

    def having(self, extra: Extra) -> Unit:
        """The unit, whose steps need this."""
        return replace(self, extra=extra)


def extra_work(
    unit: Unit, nest: LoopNest | Plan, *, lhs_unpacked: bool, rhs_unpacked: bool, inner_product: bool = False
) -> Extra:
    """The extra work of a step: unpacked operands converted, rows of an unpacked B interleaved, rows of C stored."""
    dot, instruction, core = nest.dot, unit.instruction, unit.machine.vector_core(unit.isa.name)
    shuffled = core.vector_per_cycle / core.shuffles_per_cycle  # what a shuffle counts
    per_row, registers = 0.0, instruction.operations - 1
    if lhs_unpacked:
        converted = dot.lhs != instruction.lhs
        per_row, registers = 2.0 * converted, registers + converted
        if instruction.lhs_offset:  # through a general register, out of which one is spread in a cycle
            per_row += core.vector_per_cycle
    extra = Extra(per_row, registers=registers, per_run=run_cycles(unit.machine, dot, nest.m))
    if not rhs_unpacked:
        return extra
    if dot.rhs in PACKED_INT4 and instruction.rhs == "bf16":  # a shift and a permutation
        return extra._replace(per_register=1.0 + shuffled, registers=LOOKUP_REGISTERS, held=1)
    group, per_register = instruction.vnni, 0.0
    interleaved = group > 1 and not inner_product
    if interleaved:
        per_register += 2.0 * shuffled * math.log2(group)
        registers += 2 * group  # rows as they are, and interleaved
    if dot.rhs != instruction.rhs:
        through_f32 = dot.rhs in LARGEST and instruction.rhs == "bf16"  # half by half
        per_register += group * (4.0 if through_f32 else 2.0)
        registers += 2
    loads, held = group if interleaved else 1, int(dot.rhs in PACKED_INT4)
    return extra._replace(per_register=per_register, loads=loads, registers=registers, held=held)


class StepCost(NamedTuple):
    """One step of k on a block of accumulators."""

    bound: float  # cycles by throughput
    waiting: float  # cycles beyond that until each accumulator's last update is done
    instructions: float

    @property
    def cycles(self) -> float:
        """Of one of many steps."""
        return self.bound + self.waiting


def step_cost(unit: Unit, rows: int, registers: int) -> StepCost:
    """One step of k on a block of rows x registers accumulators.

    rows * registers multiply-accumulates are fed by rows loads of A and registers of B; each accumulator waits for its
    own last update.

    Source: Low et al., "Analytical Modeling Is Enough for High-Performance BLIS", ACM TOMS 43(2), 2016.
    """
    core, extra, fitted = unit.core, unit.extra, unit.machine.fitted
    dots, loads = rows * registers, rows + registers * extra.loads
    others = rows * extra.per_row + registers * extra.per_register
    vectors = dots * unit.instruction.operations
    instructions = vectors + loads + others + 1
    per_cycle, latency = core.rate(unit.instruction.name)
    bound = max(
        dots / per_cycle + fitted.port_conflict_share * others / core.vector_per_cycle,
        loads / core.loads_per_cycle,
        (vectors + others) / core.vector_per_cycle,
        instructions / core.issue_per_cycle,
    )
    exposed = fitted.load_exposed_share * loads / core.loads_per_cycle
    return StepCost(bound + exposed, max(0.0, fitted.latency_slack * latency - bound), instructions)


def block_cycles(unit: Unit, rows: int, registers: int, steps: int, *, carried_on: bool = False) -> float:
    """Cycles of a microkernel: its loop, and the accumulators cleared before and stored after.

    Of short microkernels the processor has several in flight: one waits while others compute. Not so where one carries
    on the sums of another.
    """
    fitted, stores = unit.machine.fitted, rows * registers / unit.core.stores_per_cycle
    step = step_cost(unit, rows, registers)
    instructions = steps * step.instructions + 2 * rows * registers
    in_flight = 1.0 if carried_on else max(1.0, unit.core.in_flight / instructions)
    cycles = steps * step.bound + stores + (steps * step.waiting + fitted.block_overhead_cycles) / in_flight
    return overlap(fitted, cycles, rows * unit.extra.per_run)


def overlap(fitted: Fitted, compute: float, memory: float) -> float:
    """The time of both, where each goes on while the other waits."""
    longer, shorter = (compute, memory) if compute > memory else (memory, compute)
    return longer + fitted.overlap_exposed_share * shorter


class PanelFetch(NamedTuple):
    """How a panel of B comes to the microkernels that read it, in cycles for all of its steps."""

    fitted: Fitted
    first: float  # from the level that holds B's block
    l2: float  # from L2, where it was prefetched to
    again: float  # to microkernels behind others
    stalled: float  # from wherever it comes
    prefetched: bool  # while all rows went through the panel before

    def rows(self, block: BlockCost, count: int, fetching: int) -> float:
        """Cycles of `count` microkernels, of which `fetching` are the first to read the panel."""
        fitted, waiting = self.fitted, block.waiting
        cycles = overlap(fitted, block.cycles, self.stalled) if self.prefetched else block.cycles + self.stalled
        total = 0.0
        if fetching:
            total += fetching * overlap(fitted, cycles, (self.l2 if self.prefetched else self.first) + waiting)
        if count > fetching:
            again = self.again + waiting
            total += (count - fetching) * (overlap(fitted, cycles, again) if self.prefetched else max(cycles, again))
        return total

    def column(self, rows: float) -> float:
        """Cycles of all microkernels that read it."""
        return overlap(self.fitted, rows, self.first) if self.prefetched else rows


class BlockCost(NamedTuple):
    """Cycles of one microkernel: of computing, and of waiting for A beside that."""

    cycles: float
    waiting: float = 0.0


class Rows(NamedTuple):
    """How A's rows are gone through for every panel of B."""

    panels: tuple[tuple[int, int], ...]  # (rows, how many)
    lhs_blocks: int = 1  # blocks of A; the first microkernel of each fetches B's panel
    ragged_fetches: bool = False  # whether one of the panel at the ragged end counts as such, too


def loop_cycles(
    columns: Iterable[tuple[int, int, PanelFetch]], rows: Rows, block: Callable[[int, int], BlockCost]
) -> float:
    """Cycles of all microkernels of a block of the sum: the panels of B, and for each of them those of A.

    The first MR panel of each MC block loads B's panel from the level that holds the NC block; the rest hit L1 or L2.

    Args:
      columns: the panels of B: (columns, how many, how each comes).
      rows: the panels of A.
      block: what a microkernel of so many rows and columns takes.
    """
    total = 0.0
    for cols, col_count, fetch in columns:
        column = 0.0
        for position, (height, count) in enumerate(rows.panels):
            fetching = min(rows.lhs_blocks, count) if position == 0 or rows.ragged_fetches else 0
            column += fetch.rows(block(height, cols), count, fetching)
        total += col_count * fetch.column(column)
    return total


def inner_product_cycles(
    unit: Unit, block: tuple[int, int], depth: float, sizes: tuple[int, int], held: int = 0
) -> float:
    """Cycles of all microkernels with K along the lanes, of blocks of C's rows and columns, for sums of `depth`.

    Columns go through `held` rows of A again: through all of them, unless blocks are packed.
    """
    (rows, cols), (m, n) = block, sizes
    steps = math.ceil(depth / (unit.instruction.shape[2] * unit.lanes))
    return sum(
        r_count * c_count * inner_block_cycles(unit, (r, c), steps, min(m, held or m))
        for c, c_count in panels(n, cols)
        for r, r_count in panels(m, rows)
    )


def inner_block_cycles(unit: Unit, block: tuple[int, int], steps: int, m: int) -> float:
    """Cycles of a microkernel with K along the lanes: its loop, the sums over lanes, and what it reads again."""
    (rows, cols), machine, register = block, unit.machine, unit.isa.register_bytes
    sums = rows * (3 * cols + 2 * math.log2(unit.lanes)) / 2
    again = fetch_cycles(machine, m * steps * register, rows * register)
    if m > rows:
        again += fetch_cycles(machine, cols * steps * register, cols * register)
    return max(block_cycles(unit, rows, cols, steps), steps * again) + sums


@functools.lru_cache(maxsize=1 << 12)
def panels(size: int, step: int) -> tuple[tuple[int, int], ...]:
    """(extent, how many) of the panels that cover `size`."""
    whole, rest = divmod(size, step)
    return ((step, whole),) * (whole > 0) + ((rest, 1),) * (rest > 0)
