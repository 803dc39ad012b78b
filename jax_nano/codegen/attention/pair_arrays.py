"""Arrays that broadcast to the scores, on a panel of columns and a block of rows.

Where an array differs along columns alone, its elements are loaded once for a panel; along rows alone, an element for
each row. Along both, rows are read in place if they are contiguous and panels whole; else the panel's part of it is
copied first, transposed if need be, in the type of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jax_nano.codegen.index import Index, Values, add, minimum, subtract
from jax_nano.codegen.load_store import load, load_scalar, prefetch
from jax_nano.codegen.loops import Depth, Span, for_range
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import OperandLoader
from jax_nano.codegen.pack import Destination, Packer
from jax_nano.codegen.registers import broadcast
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.attention.plan import AttentionPlan
from jax_nano.schedule.plan import LINE_BYTES

Rows = Callable[[Index], Values]  # registers of a row of a panel, counted from the block's first


class PairRows(NamedTuple):
    """The registers of each row, and their type."""

    dtype: str
    row: Rows


@dataclass(frozen=True)
class PanelPairs:
    """The pairs of a block of rows and a panel of columns: rows from `row` on, columns from `column` on."""

    plan: AttentionPlan
    column: Index
    row: Index
    depth: Depth

    @property
    def registers(self) -> range:
        """Where registers begin in a panel."""
        return range(0, self.plan.nr, self.plan.lanes)

    def left(self, j: int) -> Index:
        """How many columns there are from column j of the panel on."""
        return subtract(self.plan.columns, add(self.column, j))

    def rows(self, source: MatrixRef, target: Callable[[], MatrixRef]) -> PairRows:
        """The elements of an array, (columns, rows).

        Args:
          source: the array; a stride is 0 where it is broadcast.
          target: gives where a panel's part of it may be copied, (rows, columns) of the type of scores.
        """
        by_column, by_row = source.strides
        if not by_column:
            return PairRows(source.dtype, self.by_row(source))
        if not by_row and by_column == 1:
            return PairRows(source.dtype, self.by_column(source))
        if by_column == 1 and self.plan.columns % self.plan.nr == 0:
            return PairRows(source.dtype, self.in_place(source))
        copy = target()
        self.pack(source, copy)
        return PairRows(copy.dtype, self.copied(copy))

    def by_row(self, source: MatrixRef) -> Rows:
        """An array that is the same for all columns: one element for all lanes."""

        def row(i: Index) -> Values:
            one = load_scalar(source.base, source.offset(0, add(self.row, i)))
            return [broadcast(one, self.plan.lanes)] * len(self.registers)

        return row

    def by_column(self, source: MatrixRef) -> Rows:
        """An array that is the same for all rows: its registers, none beyond the last column."""
        lanes = self.plan.lanes
        values = [load(source.base, source.offset(add(self.column, j)), lanes, self.left(j)) for j in self.registers]
        return lambda _: values

    def in_place(self, source: MatrixRef) -> Rows:
        """Rows of an array where they lie."""
        lanes, first = self.plan.lanes, source.block(self.column, self.row)
        return lambda i: [load(source.base, first.offset(j, i), lanes) for j in self.registers]

    def copied(self, target: MatrixRef) -> Rows:
        """Rows of a copy."""
        return lambda i: [load(target.base, target.offset(i, j), self.plan.lanes) for j in self.registers]

    def pack(self, source: MatrixRef, target: MatrixRef) -> None:
        """Copies the panel's part of an array, (columns, rows), in the scores' type to (rows, columns)."""
        plan, acc = self.plan, self.plan.instruction.acc
        instruction = DotInstruction(name="scores", lhs=acc, rhs=acc, acc=acc, shape=(1, plan.lanes, 1))
        span = Span(self.column, minimum(add(self.column, plan.nr), plan.columns), plan.columns)
        if source.strides[0] != 1:
            self.prefetch(source.block(self.column, self.row))
        to = Destination(span, plan.nr, lambda _: target)
        packer = Packer(OperandLoader(instruction, "rhs"), plan.nr)
        packer.pack_panels(to, source.block(0, self.row).transposed, self.depth)

    def prefetch(self, source: MatrixRef) -> None:
        """Prefetches a panel's part of an array for the next block of rows: columns are far apart."""
        line = LINE_BYTES // bytes_of(source.dtype)
        with for_range(0, self.plan.nr) as column:
            for row in range(0, self.plan.key_block, line):
                prefetch(source.base, source.offset(column.i, self.plan.key_block + row))
