"""Matrices in memory, by a base, an offset and two strides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import memref

from jax_nano.codegen.index import Index, add, divmod_, element_type, index, mul
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4

if TYPE_CHECKING:
    from jax_nano.ir.program import Program


@dataclass(frozen=True)
class View:
    """A matrix in memory: element (i, j), of type `dtype`, stands at base[at + i * strides[0] + j * strides[1]]."""

    base: ir.Value
    at: Index
    strides: tuple[int, int]
    dtype: str
    component: tuple[str, int] | None = None  # a type, and which of each element's components in it is meant
    interleaved: int = 1  # rows that stand together, in a panel whose strides lead from the first of them to others'

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """Where element (i, j) stands in `base`."""
        return add(self.at, mul(i, self.strides[0]), mul(j, self.strides[1]))

    def block(self, i: Index = 0, j: Index = 0) -> View:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j))

    def moved(self, by: Index) -> View:
        """The matrix that begins `by` elements further in memory."""
        return replace(self, at=add(self.at, by))

    @property
    def transposed(self) -> View:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1])


@dataclass(frozen=True)
class Integers(View):
    """A matrix of integers, less the zero points that belong to the columns, row by row to `group_size` of its rows.

    Where rows share words, `strides[0]` leads from one row of words to the next. Rows are contiguous.
    """

    row: Index = 0  # which of the matrix's rows is row 0
    group_size: int = 1
    zeros: View | None = None

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """Where element (i, j) stands in `base`, or the word that it shares."""
        row = add(self.row, i)
        line = divmod_(row, INT4_PER_WORD)[0] if self.dtype in PACKED_INT4 else row
        return add(self.at, mul(line, self.strides[0]), j)

    def block(self, i: Index = 0, j: Index = 0) -> Integers:
        """The matrix that begins at element (i, j)."""
        return replace(self, row=add(self.row, i), at=add(self.at, j), zeros=self.zeros and self.zeros.block(0, j))


@dataclass(frozen=True)
class PrologueView(View):
    """A matrix of what a program makes of each element of an array and of those at its place in other arrays.

    Along rows, strides of the others are 0 or those of the array; where the array has none of 1, any.
    """

    program: Program = field(kw_only=True)
    beside: tuple[View, ...] = field(kw_only=True)

    def block(self, i: Index = 0, j: Index = 0) -> PrologueView:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j), beside=tuple(view.block(i, j) for view in self.beside))

    @property
    def transposed(self) -> PrologueView:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1], beside=tuple(view.transposed for view in self.beside))


def scratch(buffer: ir.Value, byte_offset: int, count: int, dtype: str) -> ir.Value:
    """A piece of a byte buffer as `count` elements of a type."""
    return memref.view(ir.MemRefType.get([count], element_type(dtype)), buffer, index(byte_offset), [])
