"""A panel of queries attends to a block of keys: two products by microkernels, and the softmax between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jax_nano.codegen.attention import few_columns
from jax_nano.codegen.attention.microkernel import microkernel_for
from jax_nano.codegen.attention.operands import AttentionOperands, Head, Sums
from jax_nano.codegen.attention.pair_arrays import PanelPairs
from jax_nano.codegen.attention.score import PanelScore, ScoreArrays
from jax_nano.codegen.attention.softmax import Softmax, Visible, finite_or_zero, grew, update
from jax_nano.codegen.index import Index, add, divmod_, mul, subtract
from jax_nano.codegen.load_store import prefetch
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, Span, for_range, panels, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import KBlock, Result, StepHook
from jax_nano.codegen.nanokernel import Block, PanelProduct
from jax_nano.codegen.operand_loader import OperandLoader
from jax_nano.codegen.pack import ROWS_AHEAD, Destination, Packer
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.ir.attention import Attention
from jax_nano.ir.dtypes import bytes_of
from jax_nano.schedule.attention.plan import AttentionPlan
from jax_nano.schedule.plan import LINE_BYTES


@dataclass(frozen=True)
class KeyBlock:
    """The keys from `key` on, with their values, as both products read them: (keys, d), and (d, keys)."""

    key: Index
    depth: Depth
    keys: MatrixRef
    values: MatrixRef


@dataclass(frozen=True)
class PanelAttention:
    """Writes what becomes of each panel of queries of a task.

    Attributes:
      operands: where everything lies.
      head: whose queries they are.
      number: the how-manieth of the task's heads that is.
      begin: the first of the task's queries.
      sums: what the task adds up.
    """

    operands: AttentionOperands
    head: Head
    number: Index
    begin: Index
    sums: Sums

    @property
    def plan(self) -> AttentionPlan:
        """The plan."""
        return self.operands.plan

    @property
    def problem(self) -> Attention:
        """What is computed."""
        return self.plan.problem

    def by(self, plan: AttentionPlan) -> PanelAttention:
        """The panels that another plan computes, in the same scratch."""
        return replace(self, operands=replace(self.operands, plan=plan), sums=replace(self.sums, plan=plan))

    def queries(self, j: Index) -> MatrixRef:
        """The packed panel of Q^T at column j of the task's block."""
        return self.operands.packed_queries(self.number).advance(mul(j, self.plan.depth))

    def key_block(self, key: Index, depth: Depth) -> KeyBlock:
        """Packs a block of keys and values where the plan says so."""
        return KeyBlock(key, depth, self.packed_keys(key, depth), self.packed_values(key, depth))

    def packed_keys(self, key: Index, depth: Depth) -> MatrixRef:
        """A block of K as the first product's A."""
        plan, source = self.plan, self.operands.key(self.head)
        if not plan.packs_keys:
            return source.block(key, 0)
        target = self.operands.packed_keys()
        width = math.gcd(plan.key_block, plan.lanes)
        span = Span(key, add(key, depth.steps), depth.size)
        to = Destination(span, width, lambda i: target.block(subtract(i, key), 0))
        with section("pack K"):
            Packer(OperandLoader(plan.instruction, "lhs"), width).pack_rows(
                to, source, Depth(self.problem.depth, self.problem.depth)
            )
        return target

    def packed_values(self, key: Index, depth: Depth) -> MatrixRef:
        """A block of V^T as the second product's A."""
        plan, rows = self.plan, self.problem.value_depth
        source = self.operands.value(self.head).block(key, 0)
        if not plan.packs_values:
            return source.transposed
        target = self.operands.packed_values()
        width = plan.instruction.shape[0] if plan.instruction.tiles else rows
        ahead = 0 if plan.streams else ROWS_AHEAD
        packer = Packer(OperandLoader(plan.instruction, "lhs"), width, ahead)
        with section("pack V"):
            if plan.instruction.tiles:
                to = Destination(Span(0, rows, rows), width, lambda i: target.block(i, 0))
                packer.pack_rows(to, source.transposed, depth)
            else:
                to = Destination(Span(0, rows, rows), width, lambda j: target.transposed.block(0, j))
                packer.pack_panels(to, source, depth)
        return target

    def attend(self, j: Index, block: KeyBlock, visible: Visible) -> None:
        """Emits the products of a panel of queries, and the softmax between them."""
        plan = self.plan
        self.multiply_keys(block, self.queries(j))
        bias = self.score_array("bias", self.operands.bias(self.head), j, block)
        mask = self.score_array("mask", self.operands.mask(self.head), j, block)
        score = self.score_function(j, block, visible)
        softmax = Softmax(
            plan, self.operands.scores(), self.operands.exponentials(), bias, mask, score,
            *(self.score_array("scales", scales, j, block) for scales in self.scales()),
        )  # fmt: skip
        out, maxima, totals = self.sums.out(j), self.sums.maxima(j), self.sums.totals(j)
        before = softmax.row(maxima)
        after = softmax.maxima(block.depth, visible, block.key, before)
        sums = softmax.exponentiate(block.depth, finite_or_zero(after))
        factors, total = update(before, after, softmax.row(totals), sums)
        softmax.store_row(after, maxima)
        softmax.store_row(total, totals)
        if plan.by_rows:
            with section("rescale"), when(grew(before, after)):
                few_columns.rescale(plan, out, factors)
            self.add_values(block, out)
            return
        with section("rescale"), when(grew(before, after)), for_range(0, self.problem.value_depth) as row:
            rescaled = [v.mul(x, factor) for x, factor in zip(softmax.row(out, row.i), factors, strict=True)]
            softmax.store_row(rescaled, out, row.i)
        self.add_values(block, out)

    def scales(self) -> tuple[MatrixRef | None, MatrixRef | None]:
        """Those of keys and of values, which are the same for all queries."""
        return self.operands.key_scales(self.head), self.operands.value_scales(self.head)

    def score_array(self, name: str, source: MatrixRef | None, j: Index, block: KeyBlock) -> MatrixRef | None:
        """The bias or mask of a panel, (keys, columns): where it lies, if it is the same for all queries."""
        if source is None or source.strides[0] == 0:
            return source and source.block(0, block.key).transposed
        target = self.operands.packed_scores(name)
        with section(f"pack the {name}"):
            self.pairs(j, block).pack(source, target)
        return target

    def pairs(self, j: Index, block: KeyBlock) -> PanelPairs:
        """The pairs of a panel of queries and a block of keys."""
        return PanelPairs(self.plan, add(self.begin, j), block.key, block.depth)

    def score_function(self, j: Index, block: KeyBlock, visible: Visible) -> PanelScore | None:
        """The score function on a panel's scores."""
        if self.problem.score is None:
            return None
        arrays = ScoreArrays(self.operands, self.head, self.pairs(j, block))
        with section("arrays of the score function"):
            return PanelScore(self.plan, visible.queries(), block.key, arrays.rows())

    # Products.

    def multiply_keys(self, block: KeyBlock, queries: MatrixRef) -> None:
        """S^T = K @ Q^T: packed keys by whole register blocks, whose last rows may be any numbers."""
        plan, problem, key, depth = self.plan, self.problem, block.key, block.depth
        if plan.by_rows:
            span = Span(key, add(key, depth.steps), depth.size)
            scores = self.operands.scores()
            for i, emit in few_columns.key_products(plan, block.keys, queries, scores, span):
                row = subtract(i, key)
                begin = mul(row, problem.depth)
                emit(row, self.prefetch_hooks(self.operands.key, block, begin, (problem.depth, plan.mr)))
            return
        k = KBlock(0, Depth(problem.depth, problem.depth), first=True, last=True)
        micro = microkernel_for(self.plan, lhs_is_packed=plan.packs_keys)
        size = -(-depth.size // plan.mr) * plan.mr if plan.packs_keys else depth.size
        with section("scores"):
            for i, rows in panels(Span(key, add(key, depth.steps), size), plan.mr, "panels of keys"):
                row = subtract(i, key)
                product = PanelProduct(block.keys.block(row, 0), queries, Block(rows, plan.nr, plan.lanes))
                hooks = self.prefetch_hooks(self.operands.key, block, mul(row, problem.depth), (problem.depth, plan.mr))
                micro.emit(product, k, self.result(self.operands.scores().block(row, 0)), hooks)

    def prefetch_hooks(
        self, array: Callable[[Head], MatrixRef], block: KeyBlock, begin: Index, sizes: tuple[int, int]
    ) -> list[StepHook]:
        """Prefetches the next block of K or V, as many elements as are multiplied meanwhile, in their order in memory.

        Heads of a task have a part of the block each, of all of its heads.

        Args:
          array: K or V.
          block: the block that is multiplied.
          begin: how many elements of it were multiplied before.
          sizes: the depth of a row of one head, and how many elements a step of the product goes through.
        """
        depth, width = sizes
        plan, source = self.plan, array(self.head._replace(head=subtract(self.head.head, self.number)))
        if not plan.streams or source.strides[1] != 1:
            return []
        line, row = LINE_BYTES // bytes_of(source.dtype), depth * plan.heads_per_task
        first = add(mul(self.number, plan.key_block * depth), begin)

        def hook(k: Index, steps: int) -> None:
            for element in range(0, width * steps, line):
                i, column = divmod_(add(first, mul(k, width), element), row)
                prefetch(source.base, source.offset(add(block.key, plan.key_block, i), column))

        return [hook]

    def add_values(self, block: KeyBlock, out: MatrixRef) -> None:
        """O^T += V^T @ P^T."""
        plan, problem = self.plan, self.problem
        if plan.by_rows:

            def hooks_of(j: Index, columns: int) -> list[StepHook]:
                sizes = problem.value_depth, columns
                return self.prefetch_hooks(self.operands.value, block, mul(j, plan.key_block), sizes)

            values = block.values.transposed
            few_columns.add_values(plan, (self.operands.exponentials(), values), out, block.depth, hooks_of)
            return
        micro = microkernel_for(self.plan, lhs_is_packed=plan.packs_values)
        size = plan.value_rows if plan.instruction.tiles else problem.value_depth
        k, sizes = KBlock(0, block.depth, first=False, last=True), (problem.value_depth, plan.mr)
        exponentials = self.operands.exponentials()
        with section("values"):
            for i, rows in panels(Span(0, size, size), plan.mr, "panels of values"):
                product = PanelProduct(block.values.block(i, 0), exponentials, Block(rows, plan.nr, plan.lanes))
                hooks = self.prefetch_hooks(self.operands.value, block, mul(i, plan.key_block), sizes)
                micro.emit(product, k, self.result(out.block(i, 0)), hooks)

    def result(self, out: MatrixRef) -> Result:
        """Where a register block goes."""
        return Result(out=out, partial=out, compensation=out, compensated=False, tiles=self.operands.tiles())
