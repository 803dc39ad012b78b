"""Candidates: which equations around a product could be fused with it, by who uses their values and what they take.

Epilogue candidates follow the product, prologue candidates make one of its operands. All of them are legal. Whether
strides describe what they read is for the reader to see.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import convert_element_type_p

from jax_nano.jaxpr.dataflow import Dataflow, variables
from jax_nano.jaxpr.grouped.chosen_rows import adds_rows
from jax_nano.jaxpr.grouped.group_rows import is_repeat
from jax_nano.jaxpr.grouped.row_gathers import is_row_gather
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.legality import WEIGHTS, Reason, illegal
from jax_nano.jaxpr.operands import VIEWS, apply_view, is_exact, panel_view
from jax_nano.jaxpr.primitives import DOTS, GROUPED_PRODUCTS, nano_dequantize_p, nano_region_p, nano_unpack_p
from jax_nano.jaxpr.prologue_candidates import PrologueCandidates, prologue_candidates
from jax_nano.jaxpr.strided_views import NoView, StridedView

LONGEST_EPILOGUE = 96


class Candidates:
    """The candidates of a program's products. Each equation is judged by the rule of legality once."""

    def __init__(self, flow: Dataflow, *, every_prologue: bool):
        self._flow = flow
        self._every_prologue = every_prologue
        self._reasons: dict[int, Reason | None] = {}

    def illegal(self, place: int) -> Reason | None:
        """Says why the equation at a place may not be fused, if it may not."""
        eqn = self._flow.eqns[place]
        if eqn.primitive is nano_region_p:
            return "it is a region"
        if place not in self._reasons:
            self._reasons[place] = illegal(eqn)
        return self._reasons[place]

    def epilogue(self, product: int) -> Iterator[EpilogueCandidate]:
        """Equations behind a product, in the order of the program, while they are legal.

        Where one is not, what it uses stays in use, so that no longer epilogue would make one value only. Rows of a
        grouped product may be added up.
        """
        walk, of_groups = _EpilogueWalk(self._flow, product), self._flow.eqns[product].primitive in GROUPED_PRODUCTS
        for _ in range(LONGEST_EPILOGUE):
            place = walk.next_place()
            if place is None:
                return
            reason = None if of_groups and adds_rows(self._flow.eqns[place]) else self.illegal(place)
            is_end = reason is None and walk.take(place)
            yield EpilogueCandidate(place, is_end=is_end, illegal=reason)
            if reason:
                return

    def prologue(self, product: int, operand: int) -> PrologueCandidates:
        """Elementwise work that makes nothing but one operand of a product, the nearest equation first."""
        primitive = self._flow.eqns[product].primitive
        if primitive not in DOTS and (primitive not in GROUPED_PRODUCTS or operand == 1):
            # The windows of convolutions would do the work on each element several times; B is never worked on.
            return PrologueCandidates((), "")
        return prologue_candidates(self._flow, self.illegal, (product, operand), every=self._every_prologue)

    def operand_views(self, product: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The equations through which strides read both operands: as many conversions as may be, then fewer.

        Rows of groups may be gathered before.
        A weight on the right is worth more than views on the left: those are tried without, too.
        """
        flow, seen = self._flow, set()
        lhs, rhs, *_ = flow.eqns[product].invars
        has_groups = flow.eqns[product].primitive in GROUPED_PRODUCTS
        for with_lhs, with_rhs in ((True, True), (False, True), (True, False), (False, False)):
            of_lhs = self._operand(lhs, converted=with_lhs, gathered=has_groups)
            both = of_lhs, self._operand(rhs, converted=with_rhs)
            is_weight = both[1] and flow.eqns[both[1][0]].primitive in WEIGHTS
            for views in (both, ((), both[1])) if is_weight else (both,):
                if views not in seen:
                    seen.add(views)
                    yield views

    def prologue_views(self, x: Atom, product: int, own: set[int]) -> tuple[int, ...]:
        """The equations through which strides read what a product's prologue reads, the nearest to the array first.

        Rows of groups may be gathered before, where only the equations `own` read them.
        """
        chain, array = self._flow.chain(x, is_exact)
        maker = self._flow.maker(array)
        if maker is not None and self._flow.eqns[product].primitive in GROUPED_PRODUCTS:
            is_moved = any(self._flow.eqns[i].primitive is not convert_element_type_p for i in chain)
            is_own = self._flow.is_used_within(self._flow.eqns[maker].outvars[0], {*own, *chain})
            if is_row_gather(self._flow.eqns[maker]) and is_own and not is_moved:
                chain = [maker, *chain]
        return _readable(self._flow, chain)

    def exact_views(self, x: Atom) -> tuple[int, ...]:
        """The equations through which strides read an array, without rounding, the nearest to the array first."""
        return self._views(x, is_exact)

    def epilogue_views(self, x: Atom) -> tuple[int, ...]:
        """The equations through which strides read what an epilogue reads: conversions that nothing else uses.

        What groups have each may be repeated for their rows.
        """
        chain, array = self._flow.chain(x, lambda conversion: self._flow.uses(conversion.outvars[0]) == 1)
        maker = self._flow.maker(array)
        if maker is not None and is_repeat(self._flow.eqns[maker]):
            chain = [maker, *chain]
        return _readable(self._flow, chain)

    def _operand(self, x: Atom, *, converted: bool, gathered: bool = False) -> tuple[int, ...]:
        if not converted:
            return self._views(x, lambda _: False)
        chain, array = self._flow.chain(x, self._is_multiplied)
        maker = self._flow.maker(array)
        if maker is not None and (self._is_weight(maker) or (gathered and self._is_gathered(maker))):
            chain = [maker, *chain]
        return _readable(self._flow, chain)

    def _views(self, x: Atom, is_folded: Callable[[JaxprEqn], bool]) -> tuple[int, ...]:
        return _readable(self._flow, self._flow.chain(x, is_folded)[0])

    def _is_multiplied(self, conversion: JaxprEqn) -> bool:
        """Is true where a conversion rounds nothing, and only products read what it makes."""
        return is_exact(conversion) and self._flow.is_for_products(conversion.outvars[0])

    def _is_weight(self, place: int) -> bool:
        """Is true for what makes the array that a weight stands for, where only products read it."""
        eqn = self._flow.eqns[place]
        return eqn.primitive in WEIGHTS and self._flow.is_for_products(eqn.outvars[0])

    def _is_gathered(self, maker: int) -> bool:
        """Is true for a gather of rows, where only products read them."""
        eqn = self._flow.eqns[maker]
        return is_row_gather(eqn) and self._flow.is_for_products(eqn.outvars[0])


@dataclass(frozen=True)
class EpilogueCandidate:
    """The next equation behind a product.

    Attributes:
      place: in the program.
      is_end: whether the equations so far make one value of all they make.
      illegal: why it may not be fused; no candidate follows it.
    """

    place: int
    is_end: bool
    illegal: Reason | None = None


class _EpilogueWalk:
    """Goes on from a product through the equations that use its value, and what is made of it."""

    def __init__(self, flow: Dataflow, product: int):
        self._flow = flow
        self._alive: Counter[Var] = Counter()  # how many uses each value made so far still has
        self._ahead: list[int] = []
        self._last = product
        self._push(*flow.eqns[product].outvars)

    def next_place(self) -> int | None:
        """The place of the next equation that uses a value made so far; None where it is the caller."""
        while self._ahead:
            if (place := heapq.heappop(self._ahead)) != self._last:
                return place if place in self._flow.eqns else None
        return None

    def take(self, place: int) -> bool:
        """Goes past an equation; is true where what it makes is all that is used of what has been made."""
        self._last = place
        for x in variables(self._flow.eqns[place].invars):
            if x in self._alive:
                self._alive[x] -= 1
                if not self._alive[x]:
                    del self._alive[x]
        is_end = not self._alive
        self._push(*self._flow.eqns[place].outvars)
        return is_end

    def _push(self, made: Var) -> None:
        """Notes who uses a value. With more users than an epilogue holds, the walk is over."""
        users = self._flow.users.get(made, Counter())
        if len(users) > LONGEST_EPILOGUE:
            self._ahead = []
            return
        if users:
            self._alive[made] = users.total()
        for user in users:
            heapq.heappush(self._ahead, user)


def _readable(flow: Dataflow, chain: Sequence[int]) -> tuple[int, ...]:
    """The longest end of a chain that strides describe."""
    starts = range(len(chain) + 1)
    return next(tuple(chain[i:]) for i in starts if _is_readable([flow.eqns[place] for place in chain[i:]]))


def _is_readable(eqns: Sequence[JaxprEqn]) -> bool:
    """Is true where strides describe what equations, each moving what the one before it makes, do with an array."""
    if not eqns:
        return True
    first = eqns[0]
    is_made = first.primitive is nano_dequantize_p or is_repeat(first) or is_row_gather(first)
    (x, *_) = first.outvars if is_made else first.invars
    view = StridedView.of(type_of(x).shape)
    try:
        for eqn in eqns:
            view = panel_view(eqn) if eqn.primitive is nano_unpack_p else view
            view = apply_view(eqn, view) if eqn.primitive in VIEWS else view
    except NoView:
        return False
    return True
