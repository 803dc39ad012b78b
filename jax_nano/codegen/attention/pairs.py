"""Pairs of queries and keys, and which of them masks by place and lengths rule out: rows of one kind, columns of the
other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention.gradient_arrays import Lengths
from jax_nano.codegen.index import Condition, Index, add, any_of, both, index, less, subtract
from jax_nano.codegen.registers import broadcast, count_up
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.schedule.attention.gradient import GradientPlan


@dataclass(frozen=True)
class Pairs:
    """Those of a block of rows that begins at `row`, and a panel of columns that begins at `column`."""

    plan: GradientPlan
    row: Index
    column: Index
    lengths: Lengths

    @property
    def _reach(self) -> tuple[int | None, int | None]:
        """How many keys before a query's place are visible, and how many behind; None where all are."""
        left, right = self.plan.problem.window or (None, None)
        if self.plan.problem.causal:
            right = 0 if right is None else min(right, 0)
        return left, right

    @property
    def _spans(self) -> tuple[tuple[Index, Index], tuple[Index, Index]]:
        """The first and the last query, and the first and the last key."""
        rows = self.row, add(self.row, self.plan.key_block - 1)
        columns = self.column, add(self.column, self.plan.nr - 1)
        return (rows, columns) if self.plan.of_keys else (columns, rows)

    def any_visible(self) -> Condition:
        """Whether any pair may be visible."""
        (first, last), (low, high) = self._spans
        left, right = self._reach
        condition: Condition = True
        if left is not None:
            condition = both(condition, less(first, add(high, left + 1)))
        if right is not None:
            condition = both(condition, less(subtract(low, right + 1), last))
        for first_place, length in ((first, self.lengths.queries), (low, self.lengths.keys)):
            if length is not None:
                condition = both(condition, less(first_place, length))
        return condition

    def any_masked(self) -> Condition:
        """Whether any pair may be masked by place or lengths."""
        (first, last), (low, high) = self._spans
        left, right = self._reach
        conditions: list[Condition] = []
        if left is not None:
            conditions.append(less(add(low, left), last))
        if right is not None:
            conditions.append(less(add(first, right), high))
        for last_place, length in ((last, self.lengths.queries), (high, self.lengths.keys)):
            if length is not None:
                conditions.append(less(subtract(length, 1), last_place))
        return any_of(*conditions)

    def visible(self, i: Index, j: int) -> ir.Value:
        """Which pairs of row i and the columns of the register at j are visible."""
        word, lanes = ir.IntegerType.get_signless(32), self.plan.lanes
        row, column = (broadcast(arith.index_cast(word, index(x)), lanes) for x in (add(self.row, i), self.column))
        column = v.add(column, v.add(count_up(lanes, word), j))
        query, key = (row, column) if self.plan.of_keys else (column, row)
        left, right = self._reach
        masks = []
        if left is not None:
            masks.append(arith.cmpi(arith.CmpIPredicate.sle, v.sub(query, v.like(query, left)), key))
        if right is not None:
            masks.append(arith.cmpi(arith.CmpIPredicate.sle, key, v.add(query, v.like(query, right))))
        for place, length in ((query, self.lengths.queries), (key, self.lengths.keys)):
            if length is not None:
                end = broadcast(arith.index_cast(word, length), lanes)
                masks.append(arith.cmpi(arith.CmpIPredicate.slt, place, end))
        return functools.reduce(arith.andi, masks)
