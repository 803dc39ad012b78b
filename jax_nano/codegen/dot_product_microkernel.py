"""Microkernels that vectorize the sum over K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir

from jax_nano.codegen.index import Index, Values, add
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, for_range
from jax_nano.codegen.microkernel import KBlock, Microkernel, Result, StepHook
from jax_nano.codegen.nanokernel import PanelProduct


@dataclass(frozen=True, kw_only=True)
class DotProductMicrokernel(Microkernel):
    """The contract of microkernel.py with K along the lanes: A and B have stride 1 along k.

    Every element of C has an accumulator register to itself, whose lanes are added up after the loop. So a block has
    at most a register of columns.
    """

    def emit(self, product: PanelProduct, k: KBlock, result: Result, hooks: Sequence[StepHook] = ()) -> None:
        """Emits one block of C."""
        rows, cols = product.block.rows, product.block.cols
        acc = self.accumulate([self.nano.zero()] * (rows * cols), product, k.depth, hooks)
        sums = [self.nano.sum_lanes(acc[i * cols : (i + 1) * cols]) for i in range(rows)]
        self.finish(sums, k, result, product.block)

    def accumulate_run(
        self,
        acc: Values,
        product: PanelProduct,
        depth: Depth,
        hooks: Sequence[StepHook] = (),
    ) -> Values:
        """The loop over steps that follow one another: unrolled, by single registers of steps, and a rest."""
        width = self.nano.lanes * self.nano.vnni
        step = width * self.unroll
        unrolled, whole = depth.whole(step), depth.whole(width)
        with section("k loop"):
            if unrolled != 0:
                with for_range(0, unrolled, step, carry=acc) as loop:
                    loop.next = loop.carry
                    for k in range(0, step, width):
                        for hook in hooks:
                            hook(add(loop.i, k), width)
                        loop.next = self.update(loop.next, product, add(loop.i, k), width)
                acc = loop.results
            if depth.rest(step) >= width:
                with for_range(unrolled, whole, width, carry=acc) as loop:
                    loop.next = self.update(loop.carry, product, loop.i, width)
                acc = loop.results
            if rest := depth.rest(width):
                with for_range(whole, depth.steps, width, carry=acc) as loop:
                    loop.next = self.update(loop.carry, product, loop.i, rest)
                acc = loop.results
        return acc

    def update(self, acc: Values, product: PanelProduct, k: Index, live: int) -> Values:
        """Steps k to k + live - 1: registers of the shorter side of the block stay, those of the longer one pass by."""
        a, b, block, result = product.a, product.b, product.block, list(acc)
        width = self.nano.lanes * self.nano.vnni

        def row(i: int) -> ir.Value:
            row = a.from_row(i)
            return self.nano.lhs.load(row, row.offset(0, k), width, live)

        def column(j: int) -> ir.Value:
            return self.nano.rhs.load(b, b.offset(k, j), width, live)

        def multiply_add(i: int, j: int, x: ir.Value, y: ir.Value) -> None:
            result[i * block.cols + j] = self.nano.multiply_add(result[i * block.cols + j], x, y)

        if block.rows <= block.cols:
            rows = [row(i) for i in range(block.rows)]
            for j in range(block.cols):
                streamed = column(j)
                for i, held in enumerate(rows):
                    multiply_add(i, j, held, streamed)
        else:
            columns = [column(j) for j in range(block.cols)]
            for i in range(block.rows):
                streamed = row(i)
                for j, held in enumerate(columns):
                    multiply_add(i, j, streamed, held)
        return result
