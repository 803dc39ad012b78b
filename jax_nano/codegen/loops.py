"""Loops that carry values, and branches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import scf

from jax_nano.codegen.index import Index, Values, both, equal, index, less, minimum


@dataclass
class Loop:
    """What the body of a loop sees: the variable `i` and `carry`; it sets `next`. Then `results` are there."""

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


def along(begin: Index, end: Index, size: int, step: int, body: Callable[[Index, int], None]) -> None:
    """Runs `body(i, step)` for the whole steps of [begin, end), and `body(i, rest)` where the end is a ragged `size`.

    `begin` is a multiple of `step`, and so is `end` unless it is `size`. Where `begin` is beyond `end`, nothing runs.
    """
    rest = size % step
    whole = minimum(end, size - rest)
    if not (isinstance(begin, int) and isinstance(whole, int) and begin >= whole):
        with for_range(begin, whole, step) as loop:
            body(loop.i, step)
    if rest:
        last = both(less(begin, size), equal(end, size))
        if last is not False:
            with when(last):
                body(size - rest, rest)


@contextlib.contextmanager
def when(condition: bool | ir.Value) -> Iterator[None]:
    """Emits scf.if. A condition known here must be True."""
    if condition is True:
        yield
        return
    op = scf.IfOp(condition)
    with ir.InsertionPoint(op.then_block):
        yield
        scf.yield_([])


def either(
    condition: bool | ir.Value, types: Sequence[ir.Type], then: Callable[[], Values], otherwise: Callable[[], Values]
) -> Values:
    """The values of one of two branches; only the one taken is written where the condition is known here."""
    if isinstance(condition, bool):
        return then() if condition else otherwise()
    op = scf.IfOp(condition, list(types), has_else=True)
    for region, branch in zip(op.regions, (then, otherwise), strict=True):
        with ir.InsertionPoint(region.blocks[0]):
            scf.yield_(branch())
    return list(op.results)
