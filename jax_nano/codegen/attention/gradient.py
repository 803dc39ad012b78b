"""The kernels of attention's gradients: one loop nest, whose columns are queries or keys. See schedule's picture.

a task: one block of columns of one head
pack x1^T and x2^T in panels
for each query head that shares the keys, where columns are keys:
for each block of rows that a mask does not rule out whole:
pack y1 and y2, by rows and as the last products' A
for each panel of columns:
S^T, dP^T                   microkernels
P^T, dS^T                   element by element
d1^T += y1^T @ dS^T         microkernels; of keys, d2^T += y2^T @ P^T as well
gradients = d1^T and d2^T, transposed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

from jax.extend.mlir import ir

from jax_nano.codegen.attention.columns import Columns
from jax_nano.codegen.attention.gradient_arrays import GradientArrays, Lengths, OfHead, Side
from jax_nano.codegen.attention.gradient_scores import Elementwise
from jax_nano.codegen.attention.microkernel import microkernel_for
from jax_nano.codegen.attention.operands import Head
from jax_nano.codegen.attention.pairs import Pairs
from jax_nano.codegen.attention.softmax import broadcast_zero
from jax_nano.codegen.index import Index, add, divmod_, less, maximum, minimum, mul, select, subtract
from jax_nano.codegen.load_store import load, load_scalar, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, Span, for_range, panels, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import KBlock, Result
from jax_nano.codegen.nanokernel import Block, PanelProduct
from jax_nano.codegen.operand_loader import OperandLoader, rounds_to_bf16
from jax_nano.codegen.pack import Destination, Packer
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.shuffles import transpose
from jax_nano.codegen.vector.convert import convert
from jax_nano.schedule.attention.gradient import GradientPlan
from jax_nano.schedule.attention.plan import AttentionPlan


@dataclass(frozen=True)
class RowBlock:
    """Rows from `begin` on, as products read them: by rows, and transposed."""

    begin: Index
    depth: Depth
    rows: Side
    transposed: Side


class GradientTask:
    """Writes one task: the loops of this file."""

    def __init__(self, plan: GradientPlan, task: Index, local: ir.Value, arrays: Sequence[ir.Value]):
        """Finds the head of a task, and its block of columns. The longest tasks come first."""
        self.plan, self.problem = plan, plan.problem
        self.arrays = GradientArrays(plan, local, arrays)
        _, heads, group = plan.outer
        count = math.prod(plan.outer)
        block, number = divmod_(task, count) if count > 1 else (task, 0)
        if plan.query_blocks == 1:
            block = 0
        elif self.problem.causal and not plan.of_keys:
            block = subtract(plan.query_blocks - 1, block)
        rest, member = divmod_(number, group) if group > 1 else (number, 0)
        self.head = Head(*(divmod_(rest, heads) if heads > 1 else (rest, 0)), member)
        self.columns = Columns.of_block(plan, block)
        self.begin, self.end = self.columns.begin, self.columns.end

    def by(self, plan: AttentionPlan) -> Self:
        """The task's panels that another plan computes, in the same scratch."""
        assert isinstance(plan, GradientPlan)
        other = copy(self)
        other.plan, other.arrays = plan, copy(self.arrays)
        other.arrays.plan = plan
        return other

    @property
    def gradients(self) -> list[tuple[str, int]]:
        """The names and depths of the gradients."""
        both = [("d1", self.problem.depth), ("d2", self.problem.value_depth)]
        return both if self.plan.of_keys else both[:1]

    def emit(self) -> None:
        """Emits the task."""
        with section("pack columns"):
            self.pack_columns(self.head)
        with section("clear"):
            self.clear()
        for head in self.members():
            self.visit_rows(head)
        with section("results"):
            self.finish()

    def members(self) -> Iterator[Head]:
        """Emits a loop over the query heads that add to the task's gradients, where several do."""
        batches, heads, group = self.plan.outer
        problem, (batch, head, member) = self.problem, self.head
        with (
            section("query heads"),
            for_range(0, 1 if batches > 1 else problem.batch) as b,
            for_range(0, 1 if heads > 1 else problem.heads) as h,
            for_range(0, 1 if group > 1 else problem.group) as g,
        ):
            yield Head(add(batch, b.i), add(head, h.i), add(member, g.i))

    def sides(self, head: Head) -> tuple[Side, Side]:
        """What columns have, and what rows have."""
        queries, keys = self.arrays.queries(head), self.arrays.keys(head)
        return (keys, queries) if self.plan.of_keys else (queries, keys)

    def depths(self) -> tuple[int, int]:
        """That of queries and keys, and that of values and cotangents."""
        return self.problem.depth, self.problem.value_depth

    def pack_columns(self, head: Head) -> None:
        """Copies x1^T and x2^T in panels."""
        columns, _ = self.sides(head)
        for plan, span in self.columns.spans():
            loader, packed = OperandLoader(plan.instruction, "rhs"), self.by(plan).arrays.packed_columns()
            for source, target, depth in zip(columns, packed, self.depths(), strict=True):

                def panel(j: Index, target: MatrixRef = target, depth: int = depth) -> MatrixRef:
                    return self.panel_of(target, subtract(j, self.begin), depth)

                to = Destination(span, plan.nr, panel)
                Packer(loader, plan.nr).pack_panels(to, source.transposed, Depth(depth, depth))

    def panel_of(self, packed: MatrixRef, j: Index, depth: int) -> MatrixRef:
        """The packed panel at column j of the block."""
        return packed.advance(mul(j, self.plan.padded(depth)))

    def sums_of(self, name: str, depth: int, j: Index) -> MatrixRef:
        """The panel of a gradient at column j of the block."""
        return self.arrays.sums(name, depth).advance(mul(j, self.plan.sum_rows(depth)))

    def clear(self) -> None:
        """Sets gradients to zero, or to what rows whose keys are all masked add to them."""
        for plan, j in self.columns.panels("clear"):
            self.by(plan).clear_panel(j)

    def clear_panel(self, j: Index) -> None:
        """Does so for a panel."""
        plan, zero = self.plan, broadcast_zero(self.plan)
        average = self.arrays.average(self.head)
        for name, depth in self.gradients:
            out = self.sums_of(name, depth, j)
            self.fill(out, plan.sum_rows(depth), lambda _: zero)
            if average and name == "d2":
                self.fill(out, depth, lambda i: broadcast(load_scalar(average.base, average.offset(0, i)), plan.lanes))

    def fill(self, out: MatrixRef, rows: int, value: Callable[[Index], ir.Value]) -> None:
        """Stores a value in all columns of each row of a panel."""
        with for_range(0, rows) as row:
            register = value(row.i)
            for j in range(0, self.plan.nr, self.plan.lanes):
                store(register, out.base, out.offset(row.i, j))

    # Blocks of rows.

    def visited(self, lengths: Lengths) -> tuple[Index, Index]:
        """The rows that the block's columns may meet, from the beginning of a block on."""
        problem, plan = self.problem, self.plan
        begin: Index = 0
        end: Index = plan.rows
        last = subtract(self.end, 1)
        left, right = problem.window or (None, None)
        if problem.causal:
            right = 0 if right is None else min(right, 0)
        before, behind = (right, left) if plan.of_keys else (left, right)
        if before is not None:
            begin = maximum(begin, subtract(self.begin, before))
        if behind is not None:
            end = minimum(end, add(last, behind + 1))
        of_rows, of_columns = lengths if plan.of_keys else lengths[::-1]
        if of_rows is not None:
            end = minimum(end, of_rows)
        if of_columns is not None:
            end = select(less(self.begin, of_columns), end, 0)
        block, _ = divmod_(begin, plan.key_block)
        return mul(block, plan.key_block), end

    def visit_rows(self, head: Head) -> None:
        """Emits the loop over blocks of rows."""
        begin, end = self.visited(self.arrays.lengths(head.batch))
        with section("blocks of rows"), for_range(begin, end, self.plan.key_block) as block:
            self.visit_block(head, block.i)

    def visit_block(self, head: Head, begin: Index) -> None:
        """Emits a block of rows with all panels of columns."""
        lengths, of_head = self.arrays.lengths(head.batch), self.arrays.of_head(head)
        _, rows = self.sides(head)
        block = self.pack_rows(rows, begin, self.block_depth(begin))
        for of_panel, j in self.columns.panels("panels of columns"):
            task = self.by(of_panel)
            pairs = Pairs(task.plan, begin, add(self.begin, j), lengths)
            with when(pairs.any_visible()):
                task.add_panel(j, block, pairs, of_head)

    def block_depth(self, begin: Index) -> Depth:
        """How many rows a block has."""
        plan = self.plan
        steps: Index = min(plan.key_block, plan.rows)
        if plan.rows > plan.key_block and plan.rows % plan.key_block:
            steps = minimum(plan.key_block, subtract(plan.rows, begin))
        return Depth(steps, plan.rows)

    def pack_rows(self, rows: Side, begin: Index, depth: Depth) -> RowBlock:
        """Copies a block of y1 and y2."""
        by_rows, transposed = self.arrays.packed_rows(), self.arrays.packed_transposed()
        wanted = (True, self.plan.of_keys)  # y2^T is for the second gradient alone
        for source, target, to, size, is_wanted in zip(rows, by_rows, transposed, self.depths(), wanted, strict=True):
            with section("pack rows"):
                self.pack_by_rows(source, target, begin, depth, size)
            if self.plan.packs_transposed and is_wanted:
                with section("pack rows, transposed"):
                    self.pack_transposed(source.block(begin, 0), to, depth, size)
        if not self.plan.packs_transposed:
            transposed = Side(*(matrix.transposed for matrix in by_rows))
        return RowBlock(begin, depth, by_rows, transposed)

    def pack_by_rows(self, source: MatrixRef, target: MatrixRef, begin: Index, depth: Depth, size: int) -> None:
        """Copies a block as the first products' A."""
        plan = self.plan
        width = math.gcd(plan.key_block, plan.lanes)
        span = Span(begin, add(begin, depth.steps), depth.size)
        to = Destination(span, width, lambda i: target.block(subtract(i, begin), 0))
        Packer(OperandLoader(plan.instruction, "lhs"), width).pack_rows(to, source, Depth(size, size))

    def pack_transposed(self, source: MatrixRef, target: MatrixRef, depth: Depth, size: int) -> None:
        """Copies a block as the last products' A."""
        plan, span = self.plan, Span(0, size, size)
        width = plan.instruction.shape[0] if plan.instruction.tiles else size
        packer = Packer(OperandLoader(plan.instruction, "lhs"), width)
        if plan.instruction.tiles:
            packer.pack_rows(Destination(span, width, lambda i: target.block(i, 0)), source.transposed, depth)
        else:
            packer.pack_panels(Destination(span, width, lambda j: target.transposed.block(0, j)), source, depth)

    # A panel of columns.

    def add_panel(self, j: Index, block: RowBlock, pairs: Pairs, head: OfHead) -> None:
        """Adds what a block of rows contributes to a panel of columns."""
        arrays = self.arrays
        self.multiply(j, block)
        with section("probabilities and their gradients"):
            Elementwise(arrays, block.depth, pairs, head).emit()
        panels_ = (arrays.rounded_panel("ds", "products"), arrays.rounded_panel("p", "scores"))
        for (name, size), y, x in zip(self.gradients, block.transposed, panels_, strict=False):
            with section("gradients"):
                self.add_product(y, x, block, (size, self.sums_of(name, size, j)))

    def multiply(self, j: Index, block: RowBlock) -> None:
        """Multiplies a block of rows by a panel of columns: scores, and gradients of probabilities."""
        depths, arrays = self.depths(), self.arrays
        for y, x, size, name in zip(
            block.rows, arrays.packed_columns(), depths, ("scores", "products"), strict=True
        ):  # fmt: skip
            with section(name):
                self.multiply_rows(y, self.panel_of(x, j, size), block, (size, arrays.panel(name)))

    def multiply_rows(self, y: MatrixRef, x: MatrixRef, block: RowBlock, to: tuple[int, MatrixRef]) -> None:
        """Rows by columns, over so many steps into a panel: whole register blocks, whose last rows may be anything."""
        plan, (size, out) = self.plan, to
        k = KBlock(0, Depth(size, size), first=True, last=True)
        count = -(-block.depth.size // plan.mr) * plan.mr
        begin = block.begin
        for i, rows in panels(Span(begin, add(begin, block.depth.steps), count), plan.mr, "panels of rows"):
            row = subtract(i, begin)
            product = PanelProduct(y.block(row, 0), x, Block(rows, plan.nr, plan.lanes))
            microkernel_for(self.plan, lhs_is_packed=True).emit(product, k, self.result(out.block(row, 0)))

    def add_product(self, y: MatrixRef, x: MatrixRef, block: RowBlock, to: tuple[int, MatrixRef]) -> None:
        """Adds transposed rows by a panel to so many rows of a gradient."""
        plan, (size, out) = self.plan, to
        size = plan.sum_rows(size) if plan.instruction.tiles else size
        k = KBlock(0, block.depth, first=False, last=True)
        for i, rows in panels(Span(0, size, size), plan.mr, "panels of a gradient"):
            product = PanelProduct(y.block(i, 0), x, Block(rows, plan.nr, plan.lanes))
            microkernel_for(self.plan, lhs_is_packed=True).emit(product, k, self.result(out.block(i, 0)))

    def result(self, out: MatrixRef) -> Result:
        """Where a register block goes."""
        return Result(out=out, partial=out, compensation=out, compensated=False, tiles=self.arrays.tiles())

    # Results.

    def finish(self) -> None:
        """Stores gradients, transposed and rounded."""
        lanes, outs = self.plan.lanes, self.arrays.results(self.head)
        for (name, depth), out in zip(self.gradients, outs, strict=True):
            for plan, column, count in self.columns.stored("panels of columns"):
                sums = self.by(plan).sums_of(name, depth, subtract(column, self.begin))
                for first in range(0, count, lanes):
                    rows = out.block(add(column, first), 0)
                    self.store_rows(rows, sums.block(0, first), min(lanes, count - first), depth)

    def store_rows(self, out: MatrixRef, sums: MatrixRef, count: int, depth: int) -> None:
        """Stores `count` rows of a gradient, in squares that are transposed in registers."""
        lanes, whole = self.plan.lanes, depth // self.plan.lanes * self.plan.lanes
        with for_range(0, whole, lanes) as loop:
            self.store_square(out.block(0, loop.i), sums.block(loop.i, 0), count, lanes)
        if depth % lanes:
            self.store_square(out.block(0, whole), sums.block(whole, 0), count, depth % lanes)

    def store_square(self, out: MatrixRef, sums: MatrixRef, count: int, size: int) -> None:
        """Stores `size` elements of `count` rows."""
        plan = self.plan
        values = [load(sums.base, sums.offset(row, 0), plan.lanes) for row in range(size)]
        values += [broadcast_zero(plan)] * (plan.lanes - size)
        native_bf16 = rounds_to_bf16(plan.instruction)
        for row, value in enumerate(transpose(values)[:count]):
            rounded = convert(value, plan.instruction.acc, self.problem.dtype, native_bf16=native_bf16)
            store(rounded, out.base, out.offset(row, 0), size)
