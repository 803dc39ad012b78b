"""Operands in memory, and the loops that go over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jax_nano.ir.packed_weight import Panels

Role = Literal["lhs", "rhs", "epilogue", "prologue", "scaling", "out"]


@dataclass(frozen=True, kw_only=True)
class Operand:
    """An array in memory: shape and strides in elements, element type by its short name."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # with `panels`, in what Panels.place takes
    dtype: str
    panels: Panels | None = None

    @classmethod
    def row_major(cls, shape: Sequence[int], dtype: str) -> Operand:
        """A dense array whose last dimension is contiguous."""
        return cls(shape=tuple(shape), strides=row_major_strides(shape), dtype=dtype)

    @property
    def elements(self) -> int:
        """How many elements there are in memory: dimensions of stride 0 repeat the same ones."""
        return math.prod(size for size, stride in zip(self.shape, self.strides, strict=True) if stride)

    def transposed(self, permutation: Sequence[int]) -> Operand:
        """A view of this memory: dimension i of the result is dimension permutation[i] of this."""
        return replace(
            self,
            shape=tuple(self.shape[p] for p in permutation),
            strides=tuple(self.strides[p] for p in permutation),
        )


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a dense array whose last dimension is contiguous."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One loop of a product: its extent and how far a step moves in each array, in elements (0: not at all)."""

    size: int
    lhs: int = 0
    rhs: int = 0  # where B lies in panels, in what Panels.place takes
    out: int = 0
    extras: tuple[int, ...] = ()  # in Dot.extras
    window: tuple[int, ...] = ()  # in positions along Dot.window.bounds

    def strides(self) -> tuple[int, ...]:
        """(lhs, rhs, out, extras...)."""
        return self.lhs, self.rhs, self.out, *self.extras

    def steps(self) -> tuple[int, ...]:
        """(lhs, rhs, out, extras..., positions along Dot.window.bounds...)."""
        return *self.strides(), *self.window


@dataclass(frozen=True, kw_only=True)
class Loops:
    """The loops of a product, outermost first: over the batch, rows and columns of C, and the sum."""

    b: Sequence[Axis] = ()
    m: Sequence[Axis] = ()
    n: Sequence[Axis] = ()
    k: Sequence[Axis] = ()

    def __iter__(self):
        return iter((self.b, self.m, self.n, self.k))


def extent(axes: Sequence[Axis]) -> int:
    """The product of the axes' sizes."""
    return math.prod([axis.size for axis in axes]) if axes else 1


def merged(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes without those of size 1, neighbours joined where one stride serves both in every array."""
    result: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if result and all(o == i * axis.size for o, i in zip(result[-1].steps(), axis.steps(), strict=True)):
            result.append(replace(axis, size=result.pop().size * axis.size))
        else:
            result.append(axis)
    return tuple(result)


def free_dimensions(operand: Operand, *taken: Sequence[int]) -> list[int]:
    """The dimensions of an operand that are neither contracted nor of the batch."""
    return [d for d in range(len(operand.shape)) if not any(d in dimensions for dimensions in taken)]


def result_shape(lhs: Operand, rhs: Operand, dimension_numbers) -> list[int]:
    """The shape of C: batch, A's free dimensions, B's."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    of_lhs = [*lhs_batch, *free_dimensions(lhs, lhs_contract, lhs_batch)]
    return [lhs.shape[d] for d in of_lhs] + [rhs.shape[d] for d in free_dimensions(rhs, rhs_contract, rhs_batch)]


def loops_of(
    lhs: Operand, rhs: Operand, dimension_numbers, out: Operand, extras: Sequence[tuple[Role, Operand]] = ()
) -> Loops:
    """The loops of a product over the dimensions of its operands, as lax.dot_general numbers them.

    Further arrays, in the order of Dot.extras, are given with their roles: a prologue's have A's shape, others C's.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    lhs_free = free_dimensions(lhs, lhs_contract, lhs_batch)
    rhs_free = free_dimensions(rhs, rhs_contract, rhs_batch)

    def axis(size: int, i: int | None = None, j: int | None = None, c: int | None = None) -> Axis:
        """The loop over dimension i of A, j of B and c of C."""

        def stride(operand: Operand, dimension: int | None) -> int:
            return 0 if dimension is None else operand.strides[dimension]

        of_extras = tuple(stride(extra, i if role == "prologue" else c) for role, extra in extras)
        return Axis(size=size, lhs=stride(lhs, i), rhs=stride(rhs, j), out=stride(out, c), extras=of_extras)

    c = iter(range(len(out.shape)))
    return Loops(
        b=[axis(lhs.shape[i], i, j, next(c)) for i, j in zip(lhs_batch, rhs_batch, strict=True)],
        m=[axis(lhs.shape[i], i, c=next(c)) for i in lhs_free],
        n=[axis(rhs.shape[j], j=j, c=next(c)) for j in rhs_free],
        k=[axis(lhs.shape[i], i, j) for i, j in zip(lhs_contract, rhs_contract, strict=True)],
    )
