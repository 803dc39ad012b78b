"""What to compute: a frozen description of one product, with nothing of how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jax_nano.ir.dtypes import FLOAT8, LARGEST, WIDENS
from jax_nano.ir.packed_weight import Panels

if TYPE_CHECKING:
    from jax_nano.ir.program import Program


class UnsupportedDot(Exception):
    """jax_nano has no kernel for a product; its text says why."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One loop of a product: its extent and how far a step moves in each array, in elements (0: not at all)."""

    size: int
    lhs: int = 0
    rhs: int = 0
    out: int = 0
    extras: tuple[int, ...] = ()  # in Dot.extras

    def strides(self) -> tuple[int, ...]:
        """(lhs, rhs, out, extras...)."""
        return self.lhs, self.rhs, self.out, *self.extras


@dataclass(frozen=True, kw_only=True)
class Operand:
    """An array in memory: shape and strides in elements, element type by its short name."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    panels: Panels | None = None  # what strides mean, where they do not count elements

    @classmethod
    def row_major(cls, shape: Sequence[int], dtype: str) -> Operand:
        """A dense array whose last dimension is contiguous."""
        return cls(shape=tuple(shape), strides=row_major_strides(shape), dtype=dtype)

    @property
    def elements(self) -> int:
        """How many elements there are in memory: dimensions of stride 0 repeat the same ones."""
        return math.prod(size for size, stride in zip(self.shape, self.strides, strict=True) if stride)

    def transposed(self, permutation: Sequence[int]) -> Operand:
        """The same memory with dimension i of the result being dimension permutation[i] of this."""
        return replace(
            self,
            shape=tuple(self.shape[p] for p in permutation),
            strides=tuple(self.strides[p] for p in permutation),
        )


def row_major_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a dense array whose last dimension is contiguous."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """Elementwise work on C while it is in registers: a program of the product and of further arrays."""

    program: Program  # input 0 is the product, in the type it has without an epilogue; the others are the arrays
    extras: tuple[tuple[str, int], ...]  # their types, and how many elements they have in memory


@dataclass(frozen=True, kw_only=True)
class Prologue:
    """Elementwise work on A while it is packed: a program of its elements and of further arrays."""

    program: Program  # input 0 is A's element, in its type or one that this can be turned into without loss
    extras: tuple[tuple[str, int], ...]  # the arrays' types, and how many elements they have in memory

    @property
    def made(self) -> str:
        """The type of what it makes of A."""
        return self.program.dtype(self.program.results[0])


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What B's integers stand for: (integer - zero point) * scale, those of the column and of the group of steps of k.

    Its arrays are the scales, and the zero points if there are any. Along b and n, axes say how far apart their
    elements are. Sums of groups are scaled, so integers are multiplied as they are.
    """

    group_size: int  # steps of k
    stride: int  # elements from a group's to the next one's
    arrays: tuple[tuple[str, int], ...]  # types, and how many elements there are in memory


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Numbers of a narrower type that are multiplied in place of the operands: their components.

    Component 0 is the operand rounded, component 1 what that leaves rounded, and so on. `terms` are the products of
    components, (of A, of B), that are added up in this order: the last one is that of components 0. Where others come
    before it, what they add up to counts for nothing if it is not finite.
    """

    dtype: str
    terms: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def bf16_splits(self) -> tuple[int, int]:
        """How many components A and B have."""
        return 1 + max(i for i, _ in self.terms), 1 + max(j for _, j in self.terms)

    def swapped(self) -> Algorithm:
        """The same with the operands' roles exchanged."""
        return replace(self, terms=tuple((j, i) for i, j in self.terms))


