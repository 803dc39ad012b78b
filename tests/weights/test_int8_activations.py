"""Activations rounded to int8, row by row, beside quantized weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import kernels, normal, wide
from quantized import exact, weight

import jax_nano

# A weight is an array to JAX's functions, but not to their annotations.
quantize: Callable[..., Any] = jax_nano.quantize


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64), (21, 100), (70,), (2, 3, 65)], ids=str)
def test_activations_are_rounded_by_rows(bits, dtype, shape):
    x, w = jnp.asarray(normal(*shape), dtype).at[..., -1].set(0), weight(shape[-1], 30, dtype=dtype)
    q = quantize(w, bits=bits, activations="int8")
    steps = np.abs(np.asarray(x, np.float32)).max(-1, keepdims=True) / np.float32(127)
    wanted = (np.round(np.asarray(x, np.float32) / steps).astype(int) @ exact(q)) * steps
    with kernels(1):
        result = jax_nano.matmul(x, q)
    (report,) = jax_nano.inspect(jax_nano.accelerate(lambda x, q: x @ q), x, q)
    assert report.problem and report.problem.acc == "s32"
    one = steps.max() * np.abs(exact(q)).max()  # where a row's number is as near to one step as to another
    np.testing.assert_allclose(wide(result), wanted, rtol=float(jnp.finfo(dtype).eps), atol=one)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=str)
def test_activations_are_rounded_in_a_batch_as_without(axes):
    x, q = normal(2, 3, 70), quantize(weight(2, 70, 20), activations="int8")
    xs, qs = [x[0], x[1]], [jax.tree.map(lambda leaf, i=i: leaf[i], q) for i in range(2)]
    x, xs = (x, xs) if axes[0] == 0 else (xs[0], xs[:1] * 2)
    q, qs = (q, qs) if axes[1] == 0 else (qs[0], qs[:1] * 2)
    one = jax_nano.accelerate(lambda x, q: x @ q)
    for f in (jax.vmap(one, axes), jax_nano.accelerate(jax.vmap(lambda x, q: x @ q, axes))):
        np.testing.assert_allclose(f(x, q), np.stack(list(map(one, xs, qs))), rtol=1e-5, atol=1e-5)


def test_products_of_numbers_beside_weights_that_round_activations():
    x, q = normal(3, 70), quantize(weight(70, 20), activations="int8")
    f = jax_nano.accelerate(lambda x, q: jax.lax.dot_general(x @ q, 2.0, (((), ()), ((), ()))))
    np.testing.assert_allclose(f(x, q), 2 * jax_nano.matmul(x, q), rtol=1e-6)


def test_activations_have_the_derivative_of_the_float_product():
    x, t, q = normal(3, 70), normal(3, 20, seed=2), quantize(weight(70, 20), activations="int8")
    np.testing.assert_allclose(
        wide(jax.vjp(lambda x: jax_nano.matmul(x, q), x)[1](t)[0]), wide(t) @ exact(q).T, atol=1e-3
    )
    np.testing.assert_allclose(
        wide(jax.jvp(lambda x: jax_nano.matmul(x, q), [x], [x])[1]), wide(x) @ exact(q), atol=1e-3
    )
    with pytest.raises(TypeError, match="a QuantizedWeight has no derivative"):
        jax.vjp(jax_nano.matmul, x, q)
