"""Reshapes that go through dimensions in another order, as vmap makes of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano

M = normal(512, 24)


def same(shape, f, *arrays):
    with kernels():
        found = jax.jit(jax_nano.accelerate(f))(*arrays)
    expected = jax.jit(f)(*arrays)
    assert found.shape == expected.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (0, 2, 1), (2, 1, 0)])
def test_operands_results_and_what_is_added(order):
    a, sizes = normal(8, 16, 32), (8, 512)
    moved = lambda x: lax.reshape(x, sizes, dimensions=order)  # noqa: E731
    same((8, 24), lambda a, m: moved(a) @ m, a, M)
    same((24, 512), lambda a, m: m[:8].T @ moved(a), a, M)
    same((8, 512), lambda a, w: moved(jnp.maximum(a @ w + 1, 0)), a, normal(32, 32))
    same((8, 512), lambda a, m: m[:8] @ m[:24, :].T @ jnp.ones((24, 512)) + moved(a), a, M)


def test_a_bias_of_attention():
    q, bias = normal(2, 8, 16, 32), normal(8, 8, 8, 2)

    def attention(q, bias):
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, q) / 8 + lax.reshape(bias, (2, 2, 16, 16), dimensions=(0, 2, 1, 3))
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, -1), q)

    same((2, 2, 16, 32), attention, q[:, :2], bias)


def test_convolutions_under_vmap():
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME")  # noqa: E731
    x, w = normal(3, 2, 8, 9, 10), normal(3, 8, 8, 3, 3)
    same((3, 2, 8, 9, 10), jax.vmap(conv), x, w)
    same(w.shape, jax.grad(lambda w, x: (jax.vmap(conv)(x, w) ** 2).sum()), w, x)


def test_no_elements():
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME")  # noqa: E731
    f = jax.vmap(conv, in_axes=(1, None))
    assert jax.jit(jax_nano.accelerate(f))(jnp.zeros((0, 3, 4, 2, 9)), jnp.zeros((5, 4, 4, 7))).shape == (3, 0, 5, 2, 9)
