"""The result of an attention: O^T out of scratch, divided by sums of exponentials, transposed and rounded."""

from __future__ import annotations

from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention_operands import AttentionOperands, Head, Sums
from jax_nano.codegen.index import Index, add, index
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import broadcast, count_up
from jax_nano.codegen.shuffles import transpose
from jax_nano.codegen.softmax import finite_or_zero
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.convert import convert
from jax_nano.ir.attention import MASKED


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
        lanes, depth = self.operands.plan.lanes, self.operands.plan.problem.value_depth
        out, residual = self.operands.out(self.head).block(column, 0), self.operands.residual(self.head)
        for first in range(0, columns, lanes):
            count = min(lanes, columns - first)
            place, totals = add(j, first), sums.totals(add(j, first))
            total = load(totals.base, totals.at, lanes)
            is_query = self.is_query(add(column, first))
            rows = out.block(first, 0), sums.out(j).block(0, first), total, is_query, count
            whole = depth // lanes * lanes
            with for_range(0, whole, lanes) as loop:
                self.store_square(*rows, loop.i, lanes)
            if depth % lanes:
                self.store_square(*rows, whole, depth % lanes)
            if residual:
                self.store_residual(residual.block(0, add(column, first)), sums, place, is_query, count)

    def is_query(self, column: Index) -> ir.Value | None:
        """Which columns from one on are queries; None where all are."""
        if self.query_length is None:
            return None
        word, lanes = ir.IntegerType.get_signless(32), self.operands.plan.lanes
        first, length = (broadcast(arith.index_cast(word, index(i)), lanes) for i in (column, self.query_length))
        if self.operands.plan.folds_heads:
            return arith.cmpi(arith.CmpIPredicate.slt, v.like(first, 0), length)
        return arith.cmpi(arith.CmpIPredicate.slt, v.add(first, count_up(lanes, word)), length)

    def store_square(self, out, sums, total, is_query, count: int, i: Index, rows: int) -> None:
        """Stores `rows` elements, from element i on, of `count` rows of the result."""
        plan, problem = self.operands.plan, self.operands.plan.problem
        values = [load(sums.base, sums.offset(add(i, row), 0), plan.lanes) for row in range(rows)]
        values = [v.div(value, total) for value in values]
        if is_query is not None:
            values = [v.select(is_query, value, 0.0) for value in values]
        values += [v.like(total, 0.0)] * (plan.lanes - rows)
        native_bf16 = rounds_to_bf16(plan.instruction)
        for column, value in enumerate(transpose(values)[:count]):
            rounded = convert(value, plan.instruction.acc, problem.dtype, native_bf16=native_bf16)
            store(rounded, out.base, out.offset(column, i), rows)

    def store_residual(self, residual, sums: Sums, j: Index, is_query, count: int) -> None:
        """Stores the logarithms of sums of exponentials of the columns from j of the block on."""
        lanes = self.operands.plan.lanes
        maxima, totals = sums.maxima(j), sums.totals(j)
        (largest,) = finite_or_zero([load(maxima.base, maxima.at, lanes)])
        value = v.add(largest, vmath.log(load(totals.base, totals.at, lanes)))
        if is_query is not None:
            value = v.select(is_query, value, MASKED)
        store(value, residual.base, residual.at, count)
