"""What microkernels take, and the choice of the block of C that stays in registers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax_nano.isa import Core, DotInstruction, Isa, Machine
from jax_nano.model.memory import PACKED, InPlace, fetch_cycles, fits, rhs_stalls, run_cycles, stream_cycles, thrashed
from jax_nano.plan import LINE_BYTES, lines
from jax_nano.problem import LARGEST, WORDS, Axis, Dot, bytes_of

# Branches, addresses and the drained pipeline between one microkernel and the next.
BLOCK_OVERHEAD_CYCLES = 20
# What another kind of block at the ragged end costs, beside its own cycles.
UNEVEN = 0.01
# How much longer an accumulator waits for its last update, where it waits for nothing else, than that takes.
LATENCY_SLACK = 1.2
# The share of a load's time that other work does not hide: of blocks that take the same cycles, fewer loads win.
LOAD_COLLISIONS = 0.03
# The share of the shorter of computing and fetching that the longer one does not hide.
EXPOSED = 0.1
# The share of other vector instructions that multiply-accumulates wait for, as they go through the same ports.
SHARED_PORTS = 0.5
HARDLY_MORE = 1.04  # times the cycles of the fastest block
ON_THE_WAY = 4  # registers of B on their way, where each is for several rows whose elements of A are held
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


@dataclass(frozen=True)
class RegisterBlock:
    """The block of C that stays in registers: `rows` x `cols` elements."""

    rows: int
    cols: int
    hold_lhs: bool  # all of A's rows are held and B streams, rather than the reverse


def extra(
    machine: Machine, core: Core, dot: Dot, m: Axis, instruction: DotInstruction, lhs_direct: bool, rhs_direct: bool,
    lanes: str = "n",
) -> Extra:  # fmt: skip
    """The same before there is a plan: conversions in registers, rows of B interleaved there, and rows of C."""
    per_row = per_register = 0.0
    group = instruction.group
    registers = instruction.operations - 1
    if lhs_direct:
        per_row = 2.0 if dot.lhs != instruction.lhs else 0.0
        if instruction.lhs_offset:  # through a general register, out of which one is spread in a cycle
            per_row += core.vector_per_cycle
        registers += dot.lhs != instruction.lhs
    runs = run_cycles(machine, dot, m)
    if dot.rhs in WORDS and instruction.rhs == "bf16" and rhs_direct:
        looked_up = 1.0 + core.vector_per_cycle / core.shuffles_per_cycle  # a shift and a permutation
        return Extra(per_row, looked_up, registers=LOOKUP_REGISTERS, held=1, per_run=runs)
    if not rhs_direct:
        return Extra(per_row, registers=registers, per_run=runs)
    interleaved, converted = group > 1 and lanes == "n", dot.rhs != instruction.rhs
    if interleaved:
        per_register += 2.0 * core.vector_per_cycle / core.shuffles_per_cycle * math.log2(group)
        registers += 2 * group  # rows as they are, and interleaved
    if converted:
        per_register += group * (4.0 if dot.rhs in LARGEST and instruction.rhs == "bf16" else 2.0)  # f32, half by half
        registers += 2
    held = int(dot.rhs in WORDS)
    return Extra(per_row, per_register, group if interleaved else 1, registers, held, runs)


def step_cycles(core: Core, instruction: DotInstruction, rows: int, registers: int, extra: Extra = Extra()) -> float:
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
    core: Core, instruction: DotInstruction, rows: int, registers: int, steps: int, extra: Extra = Extra()
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


def register_blocks(
    isa: Isa,
    machine: Machine,
    instruction: DotInstruction,
    m: int,
    n: int,
    k: int,
    extra: Extra = Extra(),
    rhs: InPlace = PACKED,
    lhs_stride_bytes: int = 0,
) -> list[RegisterBlock]:
    """Chooses how many accumulators stay in registers, for C of m x n: the block whose panels take the fewest cycles.

    Behind it stands one of another width that takes hardly more, if there is one: it may divide better among threads.
    Either n registers of B and one of A are live beside the accumulators, or m of A and one of B. The first panel of
    rows brings a panel of B from where it stands; every other one reads it again, from the cache that holds it.

    Rows of A that are read in place, `lhs_stride_bytes` apart, may push each other out of the nearest cache.

    Raises:
      ValueError: the target has fewer than 3 registers.
    """
    core = machine.cores[isa.name]
    if isa.register_count < 3:
        raise ValueError(f"{isa.name} has {isa.register_count} registers; a block needs at least 3")
    lanes, steps = instruction.shape[1], -(-k // instruction.shape[2])
    widest = isa.register_count if rhs.bytes else isa.register_count // 2  # code that packs is as long as it is wide
    registers_of_n, biased = -(-n // lanes), instruction.lhs_offset != 0  # a row of starting values
    best: dict[int, tuple[float, int]] = {}  # by registers of n: the cycles, and the rows
    for rows in range(1, min(m, isa.register_count) + 1):
        for registers in range(1, min(registers_of_n, widest) + 1):
            live = rows * registers + registers * extra.held + min(rows, registers) + extra.registers
            if live + (ON_THE_WAY if 1 < rows < registers else 1) > isa.register_count:
                break
            cycles = 0.0
            for c, c_count in panels(registers_of_n, registers):
                piece, row_bytes = c * isa.register_bytes, math.ceil(c * lanes * rhs.element_bytes)
                b_rows = instruction.shape[2]
                coming = Coming(
                    first=steps * stream_cycles(machine, rhs.bytes, c * lanes * rhs.element_bytes, b_rows, m),
                    near=steps * b_rows * lines(row_bytes) / machine.l2_bytes_per_cycle,
                    again=steps * fetch_cycles(machine, (steps + biased) * piece, piece),
                    stalled=steps * b_rows * rhs_stalls(machine, rhs, k, row_bytes, again=m > rows),
                    far=rhs.far,
                )
                column = 0.0
                for position, (r, r_count) in enumerate(panels(m, rows)):
                    block = block_cycles(core, instruction, r, c, steps, extra)
                    block += steps * thrashed(machine, r, lhs_stride_bytes)
                    column += coming.rows(block, r_count, fetching=int(position == 0))
                cycles += c_count * coming.column(column)
            cycles *= 1 + UNEVEN * ((m % rows > 0) + (registers_of_n % registers > 0))
            best[registers] = min(best.get(registers, (math.inf, 0)), (cycles, rows))
    if not best:
        raise ValueError("a block needs at least one row and one column")
    fastest = sorted((cycles, rows, registers) for registers, (cycles, rows) in best.items())[:2]
    return [
        RegisterBlock(rows, registers * lanes, hold_lhs=rows < registers)
        for cycles, rows, registers in fastest
        if cycles <= HARDLY_MORE * fastest[0][0]
    ]


def tile_blocks(isa: Isa, instruction: DotInstruction, m: int, n: int) -> list[RegisterBlock]:
    """The blocks of tiles worth weighing for C of m x n: those that can grow in one direction at most.

    The same registers are live as in a block of vectors, where a row is a row of tiles.
    """
    height, lanes, _ = instruction.shape

    def allowed(tall: int, wide: int) -> bool:
        fits = tall * wide + min(tall, wide) + 1 <= isa.register_count
        return fits and tall <= -(-m // height) and wide <= -(-n // lanes)

    sizes = range(1, isa.register_count)
    return [
        RegisterBlock(tall * height, wide * lanes, hold_lhs=tall < wide)
        for tall in sizes
        for wide in sizes
        if allowed(tall, wide) and not (allowed(tall + 1, wide) and allowed(tall, wide + 1))
    ]


def inner_block(
    isa: Isa, machine: Machine, instruction: DotInstruction, dot: Dot, m: Axis, n: Axis, k: Axis
) -> RegisterBlock:
    """The same with K along the lanes, where each element of C has a register to itself.

    Rows of A and columns of B are read side by side: blocks whose streams push each other out of the nearest cache are
    left out.
    """
    l1 = machine.caches[0]
    lanes, steps = instruction.shape[1], -(-k.size // (instruction.shape[1] * instruction.shape[2]))
    spare = instruction.operations + (dot.lhs != instruction.lhs) + (dot.rhs != instruction.rhs)
    best: tuple[float, int, int] | None = None
    for rows in range(1, min(m.size, isa.register_count) + 1):
        for cols in range(1, min(n.size, lanes) + 1):
            if rows * cols + min(rows, cols) + spare > isa.register_count:
                break
            streams = fits(l1, 2 * rows, LINE_BYTES, bytes_of(dot.lhs, m.lhs)) or rows == 1
            streams &= fits(l1, 2 * cols, LINE_BYTES, bytes_of(dot.rhs, n.rhs)) or cols == 1
            if not streams and rows * cols > 1:
                continue
            cycles = 0.0
            for c, c_count in panels(n.size, cols):
                for r, r_count in panels(m.size, rows):
                    cycles += r_count * c_count * inner_cycles(isa, machine, instruction, r, c, steps, m.size)
            if best is None or cycles < best[0]:
                best = cycles, rows, cols
    if best is None:
        raise ValueError("a block needs at least one row and one column")
    return RegisterBlock(best[1], best[2], hold_lhs=False)


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
