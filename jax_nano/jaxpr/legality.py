"""Legality: the written rule of which equations may be fused with a product, each decided by itself.

- An operation of ir.program.OPERATIONS, or of SYNONYMS, has one result, no effects, and vector code for its types.
- A transpose, a reshape, a broadcast or a conversion is of one array, and no sharding depends on it.
- A call of a function with a derivative of its own holds nothing but such equations.

Where the elements of an array are, and whether a value is used elsewhere, depends on more than one equation: that is
for region_reader and candidates to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from jax.extend.core import Jaxpr, JaxprEqn, Primitive
from jax.extend.core.primitives import convert_element_type_p, custom_jvp_call_p, jit_p

from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.program import INSTRUCTIONS, OPERATIONS, Unfusable
from jax_nano.jaxpr.grouped.chosen_rows import adds_rows
from jax_nano.jaxpr.grouped.group_rows import is_repeat
from jax_nano.jaxpr.inline import body_of, type_of
from jax_nano.jaxpr.operands import VIEWS, is_exact
from jax_nano.jaxpr.primitives import FUSED_PRODUCTS, nano_dequantize_p, nano_unpack_p
from jax_nano.jaxpr.private import UNSPECIFIED
from jax_nano.jaxpr.program_reader import SYNONYMS, check_operation, dtype_of, operation_name

ELEMENTWISE = frozenset({*OPERATIONS, *SYNONYMS})
# What makes arrays of the forms that weights are kept in.
WEIGHTS = frozenset({nano_dequantize_p, nano_unpack_p})

Reason = str


def illegal(eqn: JaxprEqn) -> Reason | None:
    """Says why an equation may not be fused with a product; None where it may."""
    if reason := illegal_form(eqn):
        return reason
    return first_reason(body.eqns, illegal) if (body := body_of(eqn)) else illegal_types(eqn)


def illegal_form(eqn: JaxprEqn) -> Reason | None:
    """Says why an equation may not be fused whatever types it has; None where that depends on them."""
    if eqn.effects:
        return "it has effects"
    if len(eqn.outvars) != 1:
        return f"it has {len(eqn.outvars)} results"
    if eqn.primitive is custom_jvp_call_p:
        return None if _is_elementwise(eqn) else "the function that is called is not elementwise"
    if eqn.primitive.name in ELEMENTWISE or is_moving(eqn):
        return None
    return f"{eqn.primitive} is not elementwise, or has no vector code"


def illegal_types(eqn: JaxprEqn) -> Reason | None:
    """Says for which of its types an elementwise equation has no vector code, if for any."""
    if eqn.primitive in VIEWS:
        return None
    types = [NAMES.get(type_of(x).dtype, "") for x in eqn.invars]
    try:
        dtype_of(eqn.outvars[0])
        if all(types):  # what programs do not know, they read as f32
            check_operation(operation_name(eqn), types)
    except Unfusable as reason:
        return str(reason)
    return None


def first_reason(eqns: Iterable[JaxprEqn], rule: Callable[[JaxprEqn], Reason | None]) -> Reason | None:
    """The first reason that a rule gives of equations and of the bodies that they call; None where it gives none."""
    for eqn in eqns:
        body = body_of(eqn) if eqn.primitive is jit_p else None
        if reason := (first_reason(body.eqns, rule) if body else rule(eqn)):
            return reason
    return None


def is_elementwise(primitive: Primitive) -> bool:
    """Is true for primitives whose equations are elementwise, or move elements, whatever types they have."""
    return primitive.name in ELEMENTWISE or primitive in VIEWS or primitive is custom_jvp_call_p


def is_moving(eqn: JaxprEqn) -> bool:
    """Is true for what only moves or converts the elements of one array."""
    moves = eqn.primitive in VIEWS or eqn.primitive is convert_element_type_p
    return moves and len(eqn.invars) == 1 and eqn.params.get("sharding") is None


def is_rounding(eqn: JaxprEqn) -> bool:
    """Is true for a conversion that is not exact."""
    return eqn.primitive is convert_element_type_p and not is_exact(eqn)


def is_source(eqn: JaxprEqn) -> bool:
    """Is true for what may be read through on the way to a product, which leaves it without use."""
    return is_moving(eqn) or eqn.primitive in WEIGHTS or is_repeat(eqn)


def takes_long(eqn: JaxprEqn) -> bool:
    """Is true for a legal equation that has an operation of many instructions in it."""
    body = body_of(eqn)
    return any(map(takes_long, body.eqns)) if body else eqn.primitive.name in INSTRUCTIONS


def is_elementary(eqn: JaxprEqn) -> bool:
    """Is true for a legal equation that has an elementary function in it, beyond division."""
    body = body_of(eqn)
    return any(map(is_elementary, body.eqns)) if body else eqn.primitive.name in INSTRUCTIONS.keys() - {"div", "rem"}


def inlinable(call: JaxprEqn) -> Jaxpr | None:
    """The body of a jit that holds nothing but products and what is legal, if the call says nothing else."""
    return call.params["jaxpr"].jaxpr if is_plain_jit(call) and _may_hold_products(call) else None


def gathering_body(call: JaxprEqn) -> Jaxpr | None:
    """The body of a jit that ends with a gather of rows, as that of jnp.take does, or with sums of rows.

    There is none where the call says anything else.
    """
    body = call.params["jaxpr"].jaxpr if is_plain_jit(call) else None
    if body is None or body.constvars or body.effects or not body.eqns:
        return None
    return body if adds_rows(body.eqns[-1]) else None


def is_plain_jit(eqn: JaxprEqn) -> bool:
    """Is true for a jit without shardings, layouts, donated arrays and compiler options."""
    if eqn.primitive is not jit_p:
        return False
    params = eqn.params
    shardings = (*params["in_shardings"], *params["out_shardings"])
    layouts = (*params["in_layouts"], *params["out_layouts"])
    unspecified = all(s is UNSPECIFIED for s in shardings) and all(layout is None for layout in layouts)
    return unspecified and not any(params["donated_invars"]) and not params["compiler_options_kvs"]


class _BodyRule:
    """A rule for all equations of a body, and of the jits in it.

    Functions of JAX have the same body wherever they are called: answers are kept as long as bodies live.
    """

    def __init__(self, rule: Callable[[JaxprEqn], bool]):
        self._rule = rule
        self._known: WeakKeyDictionary[Jaxpr, bool] = WeakKeyDictionary()

    def __call__(self, call: JaxprEqn) -> bool:
        body = body_of(call)
        if body is None:
            return False
        if body not in self._known:
            self._known[body] = not body.constvars and all(
                self._rule(eqn) or (is_plain_jit(eqn) and self(eqn)) for eqn in body.eqns
            )
        return self._known[body]


_is_elementwise = _BodyRule(lambda eqn: illegal_form(eqn) is None)
_may_hold_products = _BodyRule(lambda eqn: eqn.primitive in FUSED_PRODUCTS or illegal_form(eqn) is None)
