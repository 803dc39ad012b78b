"""The dataflow of a jaxpr while its equations are replaced: who makes each value, and who uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import convert_element_type_p

from jax_nano.jaxpr.grouped.row_gathers import is_row_gather
from jax_nano.jaxpr.inline import Atom
from jax_nano.jaxpr.legality import is_moving, is_source
from jax_nano.jaxpr.primitives import FUSED_PRODUCTS

NAMED_USERS = 8
LONGEST_CHAIN = 32  # of views in a row


class Dataflow:
    """Equations by their places in a program.

    Attributes:
      eqns: the equations that are left, by place.
      caller: the place of who uses the results, behind all equations.
      users: for each value, the places that use it, and how often each does.
    """

    def __init__(self, jaxpr: Jaxpr):
        self.eqns: dict[int, JaxprEqn] = dict(enumerate(jaxpr.eqns))
        self.caller = len(jaxpr.eqns)
        self.users: dict[Var, Counter[int]] = {}
        self._makers = {out: i for i, eqn in self.eqns.items() for out in eqn.outvars}
        self._other_uses: Counter[Var] = Counter()  # by what neither is a product nor moves the value
        for i, eqn in self.eqns.items():
            self._use(eqn.invars, i, eqn)
        self._use(jaxpr.outvars, self.caller, None)

    def maker(self, x: Atom) -> int | None:
        """The place that makes a value; None for a number, an argument, and what is made inside of a region."""
        i = self._makers.get(x) if isinstance(x, Var) else None
        return i if i in self.eqns else None

    def chain(self, x: Atom, is_folded: Callable[[JaxprEqn], bool]) -> tuple[list[int], Atom]:
        """The views and folded conversions that make a value, the nearest to the array first, and the array."""
        chain: list[int] = []
        while (place := self.maker(x)) is not None and is_moving(self.eqns[place]) and len(chain) < LONGEST_CHAIN:
            eqn = self.eqns[place]
            if eqn.primitive is convert_element_type_p and not is_folded(eqn):
                break
            chain.append(place)
            (x,) = eqn.invars
        return chain[::-1], x

    def uses(self, x: Var) -> int:
        """How often a value is used."""
        return self.users[x].total() if x in self.users else 0

    def is_for_products(self, x: Var) -> bool:
        """Is true where only products read a value, perhaps moved."""
        return not self._other_uses[x]

    def is_used_within(self, x: Var, places: set[int]) -> bool:
        """Is true where only these places use a value."""
        users = self.users.get(x, Counter())
        return len(users) <= len(places) and set(users) <= places

    def name_users(self, x: Var) -> str:
        """Says who uses a value, of many users the first."""
        users = self.users.get(x, Counter())
        first = sorted(islice(users, NAMED_USERS))
        names = Counter(str(self.eqns[i].primitive) if i in self.eqns else "the caller" for i in first)
        texts = [name if count == 1 else f"{count} {name}" for name, count in names.items()]
        others = ["others"] if len(users) > NAMED_USERS else []
        return f"used by {' and '.join([*texts, *others]) or 'nothing'}"

    def replace(self, places: Iterable[int], eqn: JaxprEqn, place: int) -> None:
        """Puts an equation at one of the places of others, and takes out those, and what only moved their operands."""
        self._use(eqn.invars, place, eqn)
        for i in places:
            if i in self.eqns:
                self._remove(i)
        self.eqns[place] = eqn

    def _use(self, atoms: Iterable[Atom], user: int, eqn: JaxprEqn | None) -> None:
        is_other = not (eqn and is_transparent(eqn))
        for x in variables(atoms):
            self.users.setdefault(x, Counter())[user] += 1
            self._other_uses[x] += is_other

    def _remove(self, place: int) -> None:
        left = [place]
        while left:
            i = left.pop()
            if i not in self.eqns:
                continue
            eqn = self.eqns.pop(i)
            is_other = not is_transparent(eqn)
            for x in variables(eqn.invars):
                users = self.users[x]
                users[i] -= 1
                self._other_uses[x] -= is_other
                if not users[i]:
                    del users[i]
                maker = self.maker(x)
                if not users and maker is not None and (is_source(self.eqns[maker]) or is_row_gather(self.eqns[maker])):
                    left.append(maker)


def is_transparent(eqn: JaxprEqn) -> bool:
    """Is true for products and what moves their operands: they can read a value in the type that it is kept in."""
    return eqn.primitive in FUSED_PRODUCTS or is_moving(eqn)


def variables(atoms: Iterable[Atom]) -> list[Var]:
    """Those that are no numbers."""
    return [x for x in atoms if not isinstance(x, Literal)]
