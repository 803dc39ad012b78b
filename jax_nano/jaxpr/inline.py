"""Calls inlined, and the structure by which two jaxprs are the same program."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.extend.core.primitives import custom_jvp_call_p, jit_p, reshape_p

from jax_nano.jaxpr.private import ClosedJaxpr

Atom = Var | Literal


def type_of(x: Atom) -> ShapedArray:
    """The shape and element type of a value; every value that is fused is an array."""
    return cast(ShapedArray, x.aval)


CALLS = {jit_p: "jaxpr", custom_jvp_call_p: "call_jaxpr"}


def body_of(call: JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation calls; None where it is no call of a kind that regions hold."""
    return call.params[CALLS[call.primitive]].jaxpr if call.primitive in CALLS else None


def inline_calls(jaxpr: Jaxpr, body: Callable[[JaxprEqn], Jaxpr | None] = body_of) -> Jaxpr:
    """Puts bodies in place of the equations that `body` has one for, at any depth of bodies.

    A reshape of transposed dimensions, as vmap makes of convolutions, becomes a transpose and a reshape.
    """
    values: dict[Var, Atom] = {}
    eqns = list(_inline(jaxpr.eqns, body, values))
    if not values:
        return jaxpr
    return jaxpr.replace(eqns=eqns, outvars=[_read(values, x) for x in jaxpr.outvars])


def _inline(eqns: Iterable[JaxprEqn], body, values: dict[Var, Atom]) -> Iterator[JaxprEqn]:
    for eqn in (_with_inputs(eqn, values) for eqn in eqns):
        if (inner := body(eqn) or transposed_before(eqn)) is None:
            yield eqn
            continue
        own: dict[Var, Atom] = dict(zip(inner.invars, eqn.invars, strict=True))
        yield from _inline(_rename(inner.eqns, eqn, own), body, own)
        values |= {out: _read(own, x) for out, x in zip(eqn.outvars, inner.outvars, strict=True)}


def transposed_before(eqn: JaxprEqn) -> Jaxpr | None:
    """A reshape that goes through dimensions in another order, in two steps; None of any other equation."""
    if eqn.primitive is not reshape_p or eqn.params["dimensions"] is None or len(eqn.invars) > 1:
        return None

    def in_two_steps(x: Array) -> Array:
        moved = lax.transpose(x, eqn.params["dimensions"])
        return reshape_p.bind(moved, **{**eqn.params, "dimensions": None})

    return jax.make_jaxpr(in_two_steps)(type_of(eqn.invars[0])).jaxpr


def _rename(eqns: Sequence[JaxprEqn], call: JaxprEqn, values: dict[Var, Atom]) -> Iterator[JaxprEqn]:
    """Gives a body's equations variables of their own, and the call's name."""
    outer = call.source_info.name_stack
    for eqn in eqns:
        fresh = [Var(out.aval) for out in eqn.outvars]
        values |= dict(zip(eqn.outvars, fresh, strict=True))
        source_info = eqn.source_info.replace(name_stack=outer + eqn.source_info.name_stack)
        yield eqn.replace(outvars=fresh, source_info=source_info)


def _with_inputs(eqn: JaxprEqn, values: Mapping[Var, Atom]) -> JaxprEqn:
    inputs = [_read(values, x) for x in eqn.invars]
    return eqn if all(new is old for new, old in zip(inputs, eqn.invars, strict=True)) else eqn.replace(invars=inputs)


def _read(values: Mapping[Var, Atom], x: Atom) -> Atom:
    while isinstance(x, Var) and x in values:
        x = values[x]
    return x


def without_unused(jaxpr: Jaxpr) -> Jaxpr:
    """The jaxpr without equations that nobody uses."""
    used = {x for x in jaxpr.outvars if isinstance(x, Var)}
    eqns: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(out in used for out in eqn.outvars):
            eqns.append(eqn)
            used |= {x for x in eqn.invars if isinstance(x, Var)}
    return jaxpr if len(eqns) == len(jaxpr.eqns) else jaxpr.replace(eqns=eqns[::-1])


def without_repeated(jaxpr: Jaxpr, primitives: Container[Primitive] | None = None) -> Jaxpr:
    """The jaxpr without equations that compute what another one has computed: all, or those of some primitives."""
    known: dict[Hashable, Sequence[Var]] = {}
    values: dict[Var, Atom] = {}  # what stands for what is left out
    same: dict[Var, Atom] = {}  # what is equal
    eqns: list[JaxprEqn] = []
    for eqn in (_with_inputs(eqn, values) for eqn in jaxpr.eqns):
        inputs = ((_freeze(x.val), x.aval) if isinstance(x, Literal) else _read(same, x) for x in eqn.invars)
        key = eqn.primitive, *inputs, tuple((name, _freeze(value)) for name, value in sorted(eqn.params.items()))
        first = eqn.outvars if eqn.effects else known.setdefault(key, eqn.outvars)
        if first is eqn.outvars:
            eqns.append(eqn)
            continue
        same |= dict(zip(eqn.outvars, first, strict=True))
        if primitives is None or eqn.primitive in primitives:
            values |= dict(zip(eqn.outvars, first, strict=True))
        else:
            eqns.append(eqn)
    return jaxpr.replace(eqns=eqns, outvars=[_read(values, x) for x in jaxpr.outvars]) if values else jaxpr


def structure(jaxpr: Jaxpr) -> Hashable:
    """A key that is equal for jaxprs that compute the same in the same way; functions in parameters are themselves."""
    numbers: dict[Var, int] = {}

    def number(x: Atom) -> Hashable:
        if isinstance(x, Literal):
            return _freeze(x.val), x.aval
        return numbers.setdefault(x, len(numbers))

    invars = tuple((number(x), x.aval) for x in (*jaxpr.constvars, *jaxpr.invars))
    eqns = tuple(
        (
            eqn.primitive,
            tuple(number(x) for x in eqn.invars),
            tuple((number(x), x.aval) for x in eqn.outvars),
            tuple((name, _freeze(value)) for name, value in sorted(eqn.params.items())),
        )
        for eqn in jaxpr.eqns
    )
    return invars, eqns, tuple(number(x) for x in jaxpr.outvars)


def _freeze(value: Any) -> Hashable:
    match value:
        case Jaxpr():
            return structure(value)
        case ClosedJaxpr():
            return structure(value.jaxpr), tuple(map(_freeze, value.consts))
        case tuple() | list():
            return tuple(map(_freeze, value))
        case np.ndarray() | np.generic():
            return value.tobytes(), value.dtype, value.shape
        case float():
            return type(value), value.hex()  # 0 differs from -0, and NaN equals itself
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return type(value), value


@dataclass(frozen=True, eq=False)
class Identity:
    """Stands for a value that is equal to itself alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
