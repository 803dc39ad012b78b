"""References to matrices in memory: a base, an offset and two strides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import memref

from jax_nano.codegen.index import Index, add, divmod_, index, mul
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4

if TYPE_CHECKING:
    from jax_nano.ir.program import Program


class Split(NamedTuple):
    """One of the numbers of a narrow type whose sum stands for an element: 0 is the element rounded, 1 the rest."""

    dtype: str
    number: int


@dataclass(frozen=True)
class MatrixRef:
    """A matrix in memory: element (i, j), of type `dtype`, stands at base[at + i * strides[0] + j * strides[1]].

    In the VNNI layout, this is so for every `vnni`-th row i; behind each of its elements stand those of the next rows.
    """

    base: ir.Value
    at: Index
    strides: tuple[int, int]
    dtype: str
    bf16_split: Split | None = None  # of each element, where a product's algorithm multiplies those
    vnni: int = 1

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """The place of element (i, j) in `base`."""
        return add(self.at, mul(i, self.strides[0]), mul(j, self.strides[1]))

    def block(self, i: Index = 0, j: Index = 0) -> MatrixRef:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j))

    def advance(self, elements: Index) -> MatrixRef:
        """The matrix that begins so many elements further in memory."""
        return replace(self, at=add(self.at, elements))

    @property
    def transposed(self) -> MatrixRef:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1])


@dataclass(frozen=True)
class QuantizedMatrixRef(MatrixRef):
    """A matrix of quantized integers, less the zero points of their columns, one for `group_size` rows each.

    Rows are contiguous. Eight rows of packed int4 share words, so there `strides[0]` leads to the next row of words.
    """

    row: Index = 0  # of the whole matrix, where row 0 of this one stands
    group_size: int = 1
    zeros: MatrixRef | None = None

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """The place in `base` of element (i, j), or of the word that holds it."""
        row = add(self.row, i)
        line = divmod_(row, INT4_PER_WORD)[0] if self.dtype in PACKED_INT4 else row
        return add(self.at, mul(line, self.strides[0]), j)

    def block(self, i: Index = 0, j: Index = 0) -> QuantizedMatrixRef:
        """The matrix that begins at element (i, j)."""
        return replace(self, row=add(self.row, i), at=add(self.at, j), zeros=self.zeros and self.zeros.block(0, j))


@dataclass(frozen=True)
class PrologueView(MatrixRef):
    """A matrix of a prologue's results: element (i, j) is program(A[i, j], extras[0][i, j], ...).

    Along rows that are read by registers, an extra array's stride is 0 or A's own.
    """

    program: Program = field(kw_only=True)
    extras: tuple[MatrixRef, ...] = field(kw_only=True)

    def block(self, i: Index = 0, j: Index = 0) -> PrologueView:
        """The matrix that begins at element (i, j)."""
        return replace(self, at=self.offset(i, j), extras=tuple(extra.block(i, j) for extra in self.extras))

    @property
    def transposed(self) -> PrologueView:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1], extras=tuple(extra.transposed for extra in self.extras))


def scratch(buffer: ir.Value, byte_offset: int, count: int, dtype: str) -> ir.Value:
    """A piece of a byte buffer as `count` elements of a type."""
    return memref.view(ir.MemRefType.get([count], element_type(dtype)), buffer, index(byte_offset), [])
