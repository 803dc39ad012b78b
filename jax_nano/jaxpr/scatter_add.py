"""Sums with what is scattered over zeros, as an embedding's gradient is: scatters over the other operand instead.

XLA does so itself, where it scatters in the type that is asked for. It scatters bf16 and f16 in f32, and then makes an
array of zeros, which can take longer than the product that it is added to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import broadcast_in_dim_p, scatter_add_p

from jax_nano.jaxpr.inline import Atom, inline_calls, type_of

ADDITIONS = frozenset({"add", "add_any"})
NARROW = frozenset({jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)})


def rewrite_scatter_adds(jaxpr: Jaxpr) -> Jaxpr:
    """Puts scatter_add(x, i, u) in the place of each x + scatter_add(zeros, i, u) whose scatter nothing else uses.

    bf16 and f16 are scattered in f32, and rounded once.
    """
    scatters = _Scatters(jaxpr)
    bodies: dict[Var, Jaxpr] = {}
    eqns, replaced = [], set()
    for eqn in jaxpr.eqns:
        found = scatters.added_by(eqn)
        if found is None:
            eqns.append(eqn)
            continue
        x, scatter = found
        replaced.add(scatter.outvars[0])
        bodies[eqn.outvars[0]] = _scatter_over(x, scatter)
        eqns.append(eqn.replace(invars=[x, *scatter.invars[1:]]))
    if not bodies:
        return jaxpr
    eqns = [eqn for eqn in eqns if replaced.isdisjoint(eqn.outvars)]
    return inline_calls(jaxpr.replace(eqns=eqns), lambda eqn: bodies.get(eqn.outvars[0]) if eqn.outvars else None)


class _Scatters:
    """The scatters over zeros of a jaxpr, and how often they are used."""

    def __init__(self, jaxpr: Jaxpr):
        makers = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
        scatters = [eqn for eqn in jaxpr.eqns if eqn.primitive is scatter_add_p]
        self.found = {eqn.outvars[0]: eqn for eqn in scatters if _is_zeros(eqn.invars[0], makers)}
        users: list[Iterable[Atom]] = [*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars]
        self.uses = Counter(x for atoms in users for x in atoms if isinstance(x, Var)) if self.found else Counter()

    def added_by(self, eqn: JaxprEqn) -> tuple[Atom, JaxprEqn] | None:
        """The value that an equation adds to a scatter, and the scatter."""
        if not self.found or eqn.primitive.name not in ADDITIONS:
            return None
        for x, other in (eqn.invars, reversed(eqn.invars)):
            scatter = self.found.get(other) if isinstance(other, Var) else None
            if scatter and self.uses[scatter.outvars[0]] == 1 and type_of(x).shape == type_of(other).shape:
                return x, scatter
        return None


def _is_zeros(x: Atom, makers: dict[Var, JaxprEqn]) -> bool:
    eqn = makers.get(x) if isinstance(x, Var) else None
    if eqn is None or eqn.primitive is not broadcast_in_dim_p:
        return False
    (value, *_) = eqn.invars
    return isinstance(value, Literal) and value.val == 0


def _scatter_over(x: Atom, scatter: JaxprEqn) -> Jaxpr:
    """A scatter, of the same indices and updates, over x."""
    dtype = type_of(x).dtype
    wide = jnp.float32 if dtype in NARROW else dtype
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    how = {name: scatter.params[name] for name in names}

    def over(x: Array, indices: Array, updates: Array) -> Array:
        return lax.scatter_add(x.astype(wide), indices, updates.astype(wide), **how).astype(dtype)

    return jax.make_jaxpr(over)(*(type_of(atom) for atom in (x, *scatter.invars[1:]))).jaxpr
