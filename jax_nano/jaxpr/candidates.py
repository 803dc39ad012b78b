"""Candidates: which equations around a product could be fused with it, by who uses their values and what they take.

Epilogue candidates follow the product, prologue candidates make one of its operands. All of them are legal. Whether
strides describe what they read is for the reader to see.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import convert_element_type_p

from jax_nano.jaxpr.chosen_rows import adds_rows
from jax_nano.jaxpr.dataflow import Dataflow, variables
from jax_nano.jaxpr.group_rows import is_repeat
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.legality import ELEMENTWISE, WEIGHTS, Reason, illegal, is_moving, is_rounding, takes_long
from jax_nano.jaxpr.operands import VIEWS, apply_view, is_exact, panel_view
from jax_nano.jaxpr.primitives import DOTS, GROUPED_PRODUCTS, nano_dequantize_p, nano_region_p, nano_unpack_p
from jax_nano.jaxpr.row_gathers import is_row_gather
from jax_nano.jaxpr.strided_views import NoView, StridedView

# Equations of an epilogue, of a prologue, and of views in a row.
LONGEST_EPILOGUE, LONGEST_PROLOGUE, LONGEST_VIEWS = 96, 24, 32
# Of C, so that tasks divide its rows, and of A. XLA makes a large softmax in one pass, which takes less than all of it
# but the division: on Zen 5, a product behind a softmax gains 3 to 48 % up to this size, and loses 2 to 10 % beyond it.
FEW_COLUMNS, SMALL_ELEMENTS = 128, 1 << 18
# With as many, the pass over A that is saved is as long as what tasks do again, or as reading A in place saves. On Zen
# 5, products of 128 to 2048 rows gain 0 to 30 % with up to 1024 columns, and lose up to 3 % with 2304 to 4096.
MANY_COLUMNS = 1024


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
        if self._flow.eqns[product].primitive not in DOTS:
            # The windows of convolutions would do the work on each element several times, tasks of groups for each of
            # their blocks of columns.
            return PrologueCandidates((), (), "")
        return _PrologueWalk(self, self._flow, product, operand).candidates(every=self._every_prologue)

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

    def prologue_views(self, x: Atom) -> tuple[int, ...]:
        """The equations through which strides read what a prologue reads, the nearest to the array first."""
        return self._views(x, is_exact)

    def epilogue_views(self, x: Atom) -> tuple[int, ...]:
        """The equations through which strides read what an epilogue reads: conversions that nothing else uses.

        What groups have each may be repeated for their rows.
        """
        chain, array = _chain(self._flow, x, lambda conversion: self._flow.uses(conversion.outvars[0]) == 1)
        maker = self._flow.maker(array)
        if maker is not None and is_repeat(self._flow.eqns[maker]):
            chain = [maker, *chain]
        return _readable(self._flow, chain)

    def _operand(self, x: Atom, *, converted: bool, gathered: bool = False) -> tuple[int, ...]:
        if not converted:
            return self._views(x, lambda _: False)
        chain, array = _chain(self._flow, x, self._is_multiplied)
        maker = self._flow.maker(array)
        if maker is not None and (self._is_weight(maker) or (gathered and self._is_gathered(maker))):
            chain = [maker, *chain]
        return _readable(self._flow, chain)

    def _views(self, x: Atom, is_folded: Callable[[JaxprEqn], bool]) -> tuple[int, ...]:
        return _readable(self._flow, _chain(self._flow, x, is_folded)[0])

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


@dataclass(frozen=True)
class PrologueCandidates:
    """Work that could be done on an operand.

    Attributes:
      places: of equations, the nearest to the product first.
      lengths: how many of the first could be a prologue, in rising order.
      reason: why there is no longer one, if that is known.
    """

    places: tuple[int, ...]
    lengths: tuple[int, ...]
    reason: str

    def longest_first(self) -> Iterator[tuple[int, ...]]:
        """The candidates."""
        return (self.places[:length] for length in reversed(self.lengths))


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


class _PrologueWalk:
    """Goes back from an operand of a product through the equations that make it."""

    def __init__(self, candidates: Candidates, flow: Dataflow, product: int, operand: int):
        self._candidates = candidates
        self._flow = flow
        self._operand = flow.eqns[product].invars[operand]
        self._size = type_of(self._operand).size
        self._rows, self._columns = free_sizes(flow.eqns[product], operand)
        self._own = {product}
        self._ahead: list[int] = []
        self._sources: dict[Var, Atom] = {}  # what the equations so far read, and what that is a view of

    def candidates(self, *, every: bool) -> PrologueCandidates:
        """The candidates; `every` one, however long it takes, or those that pay."""
        is_small = self._columns <= FEW_COLUMNS and self._size <= SMALL_ELEMENTS
        taken, lengths, reason = [], [], ""
        self._push([self._operand])
        while self._ahead and len(taken) < LONGEST_PROLOGUE:
            place = -heapq.heappop(self._ahead)
            eqn = self._flow.eqns[place]
            if place in self._own or type_of(eqn.outvars[0]).size != self._size:
                continue
            if illegal := self._candidates.illegal(place):
                reason = reason or (f"{eqn.primitive}: {illegal}" if eqn.primitive.name in ELEMENTWISE else "")
                continue
            works = not is_moving(eqn) or is_rounding(eqn)
            is_own = self._flow.is_used_within(eqn.outvars[0], self._own)
            if works and not is_own:
                reason = reason or f"{eqn.primitive}: {self._flow.name_users(eqn.outvars[0])}"
            elif works and not every and (self._columns > MANY_COLUMNS or (takes_long(eqn) and not is_small)):
                reason = reason or f"{eqn.primitive}: takes no longer outside, with {self._columns} columns of C"
            elif is_own:
                taken.append(place)
                self._take(place)
                if works and (every or self._rows == 1 or self._reads_one()):
                    lengths.append(len(taken))
        return PrologueCandidates(tuple(taken), tuple(lengths), reason)

    def _take(self, place: int) -> None:
        eqn = self._flow.eqns[place]
        self._own.add(place)
        self._push(eqn.invars)
        self._sources.pop(eqn.outvars[0], None)
        for x in variables(eqn.invars):
            self._sources[x] = _source(self._flow, x)

    def _push(self, atoms: Sequence[Atom]) -> None:
        for maker in {self._flow.maker(x) for x in atoms}:
            if maker is not None:
                heapq.heappush(self._ahead, -maker)

    def _reads_one(self) -> bool:
        """Is true where no more than one array of this size is read: each would have to be there in memory."""
        sources = {x for x in self._sources.values() if isinstance(x, Var)}
        return sum(type_of(x).size == self._size for x in sources) <= 1


def free_sizes(product: JaxprEqn, operand: int) -> tuple[int, int]:
    """How many rows and columns C has, where the rows are this operand's: those of a matrix of the batch."""
    sizes = []
    for i in (operand, 1 - operand):
        contracting, batch = (dims[i] for dims in product.params["dimension_numbers"])
        shape = type_of(product.invars[i]).shape
        sizes.append(math.prod(size for d, size in enumerate(shape) if d not in (*contracting, *batch)))
    rows, columns = sizes
    return rows, columns


def _chain(flow: Dataflow, x: Atom, is_folded: Callable[[JaxprEqn], bool]) -> tuple[list[int], Atom]:
    """The views and folded conversions that make a value, the nearest to the array first, and the array."""
    chain: list[int] = []
    while (place := flow.maker(x)) is not None and is_moving(flow.eqns[place]) and len(chain) < LONGEST_VIEWS:
        eqn = flow.eqns[place]
        if eqn.primitive is convert_element_type_p and not is_folded(eqn):
            break
        chain.append(place)
        (x,) = eqn.invars
    return chain[::-1], x


def _source(flow: Dataflow, x: Atom) -> Atom:
    """The array or number that a value is a view of, in another type perhaps that holds it."""
    return _chain(flow, x, is_exact)[1]


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