@dataclass(frozen=True, kw_only=True)
class Dot:
    """C[b, m, n] = sum over k of A[b, m, k] * B[b, k, n]; every group has as few axes as its strides allow.

    Axes of a group stand outermost first. A group without axes has extent 1. `acc` is the accumulator's type.
    """

    b: tuple[Axis, ...]
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    k: tuple[Axis, ...]
    lhs: str
    rhs: str
    out: str
    acc: str
    algorithm: Algorithm | None = None
    epilogue: Epilogue | None = None
    prologue: Prologue | None = None
    panels: Panels | None = None  # how B lies in memory, if not by strides
    scaling: Scaling | None = None

    @classmethod
    def of(
        cls,
        lhs: Operand,
        rhs: Operand,
        dimension_numbers,
        out: str,
        program: Program | None = None,
        extras: Sequence[Operand] = (),
        strides: Sequence[int] | None = None,
        scaling: Scaling | None = None,
        prologue: Program | None = None,
        lhs_extras: Sequence[Operand] = (),
    ) -> Dot:
        """Describes lax.dot_general(lhs, rhs, dimension_numbers) with a result of type `out`.

        Args:
          lhs: A.
          rhs: B.
          dimension_numbers: as lax.dot_general has them.
          out: the type of the result; with a program, of the program's result.
          program: what to make of the product, element by element: its input 0.
          extras: its further inputs, and the arrays of `scaling`, at C's shape, with strides of 0 where they are
            broadcast.
          strides: C's, in elements; row-major where there are none.
          scaling: what B's integers stand for, if not for themselves.
          prologue: what to make of A, element by element: its input 0.
          lhs_extras: its further inputs, at A's shape.

        Raises:
          UnsupportedDot: no kernel can be made for these types, or there is nothing to compute.
        """
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
        lhs_free = [d for d in range(len(lhs.shape)) if d not in (*lhs_contract, *lhs_batch)]
        rhs_free = [d for d in range(len(rhs.shape)) if d not in (*rhs_contract, *rhs_batch)]
        shape = [lhs.shape[d] for d in (*lhs_batch, *lhs_free)] + [rhs.shape[d] for d in rhs_free]
        if 0 in lhs.shape or 0 in rhs.shape:
            raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
        product = program.dtype(0) if program else out
        own = len(extras) - (len(scaling.arrays) if scaling else 0)
        c_strides = row_major_strides(shape) if strides is None else strides

        def axis(size: int, i: int | None = None, j: int | None = None, c: int | None = None) -> Axis:
            """The loop over dimension i of A, j of B and c of C."""
            of_c = tuple(0 if c is None else extra.strides[c] for extra in extras)
            of_a = tuple(0 if i is None else extra.strides[i] for extra in lhs_extras)
            return Axis(
                size=size,
                lhs=0 if i is None else lhs.strides[i],
                rhs=0 if j is None else rhs.strides[j],
                out=0 if c is None else c_strides[c],
                extras=(*of_c[:own], *of_a, *of_c[own:]),
            )

        c = iter(range(len(shape)))
        b = [axis(lhs.shape[i], i, j, next(c)) for i, j in zip(lhs_batch, rhs_batch, strict=True)]
        m = [axis(lhs.shape[i], i, c=next(c)) for i in lhs_free]
        n = [axis(rhs.shape[j], j=j, c=next(c)) for j in rhs_free]
        k = [axis(lhs.shape[i], i, j) for i, j in zip(lhs_contract, rhs_contract, strict=True)]
        k.sort(key=lambda axis: (axis.lhs, axis.rhs), reverse=True)
        before = Prologue(program=prologue, extras=in_memory(lhs_extras)) if prologue else None
        acc = accumulator(before.made if before else lhs.dtype, rhs.dtype, product, extent(k))
        if scaling and acc != "f32":
            raise UnsupportedDot(f"sums in {acc} are not scaled by groups")
        b, m, n, k = map(merged, (b, m, n, k))
        if lhs.panels or rhs.panels:
            check_panels(lhs.panels, rhs.panels, b, n, k)
        return cls(
            b=b, m=m, n=n, k=k, panels=rhs.panels, lhs=lhs.dtype, rhs=rhs.dtype, out=out, acc=acc,
            epilogue=Epilogue(program=program, extras=in_memory(extras[:own])) if program else None, prologue=before,
            scaling=scaling,
        )  # fmt: skip

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, M, N, K)."""
        return extent(self.b), extent(self.m), extent(self.n), extent(self.k)

    @property
    def extras(self) -> tuple[tuple[str, int], ...]:
        """The arrays beside A, B and C, the epilogue's first: types, and how many elements there are in memory."""
        return (
            *(self.epilogue.extras if self.epilogue else ()),
            *(self.prologue.extras if self.prologue else ()),
            *(self.scaling.arrays if self.scaling else ()),
        )

    @property
    def operands(self) -> tuple[str, str]:
        """The types of what is multiplied: of B, and of A or what the prologue makes of it."""
        return self.prologue.made if self.prologue else self.lhs, self.rhs

    @property
    def factors(self) -> tuple[str, str]:
        """The types of the numbers that are multiplied: the operands', unless an algorithm rounds them."""
        if not self.algorithm:
            return self.operands
        lhs, rhs = (x if self.algorithm.dtype in WIDENS[x] else self.algorithm.dtype for x in self.operands)
        return lhs, rhs

    @property
    def bf16_splits(self) -> tuple[int, int]:
        """How many components A and B have."""
        return self.algorithm.bf16_splits if self.algorithm else (1, 1)

    @property
    def terms(self) -> int:
        """How many products of components are added up."""
        return len(self.algorithm.terms) if self.algorithm else 1

    def with_algorithm(self, algorithm: Algorithm) -> Dot:
        """The product of the operands' components, without those that an operand does not have."""
        whole = [algorithm.dtype in WIDENS[x] for x in self.operands]
        if all(whole):
            return replace(self, algorithm=None)
        terms = tuple((i, j) for i, j in algorithm.terms if not (i and whole[0]) and not (j and whole[1]))
        return replace(self, algorithm=replace(algorithm, terms=terms))

    def swapped(self) -> Dot:
        """The same work with the operands' roles exchanged: C transposed = B transposed times A transposed.

        There must be no prologue, which is work on A.
        """

        def swap(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
            return tuple(replace(axis, lhs=axis.rhs, rhs=axis.lhs) for axis in axes)

        return replace(
            self, b=swap(self.b), m=swap(self.n), n=swap(self.m), k=swap(self.k), lhs=self.rhs, rhs=self.lhs,
            algorithm=self.algorithm and self.algorithm.swapped(),
        )  # fmt: skip


def check_panels(
    lhs: Panels | None, rhs: Panels | None, b: Sequence[Axis], n: Sequence[Axis], k: Sequence[Axis]
) -> None:
    """Sees to it that only B lies in panels, and that they are gone through along their columns and rows.

    Raises:
      UnsupportedDot: a kernel would have to read panels in another order.
    """
    if lhs or not rhs:
        raise UnsupportedDot("panels are read as B alone: columns of the packed matrix have to be C's last dimension")
    matrix, panel = rhs.rows * rhs.columns, rhs.rows * rhs.width
    if [axis.rhs for axis in k] not in ([], [1]):
        raise UnsupportedDot("panels are summed along the rows of the packed matrix, all in one run")
    whole = not any(axis.rhs % matrix for axis in b) and not any(axis.rhs % panel for axis in n[:-1])
    if not whole or (n and n[-1].rhs != rhs.rows):
        raise UnsupportedDot(f"columns of the packed matrix are not gone through by whole panels of {rhs.width}")


def in_memory(arrays: Sequence[Operand]) -> tuple[tuple[str, int], ...]:
    """Types, and how many elements there are in memory."""
    return tuple((array.dtype, array.elements) for array in arrays)


def extent(axes: Sequence[Axis]) -> int:
    """The product of the axes' sizes."""
    return math.prod(axis.size for axis in axes)


def merged(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes without those of size 1, neighbours joined where one stride serves both in every array."""
    result: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if result and all(o == i * axis.size for o, i in zip(result[-1].strides(), axis.strides(), strict=True)):
            result.append(replace(axis, size=result.pop().size * axis.size))
        else:
            result.append(axis)
    return tuple(result)


def accumulator(lhs: str, rhs: str, out: str, terms: int) -> str:
    """The type that `terms` products of these operands are summed in.

    Integers are summed in s32, which wraps as results of integers do; where the result is a float, only as long as no
    sum can be too large for it.

    Raises:
      UnsupportedDot: there is no kernel for these types.
    """
    operands = {lhs, rhs}
    if operands == {"f64"} and out == "f64":
        return "f64"
    integers, floats = LARGEST.keys(), {"f32", "bf16", "f16"} | FLOAT8
    if operands <= integers and out in ("s32", "u32", "s16", "u16", "s8", "u8"):
        return "s32"
    if operands <= integers | floats and out in ("f32", "bf16", "f16"):
        exact = operands <= integers and terms * LARGEST[lhs] * LARGEST[rhs] < 1 << 31
        return "s32" if exact else "f32"
    raise UnsupportedDot(f"no kernel multiplies {lhs} by {rhs} into {out}")
