"""The kernel of attention: blocks of queries by blocks of keys, both products by the products' own microkernels.

    compute: a task, one block of queries of one head, of one split of the keys
        pack Q^T in panels
        for each block of keys that a mask does not rule out whole:
            pack K, and V as the second product's A
            for each panel of queries:
                S^T  = K @ Q^T                 microkernels; scores stay in L1
                P^T  = exp(S^T - maxima)       softmax.py; O^T is rescaled where a maximum grew
                O^T += V^T @ P^T               microkernels, onto O^T in scratch
        O = O^T / sums, transposed
    combine: where keys are split, the splits' O^T, maxima and sums added up in order

A row that sees no key in the blocks it visits averages V over all keys, as jax.nn has it: then the task goes through
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jax_nano.codegen.attention import few_columns
from jax_nano.codegen.attention.columns import Columns
from jax_nano.codegen.attention.operands import AttentionOperands, Head, Sums
from jax_nano.codegen.attention.panel import PanelAttention
from jax_nano.codegen.attention.result import AttentionResult
from jax_nano.codegen.attention.skips import sees
from jax_nano.codegen.attention.softmax import Softmax, Visible, broadcast_zero, update
from jax_nano.codegen.index import (
    Condition,
    Index,
    add,
    any_of,
    both,
    divmod_,
    index,
    less,
    maximum,
    minimum,
    mul,
    negation,
    select,
    subtract,
    unequal,
)
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, Span, for_range, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import OperandLoader
from jax_nano.codegen.pack import Destination, Packer
from jax_nano.codegen.registers import any_lane
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.formats import INFINITY
from jax_nano.ir.attention import MASKED
from jax_nano.schedule.attention.plan import AttentionPlan


class AttentionKernel:
    """Writes the phases of one plan, each from what its entry point is given."""

    def __init__(self, plan: AttentionPlan):
        """Takes what the plan says."""
        self.plan = plan

    def compute_phase(self, operands: AttentionOperands) -> None:
        """One task: a block of queries of a head, and one split of the keys. The longest ones come first."""
        plan = self.plan
        element, split = divmod_(operands.task, plan.splits)
        heads = math.prod(plan.outer)
        block, number = divmod_(element, heads) if heads > 1 else (element, 0)
        if plan.query_blocks == 1:
            block = 0
        elif plan.problem.causal:
            block = subtract(plan.query_blocks - 1, block)
        AttentionTask(operands, number, block, element, split).emit()

    def combine_phase(self, operands: AttentionOperands) -> None:
        """One task: what the splits of a block of queries have added up, combined in their order."""
        plan = self.plan
        heads = math.prod(plan.outer)
        block, number = divmod_(operands.task, heads) if heads > 1 else (operands.task, 0)
        block = 0 if plan.query_blocks == 1 else block
        first = AttentionTask(operands, number, block, operands.task, 0)
        for head in first.heads():
            others = [operands.sums(operands.task, split, head.number) for split in range(1, plan.splits)]
            for of_panel, j in first.columns.panels("combine splits"):
                first.combine(j, head.by(of_panel).sums, [replace(other, plan=of_panel) for other in others])
            first.finish(head)


class AttentionTask:
    """Writes one task: the loops of this file."""

    def __init__(self, operands: AttentionOperands, number: Index, block: Index, element: Index, split: Index):
        """Finds the first head of a number, and its block of queries."""
        self.operands, self.plan, self.problem = operands, operands.plan, operands.plan.problem
        self.head: Head = operands.head(number)
        self.element, self.split = element, split
        self.columns = Columns.of_block(self.plan, block)
        self.begin, self.end = self.columns.begin, self.columns.end
        self.key_length = operands.length("key_lengths", self.head)
        self.query_length = operands.length("query_lengths", self.head)

    def heads(self) -> Iterator[PanelAttention]:
        """Emits a loop over the task's heads of keys."""
        with section("heads"), for_range(0, self.plan.heads_per_task) as loop:
            head = self.head._replace(head=add(self.head.head, loop.i))
            sums = self.operands.sums(self.element, self.split, loop.i)
            yield PanelAttention(self.operands, head, loop.i, self.begin, sums)

    def emit(self) -> None:
        """Emits the task."""
        for head in self.heads():
            with section("pack Q"):
                self.pack_queries(head)
        for begin, end, everything in self.passes():
            with section("blocks of keys"), for_range(begin, end, self.plan.key_block) as block:
                is_visited = any_of(everything, self.sees((self.begin, self.end), block.i))
                with when(is_visited):
                    self.visit(block.i, everything)
        if self.plan.splits == 1:
            for head in self.heads():
                self.finish(head)

    def pack_queries(self, head: PanelAttention) -> None:
        """Copies Q^T in panels; of folded heads, query by query, each over the zeros behind the one before."""
        plan, source = self.plan, self.operands.query(head.head).transposed
        if plan.by_rows:
            count, stride = (self.problem.queries, self.problem.query[3]) if plan.folds_heads else (1, 0)
            sources = [source.transposed.advance(t * stride) for t in range(count)]
            few_columns.pack_queries(plan, sources, head.queries(0))
            return
        if not plan.folds_heads or self.problem.queries == 1:
            for of_panel, span in self.columns.spans():
                panels_ = head.by(of_panel)
                to = Destination(span, of_panel.nr, lambda j, to=panels_: to.queries(subtract(j, self.begin)))
                self.pack_columns(to, source)
            return
        group = self.problem.group
        for t in range(self.problem.queries):
            panel = head.queries(0).block(0, t * group)
            to = Destination(Span(0, group, group), plan.nr - t * group, lambda _, panel=panel: panel)
            self.pack_columns(to, source.advance(t * self.problem.query[3]))

    def pack_columns(self, to: Destination, source: MatrixRef) -> None:
        """Copies columns of Q^T."""
        loader = OperandLoader(self.plan.instruction, "rhs")
        Packer(loader, to.width).pack_panels(to, source, Depth(self.problem.depth, self.problem.depth))

    # Which keys.

    def passes(self) -> Iterator[tuple[Index, Index, Condition]]:
        """Emits the loop over passes, with sums cleared in each: (first key, their end, whether nothing is skipped).

        There is a second pass, through all keys, if rows are found of which no visible key was visited.
        """
        begin, end = self.visited()
        if self.plan.always_visits:
            self.clear()
            yield begin, end, False
            return
        start = [index(begin), index(end)]
        with section("passes"), for_range(0, 2, carry=start) as loop:
            again = unequal(loop.i, 0)
            first, last = loop.carry
            with when(any_of(less(first, last), negation(again))):
                self.clear()
            yield first, last, again
            loop.next = [index(0), index(select(self.has_blind_rows(), self.problem.keys, 0))]

    def visited(self) -> tuple[Index, Index]:
        """The keys that the block's queries may see, from the beginning of a block on."""
        plan, problem = self.plan, self.problem
        first, last = (0, problem.queries - 1) if plan.folds_heads else (self.begin, subtract(self.end, 1))
        begin: Index = 0
        end: Index = problem.keys
        if plan.splits > 1:
            begin = mul(self.split, plan.keys_per_split)
            end = minimum(add(begin, plan.keys_per_split), problem.keys)
        if problem.causal:
            end = minimum(end, add(last, 1))
        if problem.window:
            begin = maximum(begin, subtract(first, problem.window[0]))
            end = minimum(end, add(last, problem.window[1] + 1))
        if self.key_length is not None:
            # Without any key, all are visited, and masked.
            end = minimum(end, select(less(self.key_length, 1), problem.keys, self.key_length))
        if self.query_length is not None:
            end = select(less(first, self.query_length), end, 0)
        block, _ = divmod_(begin, plan.key_block)
        return mul(block, plan.key_block), end

    def clear(self) -> None:
        """Sets sums to zero, and maxima to minus infinity."""
        for head in self.heads():
            for plan, j in self.columns.panels("clear"):
                self.clear_panel(head.by(plan).sums, j)

    def clear_panel(self, sums: Sums, j: Index) -> None:
        """Does so for a panel."""
        plan, zero = sums.plan, broadcast_zero(sums.plan)
        registers = range(0, plan.nr, plan.lanes)
        out, maxima, totals = sums.out(j), sums.maxima(j), sums.totals(j)
        for i in registers:
            store(v.like(zero, -INFINITY), maxima.base, maxima.offset(0, i))
            store(zero, totals.base, totals.offset(0, i))
        if plan.by_rows:
            few_columns.clear(plan, out, self.operands.scores())
            return
        with for_range(0, plan.value_rows) as row:
            for i in registers:
                store(zero, out.base, out.offset(row.i, i))

    def has_blind_rows(self) -> Condition:
        """Whether some row has seen no key that is not masked."""
        plan = self.plan
        sums = self.operands.sums(self.element, self.split, 0)
        blind: Condition = False
        for j in range(0, min(plan.query_block, plan.columns), plan.lanes):
            maxima = sums.maxima(j)
            row = load(maxima.base, maxima.at, plan.lanes, subtract(subtract(self.end, self.begin), j))
            blind = any_of(blind, any_lane(v.less(row, MASKED / 2)))
        return blind

    # A block of keys.

    def visit(self, key: Index, everything: Condition) -> None:
        """Emits a block of keys with all panels of queries of each head."""
        plan, problem = self.plan, self.problem
        steps: Index = min(plan.key_block, problem.keys)
        if problem.keys > plan.key_block and problem.keys % plan.key_block:
            steps = minimum(plan.key_block, subtract(problem.keys, key))
        depth = Depth(steps, problem.keys)
        for head in self.heads():
            block = head.key_block(key, depth)
            for of_panel, j in self.columns.panels("panels of queries"):
                column = add(self.begin, j)
                visible = Visible(of_panel, 0 if plan.folds_heads else column, self.key_length)
                is_visited = both(visible.sees(key), self.sees((column, add(column, of_panel.nr)), key))
                with when(any_of(everything, is_visited)):
                    head.by(of_panel).attend(j, block, visible)

    def sees(self, columns: tuple[Index, Index], key: Index) -> Condition:
        """Whether a block mask has these columns visit the block of keys from `key` on."""
        return sees(self.operands, self.head, columns, (key, add(key, self.plan.key_block)))

    # Results.

    def combine(self, j: Index, sums: Sums, others: Sequence[Sums]) -> None:
        """Adds what further splits have of a panel to this split's."""
        plan = sums.plan
        softmax = Softmax(plan, self.operands.scores(), self.operands.exponentials(), None, None)
        for other in others:
            before, others_maxima = softmax.row(sums.maxima(j)), softmax.row(other.maxima(j))
            after = [v.select(v.less(a, b), b, a) for a, b in zip(before, others_maxima, strict=True)]
            zero = [broadcast_zero(plan)] * len(before)
            factors, total = update(before, after, softmax.row(sums.totals(j)), zero)
            weights, total = update(others_maxima, after, softmax.row(other.totals(j)), total)
            softmax.store_row(after, sums.maxima(j))
            softmax.store_row(total, sums.totals(j))
            out, more = sums.out(j), other.out(j)
            if plan.by_rows:
                few_columns.combine(plan, out, more, factors, weights)
                continue
            with for_range(0, self.problem.value_depth) as row:
                mine = [v.mul(x, f) for x, f in zip(softmax.row(out, row.i), factors, strict=True)]
                theirs = zip(softmax.row(more, row.i), weights, mine, strict=True)
                softmax.store_row([v.fma(x, w, y) for x, w, y in theirs], out, row.i)

    def finish(self, head: PanelAttention) -> None:
        """Stores the block's rows of the result, and the logarithms of its sums."""
        rows = AttentionResult(self.operands, head.head, self.query_length)
        with section("results"):
            for plan, j, columns in self.columns.stored("panels of queries"):
                rows.store(head.by(plan).sums, j, subtract(j, self.begin), columns)
