"""The epilogue of a register block: its arrays loaded beside the accumulators, its program run on each register.

Inputs of the program are the product and, for each register, values that belong to its elements of C. They come out of
arrays here; whatever else follows from a register's place, as an index does, would be an input in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.extend.mlir import ir

from jax_nano.codegen.index import Index, Values
from jax_nano.codegen.load_store import load, load_scalar
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.nanokernel import Nanokernel, Place
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.program import Program


@dataclass(frozen=True)
class ProgramEpilogue:
    """Stores program(sum, extras...) in C: an elementwise program as a microkernel's Epilogue."""

    program: Program
    nano: Nanokernel
    extras: tuple[MatrixRef, ...]  # element (i, j) belongs to element (i, j) of the block

    def row(self, i: Index) -> ProgramEpilogue:
        """See microkernel.Epilogue."""
        return replace(self, extras=tuple(extra.block(i) for extra in self.extras))

    def __call__(self, acc: Values, places: Sequence[Place]) -> Values:
        """See microkernel.Epilogue. An element of an array that several rows or columns share is loaded once."""
        source, native_bf16 = self.nano.instruction.acc, self.nano.native_bf16
        loaded: dict[tuple[int, int, int], ir.Value] = {}
        results: Values = []
        for value, place in zip(acc, places, strict=True):
            product = convert(value, source, self.program.dtype(0), native_bf16=native_bf16)
            extras = [self.load_extra(number, place, loaded) for number in range(len(self.extras))]
            results += evaluate(self.program, [product, *extras], native_bf16=native_bf16)
        return results

    def load_extra(self, number: int, place: Place, loaded: dict[tuple[int, int, int], ir.Value]) -> ir.Value:
        """An array's elements for a register, out of those that are loaded already where they are the same."""
        extra, (i, j, count) = self.extras[number], place
        rows, cols = extra.strides
        key = number, i if rows else 0, j if cols else 0
        if key not in loaded:
            at = extra.offset(i, j)
            if cols:
                loaded[key] = load(extra.base, at, self.nano.lanes, count)
            else:
                loaded[key] = broadcast(load_scalar(extra.base, at), self.nano.lanes)
        return loaded[key]
