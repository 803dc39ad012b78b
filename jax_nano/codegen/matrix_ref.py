"""References to matrices in memory: a base, an offset and two strides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import memref

from jax_nano.codegen.index import Index, add, index, mul
from jax_nano.codegen.load_store import load, load_int4
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector.convert import signed_int4
from jax_nano.ir.dtypes import BITS


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

    def from_row(self, i: Index) -> MatrixRef:
        """The matrix from row i on."""
        return self.block(i)

    def advance(self, elements: Index) -> MatrixRef:
        """The matrix that begins so many elements further in memory."""
        return replace(self, at=add(self.at, elements))

    def load_row(self, i: Index, j: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
        """`count` columns of row i from j on, zeros beyond, and their type. The row is contiguous.

        Packing and unpacked operands read rows by this, so that what is computed from a matrix can pass for one.
        """
        return load_elements(self, self.offset(i, j), lanes, count)

    @property
    def transposed(self) -> MatrixRef:
        """Element (j, i) in place of (i, j)."""
        return replace(self, strides=self.strides[::-1])


def scratch(buffer: ir.Value, byte_offset: int, count: int, dtype: str) -> ir.Value:
    """A piece of a byte buffer as `count` elements of a type."""
    return memref.view(ir.MemRefType.get([count], element_type(dtype)), buffer, index(byte_offset), [])


def load_elements(source: MatrixRef, at: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
    """`count` neighbours from `at` on, zeros beyond, and their type: 4-bit integers come as bytes.

    Where elements share bytes, the count is known here.
    """
    if BITS[source.dtype] > 4:
        return load(source.base, at, lanes, count), source.dtype
    assert isinstance(count, int)
    value = load_int4(source.base, at, lanes, count)
    return (signed_int4(value), "s8") if source.dtype == "s4" else (value, "u8")
