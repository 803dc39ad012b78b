"""References to windows: operands whose elements overlap in memory, and are zero beyond their bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.codegen.index import (
    Condition,
    Index,
    add,
    both,
    divmod_,
    less,
    maximum,
    minimum,
    mul,
    negation,
    select,
    subtract,
    unequal,
)
from jax_nano.codegen.load_store import first_lanes, load, load_where
from jax_nano.codegen.loops import for_range, when
from jax_nano.codegen.matrix_ref import Split
from jax_nano.codegen.registers import zeros
from jax_nano.ir.axes import Axis
from jax_nano.ir.window import Window

UNROLLED = 16  # registers of a run that are copied one after the other
FAR = 1 << 40  # elements: more than any array has


class Cursor(NamedTuple):
    """An element of a window: its place in memory, and its positions along the bounds."""

    at: Index
    positions: tuple[Index, ...]

    def moved(self, axis: Axis, steps: Index) -> Cursor:
        """The element so many steps further along an axis."""
        positions = (
            add(position, mul(steps, step)) for position, step in zip(self.positions, axis.window, strict=True)
        )
        return Cursor(add(self.at, mul(steps, axis.lhs)), tuple(positions))

    def within(self, axes: Sequence[Axis], number: Index) -> Cursor:
        """Element `number` of a row-major grid of axes that begins here."""
        cursor = self
        for outermost, axis in reversed(list(zip((True, *[False] * len(axes)), axes, strict=False))):
            number, i = (0, number) if outermost else divmod_(number, axis.size)
            cursor = cursor.moved(axis, i)
        return cursor


@dataclass(frozen=True)
class WindowRef:
    """A window over joined axes of its places, m of A and n of B, and of k, from step `first` on.

    It begins at `cursor`. Its axes' strides in memory are `lhs`, whichever operand it is.
    """

    base: ir.Value
    cursor: Cursor
    dtype: str
    window: Window
    places: tuple[Axis, ...]
    steps: tuple[Axis, ...]
    bf16_split: Split | None = None
    first: Index = 0

    def from_step(self, k: Index) -> WindowRef:
        """The window from step k on."""
        return replace(self, first=add(self.first, k))

    def inside(self, cursor: Cursor, run: Axis) -> tuple[Index, Index]:
        """The steps [begin, end) along a run from `cursor` on that are within all bounds."""
        begin, end = 0, run.size
        for bound, position, step in zip(self.window.bounds, cursor.positions, run.window, strict=True):
            if step == 0:
                is_inside = both(less(-1, position), less(position, bound.size))
                end = select(is_inside, end, 0)
            else:
                begin = maximum(begin, steps_until(subtract(0, position), step))
                end = minimum(end, steps_until(subtract(bound.size, position), step))
        return begin, end


def steps_until(distance: Index, step: int) -> Index:
    """How many steps it takes to go at least so far, which may be less than nothing."""
    if step == 1:
        return distance
    return subtract(divmod_(add(distance, step - 1 + FAR * step), step)[0], FAR)


def outer_and_run(axes: tuple[Axis, ...], window: Window, longest_step: int = 1) -> tuple[tuple[Axis, ...], Axis]:
    """The loops around a run in memory, and the run: one element, where neighbours are more than a step apart."""
    if axes and 1 <= axes[-1].lhs <= longest_step:
        return axes[:-1], axes[-1]
    return axes, Axis(size=1, lhs=1, window=(0,) * len(window.bounds))


@dataclass(frozen=True)
class Piece:
    """Elements [begin, end) of a run, and where they go."""

    run: Index
    begin: Index
    end: Index
    to: Index
    whole: Index  # elements that are gone through in all


def pieces_of_runs(size: int, first: Index, count: Index) -> Iterator[Piece]:
    """Emits a loop over the runs of `size` that `count` elements from `first` on are in: the piece of each."""
    end = add(first, count)
    begin_run, end_run = divmod_(first, size)[0], divmod_(add(end, size - 1), size)[0]
    whole = all(isinstance(x, int) and x % size == 0 for x in (first, end))
    with for_range(begin_run, end_run) as loop:
        at = mul(loop.i, size)
        if whole:
            yield Piece(loop.i, 0, size, subtract(at, first), count)
        else:
            begin = maximum(0, subtract(first, at)) if size > 1 else 0
            stop = minimum(size, subtract(end, at)) if size > 1 else 1
            yield Piece(loop.i, begin, stop, subtract(add(at, begin), first), count)


@dataclass(frozen=True)
class Steps:
    """A run of steps along an axis that moves along no bound: a piece of it, where it is in memory."""

    cursor: Cursor
    axis: Axis
    piece: Piece

    def at(self, k: Index) -> Index:
        """Where step k is."""
        return add(self.cursor.at, mul(k, self.axis.lhs))


def lanes_within(k: Index, begin: Index, end: Index, lanes: int) -> ir.Value:
    """A mask of the lanes, of which the first is element k, that are elements [begin, end)."""
    below, before = first_lanes(subtract(end, k), lanes), first_lanes(subtract(begin, k), lanes)
    ones = arith.constant(before.type, ir.DenseElementsAttr.get_splat(before.type, ir.BoolAttr.get(True)))
    return arith.andi(below, arith.xori(before, ones))


def load_lanes(base: ir.Value, at: Index, step: int, lanes: int, within: tuple[Index, Index]) -> ir.Value:
    """Elements a step apart from `at` on, of the lanes [begin, end); what is read lies between the first and the last.

    Registers of all elements in between are loaded, and every step-th one is taken out of them.
    """
    begin, end = within
    if step == 1:
        return load_between(base, at, lanes, begin, end)
    first, last = mul(begin, step), add(mul(subtract(end, 1), step), 1)
    value = None
    for number in range(step):
        skipped = number * lanes
        loaded = load_between(base, add(at, skipped), lanes, subtract(first, skipped), subtract(last, skipped))
        order = [lanes + i * step % lanes if i * step // lanes == number else i for i in range(lanes)]
        value = vector.shuffle(value or loaded, loaded, order if value else [i % lanes for i in order])
    assert value
    return value


def load_between(base: ir.Value, at: Index, lanes: int, begin: Index, end: Index) -> ir.Value:
    """The lanes [begin, end) of `lanes` elements from `at` on; zeros elsewhere."""
    if isinstance(end, int) and end <= 0:
        return zeros(lanes, ir.MemRefType(base.type).element_type)
    if isinstance(begin, int) and begin <= 0:
        return load(base, at, lanes, end)
    return load_where(base, at, lanes, lanes_within(0, begin, end, lanes))


def registers_of(begin: Index, end: Index, register: int) -> Iterator[tuple[Index, int]]:
    """Emits loops over [begin, end) by registers: (first element, how many).

    The last register overlaps the one before, so that it is whole; where there are fewer elements than a register has,
    they come one by one, or as one part of a register where their number is known here.
    """
    length = subtract(end, begin)
    if isinstance(length, int) and length < register:
        yield begin, length
        return
    for first in whole_registers(begin, end, register):
        yield first, register
    if not isinstance(length, int):
        with when(less(length, register)), for_range(begin, end) as loop:
            yield loop.i, 1


def unrolled_or_registers(begin: Index, end: Index, register: int) -> Iterator[tuple[Index, int]]:
    """Elements [begin, end) as registers_of has them; a few whole registers without a loop, and its misprediction."""
    if not (isinstance(begin, int) and isinstance(end, int) and register <= end - begin <= UNROLLED * register):
        yield from registers_of(begin, end, register)
        return
    for first in range(begin, end, register):
        yield min(first, end - register), register


def whole_registers(begin: Index, end: Index, register: int) -> Iterator[Index]:
    """Emits loops over [begin, end) by whole registers, the last of which overlaps the one before: of less, none."""
    length = subtract(end, begin)
    if (is_long := at_most(register, length)) is False:
        return
    with when(is_long):
        rest = divmod_(length, register)[1]
        with for_range(begin, subtract(end, rest), register) as loop:
            yield loop.i
        if rest != 0:
            with when(unequal(rest, 0)):
                yield subtract(end, register)


def registers_or_part(begin: Index, end: Index, register: int) -> Iterator[tuple[Index, bool]]:
    """Emits loops over [begin, end) by registers, and for less than one: (first element, is it whole).

    Only the latter needs a mask: on Zen 5, stores under masks take several times as long.
    """
    for first in whole_registers(begin, end, register):
        yield first, True
    if (is_short := less(subtract(end, begin), register)) is not False:
        with when(is_short):
            yield begin, False


def at_most(a: Index, b: Index) -> Condition:
    """a <= b."""
    return negation(less(b, a))
