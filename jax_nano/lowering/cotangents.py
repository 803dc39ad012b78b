"""The cotangent of a product's second operand, as a product that gives it as it lies.

JAX's rule multiplies the cotangent by the first operand and transposes what comes of it: x @ w gives w the cotangent
transpose(dot_general(ct, x)). XLA lets its own products write such a transpose, and a kernel would have XLA transpose
its result. The operands in the other order, dot_general(x, ct), give the same numbers in w's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax import lax
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import ad
from jax.lax import DotAlgorithm

Rule = Callable[..., tuple[Any, Any]]

lax_rule: Rule = ad.primitive_transposes[dot_general_p]
"""JAX's own."""


def transpose_rule(ct: Any, x: Any, y: Any, **params: Any) -> tuple[Any, Any]:
    """The rule of dot_general_p: which of `x` and `y` is linear is an undefined primal."""
    if ad.is_undefined_primal(x) or type(ct) is ad.Zero or not _is_plain(y.aval, params):
        return lax_rule(ct, x, y, **params)
    (x_sum, y_sum), (x_batch, y_batch) = params["dimension_numbers"]
    pairs = sorted(zip(x_sum, y_sum, strict=True))
    y_kept = _others(y.aval.ndim, (*y_sum, *y_batch))
    order = [*y_batch, *(y_axis for _, y_axis in pairs), *y_kept]  # y's dimensions as the product gives them
    x_kept = _others(x.ndim, (*x_sum, *x_batch))
    if order != sorted(order) or not math.prod(x.shape[i] for i in x_kept):
        return lax_rule(ct, x, y, **params)
    batch = range(len(x_batch))
    rows = range(len(x_batch), len(x_batch) + len(x_kept))
    known = {name: params[name] for name in ("precision", "preferred_element_type")}
    found = lax.dot_general(x, ct, ((x_kept, rows), (x_batch, batch)), **known)
    return None, lax.convert_element_type(found, y.aval.dtype)


def _is_plain(aval: Any, params: dict[str, Any]) -> bool:
    """Whether no sharding is asked for, the same precision of both operands, and no type that others outweigh."""
    precision = params["precision"]
    is_symmetric = len({*precision}) == 1 if isinstance(precision, tuple) else not isinstance(precision, DotAlgorithm)
    return is_symmetric and params["out_sharding"] is None and aval.sharding.mesh.empty and not aval.weak_type


def _others(ndim: int, axes: Sequence[int]) -> list[int]:
    return [i for i in range(ndim) if i not in axes]
