"""Quantized weights in NumPy: what their integers stand for, and how far products may be from it."""

import jax.numpy as jnp
import numpy as np
from oracle import normal, wide

from jax_nano.ir.dtypes import INT4_PER_WORD
from jax_nano.ir.packed_weight import step_bit

EPS = float(np.finfo(np.float32).eps)


def weight(*shape, dtype=jnp.float32):
    return jnp.asarray(normal(*shape, seed=1), dtype)


def of_rows(x, q):
    """What belongs to each row of the weight."""
    return np.repeat(wide(x), q.group or q.rows, axis=-2)[..., : q.rows, :]


def exact(q):
    """(integer - zero point) * scale, in float64."""
    values = np.asarray(q.values)
    if q.bits == 4:
        steps = [values >> step_bit(step) & 15 for step in range(INT4_PER_WORD)]
        values = np.stack(steps, -2).reshape(*values.shape[:-2], -1, values.shape[-1])[..., : q.rows, :].astype(int)
        values = values if q.zeros is not None else (values ^ 8) - 8
    zeros = 0 if q.zeros is None else of_rows(q.zeros, q)
    return (values - zeros) * of_rows(q.scales, q)


def assert_product(actual, x, q, terms=()):
    """|actual - x @ w| <= (K + 3) eps |x| |w| + ulp / 2, w being what the integers stand for: docs/numerics.md."""
    result, magnitude = wide(x) @ exact(q), np.abs(wide(x)) @ np.abs(exact(q))
    for term in terms:
        result, magnitude = result + wide(term), magnitude + np.abs(wide(term))
    ulp = float(jnp.finfo(actual.dtype).eps)
    bound = (
        (q.rows + 3) * EPS * magnitude + ulp / 2 * np.abs(result) + float(jnp.finfo(actual.dtype).smallest_subnormal)
    )
    assert actual.shape == result.shape
    assert np.all(np.abs(wide(actual) - result) <= bound)
