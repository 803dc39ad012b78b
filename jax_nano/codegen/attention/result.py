"""The result of an attention: O^T out of scratch, divided by sums of exponentials, transposed and rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from jax_nano.codegen.attention import few_columns
from jax_nano.codegen.attention.operands import AttentionOperands, Head, Sums
from jax_nano.codegen.attention.softmax import finite_or_zero, query_numbers
from jax_nano.codegen.index import Index, add, index
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.shuffles import transpose
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.convert import convert
from jax_nano.ir.attention import MASKED


@dataclass(frozen=True, kw_only=True)
class Rows:
    """As many rows of the result as a register has lanes, or fewer, and where they come from."""

    places: Sequence[Index]  # where each begins
    sums: MatrixRef  # O^T of these rows
    total: ir.Value  # their sums of exponentials
    is_query: ir.Value | None  # which are no padding, where that is known only at run time

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.places)

    def zero_behind_queries(self, value: ir.Value) -> ir.Value:
        """A register of elements of each row, with zeros in those behind the last query."""
        return value if self.is_query is None else v.select(self.is_query, value, 0.0)


@dataclass(frozen=True)
class AttentionResult:
    """Stores panels of queries, of one head; rows behind the last query are zero."""

    operands: AttentionOperands
    head: Head
    query_length: Index | None

    def store(self, sums: Sums, column: Index, j: Index, columns: int) -> None:
        """Stores a panel.

        Args:
          sums: those of the block.
          column: the panel's first column.
          j: its place in the block.
          columns: how many there are, of which the last registers may hold fewer than they could.
        """
        plan, lanes = self.operands.plan, self.operands.plan.lanes
        residual = self.operands.residual(self.head)
        for first in range(0, columns, lanes):
            count = min(lanes, columns - first)
            place, totals = add(j, first), sums.totals(add(j, first))
            rows = Rows(
                places=self.rows(
                    self.operands.out(self.head), plan.problem.out[3], column, range(first, first + count)
                ),
                sums=sums.out(j).block(0, first),
                total=load(totals.base, totals.at, lanes),
                is_query=self.is_query(column, first),
            )
            if plan.by_rows:
                base = self.operands.out(self.head).base
                few_columns.store_results(plan, rows.sums, rows.total, (base, rows.places))
            else:
                self.store_rows(rows)
            if residual:
                places = self.rows(residual, 1, column, range(first, first + count))
                self.store_residual(residual, places, sums.maxima(place), rows)

    def rows(self, array: MatrixRef, query_stride: int, column: Index, columns: range) -> list[Index]:
        """Where the rows of some columns behind `column` begin in an array with query heads."""
        plan = self.operands.plan
        if not plan.folds_heads or plan.problem.queries == 1:
            return [array.offset(add(column, j)) for j in columns]
        numbers = (divmod(j, plan.problem.group) for j in columns)  # there is one panel
        return [add(array.offset(member), query * query_stride) for query, member in numbers]

    def store_rows(self, rows: Rows) -> None:
        """Stores rows of the result in squares that are transposed in registers."""
        lanes, depth = self.operands.plan.lanes, self.operands.plan.problem.value_depth
        whole = depth // lanes * lanes
        with for_range(0, whole, lanes) as loop:
            self.store_square(rows, loop.i, lanes)
        if depth % lanes:
            self.store_square(rows, whole, depth % lanes)

    def is_query(self, column: Index, first: int) -> ir.Value | None:
        """Which columns, `first` behind one and further, are queries; None where all are."""
        if self.query_length is None:
            return None
        word, plan = ir.IntegerType.get_signless(32), self.operands.plan
        length = broadcast(arith.index_cast(word, index(self.query_length)), plan.lanes)
        return arith.cmpi(arith.CmpIPredicate.slt, query_numbers(plan, column, first), length)

    def store_square(self, rows: Rows, i: Index, size: int) -> None:
        """Stores `size` elements of each row, from element i on."""
        plan, sums = self.operands.plan, rows.sums
        base = self.operands.out(self.head).base
        values = [load(sums.base, sums.offset(add(i, row), 0), plan.lanes) for row in range(size)]
        values = [rows.zero_behind_queries(v.div(value, rows.total)) for value in values]
        values += [v.like(rows.total, 0.0)] * (plan.lanes - size)
        native_bf16 = rounds_to_bf16(plan.instruction)
        for column, value in enumerate(transpose(values)[: rows.count]):
            rounded = convert(value, plan.instruction.acc, plan.problem.dtype, native_bf16=native_bf16)
            store(rounded, base, add(rows.places[column], i), size)

    def store_residual(self, residual: MatrixRef, places: Sequence[Index], maxima: MatrixRef, rows: Rows) -> None:
        """Stores the logarithms of sums of exponentials of the columns whose maxima these are."""
        plan = self.operands.plan
        (largest,) = finite_or_zero([load(maxima.base, maxima.at, plan.lanes)])
        value = v.add(largest, vmath.log(rows.total))
        if rows.is_query is not None:
            value = v.select(rows.is_query, value, MASKED)
        if not plan.folds_heads or plan.problem.queries == 1:  # then they follow one another
            store(value, residual.base, places[0], rows.count)
            return
        for lane, place in enumerate(places):
            memref.store(vector.extract(value, [], [lane]), residual.base, [index(place)])
