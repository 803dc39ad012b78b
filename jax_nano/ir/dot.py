"""Dot: a frozen description of one product, of what to compute and nothing of how."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from jax_nano.ir.axes import Axis, Loops, Operand, Role, extent, loops_of, merged, result_shape
from jax_nano.ir.axes import row_major_strides as row_major_strides
from jax_nano.ir.dtypes import BITS, FLOAT8, LARGEST, PACKED_INT4, WIDENS, bytes_of
from jax_nano.ir.packed_weight import Panels, rows_of_words
from jax_nano.ir.window import Window

if TYPE_CHECKING:
    from jax_nano.ir.program import Program

EXTRA_ROLES: tuple[Role, ...] = ("epilogue", "prologue", "scaling")
"""The order of the arrays beside A, B and C, everywhere."""


class UnsupportedDot(Exception):
    """jax_nano has no kernel for a product; its text says why."""


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
    """The numbers that B's integers stand for: (integer - zero point) * scale.

    Scales and zero points belong to a column and a group of steps of k.

    The arrays are the scales, and the zero points if there are any. Along b and n, axes say how far apart their
    elements are. Sums of groups are scaled, so integers are multiplied as they are.
    """

    group_size: int  # steps of k
    stride: int  # elements from a group's to the next one's
    arrays: tuple[tuple[str, int], ...]  # types, and how many elements there are in memory


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Numbers of a narrower type that are multiplied in place of the operands, whose sums they are: their splits.

    Split 0 is the operand rounded, split 1 what that leaves rounded, and so on. `terms` are the products of splits,
    (of A, of B), that are added up in this order: the last one is that of splits 0. Those before it are corrections,
    which are dropped where they are not finite.
    """

    dtype: str
    terms: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def bf16_splits(self) -> tuple[int, int]:
        """How many splits A and B have."""
        return 1 + max(i for i, _ in self.terms), 1 + max(j for _, j in self.terms)

    def swapped(self) -> Algorithm:
        """The algorithm with the operands' roles exchanged."""
        return replace(self, terms=tuple((j, i) for i, j in self.terms))


