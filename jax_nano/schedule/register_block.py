"""Which blocks of C stay in registers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import DotInstruction, Isa
from jax_nano.schedule.cost.memory import (
    PACKED,
    UnpackedRhs,
    conflict_miss_cycles,
    fetch_cycles,
    fits,
    rhs_stalls,
    stream_cycles,
)
from jax_nano.schedule.cost.microkernel import (
    BlockCost,
    PanelFetch,
    Rows,
    Unit,
    block_cycles,
    inner_product_cycles,
    loop_cycles,
    panels,
)
from jax_nano.schedule.loop_nest import LoopNest
from jax_nano.schedule.scratch import LINE_BYTES, whole_lines

ROW_PANELS = 8  # in a block of A that is packed, or prefetched by pieces of its columns
HARDLY_MORE = 1.04  # times the cycles of the fastest block
# Registers of B on their way, where each is for several rows whose elements of A are held; twice as many where an
# instruction adds several products, as LLVM ties its accumulator to its result and moves both around.
ON_THE_WAY = 4


class RegisterBlock(NamedTuple):
    """The block of C that stays in registers: `rows` x `cols` elements."""

    rows: int
    cols: int
    lhs_stationary: bool  # all of A's rows are held and B streams, rather than the reverse


def register_blocks(
    unit: Unit,
    sizes: tuple[int, int, int],
    rhs: UnpackedRhs = PACKED,
    lhs_stride_bytes: int = 0,
    most: tuple[int, int] | None = None,
) -> list[RegisterBlock]:
    """Chooses how many accumulators stay in registers: the block whose microkernels take the fewest cycles.

    Behind it stands one of another width that takes hardly more, if there is one: it may divide better among threads.

    Args:
      unit: what computes the block.
      sizes: rows and columns of C, and steps of k in a block of the sum.
      rhs: B, where it is unpacked.
      lhs_stride_bytes: how far apart rows of an unpacked A are: they may push each other out of L1.
      most: rows and registers of columns that a block may have, where it may not have as many as registers hold.

    Raises:
      ValueError: the target has fewer than 3 registers, or C is empty.
    """
    isa, (m, n, _) = unit.isa, sizes
    if isa.register_count < 3:
        raise ValueError(f"{isa.name} has {isa.register_count} registers; a block needs at least 3")
    search = BlockSearch(unit, sizes, rhs, lhs_stride_bytes)
    best: dict[int, tuple[float, int]] = {}  # by registers of n: the cycles, and the rows
    fastest = math.inf
    limits = map(min, (m, -(-n // unit.lanes)), most or (m, n))
    fitting = blocks_that_fit(unit, *limits, packed=not rhs.bytes)
    for bound, rows, registers in sorted((search.bound(*block), *block) for block in fitting):
        if bound > HARDLY_MORE * fastest:
            break
        best[registers] = min(best.get(registers, (math.inf, 0)), (search.cycles(rows, registers), rows))
        fastest = min(fastest, best[registers][0])
    if not best:
        raise ValueError("a block needs at least one row and one column")
    return [
        RegisterBlock(rows, registers * unit.lanes, lhs_stationary=rows < registers)
        for cycles, rows, registers in sorted((cycles, rows, registers) for registers, (cycles, rows) in best.items())[
            :2
        ]
        if cycles <= HARDLY_MORE * fastest
    ]


def blocks_that_fit(unit: Unit, m: int, registers_of_n: int, *, packed: bool) -> Iterator[tuple[int, int]]:
    """(rows, registers) of the blocks that fit the registers.

    Either n registers of B and one of A are live beside the accumulators, or m of A and one of B.
    """
    count, extra = unit.isa.register_count, unit.extra
    on_the_way = ON_THE_WAY * (2 if unit.instruction.vnni > 1 else 1)
    widest = count // 2 if packed else count  # code that packs is as long as it is wide
    for rows in range(1, min(m, count) + 1):
        for registers in range(1, min(registers_of_n, widest) + 1):
            live = rows * registers + registers * extra.held + min(rows, registers) + extra.registers
            if live + (on_the_way if 1 < rows < registers else 1) > count:
                break
            yield rows, registers


class BlockSearch:
    """Weighs blocks: microkernels of one shape, which several blocks share, are computed once."""

    def __init__(self, unit: Unit, sizes: tuple[int, int, int], rhs: UnpackedRhs, lhs_stride_bytes: int):
        self.unit, self.rhs, self.lhs_stride_bytes = unit, rhs, lhs_stride_bytes
        self.m, n, self.depth = sizes
        self.registers_of_n, self.steps = -(-n // unit.lanes), unit.steps(self.depth)
        self.block, self.fetch = functools.cache(self._block), functools.cache(self._fetch)

    def cycles(self, rows: int, registers: int) -> float:
        """Cycles of all microkernels of C."""
        again = self.m > rows
        columns = [(c, count, self.fetch(c, again=again)) for c, count in panels(self.registers_of_n, registers)]
        cycles = loop_cycles(columns, Rows(panels(self.m, rows)), self.block)
        ragged = (self.m % rows > 0) + (self.registers_of_n % registers > 0)
        return cycles * (1 + self.unit.machine.fitted.ragged_share * ragged)

    def bound(self, rows: int, registers: int) -> float:
        """Cycles if whole microkernels covered C and waited for nothing: smaller ones at the ends reuse less."""
        return self.m / rows * self.registers_of_n / registers * self.block(rows, registers).cycles

    def _block(self, rows: int, registers: int) -> BlockCost:
        cycles = block_cycles(self.unit, rows, registers, self.steps)
        return BlockCost(cycles + self.steps * conflict_miss_cycles(self.unit.machine, rows, self.lhs_stride_bytes))

    def _fetch(self, registers: int, *, again: bool) -> PanelFetch:
        """How a panel of B comes, of so many registers, which further rows may go through `again`."""
        machine, instruction, rhs, steps = self.unit.machine, self.unit.instruction, self.rhs, self.steps
        piece, b_rows = registers * self.unit.isa.register_bytes, instruction.shape[2]
        run_bytes = registers * self.unit.lanes * rhs.element_bytes
        row_bytes = math.ceil(run_bytes)
        held = steps + (instruction.lhs_offset != 0)  # with the compensation
        return PanelFetch(
            machine.fitted,
            first=steps * stream_cycles(machine, rhs.bytes, (b_rows, run_bytes), self.m),
            l2=steps * b_rows * whole_lines(row_bytes) / machine.l2_bytes_per_cycle,
            again=steps * fetch_cycles(machine, held * piece, piece),
            stalled=steps * b_rows * rhs_stalls(machine, rhs, self.depth, row_bytes, again=again),
            prefetched=rhs.prefetched,
        )


def tile_blocks(isa: Isa, instruction: DotInstruction, m: int, n: int) -> list[RegisterBlock]:
    """The blocks of tiles worth weighing for C of m x n: those that can grow in one direction at most.

    As in a block of vectors, a tile of the one operand and a row of tiles of the other are live beside accumulators.
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


