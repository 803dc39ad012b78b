"""Ranges of integers: where gathers of rows cannot go beyond the ends, what they fill in there does not matter.

jnp.take fills rows that do not exist with NaN. Expert layers take rows by a permutation that was sorted, divided by the
number of choices: numbers that exist, as is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import gather_p, jit_p

from jax_nano.jaxpr.grouped.row_gathers import ROWS
from jax_nano.jaxpr.inline import Atom, body_of, type_of

Range = tuple[int, int]  # the least number, and the largest

SAME = frozenset("broadcast_in_dim convert_element_type copy reshape rev slice squeeze transpose".split())


def with_known_rows(jaxpr: Jaxpr) -> Jaxpr:
    """Has gathers of rows promise that these exist, where that is certain."""
    ranges = _Ranges(jaxpr.eqns)
    eqns = [_promising(eqn) if _is_filled(eqn) and ranges.are_rows(eqn) else eqn for eqn in jaxpr.eqns]
    return jaxpr.replace(eqns=eqns)


def _is_filled(eqn: JaxprEqn) -> bool:
    if eqn.primitive is not gather_p or eqn.params["dimension_numbers"] != ROWS:
        return False
    return eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP


def _promising(eqn: JaxprEqn) -> JaxprEqn:
    params = {"mode": lax.GatherScatterMode.PROMISE_IN_BOUNDS, "fill_value": None}
    return eqn.replace(params=eqn.params | params)


class _Ranges:
    """The ranges of what equations make, looked for when they are asked for."""

    def __init__(self, eqns: Sequence[JaxprEqn], known: dict[Var, Range | None] | None = None):
        self._makers = {out: eqn for eqn in eqns for out in eqn.outvars}
        self._known = dict(known or {})

    def are_rows(self, gather: JaxprEqn) -> bool:
        """Is true where a gather takes rows that exist."""
        found = self.of(gather.invars[1])
        return found is not None and found[0] >= 0 and found[1] < type_of(gather.invars[0]).shape[0]

    def of(self, x: Atom) -> Range | None:
        """The range of a value; None where it is not known, or may have wrapped."""
        if isinstance(x, Literal):
            return _of_number(x.val)
        if x not in self._known:
            self._known[x] = None  # until it is known
            eqn = self._makers.get(x)
            found = self._made(eqn, eqn.outvars.index(x)) if eqn else None
            self._known[x] = found if found and _holds(type_of(x).dtype, found) else None
        return self._known[x]

    def _made(self, eqn: JaxprEqn, number: int) -> Range | None:
        name = eqn.primitive.name
        if name == "iota":
            return 0, max(0, eqn.params["shape"][eqn.params["dimension"]] - 1)
        if name == "sort":
            return self.of(eqn.invars[number])
        if name in SAME:
            return self.of(eqn.invars[0])
        if eqn.primitive is jit_p:
            return self._called(eqn, number)
        inputs = [self.of(x) for x in eqn.invars]
        if name == "and" and self._rounds_down(eqn):
            return 0, 0
        if name == "select_n":
            return _selected(inputs[0], inputs[1:])
        rule = _RULES.get(name)
        known = [x for x in inputs if x is not None]
        return rule(*known) if rule and len(known) == len(inputs) == 2 else None

    def _rounds_down(self, both: JaxprEqn) -> bool:
        """Is true for the condition of jnp.floor_divide, that signs differ and a rest is left, where it never holds."""
        differing = [self._made_by("ne", x) for x in both.invars]
        signs = next((found for eqn in differing if eqn and (found := self._signs(eqn))), None)
        rest = next((found for eqn in differing if eqn and (found := self._rest(eqn))), None)
        if signs is None or rest is None or {*map(id, signs)} != {*map(id, rest)}:
            return False
        x, by = map(self.of, rest)
        return bool(x and by and x[0] >= 0 and by[0] > 0)

    def _signs(self, differing: JaxprEqn) -> list[Atom] | None:
        """Two numbers whose signs are compared."""
        made = [self._made_by("sign", x) for x in differing.invars]
        return [eqn.invars[0] for eqn in made if eqn] if all(made) else None

    def _rest(self, differing: JaxprEqn) -> list[Atom] | None:
        """A number and what it is divided by, where the rest is compared with zero."""
        rest, zero = self._made_by("rem", differing.invars[0]), self.of(differing.invars[1])
        return list(rest.invars) if rest and zero == (0, 0) else None

    def _made_by(self, name: str, x: Atom) -> JaxprEqn | None:
        eqn = self._makers.get(x) if isinstance(x, Var) else None
        return eqn if eqn and eqn.primitive.name == name else None

    def _called(self, eqn: JaxprEqn, number: int) -> Range | None:
        inputs = [self.of(x) for x in eqn.invars]
        body = body_of(eqn)
        assert body
        return _Ranges(body.eqns, dict(zip(body.invars, inputs, strict=True))).of(body.outvars[number])


def _of_number(value: object) -> Range | None:
    array = np.asarray(value)
    if array.dtype.kind not in "biu" or not array.size:
        return None
    return int(array.min()), int(array.max())


def _holds(dtype: np.dtype, found: Range) -> bool:
    """Is true where a type holds all of a range, so that nothing wraps."""
    if dtype == jnp.bool_:
        return found[0] >= 0 and found[1] <= 1
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).min <= found[0] and found[1] <= jnp.iinfo(dtype).max


def _selected(which: Range | None, cases: Sequence[Range | None]) -> Range | None:
    """One of some values: which of them may be known."""
    first, last = which or (0, len(cases) - 1)
    possible = cases[first : last + 1]
    known = [x for x in possible if x is not None]
    if not known or len(known) < len(possible):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _divided(x: Range, by: Range) -> Range | None:
    return (x[0] // by[0], x[1] // by[0]) if x[0] >= 0 and by[0] == by[1] > 0 else None


def _remainder(x: Range, by: Range) -> Range | None:
    return (0, min(x[1], by[1] - 1)) if x[0] >= 0 and by[0] > 0 else None


def _less(x: Range, y: Range) -> Range:
    return (1, 1) if x[1] < y[0] else (0, 0) if x[0] >= y[1] else (0, 1)


_RULES: dict[str, Callable[[Range, Range], Range | None]] = {
    "add": lambda x, y: (x[0] + y[0], x[1] + y[1]),
    "sub": lambda x, y: (x[0] - y[1], x[1] - y[0]),
    "div": _divided,
    "rem": _remainder,
    "max": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "min": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    "lt": _less,
}
