"""Prologue candidates: which elementwise work on an operand of a product would be done sooner while that is packed.

Two rules say so, each by what was measured on one and two cores of a Zen 5 server, of plain and grouped products alike:

- Work on one array that takes a few instructions, where C has up to 1024 columns; of a small operand and few columns,
  divisions as well.
- Work with elementary functions in it, of up to two arrays: as XLA rounds numbers of 16 bits after each step of it, a
  pass of its own over those takes ten times as long as in the kernel.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn, Var

from jax_nano.ir.dtypes import BITS
from jax_nano.jaxpr.dataflow import Dataflow, variables
from jax_nano.jaxpr.grouped.dimensions import others
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.legality import ELEMENTWISE, Reason, is_elementary, is_moving, is_rounding, takes_long
from jax_nano.jaxpr.operands import element_type, is_exact
from jax_nano.jaxpr.primitives import GROUPED_PRODUCTS
from jax_nano.jaxpr.sums import dimensions_of

LONGEST_PROLOGUE = 24  # equations
# Of C, so that tasks divide its rows, and of A. XLA makes a large softmax in one pass, which takes less than all of it
# but the division: on Zen 5, a product behind a softmax gains 3 to 48 % up to this size, and loses 2 to 10 % beyond it.
FEW_COLUMNS, SMALL_ELEMENTS = 128, 1 << 18
# With as many, the pass over A that is saved is as long as what tasks do again, or as reading A in place saves. On Zen
# 5, products of 128 to 2048 rows gain 0 to 30 % with up to 1024 columns, and lose up to 3 % with 2304 to 4096.
MANY_COLUMNS = 1024
# By bits of A's elements, up to which elementary functions pay. On Zen 5, silu and gelu gain 4 to 290 % in 16 bits
# with 64 to 4096 columns; in f32 6 to 17 % with 128 to 512, and from 2 % less to 5 % more with 768.
ELEMENTARY_COLUMNS = {16: 4096, 32: 512}
ELEMENTARY_ARRAYS = 2  # of A's size, that the work reads


@dataclass(frozen=True)
class PrologueCandidates:
    """Work that could be done on an operand.

    Attributes:
      choices: the places of its equations, the nearest to the product first; of several, the longest first.
      reason: why there is no longer one, if that is known.
    """

    choices: tuple[tuple[int, ...], ...]
    reason: str

    def longest_first(self) -> Iterator[tuple[int, ...]]:
        """The candidates."""
        return iter(self.choices)


def prologue_candidates(
    flow: Dataflow, illegal: Callable[[int], Reason | None], operand: tuple[int, int], *, every: bool
) -> PrologueCandidates:
    """The candidates for one operand.

    Args:
      flow: of the program.
      illegal: says why the equation at a place may not be fused, if it may not.
      operand: the product's place, and which of its operands it is, 0 or 1.
      every: whether all elementwise work is one, however long it takes, or what pays.
    """
    walk = _PrologueWalk(flow, illegal, operand, every=every)
    if every:
        return walk.candidates(math.inf)
    found = walk.candidates(1)
    if walk.columns > ELEMENTARY_COLUMNS.get(walk.bits, 0):
        return found
    longer = _PrologueWalk(flow, illegal, operand, every=True).candidates(ELEMENTARY_ARRAYS)
    elementary = [places for places in longer.choices if any(is_elementary(flow.eqns[place]) for place in places)]
    if not elementary:
        return found
    choices = dict.fromkeys((*elementary, *found.choices))
    return PrologueCandidates(tuple(sorted(choices, key=len, reverse=True)), longer.reason)


class _PrologueWalk:
    """Goes back from an operand of a product through the equations that make it."""

    def __init__(
        self, flow: Dataflow, illegal: Callable[[int], Reason | None], operand: tuple[int, int], *, every: bool
    ):
        product, number = operand
        self._flow, self._illegal, self._every = flow, illegal, every
        self._operand = flow.eqns[product].invars[number]
        self._size = type_of(self._operand).size
        self._rows, self.columns = free_sizes(flow.eqns[product], number)
        self._own = {product}
        self._ahead: list[int] = []
        self._sources: dict[Var, Atom] = {}  # what the equations so far read, and what that is a view of

    @property
    def bits(self) -> int:
        """Of an element of the operand."""
        return BITS.get(element_type(self._operand), 0)

    def candidates(self, arrays: float) -> PrologueCandidates:
        """The candidates that read at most so many arrays of the operand's size."""
        taken, lengths, reason = [], [], ""
        self._push([self._operand])
        while self._ahead and len(taken) < LONGEST_PROLOGUE:
            place = -heapq.heappop(self._ahead)
            eqn = self._flow.eqns[place]
            if place in self._own or type_of(eqn.outvars[0]).size != self._size:
                continue
            if illegal := self._illegal(place):
                reason = reason or (f"{eqn.primitive}: {illegal}" if eqn.primitive.name in ELEMENTWISE else "")
                continue
            works = not is_moving(eqn) or is_rounding(eqn)
            is_own = self._flow.is_used_within(eqn.outvars[0], self._own)
            if works and not is_own:
                reason = reason or f"{eqn.primitive}: {self._flow.name_users(eqn.outvars[0])}"
            elif works and not self._every and self._takes_longer(eqn):
                reason = reason or f"{eqn.primitive}: takes no longer outside, with {self.columns} columns of C"
            elif is_own:
                taken.append(place)
                self._take(place)
                if works and (arrays == math.inf or self._saves_a_pass(arrays)):
                    lengths.append(len(taken))
        return PrologueCandidates(tuple(tuple(taken[:length]) for length in reversed(lengths)), reason)

    def _takes_longer(self, eqn: JaxprEqn) -> bool:
        """Is true for work that every task would do again, for longer than XLA takes to do it once."""
        is_small = self.columns <= FEW_COLUMNS and self._size <= SMALL_ELEMENTS
        return self.columns > MANY_COLUMNS or (takes_long(eqn) and not is_small)

    def _take(self, place: int) -> None:
        eqn = self._flow.eqns[place]
        self._own.add(place)
        self._push(eqn.invars)
        self._sources.pop(eqn.outvars[0], None)
        for x in variables(eqn.invars):
            self._sources[x] = self._flow.chain(x, is_exact)[1]

    def _push(self, atoms: Sequence[Atom]) -> None:
        for maker in {self._flow.maker(x) for x in atoms}:
            if maker is not None:
                heapq.heappush(self._ahead, -maker)

    def _saves_a_pass(self, arrays: float) -> bool:
        """Is true where the work so far reads no more arrays of this size than so many, or a single row.

        Each would have to be there in memory: where elementwise work is left that makes one for this alone, XLA goes
        over it anyway, and does the rest on the way.
        """
        sources = {x for x in self._sources.values() if isinstance(x, Var) and type_of(x).size == self._size}
        return (self._rows == 1 or len(sources) <= arrays) and not any(map(self._is_left, sources))

    def _is_left(self, x: Var) -> bool:
        """Is true for what elementwise work makes for the work so far alone."""
        maker = self._flow.maker(x)
        return (
            maker is not None
            and self._flow.eqns[maker].primitive.name in ELEMENTWISE
            and self._flow.is_used_within(x, self._own)
        )


def free_sizes(product: JaxprEqn, operand: int) -> tuple[int, int]:
    """How many rows and columns C has, where the rows are this operand's: those of a matrix of the batch."""
    if product.primitive in GROUPED_PRODUCTS:
        dims = dimensions_of(product)
        free = dims.lhs_free, dims.rhs_free
    else:
        contracting, batch = product.params["dimension_numbers"]
        ranks = (type_of(x).ndim for x in product.invars)
        free = tuple(others(rank, *taken) for rank, *taken in zip(ranks, contracting, batch, strict=True))
    sizes = [math.prod(type_of(product.invars[i]).shape[d] for d in free[i]) for i in (operand, 1 - operand)]
    return sizes[0], sizes[1]
