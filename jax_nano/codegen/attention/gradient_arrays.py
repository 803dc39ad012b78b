"""Where the arrays and the scratch of attention's gradients lie: matrices in the arguments of an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention.operands import Head
from jax_nano.codegen.index import Index, add, mul
from jax_nano.codegen.load_store import load_scalar
from jax_nano.codegen.matrix_ref import MatrixRef, scratch
from jax_nano.ir.attention import Role, ScoreArray
from jax_nano.schedule.attention.gradient import GradientPlan


class Side(NamedTuple):
    """What columns or rows have, as matrices whose rows they are: (queries, cotangents), or (keys, values)."""

    first: MatrixRef
    second: MatrixRef


class OfHead(NamedTuple):
    """What probabilities of a query head depend on beside the products.

    Attributes:
      statistics: by role, the numbers of each query, a column.
      bias: (columns, rows).
      mask: (columns, rows), of bytes.
    """

    statistics: dict[str, MatrixRef]
    bias: MatrixRef | None
    mask: MatrixRef | None


class Lengths(NamedTuple):
    """How many queries and keys there are in an element of the batch; None where there are all."""

    queries: Index | None
    keys: Index | None


class GradientArrays:
    """The matrices of a plan, as an entry point is given them."""

    def __init__(self, plan: GradientPlan, local: ir.Value, arrays: Sequence[ir.Value]):
        """Takes what the entry point is given."""
        self.plan, self.problem, self.local = plan, plan.problem, local
        roles = [array.role for array in plan.problem.arrays]
        self.named = {role: array for role, array in zip(roles, arrays, strict=True) if role != "out"}
        self.outs = [array for role, array in zip(roles, arrays, strict=True) if role == "out"]

    def queries(self, head: Head) -> Side:
        """Queries and cotangents of a query head."""
        problem = self.problem

        def of(base: ir.Value, strides: tuple[int, ...]) -> MatrixRef:
            b, h, g, t, d = strides
            at = add(mul(head.batch, b), mul(head.head, h), mul(head.member, g))
            return MatrixRef(base, at, (t, d), problem.dtype)

        return Side(of(self.named["query"], problem.query), of(self.named["cotangent"], problem.cotangent))

    def keys(self, head: Head) -> Side:
        """Keys and values of a head."""
        problem = self.problem

        def of(base: ir.Value, strides: tuple[int, ...]) -> MatrixRef:
            b, h, s, d = strides
            return MatrixRef(base, add(mul(head.batch, b), mul(head.head, h)), (s, d), problem.dtype)

        return Side(of(self.named["key"], problem.key), of(self.named["value"], problem.value))

    def of_head(self, head: Head) -> OfHead:
        """What probabilities of a query head depend on."""
        problem = self.problem
        at = mul(add(mul(head.batch, problem.query_heads), self.number(head)), problem.queries)
        statistics = {role: MatrixRef(self.named[role], at, (1, 0), problem.acc) for role in problem.statistics}

        def of_pairs(role: Role, array: ScoreArray | None) -> MatrixRef | None:
            if array is None:
                return None
            b, h, g, t, s = array.strides
            first = add(mul(head.batch, b), mul(head.head, h), mul(head.member, g))
            dtype = "u8" if array.dtype == "pred" else array.dtype
            return MatrixRef(self.named[role], first, (s, t) if self.plan.of_keys else (t, s), dtype)

        return OfHead(statistics, of_pairs("bias", problem.bias), of_pairs("mask", problem.mask))

    def lengths(self, batch: Index) -> Lengths:
        """Those of an element of the batch."""
        found = (self.named.get(role) for role in ("query_lengths", "key_lengths"))
        word = ir.IndexType.get()
        return Lengths(*(None if x is None else arith.index_cast(word, load_scalar(x, batch)) for x in found))

    def number(self, head: Head) -> Index:
        """That of a query head among all of an element of the batch."""
        return add(mul(head.head, self.problem.group), head.member)

    def average(self, head: Head) -> MatrixRef | None:
        """What dV of a head begins with, a row."""
        if not self.problem.averages:
            return None
        at = mul(add(mul(head.batch, self.problem.heads), head.head), self.problem.value_depth)
        return MatrixRef(self.named["average"], at, (0, 1), self.problem.acc)

    def results(self, head: Head) -> list[MatrixRef]:
        """The gradients of a head, (columns, d): row-major as [B, T, N, H] or [B, S, K, H]."""
        problem, found = self.problem, []
        heads = problem.heads if self.plan.of_keys else problem.query_heads
        number = head.head if self.plan.of_keys else self.number(head)
        for base, depth in zip(self.outs, (problem.depth, problem.value_depth), strict=False):
            at = add(mul(head.batch, self.plan.columns * heads * depth), mul(number, depth))
            found.append(MatrixRef(base, at, (heads * depth, 1), problem.dtype))
        return found

    def bias_result(self, head: Head) -> MatrixRef:
        """The gradient of the bias of a query head, (queries, keys)."""
        problem, (base,) = self.problem, self.outs
        batch, heads = problem.bias_sizes
        element = add(mul(head.batch, heads) if batch > 1 else 0, self.number(head) if heads > 1 else 0)
        assert problem.bias
        return MatrixRef(base, mul(element, problem.queries * problem.keys), (problem.keys, 1), problem.bias.dtype)

    # Scratch.

    def _place(self, name: str, elements: int, dtype: str) -> ir.Value:
        return scratch(self.local, self.plan.places[name], elements, dtype)

    def packed_columns(self) -> Side:
        """x1^T and x2^T, their first panels."""
        plan, i = self.plan, self.plan.instruction

        def of(name: str, depth: int) -> MatrixRef:
            base = self._place(name, plan.query_block * plan.padded(depth), i.rhs)
            return MatrixRef(base, 0, (plan.nr, i.vnni), i.rhs, vnni=i.vnni)

        return Side(of("x1", self.problem.depth), of("x2", self.problem.value_depth))

    def packed_rows(self) -> Side:
        """A block of y1 and y2."""
        plan, i = self.plan, self.plan.instruction

        def of(name: str, depth: int) -> MatrixRef:
            base = self._place(name, plan.key_block * plan.row_stride(depth), i.lhs)
            return MatrixRef(base, 0, (plan.row_stride(depth), 1), i.lhs)

        return Side(of("y1", self.problem.depth), of("y2", self.problem.value_depth))

    def packed_transposed(self) -> Side:
        """A block of y1^T and y2^T as (d, rows): by rows for tiles, else columns whose VNNI groups stand together."""
        plan, i = self.plan, self.plan.instruction

        def of(name: str, depth: int) -> MatrixRef:
            strides = (plan.value_stride, 1) if i.tiles else (i.vnni, depth)
            return MatrixRef(self._place(name, plan.transposed_elements(depth), i.lhs), 0, strides, i.lhs)

        return Side(of("t1", self.problem.depth), of("t2", self.problem.value_depth))

    def panel(self, name: str) -> MatrixRef:
        """Scores or products of a block of rows and a panel of columns, or what a bias or a mask has of them."""
        plan, acc = self.plan, self.plan.instruction.acc
        return MatrixRef(self._place(name, plan.key_block * plan.nr, acc), 0, (plan.nr, 1), acc)

    def rounded_panel(self, name: str, otherwise: str) -> MatrixRef:
        """What is computed of those, as products read it: in the place of the others where types are the same."""
        plan, i = self.plan, self.plan.instruction
        if not plan.rounds_scores:
            return self.panel(otherwise)
        base = self._place(name, plan.key_block * plan.nr, i.rhs)
        return MatrixRef(base, 0, (plan.nr, i.vnni), i.rhs, vnni=i.vnni)

    def sums(self, name: str, depth: int) -> MatrixRef:
        """A gradient, transposed, its first panel: (d, columns)."""
        plan, acc = self.plan, self.plan.instruction.acc
        rows = plan.sum_rows(depth)
        return MatrixRef(self._place(name, plan.query_block * rows, acc), 0, (plan.nr, 1), acc)

    def slopes(self, j: Index) -> MatrixRef:
        """The panel at column j of what gradients of scores add up to: (rows, columns)."""
        plan, acc = self.plan, self.plan.instruction.acc
        base = self._place("slopes", plan.key_block * plan.query_block, acc)
        return MatrixRef(base, mul(j, plan.key_block), (plan.nr, 1), acc)

    def tiles(self) -> MatrixRef | None:
        """Where a block's tiles stand on their way to vectors."""
        plan = self.plan
        if not plan.instruction.tiles:
            return None
        return MatrixRef(self._place("tiles", plan.mr * plan.nr, plan.instruction.acc), 0, (plan.nr, 1), "f32")
