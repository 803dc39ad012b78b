"""Sums over the rows of bf16 and f16, as a bias's gradient is: products with a row of ones.

XLA has fast loops for few rows only: on 2 cores of Zen 5, 128 rows of 768 and 49152 columns take it 46 and 88 times
as long in bf16, and 4 and 6 times in f16, of which large sums stay with XLA. A product adds up in f32 and rounds once;
XLA rounds in between as well, and its sums of f16 may overflow on the way.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn
from jax.extend.core.primitives import reduce_sum_p

from jax_nano.jaxpr.inline import inline_calls, type_of

NARROW = frozenset({jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)})
F16_BYTES = 32 << 20  # of f16, up to which a product is faster even where work in front has to write all of it for that
ADDED_ROWS = 8  # up to which XLA adds rows to each other as fast, in one pass with the work that makes them


def rewrite_narrow_sums(jaxpr: Jaxpr) -> Jaxpr:
    """Puts a product in the place of each sum of narrow floats over many rows."""
    return inline_calls(jaxpr, _product)


def _product(eqn: JaxprEqn) -> Jaxpr | None:
    """The product for a sum; none for what meshes know of, whose types say more than a product with ones would."""
    if eqn.primitive is not reduce_sum_p or eqn.params["out_sharding"] is not None:
        return None
    x, axes = type_of(eqn.invars[0]), eqn.params["axes"]
    if not all(isinstance(size, int) for size in x.shape) or x.dtype not in NARROW:
        return None
    if x.dtype == jnp.float16 and x.size * x.dtype.itemsize > F16_BYTES:
        return None
    sizes, plain = x.shape[: len(axes)], ShapedArray(x.shape, x.dtype)
    are_rows = sorted(axes) == list(range(len(axes))) and len(axes) < x.ndim
    if not are_rows or math.prod(sizes) <= ADDED_ROWS or x != plain:
        return None
    rows = tuple(range(len(sizes)))

    def product(x: Array) -> Array:
        return lax.dot_general(jnp.ones(sizes, x.dtype), x, ((rows, rows), ((), ())), lax.Precision.DEFAULT, x.dtype)

    return jax.make_jaxpr(product)(plain).jaxpr
