"""Calls, regions and operations that are programs of others, in the steps of loops, with these in their place."""

from __future__ import annotations

from jax.extend.core import Jaxpr, JaxprEqn, Var

from jax_nano.jaxpr.inline import Atom, body_of, inline_calls, without_repeated
from jax_nano.jaxpr.pipelines.expansions import expansion_of
from jax_nano.jaxpr.primitives import nano_region_p

CALLS = ("checkpoint", "remat2", "closed_call", "core_call", "custom_vjp_call")


def inlined(jaxpr: Jaxpr) -> Jaxpr:
    """A jaxpr with the bodies of calls and of regions, and what operations are made of, in place of these."""
    return without_repeated(inline_calls(jaxpr, _body))


def _body(eqn: JaxprEqn) -> Jaxpr | None:
    if eqn.primitive is nano_region_p:
        return _with_own_arguments(eqn.params["region"].jaxpr)
    if body := body_of(eqn):
        return None if body.constvars else body
    for name in ("call_jaxpr", "jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if eqn.primitive.name in CALLS and inner:
            inner = getattr(inner, "jaxpr", inner)
            return None if inner.constvars else inner
    return expansion_of(eqn)


def _with_own_arguments(jaxpr: Jaxpr) -> Jaxpr:
    """A jaxpr whose arguments are variables of its own: a region's are those of the program around it."""
    fresh = {x: Var(x.aval) for x in jaxpr.invars}

    def read(x: Atom) -> Atom:
        return fresh.get(x, x) if isinstance(x, Var) else x

    eqns = [eqn.replace(invars=list(map(read, eqn.invars))) for eqn in jaxpr.eqns]
    return jaxpr.replace(invars=list(fresh.values()), eqns=eqns, outvars=list(map(read, jaxpr.outvars)))
