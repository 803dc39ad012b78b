"""Loops that carry values, loops over blocks and panels, and branches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, scf

from jax_nano.codegen.index import (
    Condition,
    Index,
    Values,
    add,
    both,
    equal,
    index,
    less,
    maximum,
    minimum,
    negation,
    select,
    subtract,
    unequal,
)
from jax_nano.codegen.location import section


@dataclass
class Loop:
    """A loop as its body sees it: the variable `i` and `carry`; it sets `next`. Then `results` are there."""

    i: Index
    carry: Values
    results: Values = field(default_factory=list)
    next: Values = field(default_factory=list)


@contextlib.contextmanager
def for_range(start: Index, stop: Index, step: int = 1, carry: Sequence[ir.Value] = ()) -> Iterator[Loop]:
    """Emits scf.for over [start, stop); closing the block writes the yield. One iteration is written without a loop."""
    if isinstance(start, int) and isinstance(stop, int) and start < stop <= start + step:
        loop = Loop(start, list(carry))
        yield loop
        loop.results = loop.next
        return
    op = scf.ForOp(index(start), index(stop), index(step), list(carry))
    loop = Loop(op.induction_variable, list(op.inner_iter_args), list(op.results))
    with ir.InsertionPoint(op.body):
        yield loop
        scf.yield_(loop.next)


@dataclass(frozen=True)
class Span:
    """Indices [begin, end) along an axis of `size`. Where `begin` is beyond `end`, there are none.

    Who goes through it by blocks of `step` has `begin` at a multiple of that, and `end` as well unless it is `size`.
    Where there is no size, any number of indices may be left behind the last whole block.
    """

    begin: Index
    end: Index
    size: int | None


def blocks(span: Span, step: int, name: str) -> Iterator[Span]:
    """Emits a loop over a span by blocks, the last perhaps shorter: a Python loop over this writes its body once."""
    with section(name), for_range(span.begin, span.end, step) as loop:
        yield Span(loop.i, minimum(add(loop.i, step), span.end), span.size)


def panels(span: Span, width: int, name: str) -> Iterator[tuple[Index, int]]:
    """Emits a loop over a span by panels: the body of a Python loop over this is written for whole ones, of `width`.

    Where `width` does not divide the size, the body is written once more, for the narrower panel at the end. Where any
    number may be left, it is written for a few widths that are all numbers together.
    """
    if span.size is None:
        yield from panels_of_any_number(span, width, name)
        return
    rest = span.size % width
    whole = minimum(span.end, span.size - rest)
    if not (isinstance(span.begin, int) and isinstance(whole, int) and span.begin >= whole):
        with section(name), for_range(span.begin, whole, width) as loop:
            yield loop.i, width
    if rest:
        is_there = both(less(span.begin, span.size), equal(span.end, span.size))
        if is_there is not False:
            with section(f"{name}, the last one"), when(is_there):
                yield span.size - rest, rest


PARTS = (1, 2, 3, 4, 8, 16, 32)
"""Widths of which a few are any number: rarely more than two."""


def panels_of_any_number(span: Span, width: int, name: str, least: int = 1) -> Iterator[tuple[Index, int]]:
    """Emits a loop over whole panels, then for each narrower width, from the widest on, one panel if there is room.

    Panels of tiles have at least a tile's rows: where fewer are left, the last one has rows beyond the end.
    """
    at, end = span.begin, span.end
    whole = subtract(end, arith.remui(index(subtract(end, at)), index(width))) if width > 1 else end
    with section(name), for_range(at, whole, width) as loop:
        yield loop.i, width
    at = maximum(at, whole)
    for part in reversed([part for part in PARTS if part < width and part % least == 0]):
        fits = negation(less(subtract(end, at), part))
        with section(f"{name}, {part} of those left"), when(fits):
            yield at, part
        at = select(fits, add(at, part), at)
    if least > 1:
        with section(f"{name}, the last one"), when(less(at, end)):
            yield at, least


@dataclass(frozen=True)
class Depth:
    """Steps of k to go through: `steps` of them, which leave the same rest as `size`, the extent of k, or none.

    Where there is no size, they may leave any rest.
    """

    steps: Index
    size: int | None

    def rest(self, step: int) -> int:
        """How many steps may be left behind whole ones of `step`, at most; 0 where none ever are."""
        return step - 1 if self.size is None else self.size % step

    def whole(self, step: int) -> Index:
        """The largest multiple of `step` that is at most `steps`."""
        if isinstance(self.steps, int):
            return self.steps // step * step
        if not self.rest(step):
            return self.steps
        return arith.subi(self.steps, arith.remui(self.steps, index(step)))

    def rounded_up(self, step: int) -> Index:
        """The smallest multiple of `step` that is at least `steps`."""
        return Depth(add(self.steps, step - 1), None).whole(step) if self.rest(step) else self.steps

    def pieces(self, step: int) -> Iterator[tuple[Index, Index]]:
        """Emits a loop over pieces of `step` steps, and the rest where there is one: (first step, steps).

        How many steps the rest has is known here, unless it may have any number from one on.
        """
        whole = self.whole(step)
        if whole != 0:
            with for_range(0, whole, step) as loop:
                yield loop.i, step
        if rest := self.rest(step):
            with when(unequal(whole, self.steps)):
                yield whole, subtract(self.steps, whole) if self.size is None and rest > 1 else rest

    def known_pieces(self, step: int) -> Iterator[tuple[Index, int]]:
        """Emits the loop of `pieces`, of whose rest it is known here how many steps it has."""
        for k, steps in self.pieces(step):
            assert isinstance(steps, int)
            yield k, steps


@contextlib.contextmanager
def when(condition: Condition) -> Iterator[None]:
    """Emits scf.if; nothing of the kind where the condition is known here to be true."""
    if condition is True:
        yield
        return
    never = condition is False  # the body is written all the same, and LLVM drops it
    op = scf.IfOp(arith.constant(ir.IntegerType.get_signless(1), 0) if never else condition)
    with ir.InsertionPoint(op.then_block):
        yield
        scf.yield_([])


def either(
    condition: Condition, types: Sequence[ir.Type], then: Callable[[], Values], otherwise: Callable[[], Values]
) -> Values:
    """The values of one of two branches; only the one taken is written where the condition is known here."""
    if isinstance(condition, bool):
        return then() if condition else otherwise()
    op = scf.IfOp(condition, list(types), has_else=True)
    for region, branch in zip(op.regions, (then, otherwise), strict=True):
        with ir.InsertionPoint(region.blocks[0]):
            scf.yield_(branch())
    return list(op.results)
