"""Microkernels that vectorize the sum over K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir

from jax_nano.codegen.index import Index, Values, add
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import View
from jax_nano.codegen.microkernel import Beside, Microkernel, Part, Result, rounded_down
from jax_nano.codegen.nanokernel import Block


@dataclass(frozen=True)
class InnerMicrokernel(Microkernel):
    """The same contract with K along the lanes: A and B have stride 1 along k, and a block has at most a register of
    columns.

    Every element of C has an accumulator register to itself, whose lanes are added up after the loop.
    """

    def emit(self, a: View, b: View, result: Result, block: Block, part: Part, beside: Sequence[Beside] = ()) -> None:  # noqa: ARG002
        """Emits one block of C."""
        width = self.nano.lanes * self.nano.vnni
        acc = [self.nano.zero()] * (block.rows * block.cols)

        def row(i: int, k: Index, live: int) -> ir.Value:
            return self.nano.load_along_k(a, a.offset(i, k), live, "lhs")

        def column(j: int, k: Index, live: int) -> ir.Value:
            return self.nano.load_along_k(b, b.offset(k, j), live, "rhs")

        def update(acc: Values, k: Index, live: int) -> Values:
            result = list(acc)
            few, many = (block.rows, block.cols) if block.rows < block.cols else (block.cols, block.rows)
            hold, stream = (row, column) if few == block.rows else (column, row)
            held = [hold(x, k, live) for x in range(few)]
            for y in range(many):
                streamed = stream(y, k, live)
                for x, register in enumerate(held):
                    i, j = (x, y) if few == block.rows else (y, x)
                    pair = (register, streamed) if few == block.rows else (streamed, register)
                    result[i * block.cols + j] = self.nano.multiply_add(result[i * block.cols + j], *pair)
            return result

        step = width * self.unroll
        unrolled, whole = rounded_down(part.depth, part.size, step), rounded_down(part.depth, part.size, width)
        if unrolled != 0:
            with for_range(0, unrolled, step, carry=acc) as loop:
                loop.next = loop.carry
                for k in range(0, step, width):
                    loop.next = update(loop.next, add(loop.i, k), width)
            acc = loop.results
        if part.size % step >= width:
            with for_range(unrolled, whole, width, carry=acc) as loop:
                loop.next = update(loop.carry, loop.i, width)
            acc = loop.results
        if rest := part.size % width:
            with for_range(whole, part.depth, width, carry=acc) as loop:
                loop.next = update(loop.carry, loop.i, rest)
            acc = loop.results
        rows = [acc[i * block.cols : (i + 1) * block.cols] for i in range(block.rows)]
        self.finish([self.nano.sums(row) for row in rows], result, block, part)
