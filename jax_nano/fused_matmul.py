"""Matrix products with elementwise work on the accumulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params
from jax.typing import ArrayLike

from jax_nano.elementwise import OPERATIONS
from jax_nano.elementwise_jaxpr import CALLS, NOTHING, SYNONYMS
from jax_nano.fused import accelerated
from jax_nano.jaxprs import Atom, type_of
from jax_nano.layout import VIEWS, viewed
from jax_nano.views import NoView, View

# Primitives that make each element of their result of the same elements of their operands.
ELEMENTWISE = frozenset({
    *OPERATIONS, *SYNONYMS, *NOTHING,
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "clz", "complex", "conj",
    "cosh", "digamma", "erf_inv", "igamma", "igamma_grad_a", "igammac", "imag", "lgamma", "nextafter", "polygamma",
    "population_count", "random_gamma_grad", "real", "reduce_precision", "regularized_incomplete_beta", "sinh", "tan",
    "zeta",
})  # fmt: skip


def fused_matmul(
    x: ArrayLike,
    w: ArrayLike,
    *extras: ArrayLike,
    epilogue: Callable[..., Array],
    precision: lax.PrecisionLike = None,
) -> Array:
    """Multiplies matrices and works on each element of the product while it is in registers.

    `fused_matmul(x, w, bias, epilogue=lambda acc, bias: jax.nn.gelu(acc + bias))` is `gelu(x @ w + bias)` in one
    kernel, differentiable and batchable like the two. What kernels have no vector code for, such as `lgamma`, is
    computed from the product afterwards; `jax_nano.inspect` says where a kernel ends.

    Args:
      x: `(..., M, K)` or `(K,)`.
      w: `(..., K, N)` or `(K,)`; leading dimensions broadcast as in `matmul`.
      *extras: arrays for the epilogue that broadcast to the product's shape: scalars, rows `(N,)`, columns `(M, 1)`,
        arrays of its shape, with leading dimensions or without.
      epilogue: a function of the product and the extras, which JAX traces once for each set of shapes. It is given the
        sums before they are rounded: f32 for floats of 16 and 8 bits, s32 for integers of up to 16 bits, else the
        type of `x` and `w` together. Any elementwise JAX function will do, and any function of the extras alone.
      precision: as in `dot_general`.

    Returns:
      What the epilogue returns: an array of the product's shape, `(..., M, N)`, in the type that the epilogue gives it.

    Raises:
      ValueError: an extra does not broadcast to the product's shape, or the epilogue does not make each element of its
        result of the same element of the product.
      TypeError: the contracted sizes differ, or an operand is not an array.
    """
    return _fused_matmul(x, w, *extras, epilogue=epilogue, precision=precision)


@partial(jax.jit, static_argnames=("epilogue", "precision"), inline=True)
def _fused_matmul(x: Array, w: Array, *extras: Array, epilogue: Callable[..., Array], precision: Any) -> Array:
    product = partial(jnp.matmul, precision=precision, preferred_element_type=_summed(jnp.result_type(x, w)))
    _check(epilogue, jax.eval_shape(product, x, w), *extras)
    return accelerated(lambda x, w, *extras: epilogue(product(x, w), *extras))(x, w, *extras)


def _summed(dtype: Any) -> Any:
    """The type that products of this type are summed in."""
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        return np.dtype(np.float32)
    return np.dtype(np.int32) if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4 else dtype


def _check(epilogue: Callable[..., Array], product: jax.ShapeDtypeStruct, *extras: Array) -> None:
    """Sees to it that extras broadcast, and that an epilogue is elementwise.

    Raises:
      ValueError: they do not, or it is not.
    """
    for i, extra in enumerate(extras):
        try:
            fits = np.broadcast_shapes(extra.shape, product.shape) == product.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"extra {i} has the shape {extra.shape}, which does not broadcast to the product's, {product.shape}; "
                "extras are scalars, rows (N,), columns (M, 1) or arrays of the product's shape"
            )
    closed, result = jax.make_jaxpr(epilogue, return_shape=True)(product, *extras)
    shape = getattr(result, "shape", None)
    if shape != product.shape:
        given = f"an array of the shape {shape}" if shape is not None else f"a {type(result).__name__}"
        raise ValueError(f"the epilogue returns {given}; it has to return one of the product's shape, {product.shape}")
    whole = View.of(product.shape)
    places = {closed.jaxpr.invars[0]: whole}
    try:
        _follow(closed.jaxpr, places)
        (out,) = closed.jaxpr.outvars
        if isinstance(out, Var) and places.get(out, whole) != whole:
            raise NoView("elements of the product change their places")
    except NoView as reason:
        raise ValueError(f"the epilogue is not elementwise: {reason}; do that to the result instead") from None


def _follow(jaxpr: Jaxpr, places: dict[Var, View]) -> None:
    """Notes for each value that is made of the product where its elements belong in the product.

    Raises:
      NoView: an element is made of others than the one at its place.
    """
    for eqn in jaxpr.eqns:
        found = {places[x] for x in eqn.invars if isinstance(x, Var) and x in places}
        if not found:
            continue
        if len(found) > 1:
            raise NoView(f"{eqn.primitive} combines elements from different places of the product")
        (place,) = found
        if eqn.primitive.name in CALLS:
            (inner,) = jaxprs_in_params(eqn.params)
            own = _at(inner.invars, eqn.invars, places)
            _follow(inner, own)
            places |= _at(eqn.outvars, inner.outvars, own)
        elif eqn.primitive in VIEWS:
            places[eqn.outvars[0]] = viewed(eqn, place)
        elif eqn.primitive.name not in ELEMENTWISE:
            raise NoView(f"{eqn.primitive} is no elementwise operation")
        else:
            places |= dict.fromkeys(eqn.outvars, place)
        if any(type_of(x).shape != places[x].shape for x in eqn.outvars if x in places):
            raise NoView(f"{eqn.primitive} broadcasts the product")


def _at(targets: Sequence[Var], sources: Sequence[Atom], places: dict[Var, View]) -> dict[Var, View]:
    """The places of values that stand for others."""
    pairs = zip(targets, sources, strict=True)
    return {target: places[x] for target, x in pairs if isinstance(x, Var) and x in places}
