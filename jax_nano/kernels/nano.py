"""Nanokernels: the smallest update of a block of accumulators that an instruction set offers.

This file owns every operation name that belongs to one target.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import vector

from jax_nano.build import Index, Values, View, broadcast, element_type, load, load_scalar, zeros
from jax_nano.isa import DotInstruction


@dataclass(frozen=True)
class Block:
    """A register block of C: `rows` by `cols` elements, `lanes` of them in a register; the last may be partly used."""

    rows: int
    cols: int
    lanes: int

    @property
    def counts(self) -> list[int]:
        """How many columns each register of a row holds."""
        return [min(self.lanes, self.cols - j) for j in range(0, self.cols, self.lanes)]


@dataclass(frozen=True)
class Nanokernel:
    """acc[i, j] += a[i, k] * b[k, j] on one block: multiply and add in every lane, a broadcast and b along the lanes."""

    instruction: DotInstruction
    hold_lhs: bool = False  # broadcast all rows of A first and stream B; else hold B and stream A

    @property
    def depth(self) -> int:
        """How many steps of k one update takes."""
        return self.instruction.shape[2]

    @property
    def lanes(self) -> int:
        """How many columns of C one accumulator register holds."""
        return self.instruction.shape[1]

    def accumulator(self) -> ir.Type:
        """The type of an accumulator register."""
        return ir.VectorType.get([self.lanes], element_type(self.instruction.acc))

    def zero(self, block: Block) -> Values:
        """A cleared block of accumulators, row by row."""
        return [zeros(self.lanes, element_type(self.instruction.acc))] * (block.rows * len(block.counts))

    def load_lhs(self, a: View, i: int, k: Index) -> ir.Value:
        """Element (i, k) of A in every lane."""
        return broadcast(load_scalar(a.base, a.offset(i, k)), self.lanes)

    def load_rhs(self, b: View, k: Index, j: int, count: int) -> ir.Value:
        """`count` elements of row k of B, from column j on."""
        return load(b.base, b.offset(k, j), self.lanes, count)

    def update(self, acc: Values, a: View, b: View, k: Index, block: Block) -> Values:
        """One step of k on the whole block."""
        width = len(block.counts)
        result = list(acc)

        def multiply_add(i: int, j: int, lhs: ir.Value, rhs: ir.Value) -> None:
            result[i * width + j] = vector.fma(lhs, rhs, result[i * width + j])

        if self.hold_lhs:
            held = [self.load_lhs(a, i, k) for i in range(block.rows)]
            for j, count in enumerate(block.counts):
                rhs = self.load_rhs(b, k, j * self.lanes, count)
                for i in range(block.rows):
                    multiply_add(i, j, held[i], rhs)
        else:
            held = [self.load_rhs(b, k, j * self.lanes, count) for j, count in enumerate(block.counts)]
            for i in range(block.rows):
                lhs = self.load_lhs(a, i, k)
                for j, rhs in enumerate(held):
                    multiply_add(i, j, lhs, rhs)
        return result
