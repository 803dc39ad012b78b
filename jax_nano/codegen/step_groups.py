"""Steps of a sum whose places in a window are within the same bounds: those along an axis that moves along none.

Of channels first, that is the channels, whichever way the kernel lies:

    channels innermost (taps, channels)          channels outermost (channels, taps)

    | c0 c1 c2 ... | c0 c1 c2 ... |              | tap 0 tap 1 ... | tap 0 tap 1 ... |
      a group of one tap has runs of steps         a group has every so many-th step

A group has the same tap, or of instructions that take several steps at once, the same ones. Where channels stand far
apart in memory, lines of several would push each other out of L1 before the next tap wants them: tiles of a few
channels are gone through tap by tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jax_nano.codegen.index import Index, add, divmod_, maximum, minimum, mul, subtract
from jax_nano.codegen.loops import Depth, for_range
from jax_nano.codegen.windows.reference import Cursor, WindowRef, pieces_of_runs
from jax_nano.ir.axes import Axis
from jax_nano.schedule.loop_nest import SharedSteps


@dataclass(frozen=True)
class GroupSizes:
    """How many steps there are, how many an instruction takes at once, and along the axis, how many are a tile."""

    depth: Depth
    vnni: int
    tile: int


@dataclass(frozen=True)
class StepGroups:
    """VNNI groups [begin, end) along an axis, in every `step`-th of its elements.

    Element i of the axis stands i strides behind the cursors, and its rows in the panel from `row(i)` on.
    """

    cursors: tuple[Cursor, ...]  # of the steps of a group
    axis: Axis
    begin: Index
    end: Index
    step: int
    first_row: Index  # of element 0, whether it is there or not
    rows: int  # from one element to the next

    def row(self, i: Index) -> Index:
        """The first row of a group in the panel."""
        return add(self.first_row, mul(i, self.rows))


def groups_along(source: WindowRef, cursor: Cursor, shared: SharedSteps, sizes: GroupSizes) -> Iterator[StepGroups]:
    """Emits loops over the groups of a block of the sum, tile by tile of the axis that they are along.

    Args:
      source: the window, from the first step of the block on.
      cursor: a place of it.
      shared: the axis.
      sizes: of the block, a group and a tile.
    """
    return (_innermost if shared.axis else _outermost)(source, cursor, shared, sizes)


def _innermost(source: WindowRef, cursor: Cursor, shared: SharedSteps, sizes: GroupSizes) -> Iterator[StepGroups]:
    axis, vnni = source.steps[shared.axis], sizes.vnni
    tile = min(axis.size, sizes.tile // vnni * vnni)
    with for_range(0, axis.size, tile) as block:
        for steps in pieces_of_runs(axis.size, source.first, sizes.depth.steps):
            first = cursor.within(source.steps[:-1], steps.run)
            cursors = tuple(first.moved(axis, step) for step in range(vnni))
            begin, end = maximum(steps.begin, block.i), minimum(steps.end, add(block.i, tile))
            yield StepGroups(cursors, axis, begin, end, vnni, subtract(steps.to, steps.begin), rows=1)


def _outermost(source: WindowRef, cursor: Cursor, shared: SharedSteps, sizes: GroupSizes) -> Iterator[StepGroups]:
    axis, step = source.steps[0], shared.period // shared.taps
    begin, end = (divmod_(k, shared.taps)[0] for k in (source.first, add(source.first, sizes.depth.steps)))
    tile = max(1, sizes.tile // step) * step
    with for_range(begin, end, tile) as block, for_range(0, shared.period, sizes.vnni) as group:
        cursors = tuple(cursor.within(source.steps, add(group.i, number)) for number in range(sizes.vnni))
        last = minimum(end, add(block.i, tile))
        yield StepGroups(cursors, axis, block.i, last, step, subtract(group.i, source.first), rows=shared.taps)
