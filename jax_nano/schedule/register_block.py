"""Which blocks of C stay in registers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax_nano.ir.dot import Axis, Dot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.cost.memory import PACKED, InPlace, fetch_cycles, fits, rhs_stalls, stream_cycles, thrashed
from jax_nano.schedule.cost.microkernel import NOTHING_MORE, Coming, Extra, block_cycles, inner_cycles, panels
from jax_nano.schedule.plan import LINE_BYTES, lines

# What another kind of block at the ragged end costs, beside its own cycles.
UNEVEN = 0.01
HARDLY_MORE = 1.04  # times the cycles of the fastest block
ON_THE_WAY = 4  # registers of B on their way, where each is for several rows whose elements of A are held


@dataclass(frozen=True)
class RegisterBlock:
    """The block of C that stays in registers: `rows` x `cols` elements."""

    rows: int
    cols: int
    lhs_stationary: bool  # all of A's rows are held and B streams, rather than the reverse


def register_blocks(
    isa: Isa,
    machine: Machine,
    instruction: DotInstruction,
    m: int,
    n: int,
    k: int,
    extra: Extra = NOTHING_MORE,
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
    registers_of_n, compensated = -(-n // lanes), instruction.lhs_offset != 0  # a row of starting values
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
                    again=steps * fetch_cycles(machine, (steps + compensated) * piece, piece),
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
        RegisterBlock(rows, registers * lanes, lhs_stationary=rows < registers)
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
        RegisterBlock(tall * height, wide * lanes, lhs_stationary=tall < wide)
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
    l1 = machine.l1
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
    return RegisterBlock(best[1], best[2], lhs_stationary=False)
