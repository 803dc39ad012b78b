"""What microkernels take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax_nano.ir.dot import Axis, Dot
from jax_nano.ir.dtypes import LARGEST, PACKED_INT4
from jax_nano.machine.isa import Core, DotInstruction, Isa, Machine
from jax_nano.schedule.cost.memory import fetch_cycles, run_cycles

# Branches, addresses and the drained pipeline between one microkernel and the next.
BLOCK_OVERHEAD_CYCLES = 20
# How much longer an accumulator waits for its last update, where it waits for nothing else, than that takes.
LATENCY_SLACK = 1.2
# The share of a load's time that other work does not hide: of blocks that take the same cycles, fewer loads win.
LOAD_COLLISIONS = 0.03
# The share of the shorter of computing and fetching that the longer one does not hide.
EXPOSED = 0.1
# The share of other vector instructions that multiply-accumulates wait for, as they go through the same ports.
SHARED_PORTS = 0.5
LOOKUP_REGISTERS = 3  # for pairs of 4-bit integers as bf16, which a table gives


@dataclass(frozen=True)
class Extra:
    """Vector instructions that a step of k needs beside the loads and the multiply-accumulates."""

    per_row: float = 0  # of A's elements, as broadcast
    per_register: float = 0  # of B
    loads: int = 1  # that a register of B takes
    registers: int = 0  # for constants, and between loads and multiply-accumulates
    held: int = 0  # registers of B that stay while several steps are taken out of them, for each that a step reads
    per_run: float = 0  # cycles from a row of C that is stored to the next


def extra_work(
    machine: Machine,
    core: Core,
    dot: Dot,
    m: Axis,
    instruction: DotInstruction,
    lhs_unpacked: bool,
    rhs_unpacked: bool,
    inner_product: bool = False,
) -> Extra:
    """The same before there is a plan: conversions in registers, rows of B interleaved there, and rows of C."""
    per_row = per_register = 0.0
    group = instruction.vnni
    registers = instruction.operations - 1
    if lhs_unpacked:
        per_row = 2.0 if dot.lhs != instruction.lhs else 0.0
        if instruction.lhs_offset:  # through a general register, out of which one is spread in a cycle
            per_row += core.vector_per_cycle
        registers += dot.lhs != instruction.lhs
    runs = run_cycles(machine, dot, m)
    if dot.rhs in PACKED_INT4 and instruction.rhs == "bf16" and rhs_unpacked:
        looked_up = 1.0 + core.vector_per_cycle / core.shuffles_per_cycle  # a shift and a permutation
        return Extra(per_row, looked_up, registers=LOOKUP_REGISTERS, held=1, per_run=runs)
    if not rhs_unpacked:
        return Extra(per_row, registers=registers, per_run=runs)
    interleaved, converted = group > 1 and not inner_product, dot.rhs != instruction.rhs
    if interleaved:
        per_register += 2.0 * core.vector_per_cycle / core.shuffles_per_cycle * math.log2(group)
        registers += 2 * group  # rows as they are, and interleaved
    if converted:
        per_register += group * (4.0 if dot.rhs in LARGEST and instruction.rhs == "bf16" else 2.0)  # f32, half by half
        registers += 2
    held = int(dot.rhs in PACKED_INT4)
    return Extra(per_row, per_register, group if interleaved else 1, registers, held, runs)


NOTHING_MORE = Extra()


def step_cycles(
    core: Core, instruction: DotInstruction, rows: int, registers: int, extra: Extra = NOTHING_MORE
) -> float:
    """Cycles of one step of k on a block of rows x registers accumulators.

    rows * registers multiply-accumulates are fed by rows loads of A and registers of B; each accumulator waits for its
    own last update.

    Source: Low et al., "Analytical Modeling Is Enough for High-Performance BLIS", ACM TOMS 43(2), 2016.
    """
    dots, loads = rows * registers, rows + registers * extra.loads
    others = rows * extra.per_row + registers * extra.per_register
    per_cycle, latency = core.rate(instruction.name)
    bound = max(
        dots / per_cycle + SHARED_PORTS * others / core.vector_per_cycle,
        loads / core.loads_per_cycle,
        LATENCY_SLACK * latency,
        (dots * instruction.operations + others) / core.vector_per_cycle,
        (dots * instruction.operations + loads + others + 1) / core.issue_per_cycle,
    )
    return bound + LOAD_COLLISIONS * loads / core.loads_per_cycle


def block_cycles(
    core: Core, instruction: DotInstruction, rows: int, registers: int, steps: int, extra: Extra = NOTHING_MORE
) -> float:
    """Cycles of a microkernel: its loop, and the accumulators cleared before and stored after."""
    stores = rows * registers / core.stores_per_cycle
    cycles = steps * step_cycles(core, instruction, rows, registers, extra) + stores + BLOCK_OVERHEAD_CYCLES
    return beside(cycles, rows * extra.per_run)


def beside(computing: float, fetching: float) -> float:
    """The time of both, where each goes on while the other waits."""
    return max(computing, fetching) + EXPOSED * min(computing, fetching)


@dataclass(frozen=True)
class Coming:
    """How a panel of B comes to the blocks of C that go through it, in cycles for all of its steps."""

    first: float  # from where it stands
    near: float  # from the second cache, where it was asked for
    again: float  # to rows behind others
    stalled: float  # wherever it comes from
    far: bool  # it was asked for while all rows went through the panel before

    def rows(self, computing: float, count: int, fetching: int, waiting: float = 0.0) -> float:
        """Cycles of `count` blocks, of which `fetching` are the first to go through it, and each also is `waiting`."""
        if self.far:
            block = beside(computing, self.stalled)
            fetched, others = beside(block, self.near + waiting), beside(block, self.again + waiting)
        else:
            block = computing + self.stalled
            fetched, others = beside(block, self.first + waiting), max(block, self.again + waiting)
        return fetching * fetched + (count - fetching) * others

    def column(self, rows: float) -> float:
        """Cycles of all blocks that go through it."""
        return beside(rows, self.first) if self.far else rows


def inner_cycles(
    isa: Isa, machine: Machine, instruction: DotInstruction, rows: int, cols: int, steps: int, m: int
) -> float:
    """Cycles of a microkernel with K along the lanes: its loop, the sums over lanes, and what it reads again."""
    core, register = machine.cores[isa.name], isa.register_bytes
    sums = rows * (3 * cols + 2 * math.log2(instruction.shape[1])) / 2
    again = fetch_cycles(machine, m * steps * register, rows * register)
    if m > rows:
        again += fetch_cycles(machine, cols * steps * register, cols * register)
    return max(block_cycles(core, instruction, rows, cols, steps), steps * again) + sums


def panels(size: int, step: int) -> list[tuple[int, int]]:
    """(extent, how many) of the panels that cover `size`."""
    whole, rest = divmod(size, step)
    return [(step, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)
