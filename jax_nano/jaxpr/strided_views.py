"""Strided views of arrays: transposes, reshapes and broadcasts change the strides and move nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jax_nano.ir.dot import row_major_strides


class NoView(Exception):
    """No strides describe an array as it is seen; the text says why."""


@dataclass(frozen=True)
class SubDim:
    """A part of a dimension: `size` steps, `stride` elements apart."""

    size: int
    stride: int


Dim = tuple[SubDim, ...]  # outermost first, none of size 1; neighbours that one stride serves are one


@dataclass(frozen=True)
class StridedView:
    """An array in memory. Each dimension steps through its parts, the last of them fastest."""

    dims: tuple[Dim, ...]

    @classmethod
    def of(cls, shape: Sequence[int], strides: Sequence[int] | None = None) -> StridedView:
        """An array with these strides in elements; row-major where there are none."""
        strides = row_major_strides(shape) if strides is None else strides
        return cls(tuple(coalesce([SubDim(size, stride)]) for size, stride in zip(shape, strides, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its dimensions."""
        return tuple(extent(dim) for dim in self.dims)

    @property
    def elements(self) -> int:
        """How many elements there are in memory."""
        return math.prod(part.size for dim in self.dims for part in dim if part.stride)

    def transposed(self, permutation: Sequence[int]) -> StridedView:
        """Dimension i of the result is dimension permutation[i] of this."""
        return StridedView(tuple(self.dims[d] for d in permutation))

    def broadcast(self, shape: Sequence[int], dimensions: Sequence[int]) -> StridedView:
        """Of this shape, with dimension d of this as dimension dimensions[d]; the other elements repeat these."""
        dims = [coalesce([SubDim(size, 0)]) for size in shape]
        for dim, to in zip(self.dims, dimensions, strict=True):
            if extent(dim) == shape[to]:
                dims[to] = dim
        return StridedView(tuple(dims))

    def reshaped(self, shape: Sequence[int]) -> StridedView:
        """This array's elements in their order, in other dimensions.

        Raises:
          NoView: a part would have to be divided where its size has no such divisor.
        """
        parts = [part for dim in self.dims for part in dim]
        dims = []
        for size in shape:
            taken = []
            while (left := size // math.prod(part.size for part in taken)) > 1:
                outer, *inner = split_outer(parts.pop(0), left)
                taken.append(outer)
                parts = inner + parts
            dims.append(coalesce(taken))
        return StridedView(tuple(dims))


def extent(dim: Dim) -> int:
    """How many elements a dimension has."""
    return math.prod(part.size for part in dim)


def split_outer(part: SubDim, most: int) -> list[SubDim]:
    """Splits a part into its outermost `most` steps, and those inside of each.

    Raises:
      NoView: neither size divides the other, or there are no elements.
    """
    if not part.size:
        raise NoView("a reshape of no elements")
    if most % part.size == 0:
        return [part]
    if part.size % most == 0:
        inner = part.size // most
        return [SubDim(most, part.stride * inner), SubDim(inner, part.stride)]
    raise NoView(f"a reshape divides a run of {part.size} elements into {most}")


def coalesce(parts: Sequence[SubDim]) -> Dim:
    """Makes a dimension of parts: joins neighbours that one stride serves, drops those of size 1."""
    result: list[SubDim] = []
    for part in parts:
        if result and result[-1].stride == part.size * part.stride:
            result.append(SubDim(part.size * result.pop().size, part.stride))
        elif part.size != 1:
            result.append(part)
    return tuple(result)


def common_runs(*dims: Dim) -> list[tuple[int, ...]]:
    """Splits dimensions of the same extent into runs that all have in common: (size, stride in each).

    Raises:
      NoView: their parts do not divide each other.
    """
    left = [list(dim) for dim in dims]
    result = []
    while left[0]:
        parts = [of_dim.pop() for of_dim in left]
        size = min(part.size for part in parts)
        if any(part.size % size for part in parts):
            sizes = " and of ".join(str(size) for size in sorted({part.size for part in parts}))
            raise NoView(f"runs of {sizes} elements do not divide each other")
        for of_dim, part in zip(left, parts, strict=True):
            of_dim.extend(coalesce([SubDim(part.size // size, part.stride * size)]))
        result.append((size, *(part.stride for part in parts)))
    return result[::-1]
