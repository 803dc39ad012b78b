"""Loops in which small products are left to XLA.

XLA compiles a loop into one function where it can, with small products inline, at some 10 ns a step. A custom call in
it has XLA run it operation by operation instead. So where all products of a loop are such, and XLA's code takes no
longer than kernels and their calls would, all are left to it. In loops that XLA runs operation by operation anyway,
this is decided for each product. It is decided when the loop is lowered, as vmap makes products larger before.

Which operations beside products keep XLA from making one function does not matter: a small product that stands alone is
XLA's own code, too, and shorter than a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.extend.core.primitives import cond_p, dynamic_update_slice_p, scan_p, while_p
from jax.interpreters import mlir

from jax_nano import config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.jaxpr.attention.program import definition
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.primitives import DOUBLES, FUSED_PRODUCTS, nano_attention_p, nano_region_p
from jax_nano.jaxpr.private import LoweringRule, ReplacedLowering, functions_apart, wrap_lowering
from jax_nano.lowering.export import has_kernels
from jax_nano.lowering.xla_inline import (
    Params,
    Product,
    SymbolicSize,
    byte_threshold,
    bytes_in,
    is_faster_inline,
    read_product,
)
from jax_nano.machine.host import machine_for, target
from jax_nano.machine.isa import Machine

INLINE = "XLA does this inline"
# Equations that XLA fuses with nothing that follows, by how their names begin.
UNFUSED = ("reduce_", "arg", "cum", "concatenate", "gather", "dynamic_update_slice")


@dataclass(frozen=True)
class Loop:
    """What is known of a loop's step.

    Attributes:
      products: its own.
      loops: those in it.
      state_bytes: what it writes of its state.
      pieces: how many of its operations XLA fuses with nothing that follows.
    """

    products: list[Product]
    loops: list[Loop]
    state_bytes: int
    pieces: int

    @property
    def bytes(self) -> int:
        """What a step accesses, by its products and its state: not exact."""
        inner = sum(loop.bytes for loop in self.loops)
        return 2 * self.state_bytes + sum(product.bytes for product in self.products) + inner

    @property
    def has_kernels(self) -> bool:
        """Whether any product could be a kernel."""
        return any(product.dot for product in self.products) or any(loop.has_kernels for loop in self.loops)

    def is_function(self, machine: Machine) -> bool:
        """Whether XLA makes one function of it that takes no longer than kernels would."""
        inline = all(product.is_inline for product in self.products)
        if not inline or not all(loop.is_function(machine) for loop in self.loops):
            return False
        return is_faster_inline([p for p in self.products if p.dot and not p.conditional], machine, self.pieces)


def read_loop(*step: Jaxpr, kernels: bool = False) -> Loop:
    """Reads a loop.

    Args:
      *step: what is done in each step.
      kernels: whether a lax.dot_general would be a kernel, whatever is installed.

    Raises:
      SymbolicSize: a size is not known.
    """
    products: list[Product] = []
    loops: list[Loop] = []
    pieces = 0
    for jaxpr in step:
        for eqn, conditional in _equations(jaxpr):
            if eqn.primitive in (while_p, scan_p):
                loops.append(read_loop(*jaxprs_in_params(eqn.params)))
            elif eqn.primitive in FUSED_PRODUCTS or eqn.primitive is nano_region_p:
                avals = [type_of(x) for x in (*eqn.invars, *eqn.outvars)]
                own = kernels or eqn.primitive not in DOUBLES or ReplacedLowering.has_replaced(eqn.primitive)
                parts = eqn.params["region"].parts if eqn.primitive is nano_region_p else ()
                for params in [{"region": part} for part in parts] or [eqn.params]:
                    products.append(read_product(params, avals, kernels=own, conditional=conditional))
            elif eqn.primitive is nano_attention_p:
                attention = read_loop(attention_program(eqn), kernels=True)
                products += attention.products
                pieces += attention.pieces
            pieces += eqn.primitive.name.startswith(UNFUSED)
    return Loop(products, loops, sum(map(_written_bytes, step)), pieces)


def attention_program(eqn: JaxprEqn) -> Jaxpr:
    """The definition of an attention, as XLA would compile it."""
    program = partial(definition, eqn.params["spec"])
    return jax.make_jaxpr(program)(*map(type_of, eqn.invars)).jaxpr


def _equations(jaxpr: Jaxpr, *, conditional: bool = False) -> Iterator[tuple[JaxprEqn, bool]]:
    """All equations of a step, and whether it may do without each.

    Those of functions that it calls are among them, but not those of loops in it.
    """
    for eqn in jaxpr.eqns:
        yield eqn, conditional
        if eqn.primitive not in (while_p, scan_p):
            for inner in jaxprs_in_params(eqn.params):
                yield from _equations(inner, conditional=conditional or eqn.primitive is cond_p)


def _written_bytes(jaxpr: Jaxpr) -> int:
    """How many bytes of its results a step writes: of an array that is updated in place, only the part."""
    made = {id(out): eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    given = {id(x) for x in jaxpr.invars}
    total = 0
    for out in jaxpr.outvars:
        if id(out) not in given:
            eqn = made.get(id(out))
            written = eqn.invars[1] if eqn and eqn.primitive is dynamic_update_slice_p else out
            total += bytes_in(type_of(written))
    return total


Place = Literal["function", "operations"]
"""What XLA makes of the innermost loop around: one function, or one operation after the other."""
_place: ContextVar[Place | None] = ContextVar("jax_nano_loop", default=None)


def is_in_function() -> bool:
    """Whether what is lowered stands in a loop of which XLA makes one function."""
    return _place.get() == "function"


def is_in_loop() -> bool:
    """Whether what is lowered stands in a loop with products that could be kernels."""
    return _place.get() is not None


def check_attention_inline() -> None:
    """Checks that an attention is not left to XLA because of the loop around it.

    Raises:
      UnsupportedDot: it is.
    """
    if is_in_function():
        raise UnsupportedDot(INLINE)


def check_inline(params: Params, avals: Sequence[Any]) -> None:
    """Checks that what is lowered is not left to XLA because of the loop around it.

    Args:
      params: of the equation of a product or a region.
      avals: the types of a product's operands and result.

    Raises:
      UnsupportedDot: it is.
    """
    place = _place.get()
    if place == "function":
        raise UnsupportedDot(INLINE)
    if place == "operations":
        product = read_product(params, avals)
        if product.dot and product.is_inline and is_faster_inline([product], machine_for()):
            raise UnsupportedDot(INLINE)


def place_of(*step: Jaxpr) -> Place | None:
    """What XLA makes of a loop; None where no product in it could be a kernel."""
    try:
        loop = read_loop(*step)
        if not loop.has_kernels:
            return None
        here = machine_for()
    except (SymbolicSize, UnsupportedDot):  # the latter, as there is no target for this processor
        return None
    target(here)  # one that there is not is an error
    return "function" if loop.bytes < byte_threshold() and loop.is_function(here) else "operations"


def _lowering(original: LoweringRule) -> LoweringRule:
    """The lowering of while loops, which tells the products in them what becomes of the loop."""

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        known = (
            _place.get() == "function"
            or not config.enabled()
            or not has_kernels(ctx)
            or "cpu" not in (ctx.platforms or ctx.module_context.platforms)
        )
        place = None if known else place_of(*jaxprs_in_params(params))
        if not place:
            return original(ctx, *operands, **params)
        token = _place.set(place)
        try:
            with functions_apart(ctx, f"jax_nano: {place}"):
                return original(ctx, *operands, **params)
        finally:
            _place.reset(token)

    return lower


wrap_lowering(while_p, _lowering)
