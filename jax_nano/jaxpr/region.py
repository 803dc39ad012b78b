"""Regions: a product with the work around it that one kernel does."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jax.extend.core.primitives import convert_element_type_p, custom_jvp_call_p, jit_p

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.program import Unfusable
from jax_nano.jaxpr.inline import Atom, structure, type_of, written_out
from jax_nano.jaxpr.primitives import PRODUCTS, nano_region_p, nano_unpack_p
from jax_nano.jaxpr.region_reader import Layout, layout
from jax_nano.jaxpr.strided_views import NoView


@dataclass(frozen=True, eq=False)
class Region:
    """One product and what is fused with it; equal to another that computes and differentiates in the same way."""

    jaxpr: Jaxpr  # of the arrays that are read; without constants, with one result
    kept: str = ""  # why no more is fused of what A is made by
    stopped: str = ""  # why no more is fused of what is made of C
    beside: list[Region] = field(default_factory=list)  # all of its program, until the first of them is lowered

    @functools.cached_property
    def _key(self) -> _Key:
        return _Key(self.jaxpr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @functools.cached_property
    def layout(self) -> Layout:
        """What a kernel is asked for.

        Raises:
          NoView, Unfusable, UnsupportedDot: as layout() does.
        """
        return _layout(_Key(written_out(self.jaxpr, _body)))

    @functools.cached_property
    def product(self) -> JaxprEqn:
        """Its product."""
        return next(eqn for eqn in self.jaxpr.eqns if eqn.primitive in PRODUCTS)

    @property
    def fused(self) -> tuple[str, ...]:
        """The names of what is fused with the product."""
        return tuple(_name(eqn) for eqn in self.jaxpr.eqns if eqn.primitive not in PRODUCTS)

    @property
    def unsupported(self) -> str:
        """Why there is no problem to make a kernel of; empty where there is one."""
        try:
            self.layout.dot()
        except (NoView, Unfusable, UnsupportedDot) as reason:
            return str(reason)
        return ""

    @property
    def unpacks(self) -> list[JaxprEqn]:
        """The equations that unpack weights."""
        return [eqn for eqn in self.jaxpr.eqns if eqn.primitive is nano_unpack_p]

    def unpacked(self, *arrays: Any) -> jax.Array:
        """Computes the region as one of the arrays that packed weights stand for."""
        values: dict[Atom, Any] = dict(zip(self.jaxpr.invars, arrays, strict=True))
        for eqn in self.unpacks:
            (panels,), (array,) = eqn.invars, eqn.outvars
            values[array] = nano_unpack_p.bind(values.pop(panels), **eqn.params)
        eqns = [eqn for eqn in self.jaxpr.eqns if eqn.primitive is not nano_unpack_p]
        jaxpr = self.jaxpr.replace(invars=[x for x in values if isinstance(x, Var)], eqns=eqns)
        return nano_region_p.bind(*values.values(), region=Region(jaxpr, self.kept, self.stopped))

    def between(self, kept: str, stopped: str, beside: list[Region]) -> Region:
        """The region with reasons why it holds no more on either side, in a program that has others."""
        return Region(self.jaxpr, kept, stopped, beside)

    def __call__(self, *arrays: Any) -> jax.Array:
        """Computes the region, equation by equation."""
        (result,) = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, ()))(*arrays)
        return result


CALLS = {jit_p: "jaxpr", custom_jvp_call_p: "call_jaxpr"}


def called(eqn: JaxprEqn) -> Jaxpr:
    """The jaxpr of an equation that calls it, one of CALLS."""
    return eqn.params[CALLS[eqn.primitive]].jaxpr


def _body(eqn: JaxprEqn) -> Jaxpr | None:
    return called(eqn) if eqn.primitive in CALLS else None


def _name(eqn: JaxprEqn) -> str:
    if eqn.primitive is convert_element_type_p:
        return f"conversion to {type_of(eqn.outvars[0]).dtype.name}"
    if eqn.primitive is nano_unpack_p:
        return "packed weight"
    return called(eqn).debug_info.func_name if eqn.primitive is custom_jvp_call_p else eqn.primitive.name


class _Key:
    """A jaxpr as a key: by its structure, whose hash is taken once."""

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr = jaxpr
        self.structure: Hashable = structure(jaxpr)
        self.hash = hash(self.structure)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.structure == other.structure

    def __hash__(self) -> int:
        return self.hash


@functools.lru_cache(maxsize=4096)
def _layout(key: _Key) -> Layout:
    return layout(key.jaxpr)
