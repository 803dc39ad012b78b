"""The online softmax of a panel of scores: keys along rows, queries along lanes.

    s  =  scale * s + bias, masked          m'  =  max(m, s)          p  =  exp(s - m')
    l  =  l * exp(m - m') + sum of p        O^T =  O^T * exp(m - m')  where any maximum grew

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867); Dao, "FlashAttention-2"
(arXiv 2307.08691).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Condition, Index, Values, add, any_of, both, index, less, subtract, unequal
from jax_nano.codegen.load_store import load, load_scalar, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, either, for_range, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import any_lane, broadcast, count_up
from jax_nano.codegen.shuffles import interleave
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.vector.formats import INFINITY
from jax_nano.ir.attention import MASKED
from jax_nano.schedule.attention.plan import AttentionPlan


@dataclass(frozen=True)
class Visible:
    """Which pairs of queries and keys are not masked, in a panel: `query` is that of its first column."""

    plan: AttentionPlan
    query: Index
    key_length: Index | None

    def needs_masks(self, key: Index) -> Condition:
        """Whether any pair with the keys of the block from `key` on may be masked by place."""
        problem = self.plan.problem
        last_key, last_query = add(key, self.plan.key_block - 1), add(self.query, self.last_column)
        conditions: list[Condition] = []
        if problem.causal:
            conditions.append(less(self.query, last_key))
        if problem.window:
            conditions.append(less(add(key, problem.window[0]), last_query))
            conditions.append(less(add(self.query, problem.window[1]), last_key))
        if self.key_length is not None:
            conditions.append(less(self.key_length, add(key, self.plan.key_block)))
        return any_of(*conditions)

    def sees(self, key: Index) -> Condition:
        """Whether any pair with the keys of the block from `key` on may be visible."""
        problem, last_query = self.plan.problem, add(self.query, self.last_column)
        condition: Condition = True
        if problem.causal:
            condition = less(subtract(key, 1), last_query)
        if problem.window:
            left, right = problem.window
            condition = both(condition, less(self.query, add(key, self.plan.key_block + left)))
            condition = both(condition, less(subtract(key, right + 1), last_query))
        return condition

    @property
    def last_column(self) -> int:
        """The last column's query, counted from the first one's."""
        return (self.plan.problem.queries if self.plan.folds_heads else self.plan.nr) - 1

    def queries(self) -> Values:
        """The numbers of the queries, register by register."""
        return [query_numbers(self.plan, self.query, j) for j in range(0, self.plan.nr, self.plan.lanes)]

    def apply(self, scores: Values, queries: Values, key: Index) -> Values:
        """The scores of a key, those of masked pairs replaced."""
        problem, word = self.plan.problem, ir.IntegerType.get_signless(32)
        place = broadcast(arith.index_cast(word, index(key)), self.plan.lanes)

        def at_most(a: ir.Value, b: ir.Value) -> ir.Value:
            return arith.cmpi(arith.CmpIPredicate.sle, a, b)

        def visible(query: ir.Value) -> ir.Value:
            masks = [at_most(place, query)] if problem.causal else []
            if problem.window:
                left, right = (v.like(query, size) for size in problem.window)
                masks += [at_most(v.sub(query, left), place), at_most(place, v.add(query, right))]
            if self.key_length is not None:
                length = broadcast(arith.index_cast(word, self.key_length), self.plan.lanes)
                masks.append(arith.cmpi(arith.CmpIPredicate.slt, place, length))
            result = masks[0]
            for mask in masks[1:]:
                result = arith.andi(result, mask)
            return result

        return [v.select(visible(query), score, MASKED) for score, query in zip(scores, queries, strict=True)]


@dataclass(frozen=True)
class Softmax:
    """Writes the steps of a panel.

    Attributes:
      plan: the plan.
      scores: products of keys and queries, (keys, columns).
      exponentials: where those go.
      bias: what is added, (keys, columns).
      mask: of bytes, or of numbers that are 0 where a pair is masked.
      score: what becomes of the scores of a row.
      key_scales: factors of products, the same in a row.
      value_scales: factors of exponentials as the second product takes them, the same in a row.
    """

    plan: AttentionPlan
    scores: MatrixRef
    exponentials: MatrixRef
    bias: MatrixRef | None
    mask: MatrixRef | None
    score: Callable[[Values, Index], Values] | None = None
    key_scales: MatrixRef | None = None
    value_scales: MatrixRef | None = None

    @property
    def columns(self) -> range:
        """Where registers begin in a row."""
        return range(0, self.plan.nr, self.plan.lanes)

    def row(self, matrix: MatrixRef, i: Index = 0) -> Values:
        """A row of a panel. One that is the same for all queries may be of any type."""
        acc, lanes = self.plan.instruction.acc, self.plan.lanes
        if matrix.strides[1]:
            return [load(matrix.base, matrix.offset(i, j), lanes) for j in self.columns]
        one = broadcast(load_scalar(matrix.base, matrix.offset(i, 0)), lanes)
        return [convert(one, matrix.dtype, acc, native_bf16=False)] * len(self.columns)

    def store_row(self, values: Values, matrix: MatrixRef, i: Index = 0) -> None:
        """Stores a row of a panel."""
        for value, j in zip(values, self.columns, strict=True):
            store(value, matrix.base, matrix.offset(i, j))

    def over_rows(self, depth: Depth, step: int, carry: Values, body: Callable[[Index, int, Values], Values]) -> Values:
        """Emits a loop over rows, `step` at a time, and the rest: body(first row, rows, carry) gives the next carry."""
        whole = depth.whole(step)
        with for_range(0, whole, step, carry) as loop:
            loop.next = body(loop.i, step, loop.carry)
        carry = loop.results
        if rest := depth.size % step:
            types = [value.type for value in carry]
            carry = either(unequal(whole, depth.steps), types, lambda: body(whole, rest, carry), lambda: list(carry))
        return carry

    def maxima(self, depth: Depth, visible: Visible, key: Index, start: Values) -> Values:
        """Finishes scores, and gives the largest of each query, at least those of `start`."""
        queries = visible.queries()

        def finish(first: Index, rows: int, largest: Values, *, masked: bool) -> Values:
            for i in (add(first, row) for row in range(rows)):
                values = self.finished(self.row(self.scores, i), i)
                if masked:
                    values = visible.apply(values, queries, add(key, i))
                self.store_row(values, self.scores, i)
                largest = [v.select(v.less(a, b), b, a) for a, b in zip(largest, values, strict=True)]
            return largest

        def loop(*, masked: bool) -> Values:
            return self.over_rows(depth, self.plan.unroll, start, lambda *args: finish(*args, masked=masked))

        with section("scores and their maxima"):
            types = [value.type for value in start]
            return either(visible.needs_masks(key), types, lambda: loop(masked=True), lambda: loop(masked=False))

    def finished(self, products: Values, i: Index) -> Values:
        """Scores of a key out of its products: scaled, with bias and mask."""
        scale = self.plan.problem.scale
        values = [v.mul(x, scale) for x in products] if scale != 1 else products
        if self.key_scales:
            values = [v.mul(x, factor) for x, factor in zip(values, self.row(self.key_scales, i), strict=True)]
        if self.bias:
            values = [v.add(x, bias) for x, bias in zip(values, self.row(self.bias, i), strict=True)]
        if self.score:
            values = self.score(values, i)
        if self.mask:
            hidden = [v.equal(mask, 0.0) for mask in self.row(self.mask, i)]
            values = [v.select(mask, MASKED, x) for x, mask in zip(values, hidden, strict=True)]
        return values

    def exponentiate(self, depth: Depth, maxima: Values) -> Values:
        """Stores the exponentials of scores less the maxima, and gives the sums of each query."""
        vnni, zero = self.plan.instruction.vnni, v.like(maxima[0], 0.0)
        step = max(self.plan.unroll, vnni)

        def body(first: Index, rows: int, sums: Values) -> Values:
            for group in range(0, rows, vnni):
                found = []
                for i in range(group, min(group + vnni, rows)):
                    row = self.row(self.scores, add(first, i))
                    found.append([vmath.exp_of_difference(v.sub(x, m)) for x, m in zip(row, maxima, strict=True)])
                    sums = [v.add(total, x) for total, x in zip(sums, found[-1], strict=True)]
                    if self.value_scales:
                        factors = self.row(self.value_scales, add(first, i))
                        found[-1] = [v.mul(x, factor) for x, factor in zip(found[-1], factors, strict=True)]
                found += [[zero] * len(self.columns)] * (vnni - len(found))
                self.store_group(found, add(first, group))
            return sums

        with section("exponentials"):
            sums = self.over_rows(depth, step, [zero] * len(self.columns), body)
            self.clear_rest(depth)
            return sums

    def store_group(self, rows: Sequence[Values], i: Index) -> None:
        """Stores rows from i on as the second product reads them: rounded, and as many interleaved as it takes."""
        instruction, target = self.plan.instruction, self.exponentials
        native_bf16 = rounds_to_bf16(instruction)
        for number, j in enumerate(self.columns):
            parts = [convert(row[number], instruction.acc, target.dtype, native_bf16=native_bf16) for row in rows]
            store(interleave(parts), target.base, target.offset(i, j))

    def clear_rest(self, depth: Depth) -> None:
        """Zeros from the last VNNI group to the end of the last instruction's steps."""
        instruction = self.plan.instruction
        vnni, steps = instruction.vnni, instruction.shape[2]
        rest = depth.size % steps
        missing = range(-(-rest // vnni) * vnni, steps, vnni)
        if rest and missing:
            whole = depth.whole(steps)
            zero = v.like(broadcast_zero(self.plan), 0.0)
            with when(unequal(whole, depth.steps)):
                for i in missing:
                    self.store_group([[zero] * len(self.columns)] * vnni, add(whole, i))


def query_numbers(plan: AttentionPlan, first: Index, j: int) -> ir.Value:
    """The queries of a register at column j of a panel that begins with query `first`; of folded heads, their own."""
    word, lanes, group = ir.IntegerType.get_signless(32), plan.lanes, plan.problem.group
    if not plan.folds_heads:
        return v.add(broadcast(arith.index_cast(word, index(first)), lanes), v.add(count_up(lanes, word), j))
    last = plan.problem.queries - 1
    numbers = [ir.IntegerAttr.get(word, min((j + lane) // group, last)) for lane in range(lanes)]
    kind = ir.VectorType.get([lanes], word)
    return arith.constant(kind, ir.DenseElementsAttr.get(numbers, kind))


def broadcast_zero(plan: AttentionPlan) -> ir.Value:
    """A register of zeros of the scores' type."""
    acc = element_type(plan.instruction.acc)
    return broadcast(arith.constant(acc, 0.0), plan.lanes)


def finite_or_zero(maxima: Values) -> Values:
    """Maxima to subtract: where all scores are minus infinity, so are their differences from 0."""
    return [v.select(v.equal(m, -INFINITY), 0.0, m) for m in maxima]


def update(before: Values, after: Values, totals: Values, sums: Values) -> tuple[Values, Values]:
    """(factors, totals): what sums so far are multiplied by where maxima grew, and sums of exponentials with more."""
    subtracted = finite_or_zero(after)
    factors = [vmath.exp_of_difference(v.sub(m, s)) for m, s in zip(before, subtracted, strict=True)]
    return factors, [v.fma(*both) for both in zip(totals, factors, sums, strict=True)]


def grew(before: Values, after: Values) -> Condition:
    """Whether any maximum did."""
    return any_of(*(any_lane(v.less(a, b)) for a, b in zip(before, after, strict=True)))
