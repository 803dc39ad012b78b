"""The prologue of A: a program that is run on registers of its elements and of other arrays', where they are read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.codegen.index import Index
from jax_nano.codegen.load_store import first_lanes
from jax_nano.codegen.matrix_ref import MatrixRef, load_elements
from jax_nano.codegen.registers import broadcast, zeros
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.program import Program


@dataclass(frozen=True)
class PrologueView(MatrixRef):
    """A matrix of a prologue's results: element (i, j) is program(A[i, j], extras[0][i, j], ...).

    Along rows that are read by registers, an extra array's stride is 0 or A's own.
    """

    program: Program = field(kw_only=True)
    extras: tuple[MatrixRef, ...] = field(kw_only=True)
    native_bf16: bool = field(kw_only=True)  # whether instructions round to bf16, see vector.convert

    def block(self, i: Index = 0, j: Index = 0) -> PrologueView:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j), extras=tuple(extra.block(i, j) for extra in self.extras))

    @property
    def transposed(self) -> PrologueView:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1], extras=tuple(extra.transposed for extra in self.extras))

    def load_row(self, i: Index, j: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
        """See MatrixRef.load_row. Strides of 0 are broadcast."""
        assert isinstance(count, int), "prologues are done on A, of which panels have as many rows as there are"
        inputs = []
        for matrix, wanted in zip((self, *self.extras), self.program.inputs, strict=True):
            at, repeats = matrix.offset(i, j), matrix.strides[1] == 0
            value, dtype = load_elements(matrix, at, 1 if repeats else lanes, 1 if repeats else count)
            value = convert(value, dtype, wanted.dtype, native_bf16=self.native_bf16)
            inputs.append(broadcast(vector.extract(value, [], [0]), lanes) if repeats else value)
        (value,) = evaluate(self.program, inputs, native_bf16=self.native_bf16)
        if count < lanes:
            value = arith.select(first_lanes(count, lanes), value, zeros(lanes, v.element(value)))
        return value, self.program.dtype(self.program.results[0])
