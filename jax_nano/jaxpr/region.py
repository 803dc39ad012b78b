"""Regions: a product with the work around it that one kernel does."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jax.extend.core.primitives import convert_element_type_p, custom_jvp_call_p

from jax_nano.jaxpr.grouped.chosen_rows import is_row_choice, is_row_sum
from jax_nano.jaxpr.grouped.group_rows import is_repeat
from jax_nano.jaxpr.grouped.row_gathers import is_row_gather
from jax_nano.jaxpr.grouped.row_scatters import is_row_scatter
from jax_nano.jaxpr.inline import Atom, body_of, structure, type_of
from jax_nano.jaxpr.primitives import FUSED_PRODUCTS, nano_unpack_p
from jax_nano.jaxpr.private import ClosedJaxpr
from jax_nano.jaxpr.region_dot import RegionDot
from jax_nano.jaxpr.region_reader import read_region


@dataclass(frozen=True, eq=False)
class Region:
    """One product and what is fused with it; equal to another that computes and differentiates in the same way.

    Attributes:
      jaxpr: of the arrays that are read; without constants, with one result. Compared by its structure.
      kernel: what a kernel computes of them.
      parts: of a gated product, the regions that it was made of, the second of which reads the first one's result.
    """

    jaxpr: Jaxpr
    kernel: RegionDot
    parts: tuple[Region, ...] = ()

    @classmethod
    def of(cls, jaxpr: Jaxpr, kernel: RegionDot | None = None, parts: tuple[Region, ...] = ()) -> Region:
        """A region of a jaxpr, with what a reader says of it.

        Raises:
          NoView, Unfusable, UnsupportedDot: as read_region does, where `kernel` is None.
        """
        kernel = kernel or read_region(jaxpr)
        numbers = {x: i for i, x in enumerate(jaxpr.invars)}
        return cls(jaxpr, replace(kernel, sources=tuple(numbers[x] for x in kernel.sources)), parts)

    @functools.cached_property
    def _key(self) -> tuple[int, Hashable]:
        key = structure(self.jaxpr), self.kernel
        return hash(key), key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._key == other._key

    def __hash__(self) -> int:
        return self._key[0]

    @functools.cached_property
    def product(self) -> JaxprEqn:
        """Its product, of two the first."""
        return next(eqn for eqn in self.jaxpr.eqns if eqn.primitive in FUSED_PRODUCTS)

    @property
    def fused(self) -> tuple[str, ...]:
        """The names of what is fused with the product."""
        return tuple(_name(eqn) for eqn in self.jaxpr.eqns if eqn is not self.product)

    @property
    def unpacks(self) -> list[JaxprEqn]:
        """The equations that unpack weights."""
        return [eqn for eqn in self.jaxpr.eqns if eqn.primitive is nano_unpack_p]

    def with_unpacked(self, *arrays: Any) -> tuple[Jaxpr, list[Any]]:
        """The program of the arrays that packed weights stand for, and those arrays.

        Args:
          *arrays: the region's.
        """
        values: dict[Atom, Any] = dict(zip(self.jaxpr.invars, arrays, strict=True))
        for eqn in self.unpacks:
            (panels,), (array,) = eqn.invars, eqn.outvars
            values[array] = nano_unpack_p.bind(values.pop(panels), **eqn.params)
        eqns = [eqn for eqn in self.jaxpr.eqns if eqn.primitive is not nano_unpack_p]
        jaxpr = self.jaxpr.replace(invars=[x for x in values if isinstance(x, Var)], eqns=eqns)
        return jaxpr, list(values.values())

    def __call__(self, *arrays: Any) -> jax.Array:
        """Computes the region, equation by equation."""
        (result,) = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, ()))(*arrays)
        return result


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Why a region holds no more; for reports, and no part of what is computed.

    Attributes:
      prologue: what comes before, on A, and is not fused; empty where nothing does.
      epilogue: what comes next, on C, and is not fused.
    """

    prologue: str = ""
    epilogue: str = ""


def _name(eqn: JaxprEqn) -> str:
    if eqn.primitive is convert_element_type_p:
        return f"conversion to {type_of(eqn.outvars[0]).dtype.name}"
    if eqn.primitive is nano_unpack_p:
        return "packed weight"
    if is_repeat(eqn):
        return "array of groups"
    if eqn.primitive is custom_jvp_call_p and (body := body_of(eqn)):
        return body.debug_info.func_name
    if is_row_gather(eqn):
        return "gather of rows"
    if is_row_choice(eqn):
        return "choice of rows"
    if is_row_scatter(eqn) or is_row_sum(eqn):
        return "sums of rows"
    return eqn.primitive.name
