"""Loops over the axes of a stage: one of them by registers, or two by squares of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jax_nano.codegen.index import Index
from jax_nano.codegen.loops import for_range

UNROLLED = 4  # registers that are written out, in place of a loop


@dataclass(frozen=True)
class Nest:
    """The loops of a stage: axes around, and the one along lanes."""

    sizes: tuple[int, ...]
    outer: tuple[int, ...]
    lane: int | None
    lanes: int

    @property
    def width(self) -> int:
        """Elements along lanes."""
        return 1 if self.lane is None else self.sizes[self.lane]


def nest_of(sizes: Sequence[int], strides: Sequence[int], lanes: int) -> Nest:
    """The loops of a stage whose result has these strides; scalars, where nothing is contiguous in it."""
    unit = [axis for axis, stride in enumerate(strides) if stride == 1 and sizes[axis] > 1]
    lane = unit[-1] if unit else None
    outer = sorted((axis for axis in range(len(sizes)) if axis != lane), key=lambda axis: -abs(strides[axis]))
    return Nest(tuple(sizes), tuple(outer), lane, lanes if lane is not None else 1)


@contextmanager
def loops(nest: Nest, axes: Sequence[int]) -> Iterator[dict[int | None, Index]]:
    """Emits loops over axes; the block writes what is inside the innermost."""
    if not axes:
        yield {}
        return
    with for_range(0, nest.sizes[axes[0]]) as loop, loops(nest, axes[1:]) as inner:
        yield {axes[0]: loop.i, **inner}


def along_lanes(nest: Nest, body: Callable[[Index, int], None]) -> None:
    """Emits body(first, count) for every register along lanes."""
    whole = nest.width // nest.lanes * nest.lanes
    if whole <= UNROLLED * nest.lanes:
        for at in range(0, whole, nest.lanes):
            body(at, nest.lanes)
    else:
        with for_range(0, whole, nest.lanes) as loop:
            body(loop.i, nest.lanes)
    if rest := nest.width - whole:
        body(whole, rest)


def in_squares(
    nest: Nest, axis: int, square: Callable[[dict[int | None, Index]], None], rest: Callable[..., None]
) -> None:
    """Emits loops over all axes: square(indices) for as many elements of `axis` as of lanes, rest(indices, count) else.

    Args:
      nest: the loops.
      axis: one of those around lanes.
      square: writes what is done with a register of lanes for each of as many elements along the axis.
      rest: writes what is done with the first `count` lanes of a register at one element of the axis.
    """
    lanes, others = nest.lanes, [each for each in nest.outer if each != axis]
    size, whole, width = nest.sizes[axis], nest.sizes[axis] // lanes * lanes, nest.width // lanes * lanes
    with loops(nest, others) as indices:
        with for_range(0, whole, lanes) as row, for_range(0, width, lanes) as lane:
            square({**indices, axis: row.i, nest.lane: lane.i})
        if width < nest.width:
            with for_range(0, whole) as row:
                rest({**indices, axis: row.i, nest.lane: width}, nest.width - width)
        if whole < size:
            with for_range(whole, size) as row:
                along_lanes(nest, lambda at, count: rest({**indices, axis: row.i, nest.lane: at}, count))
