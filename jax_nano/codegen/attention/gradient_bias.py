"""The kernel of the gradient of attention's bias: gradients of scores, added up where the bias is broadcast.

a task: one block of keys, of one head where heads have biases of their own
    for each block of queries that a mask does not rule out whole:
        for each element of the batch and each head that shares the bias:
            pack K^T and V^T in panels, Q and dO by rows
            for each panel of keys:
                S, dP           microkernels
                sums += dS      element by element
        dB = sums
    dB = 0 elsewhere
"""

from __future__ import annotations

import math

from jax_nano.codegen.attention.gradient import GradientTask, RowBlock
from jax_nano.codegen.attention.gradient_arrays import Lengths, OfHead
from jax_nano.codegen.attention.gradient_scores import Probabilities
from jax_nano.codegen.attention.pairs import Pairs
from jax_nano.codegen.attention.softmax import broadcast_zero
from jax_nano.codegen.index import Index, Values, add, divmod_, maximum, minimum, mul, subtract
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Span, either, for_range, panels
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import convert


class BiasGradientTask(GradientTask):
    """Writes one task: the loops of this file."""

    def emit(self) -> None:
        """Emits the task."""
        plan = self.plan
        is_alone = math.prod(plan.outer) == plan.problem.batch * plan.problem.query_heads
        if is_alone:
            self.pack_columns(self.head)
        begin, end = self.visited(Lengths(None, None))
        with section("blocks of rows"), for_range(begin, end, plan.key_block) as block:
            self.clear()
            for head in self.members():
                if not is_alone:
                    self.pack_columns(head)
                self.visit_block(head, block.i)
            self.store_block(block.i, self.block_depth(block.i).steps)
        blocks, _ = divmod_(add(maximum(end, 0), plan.key_block - 1), plan.key_block)
        self.store_zeros(0, minimum(begin, plan.rows))
        self.store_zeros(maximum(begin, mul(blocks, plan.key_block)), plan.rows)

    def clear(self) -> None:
        """Sets the sums of a block of rows to zero."""
        zero = broadcast_zero(self.plan)
        for plan, j in self.columns.panels("clear"):
            task = self.by(plan)
            task.fill(task.arrays.slopes(j), plan.key_block, lambda _: zero)

    def add_panel(self, j: Index, block: RowBlock, pairs: Pairs, head: OfHead) -> None:
        """Adds a head's gradients of the scores of a block of rows and a panel of columns."""
        self.multiply(j, block)
        with section("gradients of scores"):
            Slopes(self.arrays, block.depth, pairs, head).add_to(self.arrays.slopes(j))

    def store_block(self, begin: Index, rows: Index) -> None:
        """Stores the sums of a block of rows, rounded."""
        plan, out = self.plan, self.arrays.bias_result(self.head).block(begin, 0)
        native_bf16 = rounds_to_bf16(plan.instruction)
        with section("results"):
            for of_panel, column, count in self.columns.stored("panels of columns"):
                sums = self.by(of_panel).arrays.slopes(subtract(column, self.begin))
                with for_range(0, rows) as row:
                    for j in range(0, count, plan.lanes):
                        value = load(sums.base, sums.offset(row.i, j), plan.lanes)
                        rounded = convert(value, sums.dtype, out.dtype, native_bf16=native_bf16)
                        store(rounded, out.base, out.offset(row.i, add(column, j)), count - j)

    def store_zeros(self, begin: Index, end: Index) -> None:
        """Stores zeros in rows that no column sees."""
        plan, out = self.plan, self.arrays.bias_result(self.head)
        zero = convert(broadcast_zero(plan), plan.instruction.acc, out.dtype)
        with section("rows that see nothing"):
            for column, count in panels(Span(self.begin, self.end, plan.columns), plan.nr, "panels of columns"):
                with for_range(begin, end) as row:
                    for j in range(0, count, plan.lanes):
                        store(zero, out.base, out.offset(row.i, add(column, j)), count - j)


class Slopes(Probabilities):
    """Adds dS^T of a block of rows and a panel of columns."""

    def add_to(self, sums: MatrixRef) -> None:
        """Emits the loop over rows, with masks by place where any of the pairs may be masked by them."""

        def loop(*, masked: bool) -> Values:
            for i, rows in self.depth.pieces(self.plan.unroll):
                for row in range(rows):
                    _, ds = self.row(add(i, row), masked=masked)
                    for value, j in zip(ds, self.columns, strict=True):
                        at = sums.offset(add(i, row), j)
                        store(v.add(load(sums.base, at, self.plan.lanes), value), sums.base, at)
            return []

        either(self.pairs.any_masked(), [], lambda: loop(masked=True), lambda: loop(masked=False))
