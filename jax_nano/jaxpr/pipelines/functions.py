"""Elementary functions of loops that have no vector code of their own, in JAX's operations: in f32, most in f64 too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

LARGE = 80  # below which exp(x) is no infinity, of f64 long before


def cosh(x: Array) -> Array:
    """(exp(x) + exp(-x)) / 2, whose exponentials may exceed what the result does not."""
    half = jnp.exp(0.5 * jnp.abs(x))
    return jnp.where(jnp.abs(x) < LARGE, 0.5 * (jnp.exp(x) + jnp.exp(-x)), 0.5 * half * half)


def sinh(x: Array) -> Array:
    """(exp(x) - exp(-x)) / 2, of exp(x) - 1, so that nothing cancels."""
    e, half = jnp.expm1(jnp.abs(x)), jnp.exp(0.5 * jnp.abs(x))
    return jnp.sign(x) * jnp.where(jnp.abs(x) < LARGE, 0.5 * (e + e / (e + 1)), 0.5 * half * half)


NEAR_0 = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
NEAR_1 = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


def erf_inv(x: Array) -> Array:
    """The inverse of erf, in f32, by two polynomials.

    Source: Giles, "Approximating the erfinv function", GPU Computing Gems 2, 2011. XLA has the same.
    """
    w = -jnp.log1p(-x * x)
    is_near_0 = w < 5
    w = jnp.where(is_near_0, w - 2.5, jnp.sqrt(w) - 3)
    p = jnp.zeros_like(x)
    for near_0, near_1 in zip(NEAR_0, NEAR_1, strict=True):
        p = p * w + jnp.where(is_near_0, jnp.float32(near_0), jnp.float32(near_1))
    return jnp.where(jnp.abs(x) == 1, x * jnp.inf, p * x)


ATAN_F32 = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
ATAN_F64 = (
    (-8.750608600031904122785e-1, -1.615753718733365076637e1, -7.500855792314704667340e1, -1.228866684490136173410e2,
     -6.485021904942025371773e1),
    (1.0, 2.485846490142306297962e1, 1.650270098316988542046e2, 4.328810604912902668951e2, 4.853903996359136964868e2,
     1.945506571482613964425e2),
)  # fmt: skip


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """By Horner's rule, the highest power first."""
    total = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + jnp.asarray(coefficient, x.dtype)
    return total


def atan2(y: Array, x: Array) -> Array:
    """The angle of (x, y), of a quotient of at most 1 or, beyond pi / 8, of one turned by pi / 4.

    Source: Moshier, Cephes Mathematical Library, atanf.c and atan.c.
    """
    a, b = jnp.abs(y), jnp.abs(x)
    small, large = jnp.minimum(a, b), jnp.maximum(a, b)
    is_equal = small == large  # as zeros and infinities may be
    is_turned = small > math.tan(math.pi / 8) * large
    quotient = jnp.where(is_equal, 1, small / jnp.where(large == 0, 1, large))
    t = jnp.where(is_equal, 0, jnp.where(is_turned, (quotient - 1) / (quotient + 1), quotient))
    z = t * t
    if x.dtype == jnp.float64:
        over, under = ATAN_F64
        p = z * (polynomial(z, over) / polynomial(z, under))
    else:
        p = z * polynomial(z, ATAN_F32)
    angle = jnp.where(is_turned, jnp.asarray(math.pi / 4, x.dtype), 0) + (t * p + t)
    angle = jnp.where(is_equal & (large > 0), jnp.asarray(math.pi / 4, x.dtype), angle)
    angle = jnp.where(a > b, jnp.asarray(math.pi / 2, x.dtype) - angle, angle)
    is_left = (x < 0) | ((x == 0) & (1 / x < 0))
    angle = jnp.where(is_left, jnp.asarray(math.pi, x.dtype) - angle, angle)
    is_below = (y < 0) | ((y == 0) & (1 / y < 0))
    angle = jnp.where(is_below, -angle, angle)
    return jnp.where((x != x) | (y != y), jnp.nan, angle)


def root(x: Array) -> Array:
    """sqrt(1 - x * x)."""
    return jnp.sqrt((1 - x) * (1 + x))


def asinh(x: Array) -> Array:
    """log(x + sqrt(x * x + 1)), of what is added to 1."""
    a = jnp.abs(x)
    small = jnp.minimum(a, FAR)
    near = jnp.log1p(small + small * small / (1 + jnp.sqrt(1 + small * small)))
    return jnp.where(x == 0, x, jnp.sign(x) * jnp.where(a < FAR, near, jnp.log(a) + math.log(2)))


def acosh(x: Array) -> Array:
    """log(x + sqrt(x * x - 1)), of what is added to 1."""
    t = jnp.where(x < 1, jnp.nan, jnp.minimum(x, FAR) - 1)
    return jnp.where(x < FAR, jnp.log1p(t + jnp.sqrt(t * (t + 2))), jnp.log(x) + math.log(2))


FAR = 1e9  # from where on squares are all that counts in roots of x * x + 1

WIDE = {
    "cosh": cosh,
    "sinh": sinh,
    "atan2": atan2,
    "atan": lambda x: atan2(x, jnp.ones_like(x)),
    "asin": lambda x: atan2(x, root(x)),
    "acos": lambda x: atan2(root(x), x),
    "asinh": asinh,
    "acosh": acosh,
    "atanh": lambda x: jnp.where(x == 0, x, 0.5 * jnp.sign(x) * jnp.log1p(2 * jnp.abs(x) / (1 - jnp.abs(x)))),
}
"""Of f32 and f64, by the names of primitives."""