class DotArray(NamedTuple):
    """One of the arrays that a kernel is given."""

    role: Role
    dtype: str  # in memory: words, where B is packed int4
    elements: int  # in memory
    stride: int  # which of Axis.strides() are its own


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
    window: Window | None = None  # how A or B lies in memory, if its axes overlap or go beyond it

    @classmethod
    def of(cls, lhs: Operand, rhs: Operand, dimension_numbers, out: str) -> Dot:
        """Describes lax.dot_general(lhs, rhs, dimension_numbers), with a row-major result.

        Args:
          lhs: A.
          rhs: B.
          dimension_numbers: as lax.dot_general has them.
          out: the type of the result.

        Raises:
          UnsupportedDot: no kernel can be made for these types, or there is nothing to compute.
        """
        if 0 in lhs.shape or 0 in rhs.shape:
            raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
        if lhs.panels:
            raise UnsupportedDot(ONLY_RHS_IN_PANELS)
        result = Operand.row_major(result_shape(lhs, rhs, dimension_numbers), out)
        loops = loops_of(lhs, rhs, dimension_numbers, result)
        return cls.over(loops, (lhs.dtype, rhs.dtype, out), panels=rhs.panels)

    @classmethod
    def over(cls, loops: Loops, types: tuple[str, str, str], **fused: Any) -> Dot:
        """The product by its loops, and what is fused with it: loops are joined where one serves for two.

        Args:
          loops: its loops, with extras in the order of EXTRA_ROLES; those of the sum in any order.
          types: of A, B and C; with an epilogue, of its result.
          fused: epilogue, prologue, scaling, panels and window, as Dot has them.

        Raises:
          UnsupportedDot: no kernel can be made for these types, or goes over panels like this.
        """
        lhs, rhs, out = types
        by_rhs = fused.get("window") is not None  # of windows, packing finds the elements in any order
        order = (lambda axis: (axis.rhs, axis.lhs)) if by_rhs else (lambda axis: (axis.lhs, axis.rhs))
        k = sorted(loops.k, key=order, reverse=True)
        b, m, n, k = map(merged, (loops.b, loops.m, loops.n, k))
        dot = cls(b=b, m=m, n=n, k=k, lhs=lhs, rhs=rhs, out=out, acc="", **fused)
        product = dot.epilogue.program.dtype(0) if dot.epilogue else out
        dot = replace(dot, acc=accumulator(*dot.operands, product, extent(k)))
        if dot.scaling and dot.acc != "f32":
            raise UnsupportedDot(f"sums in {dot.acc} are not scaled by groups")
        if dot.panels:
            check_panels(dot)
        if dot.window and (dot.ends_with_rows or not dot.n) and (dot.panels or dot.scaling or dot.rhs in PACKED_INT4):
            raise UnsupportedDot(ONLY_WITH_COLUMNS_LAST)
        if dot.window and (dot.prologue or BITS[dot.lhs] < 8):
            raise UnsupportedDot(
                "windows are read as they are: without work on them, and of no elements that share bytes"
            )
        return dot

    @property
    def ends_with_rows(self) -> bool:
        """Is true where C's last axis is one of M; with one column, where places are neighbours in A as well."""
        if not self.m or self.m[-1].out != 1:
            return False
        return self.n[-1].out != 1 if self.n else self.m[-1].lhs == 1

    @functools.cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, M, N, K)."""
        return extent(self.b), extent(self.m), extent(self.n), extent(self.k)

    @functools.cached_property
    def bytes(self) -> int:
        """Of the operands and the result."""
        b, m, n, _ = self.sizes
        operands = bytes_of(self.lhs, self.lhs_elements) + bytes_of(self.rhs, self.rhs_elements)
        return operands + bytes_of(self.out, b * m * n)

    @property
    def lhs_elements(self) -> int:
        """How many elements of A there are in memory; those of windows that overlap count once."""
        b, m, _, k = self.sizes
        return self.window.elements if self.window and self.window.operand == "lhs" else b * m * k

    @property
    def rhs_elements(self) -> int:
        """How many elements of B there are in memory, likewise."""
        b, _, n, k = self.sizes
        return self.window.elements if self.window and self.window.operand == "rhs" else b * k * n

    def has_window(self, operand: str) -> bool:
        """Whether an operand, "lhs" or "rhs", is a window."""
        return self.window is not None and self.window.operand == operand

    @functools.cached_property
    def arrays(self) -> tuple[DotArray, ...]:
        """Its arrays in the order in which kernels take them: A, B, those of EXTRA_ROLES, C."""
        axes = (*self.b, *self.m, *self.n, *self.k)
        lhs, rhs, out = (math.prod([axis.size for axis in axes if axis.strides()[i]]) for i in range(3))
        weight = self.rhs
        if self.window and self.window.operand == "lhs":
            lhs = self.window.elements
        elif self.window:
            rhs = self.window.elements
        if self.panels:
            rhs = self.panels.elements
        elif self.rhs in PACKED_INT4:
            weight, rhs = "u32", rhs // self.sizes[3] * rows_of_words(self.sizes[3])
        of_role = (
            self.epilogue.extras if self.epilogue else (),
            self.prologue.extras if self.prologue else (),
            self.scaling.arrays if self.scaling else (),
        )
        extras: list[tuple[Role, str, int]] = [
            (role, *array) for role, arrays in zip(EXTRA_ROLES, of_role, strict=True) for array in arrays
        ]
        return (
            DotArray("lhs", self.lhs, lhs, 0),
            DotArray("rhs", weight, rhs, 1),
            *(DotArray(*extra, 3 + i) for i, extra in enumerate(extras)),
            DotArray("out", self.out, out, 2),
        )

    def arrays_for(self, role: Role) -> tuple[DotArray, ...]:
        """The arrays of one role, in order. Of Axis.extras, array x has number x.stride - 3."""
        return tuple(array for array in self.arrays if array.role == role)

    @property
    def extras(self) -> tuple[tuple[str, int], ...]:
        """The arrays beside A, B and C: types, and how many elements there are in memory."""
        return tuple((array.dtype, array.elements) for array in self.arrays[2:-1])

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
        """How many splits A and B have."""
        return self.algorithm.bf16_splits if self.algorithm else (1, 1)

    @property
    def terms(self) -> int:
        """How many products of splits are added up."""
        return len(self.algorithm.terms) if self.algorithm else 1

    def with_algorithm(self, algorithm: Algorithm) -> Dot:
        """The product by an algorithm, without the splits that an operand does not have."""
        whole = [algorithm.dtype in WIDENS[x] for x in self.operands]
        if all(whole):
            return replace(self, algorithm=None)
        terms = tuple((i, j) for i, j in algorithm.terms if not (i and whole[0]) and not (j and whole[1]))
        return replace(self, algorithm=replace(algorithm, terms=terms))

    def swapped(self) -> Dot:
        """The product with the operands' roles exchanged: C transposed = B transposed times A transposed.

        There must be no prologue, which is work on A.
        """

        def swap(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
            return tuple(replace(axis, lhs=axis.rhs, rhs=axis.lhs) for axis in axes)

        return replace(
            self, b=swap(self.b), m=swap(self.n), n=swap(self.m), k=swap(self.k), lhs=self.rhs, rhs=self.lhs,
            algorithm=self.algorithm and self.algorithm.swapped(), window=self.window and self.window.swapped(),
        )  # fmt: skip


ONLY_WITH_COLUMNS_LAST = "weights are read as they are packed where output channels are the result's last dimension"
ONLY_RHS_IN_PANELS = "panels are read as B alone: columns of the packed matrix have to be C's last dimension"


def check_panels(dot: Dot) -> None:
    """Sees to it that a product goes through the panels of its B along their columns and rows.

    Raises:
      UnsupportedDot: a kernel would have to read panels in another order.
    """
    panels = dot.panels
    assert panels
    if not is_one_run(dot.k, 1) or (len(dot.k) > 1 and not dot.window):
        raise UnsupportedDot("panels are summed along the rows of the packed matrix, all in one run")
    whole = not any(axis.rhs % panels.matrix_elements for axis in dot.b)
    whole &= not any(axis.rhs % panels.panel_elements for axis in dot.n[:-1])
    if not whole or (dot.n and dot.n[-1].rhs != panels.rows):
        raise UnsupportedDot(f"columns of the packed matrix are not gone through by whole panels of {panels.width}")


def is_one_run(axes: Sequence[Axis], stride: int) -> bool:
    """Is true where B is gone through by steps of this stride, each axis where the one inside of it ends."""
    for axis in reversed(axes):
        if axis.rhs != stride:
            return False
        stride *= axis.size
    return True


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
