"""Grouped products: one product for each group of rows, where how many rows a group has is known at run time only.

    "m"    C[b, m, :]     =  A[b, m, :] @ B[b, g, :, :]       for the rows m of group g; zero for rows of no group
    "k"    C[b, g, :, :]  =  A[b, :, k] @ B[b, k, :]          summed over the rows k of group g; zero where it has none

Rows of a group follow one another, and groups do in their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from jax_nano.ir.axes import Axis
from jax_nano.ir.dot import Dot, Epilogue, UnsupportedDot
from jax_nano.ir.dtypes import ELEMENT_TYPES, bytes_of

PLACES = frozenset({"s8", "u8", "s16", "u16", "s32", "u32", "s64"})  # integers that indices of 64 bits hold
SUMS = frozenset({"f64", "f32", "s32", "u32", "s16", "u16", "s8", "u8"})  # types that rows are added up in
Role = Literal["lhs", "rhs", "sizes", "places", "epilogue", "prologue", "scaling", "targets", "weights", "base", "out"]

Beyond = Literal["nearest", "no row", "zeros", "nan"]  # what a place stands for where there is no row


class GroupedArray(NamedTuple):
    """One of the arrays that a kernel is given."""

    role: Role
    dtype: str
    elements: int  # in memory


@dataclass(frozen=True, kw_only=True)
class RowGather:
    """Rows of A that are found through an array of their places, beside A; beyond A's ends, that is the nearest row.

    Attributes:
      places: the integer type of the array.
      stored: how many rows there are in memory.
      stride: elements from one to the next.
    """

    places: str
    stored: int
    stride: int

    def __post_init__(self):
        if self.places not in PLACES:
            raise UnsupportedDot(f"no kernel finds rows by numbers of {self.places}; convert them to s32")
        if self.stored == 0:
            raise UnsupportedDot("there is no row to gather: there is nothing to multiply")


@dataclass(frozen=True, kw_only=True)
class RowScatter:
    """Rows of C that are added up in rows of the result, in a fixed order, as an array of places says.

    The array has a place in the result for each row of C; or, where there are `choices`, for each row of the result the
    places in C of the rows that are added up there, as many as `choices` says.

    Attributes:
      places: the integer type of the array.
      stored: how many rows the result has.
      sum: the type that rows are added up in.
      out: the type of the result.
      base: the type of the array of the result's shape that rows are added to; None for zeros.
      choices: how many rows of C each row of the result names.
      work: what is done to an element of C before it is added, with arrays that have an element for each choice.
      beyond: what a place beyond the ends stands for: the nearest row, no row, or a row of zeros or of NaN.
    """

    places: str
    stored: int
    sum: str
    out: str
    base: str | None = None
    choices: int = 0
    work: Epilogue | None = None
    beyond: Beyond = "no row"

    def __post_init__(self):
        if self.places not in PLACES:
            raise UnsupportedDot(f"no kernel adds rows at places of {self.places}; convert them to s32")
        if self.stored == 0:
            raise UnsupportedDot("there is no row to add to: there is nothing to compute")
        if self.sum not in SUMS:
            raise UnsupportedDot(f"no kernel adds up rows of {self.sum}; convert them to f32")

    def arrays(self, rows: int, columns: int) -> tuple[GroupedArray, ...]:
        """The arrays of the sums of so many rows of so many columns, the result among them."""
        elements = self.stored * columns
        weights = self.work.extras if self.work else ()
        return (
            GroupedArray("targets", self.places, self.stored * self.choices or rows),
            *(GroupedArray("weights", *array) for array in weights),
            *((GroupedArray("base", self.base, elements),) if self.base else ()),
            GroupedArray("out", self.out, elements),
        )


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Sizes, types and layouts of one grouped product.

    Attributes:
      dot: the product that a group would be that had all rows; panels of B, and the arrays beside A and B, are those of
        all groups.
      ragged: which of its axes the groups share out.
      groups: how many there are.
      group: how far apart the groups' matrices stand, in B or in C, and what belongs to a group in Dot.extras.
      batch: independent grouped products, each with sizes of its own, or all with the same ones.
      sizes: the integer type of the sizes.
      sizes_stride: elements of the sizes from one element of the batch to the next.
      gather: how rows of A are found, where they do not lie one behind the other.
      scatter: where rows of C are added up, which are no result themselves then.
    """

    dot: Dot
    ragged: Literal["m", "k"]
    groups: int
    group: Axis
    batch: Axis
    sizes: str
    sizes_stride: int = 0
    gather: RowGather | None = None
    scatter: RowScatter | None = None

    def __post_init__(self):
        if self.groups == 0 or self.batch.size == 0:
            raise UnsupportedDot("there is no group: there is nothing to multiply")
        if ELEMENT_TYPES[self.sizes].kind not in ("signed", "unsigned") or ELEMENT_TYPES[self.sizes].bits < 8:
            raise UnsupportedDot(f"no kernel reads group sizes of {self.sizes}; convert them to s32")
        if len(getattr(self.dot, self.ragged)) > 1:
            raise UnsupportedDot("what groups share out is more than one loop")
        if self.dot.b:
            raise UnsupportedDot("a group's product has no batch of its own")
        if self.gather and (self.ragged == "k" or self.batch.size > 1):
            raise UnsupportedDot("rows are gathered for one product, whose rows the groups share out")
        if self.scatter and (self.ragged == "k" or self.batch.size > 1):
            raise UnsupportedDot("rows are scattered of one product, whose rows the groups share out")

    def replace(self, **changes: Any) -> Grouped:
        """The grouped product with some fields changed."""
        return replace(self, **changes)

    @property
    def rows(self) -> int:
        """The rows that the groups share."""
        _, m, _, k = self.dot.sizes
        return m if self.ragged == "m" else k

    @property
    def row(self) -> Axis:
        """The loop over them."""
        axes = self.dot.m if self.ragged == "m" else self.dot.k
        return axes[0] if axes else Axis(size=1, extras=(0,) * len(self.dot.extras))

    @property
    def expected_rows(self) -> int:
        """Rows of a group that has any, if they are shared out evenly."""
        return -(-self.rows // min(self.groups, self.rows))

    @property
    def even_sizes(self) -> list[int]:
        """Sizes that share out all rows as evenly as that goes, for each element of the batch that has its own."""
        share, rest = divmod(self.rows, self.groups)
        one = [share + (i < rest) for i in range(self.groups)]
        return one * (self.batch.size if self.sizes_stride else 1)

    @property
    def arrays(self) -> tuple[GroupedArray, ...]:
        """The arrays in the order in which kernels take them."""
        around = (self.batch, self.group)
        times = [math.prod(axis.size for axis in around if axis.strides()[i]) for i in range(3)]
        if self.dot.panels:
            times[1] = 1
        sizes = self.groups * (self.batch.size if self.sizes_stride else 1)
        lhs, rhs, *extras, out = (
            GroupedArray(x.role, x.dtype, x.elements * (times[x.stride] if x.stride < len(times) else 1))
            for x in self.dot.arrays
        )
        places = ()
        if self.gather:
            lhs = lhs._replace(elements=self.gather.stored * self.gather.stride)
            places = (GroupedArray("places", self.gather.places, self.rows),)
        results = self.scatter.arrays(self.rows, out.elements // self.rows) if self.scatter else (out,)
        return lhs, rhs, GroupedArray("sizes", self.sizes, sizes), *places, *extras, *results

    @property
    def acc(self) -> str:
        """The type of the sums."""
        return self.dot.acc

    @property
    def bytes(self) -> int:
        """Of all arrays, of B's matrices and of stored rows of A as many as can be read."""
        used = {"rhs": min(self.groups, self.rows) / self.groups if self.ragged == "m" else 1}
        if self.gather:
            used["lhs"] = min(1, self.rows / self.gather.stored)
        return int(sum(bytes_of(x.dtype, x.elements) * used.get(x.role, 1) for x in self.arrays))

    def with_rows(self, rows: int) -> Dot:
        """The product of a group of so many rows."""
        name = self.ragged
        axes = tuple(replace(axis, size=rows) for axis in getattr(self.dot, name)) if rows > 1 else ()
        return replace(self.dot, **{name: axes})

    @property
    def label(self) -> str:
        """Sizes and types, as names of kernels have them."""
        dot = self.dot
        types = dot.lhs if dot.lhs == dot.rhs == dot.out else f"{dot.lhs}{dot.rhs}_{dot.out}"
        if dot.algorithm:
            types += f"_{dot.algorithm.dtype}x{dot.terms}"
        batch = f"b{self.batch.size}" if self.batch.size > 1 else ""
        _, m, n, k = dot.sizes
        kind = "grouped" if self.ragged == "m" else "grouped_sum"
        types += ("_panels" if dot.panels else "") + ("_fused" if dot.epilogue or dot.prologue else "")
        types += ("_gathered" if self.gather else "") + ("_scattered" if self.scatter else "")
        return f"{kind}_{types}_{batch}g{self.groups}m{m}n{n}k{k}"
