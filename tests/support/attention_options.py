"""Attention as users call it: operands, options, and gradients beside those of jax.nn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_nano

NN: Any = jax.nn.dot_product_attention
KEYS = jax.random.split(jax.random.key(0), 5)
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bias": {"bias": jax.random.normal(KEYS[3], (1, 4, 70, 90))},
    "mask": {"mask": jax.random.uniform(KEYS[4], (2, 1, 70, 90)) < 0.3, "is_causal": True},
    "window": {"local_window_size": (3, 2)},
    "one window": {"local_window_size": 5, "is_causal": True},
    "lengths": {
        "query_seq_lengths": jnp.array([70, 33], np.int32),
        "key_value_seq_lengths": jnp.array([0, 40], np.int32),
    },
}


def arrays(dtype=jnp.float32, kv=2, t=70, s=90):
    shapes = (2, t, 4, 16), (2, s, kv, 16), (2, s, kv, 16)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(KEYS, shapes, strict=False)]


def loss(attention, options):
    def of(q, k, v, bias=None):
        named = dict(options, bias=bias) if bias is not None else options
        return (attention(q, k, v, **named).astype(jnp.float32) ** 2 * jnp.arange(70)[:, None, None]).sum()

    return of


def assert_gradients(dtype, options, tolerance, arguments):
    options = dict(options)
    operands = [*arguments, *([options.pop("bias")] if "bias" in options else [])]
    places = tuple(range(len(operands)))
    found, right = (
        jax.jit(jax.grad(loss(f, options), places))(*operands) for f in (jax_nano.dot_product_attention, NN)
    )
    for a, b in zip(found, right, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        exact = np.asarray(b, np.float64)
        np.testing.assert_allclose(np.asarray(a, np.float64), exact, atol=tolerance * np.abs(exact).max(), rtol=0)
