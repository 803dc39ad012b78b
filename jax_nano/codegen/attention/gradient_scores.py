"""Probabilities and their gradients, element by element between the products of attention's gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from jax.extend.mlir import ir

from jax_nano.codegen.attention.gradient_arrays import GradientArrays, OfHead
from jax_nano.codegen.attention.pair_arrays import PanelPairs
from jax_nano.codegen.attention.pairs import Pairs
from jax_nano.codegen.attention.softmax import broadcast_zero
from jax_nano.codegen.index import Index, Values, add, index, subtract, unequal
from jax_nano.codegen.load_store import load, load_scalar, store
from jax_nano.codegen.loops import Depth, either, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.shuffles import interleave
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.cast import cast
from jax_nano.codegen.vector.convert import convert


class Probabilities:
    """P^T and dS^T of a block of rows and a panel of columns, row by row."""

    def __init__(self, arrays: GradientArrays, depth: Depth, pairs: Pairs, head: OfHead):
        """Loads what is the same for all rows, and copies a panel's part of bias and mask where need be."""
        self.plan, self.problem, self.depth, self.pairs = arrays.plan, arrays.problem, depth, pairs
        self.statistics, self.columns = head.statistics, range(0, self.plan.nr, self.plan.lanes)
        self.scores, self.products = arrays.panel("scores"), arrays.panel("products")
        panel = PanelPairs(self.plan, pairs.column, pairs.row, depth)
        self.bias = head.bias and panel.rows(head.bias, lambda: arrays.panel("bias"))
        self.mask = head.mask and panel.rows(head.mask, lambda: arrays.panel("mask"))
        self.of_columns = {} if self.plan.of_keys else {role: self.loaded(x) for role, x in self.statistics.items()}

    def loaded(self, matrix: MatrixRef) -> Values:
        """A statistic of the panel's columns."""
        first, lanes = self.pairs.column, self.plan.lanes
        rest = subtract(self.plan.columns, first)
        return [load(matrix.base, matrix.offset(add(first, j)), lanes, subtract(rest, j)) for j in self.columns]

    def of_row(self, i: Index) -> dict[str, Values]:
        """The statistics that the registers of a row take."""
        if not self.plan.of_keys:
            return self.of_columns
        places = {role: x.offset(add(self.pairs.row, i)) for role, x in self.statistics.items()}
        return {
            role: [broadcast(load_scalar(self.statistics[role].base, place), self.plan.lanes)] * len(self.columns)
            for role, place in places.items()
        }

    def row(self, i: Index, *, masked: bool) -> tuple[Values, Values]:
        """P^T and dS^T of a row."""
        statistics = self.of_row(i)
        hidden = statistics.get("hidden")
        visible = [cast(x, self.mask.dtype, "pred") for x in self.mask.row(i)] if self.mask else []
        p, ds = [], []
        for number, (j, value) in enumerate(zip(self.columns, self.exponentials(i, statistics), strict=True)):
            masks = [*visible[number : number + 1], *([self.pairs.visible(i, j)] if masked else [])]
            product = load(self.products.base, self.products.offset(i, j), self.plan.lanes)
            kept = where_all(masks, value)
            p.append(where_all(masks, v.sub(value, hidden[number])) if hidden else kept)
            ds.append(v.mul(kept, v.sub(product, statistics["delta"][number])))
        return p, ds

    def exponentials(self, i: Index, statistics: dict[str, Values]) -> Values:
        """Probabilities of a row, of masked pairs as well."""
        scores = [load(self.scores.base, self.scores.offset(i, j), self.plan.lanes) for j in self.columns]
        values = [v.mul(x, self.problem.scale) for x in scores]
        if self.bias:
            biases = [convert(x, self.bias.dtype, self.problem.acc, native_bf16=False) for x in self.bias.row(i)]
            values = [v.add(x, bias) for x, bias in zip(values, biases, strict=True)]
        for role in ("logsumexp", "rest"):
            if role in statistics:
                values = [v.sub(x, taken) for x, taken in zip(values, statistics[role], strict=True)]
        return [vmath.exp_of_difference(x) for x in values]


class Elementwise(Probabilities):
    """Writes P^T and dS^T, by the scale of scores, each as the last products read it."""

    def __init__(self, arrays: GradientArrays, depth: Depth, pairs: Pairs, head: OfHead):
        """Finds where they go."""
        super().__init__(arrays, depth, pairs, head)
        self.p, self.ds = arrays.rounded_panel("p", "scores"), arrays.rounded_panel("ds", "products")

    def emit(self) -> None:
        """Emits the loop over rows, with masks by place where any of the pairs may be masked by them."""
        either(self.pairs.any_masked(), [], lambda: self.loop(masked=True), lambda: self.loop(masked=False))

    def loop(self, *, masked: bool) -> Values:
        """The loop over rows: VNNI groups of them, the last padded with zeros."""
        vnni = self.plan.instruction.vnni
        for i, rows in self.depth.pieces(max(vnni, self.plan.unroll)):
            for group in range(0, rows, vnni):
                live = min(vnni, rows - group)
                found = [self.scaled_row(add(i, group + row), masked=masked) for row in range(live)]
                nothing = [broadcast_zero(self.plan)] * len(self.columns)
                found += [(nothing, nothing)] * (vnni - live)
                for values, target in zip(zip(*found, strict=True), (self.p, self.ds), strict=True):
                    if target is self.ds or self.plan.of_keys:
                        self.store_group(values, target, add(i, group))
        self.clear_rest()
        return []

    def scaled_row(self, i: Index, *, masked: bool) -> tuple[Values, Values]:
        """P^T and dS^T of a row, this one by the scale."""
        p, ds = self.row(i, masked=masked)
        return p, [v.mul(x, self.problem.scale) for x in ds]

    def store_group(self, rows: Sequence[Values], target: MatrixRef, i: Index) -> None:
        """Stores rows from i on as products read them: rounded, and as many interleaved as it takes."""
        instruction = self.plan.instruction
        native_bf16 = rounds_to_bf16(instruction)
        for number, j in enumerate(self.columns):
            parts = [convert(row[number], instruction.acc, target.dtype, native_bf16=native_bf16) for row in rows]
            store(interleave(parts), target.base, target.offset(i, j))

    def clear_rest(self) -> None:
        """Zeros from the last VNNI group to the end of the last instruction's steps."""
        vnni, steps = self.plan.instruction.vnni, self.plan.instruction.shape[2]
        depth = self.depth
        rest = depth.size % steps
        missing = range(-(-rest // vnni) * vnni, steps, vnni)
        if not rest or not missing:
            return
        whole = depth.whole(steps)
        nothing = [[broadcast_zero(self.plan)] * len(self.columns)] * vnni
        with when(unequal(whole, depth.steps)):
            for i in missing:
                for target in (self.p, self.ds)[not self.plan.of_keys :]:
                    self.store_group(nothing, target, add(index(whole), i))


def where_all(masks: Sequence[ir.Value], value: ir.Value) -> ir.Value:
    """A register where all masks hold, zeros elsewhere."""
    return functools.reduce(lambda x, mask: v.select(mask, x, 0.0), masks, value)
