"""The result of an attention: O^T out of scratch, divided by sums of exponentials, transposed and rounded."""

from __future__ import annotations

from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention_operands import AttentionOperands, Head, Sums
from jax_nano.codegen.index import Index, add, index
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import broadcast, count_up
from jax_nano.codegen.shuffles import transpose
from jax_nano.codegen.softmax import finite_or_zero
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.convert import convert
from jax_nano.ir.attention import MASKED


@dataclass(frozen=True, kw_only=True)
class Rows:
    """As many rows of the result as a register has lanes, or fewer, and where they come from."""

    out: MatrixRef
    sums: MatrixRef  # O^T of these rows
    total: ir.Value  # their sums of exponentials
    is_query: ir.Value | None  # which are no padding, where that is known only at run time
    count: int

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
        lanes = self.operands.plan.lanes
        out, residual = self.operands.out(self.head).block(column, 0), self.operands.residual(self.head)
        for first in range(0, columns, lanes):
            place, totals = add(j, first), sums.totals(add(j, first))
            rows = Rows(
                out=out.block(first, 0),
                sums=sums.out(j).block(0, first),
                total=load(totals.base, totals.at, lanes),
                is_query=self.is_query(add(column, first)),
                count=min(lanes, columns - first),
            )
            self.store_rows(rows)
            if residual:
                self.store_residual(residual.block(0, add(column, first)), sums, place, rows)

    def store_rows(self, rows: Rows) -> None:
        """Stores rows of the result in squares that are transposed in registers."""
        lanes, depth = self.operands.plan.lanes, self.operands.plan.problem.value_depth
        whole = depth // lanes * lanes
        with for_range(0, whole, lanes) as loop:
            self.store_square(rows, loop.i, lanes)
        if depth % lanes:
            self.store_square(rows, whole, depth % lanes)

    def is_query(self, column: Index) -> ir.Value | None:
        """Which columns from one on are queries; None where all are."""
        if self.query_length is None:
            return None
        word, lanes = ir.IntegerType.get_signless(32), self.operands.plan.lanes
        first, length = (broadcast(arith.index_cast(word, index(i)), lanes) for i in (column, self.query_length))
        if self.operands.plan.folds_heads:
            return arith.cmpi(arith.CmpIPredicate.slt, v.like(first, 0), length)
        return arith.cmpi(arith.CmpIPredicate.slt, v.add(first, count_up(lanes, word)), length)

    def store_square(self, rows: Rows, i: Index, size: int) -> None:
        """Stores `size` elements of each row, from element i on."""
        plan, out, sums = self.operands.plan, rows.out, rows.sums
        values = [load(sums.base, sums.offset(add(i, row), 0), plan.lanes) for row in range(size)]
        values = [rows.zero_behind_queries(v.div(value, rows.total)) for value in values]
        values += [v.like(rows.total, 0.0)] * (plan.lanes - size)
        native_bf16 = rounds_to_bf16(plan.instruction)
        for column, value in enumerate(transpose(values)[: rows.count]):
            rounded = convert(value, plan.instruction.acc, plan.problem.dtype, native_bf16=native_bf16)
            store(rounded, out.base, out.offset(column, i), size)

    def store_residual(self, residual: MatrixRef, sums: Sums, j: Index, rows: Rows) -> None:
        """Stores the logarithms of sums of exponentials of the columns from j of the block on."""
        maxima = sums.maxima(j)
        (largest,) = finite_or_zero([load(maxima.base, maxima.at, self.operands.plan.lanes)])
        value = v.add(largest, vmath.log(rows.total))
        if rows.is_query is not None:
            value = v.select(rows.is_query, value, MASKED)
        store(value, residual.base, residual.at, rows.count)
