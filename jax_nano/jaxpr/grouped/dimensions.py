"""Parameters and dimensions of lax.ragged_dot_general -> the grouped product that it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax_nano.ir.axes import Axis, Loops, Operand, merged
from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.grouped import Grouped

Mode = Literal["m", "k", "b"]
"""Which dimension of A is ragged: one of its rows, of the sum, or of the batch."""


@dataclass(frozen=True, kw_only=True)
class GroupedDimensions:
    """The dimensions of a lax.ragged_dot_general, by what they are.

    Attributes:
      mode: what the ragged dimension is.
      ragged: the ragged dimension of A.
      lhs: A's dimensions: of the batch, rows before the ragged one, rows behind it, and those of the sum.
      rhs: B's dimensions: of the batch, columns, and those of the sum.
      group: B's dimension of the groups, if it has one.
    """

    mode: Mode
    ragged: int
    lhs_batch: tuple[int, ...]
    lhs_free: tuple[int, ...]
    lhs_contract: tuple[int, ...]
    rhs_batch: tuple[int, ...]
    rhs_free: tuple[int, ...]
    rhs_contract: tuple[int, ...]
    group: int | None

    @classmethod
    def of(cls, numbers: Any, lhs_rank: int, rhs_rank: int) -> GroupedDimensions:
        """Reads lax.RaggedDotDimensionNumbers."""
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
        (ragged,) = numbers.lhs_ragged_dimensions
        groups = numbers.rhs_group_dimensions
        mode: Mode = "k" if ragged in lhs_contract else "b" if ragged in lhs_batch else "m"
        return cls(
            mode=mode,
            ragged=ragged,
            lhs_batch=tuple(lhs_batch),
            lhs_free=others(lhs_rank, lhs_batch, lhs_contract),
            lhs_contract=tuple(lhs_contract),
            rhs_batch=tuple(rhs_batch),
            rhs_free=others(rhs_rank, rhs_batch, rhs_contract, groups),
            rhs_contract=tuple(rhs_contract),
            group=groups[0] if groups else None,
        )

    @property
    def rows_before(self) -> tuple[int, ...]:
        """Rows of A around the ragged dimension: groups have sizes of their own for each."""
        return self.lhs_free[: self.lhs_free.index(self.ragged)]

    @property
    def sizes_dimensions(self) -> tuple[int, ...]:
        """The dimensions of A for each of whose elements groups may have sizes of their own."""
        if self.mode == "m":
            return (*self.lhs_batch, *self.rows_before)
        if self.mode == "k":
            return (*self.lhs_batch, *self.lhs_contract[: self.lhs_contract.index(self.ragged)])
        return self.lhs_batch[: self.lhs_batch.index(self.ragged)]

    @property
    def rows_behind(self) -> tuple[int, ...]:
        """Rows of A within the ragged dimension."""
        return self.lhs_free[self.lhs_free.index(self.ragged) + 1 :]


def others(rank: int, *taken: Sequence[int]) -> tuple[int, ...]:
    """The dimensions that are none of these."""
    return tuple(d for d in range(rank) if not any(d in dimensions for dimensions in taken))


def grouped_of(numbers: Any, lhs: Operand, rhs: Operand, sizes: Operand, out: Operand) -> Grouped:
    """Describes a lax.ragged_dot_general of operands as they lie in memory.

    Raises:
      UnsupportedDot: there is no kernel for it.
    """
    if 0 in (*lhs.shape, *rhs.shape, *sizes.shape):
        raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
    dims = GroupedDimensions.of(numbers, len(lhs.shape), len(rhs.shape))
    if dims.mode == "m":
        return of_rows(dims, lhs, rhs, sizes, out)
    if dims.mode == "k":
        return of_sums(dims, lhs, rhs, sizes, out)
    raise UnsupportedDot("a ragged batch is a product of its own")


def of_rows(dims: GroupedDimensions, lhs: Operand, rhs: Operand, sizes: Operand, out: Operand) -> Grouped:
    """Groups share out the rows of A; those around and within the ragged dimension count as batch."""
    strides = iter(out.strides)
    own = iter(sizes.strides if len(sizes.shape) > 1 else ())
    batch = [
        Axis(size=lhs.shape[i], lhs=lhs.strides[i], rhs=rhs.strides[j], out=next(strides), extras=(next(own, 0),))
        for i, j in zip(dims.lhs_batch, dims.rhs_batch, strict=True)
    ]
    rows = []
    for i in dims.lhs_free:
        per_row = next(own, 0) if i in dims.rows_before else 0
        rows.append(Axis(size=lhs.shape[i], lhs=lhs.strides[i], out=next(strides), extras=(per_row,)))
    at = dims.lhs_free.index(dims.ragged)
    ragged = rows.pop(at)
    loops = Loops(
        m=[without_extras(ragged)],
        n=[Axis(size=rhs.shape[j], rhs=rhs.strides[j], out=next(strides)) for j in dims.rhs_free],
        k=sum_axes(dims, lhs, rhs),
    )
    assert dims.group is not None
    group = Axis(size=rhs.shape[dims.group], rhs=rhs.strides[dims.group])
    dot = Dot.over(loops, (lhs.dtype, rhs.dtype, out.dtype))
    return with_batch(batch + rows, dot=dot, ragged="m", groups=group.size, group=group, sizes=sizes.dtype)


def of_sums(dims: GroupedDimensions, lhs: Operand, rhs: Operand, sizes: Operand, out: Operand) -> Grouped:
    """Groups share out the sum."""
    if len(dims.lhs_contract) > 1:
        raise UnsupportedDot("groups share out one of several dimensions that are summed over")
    groups, *strides = out.strides
    remaining = iter(strides)
    own = iter(sizes.strides if len(sizes.shape) > 1 else ())
    batch = [
        Axis(size=lhs.shape[i], lhs=lhs.strides[i], rhs=rhs.strides[j], out=next(remaining), extras=(next(own, 0),))
        for i, j in zip(dims.lhs_batch, dims.rhs_batch, strict=True)
    ]
    loops = Loops(
        m=[Axis(size=lhs.shape[i], lhs=lhs.strides[i], out=next(remaining)) for i in dims.lhs_free],
        n=[Axis(size=rhs.shape[j], rhs=rhs.strides[j], out=next(remaining)) for j in dims.rhs_free],
        k=sum_axes(dims, lhs, rhs),
    )
    dot = Dot.over(loops, (lhs.dtype, rhs.dtype, out.dtype))
    group = Axis(size=out.shape[0], out=groups)
    return with_batch(batch, dot=dot, ragged="k", groups=group.size, group=group, sizes=sizes.dtype)


def sum_axes(dims: GroupedDimensions, lhs: Operand, rhs: Operand) -> list[Axis]:
    """The loops of the sum."""
    return [
        Axis(size=lhs.shape[i], lhs=lhs.strides[i], rhs=rhs.strides[j])
        for i, j in zip(dims.lhs_contract, dims.rhs_contract, strict=True)
    ]


def with_batch(axes: Sequence[Axis], **fields: Any) -> Grouped:
    """A grouped product with its batch, whose axes have the strides of the sizes as extras.

    Raises:
      UnsupportedDot: these are not one loop.
    """
    joined = merged(axes)
    if len(joined) > 1:
        raise UnsupportedDot(f"the batch goes through memory in {len(joined)} loops; grouped products have one")
    batch = joined[0] if joined else Axis(size=1, extras=(0,))
    return Grouped(batch=without_extras(batch), sizes_stride=batch.extras[0], **fields)


def without_extras(axis: Axis) -> Axis:
    """The loop over A, B and C alone."""
    return Axis(size=axis.size, lhs=axis.lhs, rhs=axis.rhs, out=axis.out)
