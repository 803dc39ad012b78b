"""Where the arrays and the scratch of an attention lie: matrices in the arguments of a kernel's entry points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, add, divmod_, mul
from jax_nano.codegen.load_store import load_scalar
from jax_nano.codegen.matrix_ref import MatrixRef, scratch
from jax_nano.ir.attention import AttentionArray
from jax_nano.ir.dtypes import bytes_of
from jax_nano.schedule.attention.plan import AttentionPlan


class Head(NamedTuple):
    """An element of the batch, a head of keys and values, and one of the query heads that share it."""

    batch: Index
    head: Index
    member: Index


@dataclass(frozen=True)
class AttentionOperands:
    """The matrices of a plan, as an entry point is given them: queries, or heads that are folded, are columns."""

    plan: AttentionPlan
    task: Index
    shared: ir.Value
    local: ir.Value
    arrays: Sequence[ir.Value]

    def head(self, number: Index) -> Head:
        """The first head of a number: query heads of one head of keys follow one another."""
        _, heads, group = self.plan.outer
        rest, member = divmod_(number, group) if group > 1 else (number, 0)
        batch, head = divmod_(rest, heads) if heads > 1 else (rest, 0)
        return Head(batch, mul(head, self.plan.heads_per_task), member)

    # Arrays.

    def _array(self, role: str, number: int = 0) -> ir.Value | None:
        """The array of a role, of those that have it the one of a number."""
        found: list[tuple[AttentionArray, ir.Value]] = [
            pair for pair in zip(self.plan.problem.arrays, self.arrays, strict=True) if pair[0].role == role
        ]
        return found[number][1] if number < len(found) else None

    def _by_query(self, role: str, strides: Sequence[int], head: Head, dtype: str, number: int = 0) -> MatrixRef:
        """An array with query heads, (columns, last dimension); of folded heads, the columns of the first query."""
        base = self._array(role, number)
        assert base is not None
        b, h, g, t, last = strides
        column = g if self.plan.folds_heads else t
        at = add(mul(head.batch, b), mul(head.head, h), mul(head.member, g))
        return MatrixRef(base, at, (column, last), dtype)

    def query(self, head: Head) -> MatrixRef:
        """Q, (columns, d)."""
        return self._by_query("query", self.plan.problem.query, head, self.plan.problem.dtype)

    def out(self, head: Head) -> MatrixRef:
        """The result, (columns, d)."""
        return self._by_query("out", self.plan.problem.out, head, self.plan.problem.dtype)

    def key(self, head: Head) -> MatrixRef:
        """K, (keys, d)."""
        b, h, row, column = self.plan.problem.key
        base = self._array("key")
        assert base is not None
        return MatrixRef(base, add(mul(head.batch, b), mul(head.head, h)), (row, column), self.plan.problem.key_dtype)

    def value(self, head: Head) -> MatrixRef:
        """V, (keys, d)."""
        b, h, row, column = self.plan.problem.value
        base = self._array("value")
        assert base is not None
        return MatrixRef(base, add(mul(head.batch, b), mul(head.head, h)), (row, column), self.plan.problem.value_dtype)

    def bias(self, head: Head) -> MatrixRef | None:
        """The bias, (columns, keys)."""
        bias = self.plan.problem.bias
        return self._by_query("bias", bias.strides, head, bias.dtype) if bias else None

    def score_array(self, head: Head, number: int) -> MatrixRef:
        """An array of the score function, (columns, keys); truth values are bytes."""
        array = self.plan.problem.score_arrays[number]
        dtype = "u8" if array.dtype == "pred" else array.dtype
        return self._by_query("score", array.strides, head, dtype, number)

    def blocks(self, head: Head) -> MatrixRef | None:
        """Which blocks are visited, (blocks of queries or folded heads, blocks of keys), of bytes."""
        blocks = self.plan.problem.blocks
        return self._by_query("blocks", blocks.strides, head, "u8") if blocks else None

    def mask(self, head: Head) -> MatrixRef | None:
        """The mask, (columns, keys), of bytes."""
        mask = self.plan.problem.mask
        return self._by_query("mask", mask.strides, head, "u8") if mask else None

    def key_scales(self, head: Head) -> MatrixRef | None:
        """The scales of keys, (columns, keys)."""
        scales = self.plan.problem.key_scales
        return self._by_query("key_scales", scales.strides, head, scales.dtype) if scales else None

    def value_scales(self, head: Head) -> MatrixRef | None:
        """The scales of values, (columns, keys)."""
        scales = self.plan.problem.value_scales
        return self._by_query("value_scales", scales.strides, head, scales.dtype) if scales else None

    def residual(self, head: Head) -> MatrixRef | None:
        """The logarithms of sums of exponentials, as other arrays with query heads."""
        base, problem = self._array("out", 1), self.plan.problem
        if base is None:
            return None
        row = add(mul(head.batch, problem.heads * problem.group), mul(head.head, problem.group), head.member)
        column = problem.queries if self.plan.folds_heads else 1
        return MatrixRef(base, mul(row, problem.queries), (column, 1), problem.acc)

    def length(self, role: str, head: Head) -> Index | None:
        """How many queries or keys there are in an element of the batch."""
        base = self._array(role)
        if base is None:
            return None
        return arith.index_cast(ir.IndexType.get(), load_scalar(base, head.batch))

    # Scratch.

    def _local(self, name: str, elements: int, dtype: str) -> ir.Value:
        return scratch(self.local, self.plan.places[name], elements, dtype)

    def packed_queries(self, number: Index) -> MatrixRef:
        """Q^T of one of the task's heads, the first panel of it: (d, columns)."""
        plan, i = self.plan, self.plan.instruction
        base = self._local("query", plan.heads_per_task * plan.query_elements, i.rhs)
        if plan.by_rows:
            return MatrixRef(base, mul(number, plan.query_elements), (1, plan.query_stride), i.rhs)
        return MatrixRef(base, mul(number, plan.query_elements), (plan.nr, i.vnni), i.rhs, vnni=i.vnni)

    def packed_keys(self) -> MatrixRef:
        """A block of K, (keys, d)."""
        plan, i = self.plan, self.plan.instruction
        base = self._local("key", plan.key_block * plan.key_stride, i.lhs)
        return MatrixRef(base, 0, (plan.key_stride, 1), i.lhs)

    def packed_values(self) -> MatrixRef:
        """A block of V^T, (d, keys): rows for tiles, else columns whose VNNI groups stand together."""
        plan, i = self.plan, self.plan.instruction
        strides = (plan.value_stride, 1) if i.tiles else (i.vnni, plan.problem.value_depth)
        return MatrixRef(self._local("value", plan.value_elements, i.lhs), 0, strides, i.lhs)

    def scores(self) -> MatrixRef:
        """Scores of a block of keys and a panel of queries: (keys, columns)."""
        plan = self.plan
        base = self._local("scores", plan.key_block * plan.nr, plan.instruction.acc)
        return MatrixRef(base, 0, (plan.nr, 1), plan.instruction.acc)

    def exponentials(self) -> MatrixRef:
        """Exponentials of those, as the second product reads them; in their place where types are the same."""
        plan, i = self.plan, self.plan.instruction
        if not plan.rounds_scores:
            return self.scores()
        base = self._local("exponentials", plan.key_block * plan.nr, i.rhs)
        return MatrixRef(base, 0, (plan.nr, i.vnni), i.rhs, vnni=i.vnni)

    def packed_scores(self, name: str) -> MatrixRef:
        """A block of the bias or the mask, transposed, in the scores' type: (keys, columns)."""
        plan = self.plan
        base = self._local(name, plan.key_block * plan.nr, plan.instruction.acc)
        return MatrixRef(base, 0, (plan.nr, 1), plan.instruction.acc)

    def packed_score_array(self, number: int) -> MatrixRef:
        """A block of the score function's array of a number among those that are copied: (keys, columns)."""
        plan, panel = self.plan, self.plan.key_block * self.plan.nr
        base = self._local("score", panel * plan.paired_score_arrays, plan.instruction.acc)
        return MatrixRef(base, number * panel, (plan.nr, 1), plan.instruction.acc)

    def tiles(self) -> MatrixRef | None:
        """Where a block's tiles stand on their way to vectors."""
        plan = self.plan
        if not plan.instruction.tiles:
            return None
        return MatrixRef(self._local("tiles", plan.mr * plan.nr, plan.instruction.acc), 0, (plan.nr, 1), "f32")

    def sums(self, element: Index, split: Index, number: Index) -> Sums:
        """The sums of a block of queries of one of the task's heads: the thread's own or, of split keys, a split's."""
        plan, acc = self.plan, self.plan.instruction.acc
        if plan.splits == 1:
            base = self._local("sums", plan.heads_per_task * plan.sum_elements, acc)
            return Sums(plan, base, mul(number, plan.sum_elements))
        base = scratch(self.shared, 0, self.plan.shared_bytes // bytes_of(acc), acc)
        block = add(mul(split, plan.elements * plan.heads_per_task), mul(element, plan.heads_per_task), number)
        return Sums(plan, base, mul(block, plan.sum_elements))


@dataclass(frozen=True)
class Sums:
    """What a block of queries has added up: O^T by panels, and of each query the maximum and sum of exponentials."""

    plan: AttentionPlan
    base: ir.Value
    at: Index

    def out(self, j: Index) -> MatrixRef:
        """The panel of O^T at column j of the block: (d, columns)."""
        plan = self.plan
        if plan.by_rows:
            return MatrixRef(self.base, self.at, (1, plan.out_stride), plan.instruction.acc)
        return MatrixRef(self.base, add(self.at, mul(j, plan.value_rows)), (plan.nr, 1), plan.instruction.acc)

    def maxima(self, j: Index) -> MatrixRef:
        """The largest scores from column j of the block on, a row."""
        plan = self.plan
        return MatrixRef(self.base, add(self.at, plan.out_elements, j), (0, 1), plan.instruction.acc)

    def totals(self, j: Index) -> MatrixRef:
        """The sums of exponentials from column j of the block on, a row."""
        return self.maxima(add(j, self.plan.query_block))
