"""A region while it grows: from a product and what makes its operands, by one epilogue candidate after the other."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from jax.extend.core import Jaxpr, JaxprEqn, Var, no_effects

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.program import Unfusable
from jax_nano.jaxpr.candidates import Candidates
from jax_nano.jaxpr.dataflow import Dataflow, variables
from jax_nano.jaxpr.grouped.chosen_rows import is_row_choice
from jax_nano.jaxpr.grouped.row_scatters import is_row_scatter
from jax_nano.jaxpr.inline import Atom
from jax_nano.jaxpr.legality import Reason, is_elementwise
from jax_nano.jaxpr.primitives import DOUBLES
from jax_nano.jaxpr.private import ragged_dot_general_p
from jax_nano.jaxpr.region import Region
from jax_nano.jaxpr.region_dot import RegionDot
from jax_nano.jaxpr.region_reader import Mark, RegionReader
from jax_nano.jaxpr.strided_views import NoView, StridedView

UNREADABLE = (NoView, Unfusable, UnsupportedDot)
PATIENCE = 4  # equations behind an end that has no kernel, within which a view may make C contiguous
Views = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class End:
    """Where a region may end.

    Attributes:
      out: the value that it gives.
      equations: how many it holds.
      epilogue: how many of them follow the product.
      mark: what has been read so far.
      place: where in C the elements of `out` belong.
    """

    out: Var
    equations: int
    epilogue: int
    mark: Mark
    place: StridedView | None


class RegionGrowth:
    """The region of a product, as far as it has been read.

    Args:
      flow: of the program.
      candidates: of the program.
      product: its place.
      views: the equations through which strides read its operands.
      prologue: the equations that work on one of them.

    Raises:
      NoView, UnsupportedDot: the product cannot be read so.
    """

    def __init__(
        self, flow: Dataflow, candidates: Candidates, product: int, views: Views, prologue: tuple[int, ...] = ()
    ):
        self.product, self.views, self.prologue = product, views, prologue
        self.ends: list[End] = []
        self.stopped: Reason = ""  # why the last candidate was not read
        self._flow, self._candidates = flow, candidates
        self._reader = RegionReader()
        self._places: dict[int, None] = {}  # of what has been read, in that order
        self._epilogue: list[int] = []
        self._own = {product, *prologue}
        self._walk = candidates.epilogue(product)
        self._ahead: list[int] = []  # candidates behind the last end, which have not been read
        self._dots: dict[int, RegionDot | Reason] = {}
        prologue_views = partial(candidates.prologue_views, product=product, own=self._own)
        read_by_prologue = [x for i in prologue for x in self._inputs(i, prologue_views)]
        for place in sorted({*self._own, *views[0], *views[1], *read_by_prologue}):
            self._read(place)
        self._end(product)

    def grow(self) -> bool:
        """Reads candidates up to the next end, if there is one."""
        for candidate in self._walk:
            if candidate.illegal:
                self._stop(candidate.place, candidate.illegal)
                return False
            self._ahead.append(candidate.place)
            if candidate.is_end:
                return self._read_ahead()
        return False

    def dot(self, end: int) -> RegionDot | Reason:
        """The Dot of the region if it ends there, or why it has none."""
        if end not in self._dots:
            try:
                self._dots[end] = self._reader.dot(self.ends[end].out, self.ends[end].mark)
            except UNREADABLE as reason:
                self._dots[end] = str(reason)
        return self._dots[end]

    def first_dots(self) -> Iterator[RegionDot | Reason]:
        """The Dot of the region if it ends at the product, and if it ends at the next end.

        What comes next may make C's last dimension one that can be read.
        """
        yield self.dot(0)
        if len(self.ends) > 1 or self.grow():
            yield self.dot(1)

    def longest(self) -> int:
        """Grows as far as can be, and gives the last end that has a kernel."""
        best = next(i for i, dot in enumerate(self.first_dots()) if isinstance(dot, RegionDot))
        self._grow_while_there_are_kernels()
        by_place: defaultdict[StridedView | None, list[int]] = defaultdict(list)
        for i, end in enumerate(self.ends):
            by_place[end.place].append(i)
        for ends in sorted(by_place.values(), key=lambda ends: ends[-1], reverse=True):
            best = max(best, self._last_with_kernel([i for i in ends if i > best]))
        return best

    def why_ends(self, end: int) -> Reason:
        """Why the region holds nothing behind an end that has a kernel."""
        if end + 1 == len(self.ends):
            return self.stopped or self._flow.name_users(self.ends[end].out)
        following = self._flow.eqns[self._epilogue[self.ends[end + 1].epilogue - 1]]
        return f"{following.primitive}: {self.dot(end + 1)}"

    def places(self, end: int) -> list[int]:
        """The places of the product, the prologue and the epilogue up to an end, which comes last."""
        return [*self.prologue, self.product, *self._epilogue[: self.ends[end].epilogue]]

    def region(self, program: Jaxpr, end: int) -> Region:
        """The region up to an end that has a kernel."""
        dot = self.dot(end)
        assert isinstance(dot, RegionDot)
        read = list(self._places)[: self.ends[end].equations]
        eqns = [_with_all_rules(self._flow.eqns[place]) for place in sorted(read)]
        made = {out for eqn in eqns for out in eqn.outvars}
        invars = dict.fromkeys(x for eqn in eqns for x in variables(eqn.invars) if x not in made)
        jaxpr = program.replace(
            constvars=[], invars=list(invars), outvars=[self.ends[end].out], eqns=eqns, effects=no_effects
        )
        return Region.of(jaxpr, dot)

    def _read(self, place: int) -> None:
        if place not in self._places:
            self._reader.read(self._flow.eqns[place])
            self._places[place] = None

    def _read_ahead(self) -> bool:
        """Reads the candidates up to an end, and what moves their inputs, if they can be read."""
        for place in self._ahead:
            try:
                for each in (*self._inputs(place, self._candidates.epilogue_views), place):
                    self._read(each)
            except UNREADABLE as reason:
                self._stop(place, str(reason))
                return False
            self._own.add(place)
            self._epilogue.append(place)
        self._end(self._ahead[-1])
        self._ahead = []
        return True

    def _inputs(self, place: int, views: Callable[[Atom], tuple[int, ...]]) -> list[int]:
        """The equations that move what an equation reads of arrays.

        Of what rows are added to, they round nothing; places of rows are read as they lie.
        """
        eqn = self._flow.eqns[place]
        atoms = [] if is_row_choice(eqn) else eqn.invars
        if is_row_scatter(eqn):
            atoms, views = atoms[:1], self._candidates.exact_views
        inputs = [x for x in variables(atoms) if self._flow.maker(x) not in self._own]
        return [each for x in inputs for each in views(x)]

    def _end(self, place: int) -> None:
        (out,) = self._flow.eqns[place].outvars
        reader = self._reader
        self.ends.append(End(out, len(self._places), len(self._epilogue), reader.mark(), reader.place(out)))

    def _stop(self, place: int, reason: Reason) -> None:
        """Ends the growth. What is not elementwise at all is reported as a user of the last value."""
        self._walk = iter(())
        eqn = self._flow.eqns[place]
        if is_elementwise(eqn.primitive) or is_row_scatter(eqn) or is_row_choice(eqn):
            self.stopped = f"{eqn.primitive}: {reason}"

    def _grow_while_there_are_kernels(self) -> None:
        """Grows until the candidates end, or ends have no kernel and no view follows soon that may change that.

        Ends are tried more and more seldom: most have a kernel, and to try one takes a look at all that was read.
        """
        next_trial, failed = 1, None
        while self.grow():
            end = len(self.ends) - 1
            if failed is None and end >= next_trial:
                next_trial = 2 * end
                failed = None if self._has_kernel(end) else end
            elif failed is not None and self.ends[end].place != self.ends[failed].place:
                failed = None if self._has_kernel(end) else failed
            if failed is not None and self.ends[end].epilogue > self.ends[failed].epilogue + PATIENCE:
                return

    def _last_with_kernel(self, ends: list[int]) -> int:
        """The last of ends at one place in C that has a kernel; -1 where none has.

        They have one up to some end: each holds the arrays and the program of those before it.
        """
        failed = next((i for i, end in enumerate(ends) if end in self._dots and not self._has_kernel(end)), len(ends))
        ends = ends[:failed]
        if not ends or self._has_kernel(ends[-1]):
            return ends[-1] if ends else -1
        supported = bisect_left(ends, 1, key=lambda end: int(not self._has_kernel(end)))
        return ends[supported - 1] if supported else -1

    def _has_kernel(self, end: int) -> bool:
        return isinstance(self.dot(end), RegionDot)


def _with_all_rules(eqn: JaxprEqn) -> JaxprEqn:
    """An equation with derivatives and batching: JAX does not have all those of grouped products."""
    return eqn.replace(primitive=DOUBLES[eqn.primitive]) if eqn.primitive is ragged_dot_general_p else eqn