def inner_block(unit: Unit, nest: LoopNest) -> RegisterBlock:
    """The block of an inner product, where each element of C has a register to itself, with the fewest cycles.

    Rows of A and columns of B are read side by side: blocks whose streams push each other out of L1 are left out.

    Raises:
      ValueError: C is empty.
    """
    m, n, count = nest.m.size, nest.n.size, unit.isa.register_count
    converted = (nest.dot.lhs != unit.instruction.lhs) + (nest.dot.rhs != unit.instruction.rhs)
    spare = unit.instruction.operations + converted
    fitting = [
        (rows, cols)
        for rows in range(1, min(m, count) + 1)
        for cols in range(1, min(n, unit.lanes) + 1)
        if rows * cols + min(rows, cols) + spare <= count and streams_fit(unit, nest, rows, cols)
    ]
    if not fitting:
        raise ValueError("a block needs at least one row and one column")

    def cycles(block: tuple[int, int]) -> float:
        held = ROW_PANELS * block[0] if nest.dot.has_window("lhs") else 0
        return inner_product_cycles(unit, block, nest.k.size, (m, n), held)

    rows, cols = min(fitting, key=cycles)
    return RegisterBlock(rows, cols, lhs_stationary=False)


def streams_fit(unit: Unit, nest: LoopNest, rows: int, cols: int) -> bool:
    """L1 holds two lines of each row of A and column of B, as it does in any case of a single row or column."""
    l1, a_stride, b_stride = unit.machine.l1, bytes_of(nest.dot.lhs, nest.m.lhs), bytes_of(nest.dot.rhs, nest.n.rhs)
    of_lhs = rows == 1 or fits(l1, 2 * rows, LINE_BYTES, a_stride)
    return of_lhs and (cols == 1 or fits(l1, 2 * cols, LINE_BYTES, b_stride))
