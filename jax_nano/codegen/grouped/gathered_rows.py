"""Rows of a matrix that are found through an array of their places, where they are packed or read in place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, add, index, maximum, minimum, mul
from jax_nano.codegen.load_store import load_scalar
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.prologue import PrologueView
from jax_nano.codegen.windows.rows import ScatteredRows
from jax_nano.ir.dtypes import ELEMENT_TYPES
from jax_nano.ir.grouped import RowGather


@dataclass(frozen=True, kw_only=True)
class GatheredRows(MatrixRef):
    """A matrix whose row i is that row of another one which stands at `first + i` of an array of places."""

    places: ir.Value
    first: Index
    gather: RowGather
    work: PrologueView | None = None  # on their elements, with what belongs to row i in row i of its other arrays

    @classmethod
    def of(cls, matrix: MatrixRef, places: ir.Value, first: Index, gather: RowGather) -> GatheredRows:
        """The gathered rows of a matrix, which begins at the first row that is stored."""
        strides = gather.stride, matrix.strides[1]
        work = matrix if isinstance(matrix, PrologueView) else None
        more = {"bf16_split": matrix.bf16_split, "places": places, "first": first, "gather": gather, "work": work}
        return cls(matrix.base, matrix.at, strides, matrix.dtype, **more)

    def block(self, i: Index = 0, j: Index = 0) -> GatheredRows:
        """The matrix that begins at element (i, j)."""
        work = self.work and self.work.block(i, j)
        return replace(self, first=add(self.first, i), at=super().offset(0, j), work=work)

    def from_row(self, i: Index) -> MatrixRef:
        """A single row, as it lies, or the work on it."""
        at = add(self.at, start_of_row(self.places, add(self.first, i), self.gather))
        if self.work:
            return replace(self.work.block(i), at=at, bf16_split=self.bf16_split)
        return MatrixRef(self.base, at, self.strides, self.dtype, self.bf16_split)

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """The place of element (i, j) in `base`."""
        return self.from_row(i).offset(0, j)

    def scattered(self, rows: int) -> ScatteredRows:
        """The first rows, as microkernels read them: their places are found once, before the loop over k."""
        return ScatteredRows.of([self.from_row(i) for i in range(rows)])


def start_of_row(places: ir.Value, number: Index, gather: RowGather) -> Index:
    """Where a gathered row begins in memory."""
    row = read_integer(places, number, gather.places)
    return mul(minimum(maximum(row, 0), gather.stored - 1), gather.stride)


def read_integer(base: ir.Value, at: Index, dtype: str) -> ir.Value:
    """An integer of an array, as an index; from 2 ** 63 on, that is below zero."""
    value = load_scalar(base, at)
    kind = ELEMENT_TYPES[dtype]
    wide = ir.IntegerType.get_signless(64)
    if kind.bits < 64:
        value = (arith.extsi if kind.kind == "signed" else arith.extui)(wide, value)
    return index(arith.index_cast(ir.IndexType.get(), value))
