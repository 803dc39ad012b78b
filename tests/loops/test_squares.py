"""Steps that read arrays along another axis than they write: squares of registers are transposed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 48])
@pytest.mark.parametrize("columns", [1, 8, 16, 33])
def test_transposed_arrays_of_any_size(rows, columns, dtype):
    with jax.enable_x64(dtype == "float64"):
        x, b = (jnp.asarray(normal(*shape), dtype) for shape in ((rows, columns), (columns, rows)))
        w = jnp.asarray(normal(columns, columns) / 8, dtype)

        def f(x, b, w):
            def step(x, _):
                turned = x.T * 2 + b
                return (x @ w + turned.T) / 4, turned

            return lax.scan(step, x, length=3)

        with kernels(1):
            found = jax.jit(jax_nano.accelerate(f))(x, b, w)
        for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(f)(x, b, w)), strict=True):
            tolerance = 3e-2 if dtype == "bfloat16" else 1e-5
            np.testing.assert_allclose(np.float64(ours), np.float64(plain), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [15, 16, 40, 130])
def test_a_matrix_whose_columns_stand_in_lanes(size):
    a, v = normal(size, size) / np.sqrt(size), normal(size)

    def f(a, v):
        return lax.fori_loop(0, 500, lambda _, v: jnp.tanh(a @ v), v)

    want = v.astype(np.float64)
    for _ in range(500):
        want = np.tanh(a.astype(np.float64) @ want)
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(a, v), want, rtol=1e-3, atol=1e-3)


def test_bf16_that_stand_apart_are_moved_as_they_are():
    """Scalars of bf16 would be rounded by a function that kernels are not linked with."""
    h = jnp.asarray(normal(2, 8, 8), jnp.bfloat16)

    def f(h, turned):
        def step(carry, _):
            h, turned = carry
            h = (h + jnp.transpose(jnp.transpose(h, (2, 0, 1)) * 1, (1, 2, 0))) * jnp.array(0.5, jnp.bfloat16)
            return (jnp.swapaxes(turned, -1, -2) @ jnp.swapaxes(h, -1, -2), turned), None

        return lax.scan(step, (h, turned), length=2)[0]

    found, want = jax.jit(jax_nano.accelerate(f))(h, h), jax.jit(f)(h, h)
    np.testing.assert_allclose(np.float64(found[0]), np.float64(want[0]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("columns", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [5, 16, 40])
def test_lanes_are_filled_along_rows_where_columns_are_few(rows, columns):
    x, w = (jnp.asarray(normal(*shape)) for shape in ((rows, columns), (columns, columns)))

    def f(x, w, key):
        def step(x, key):
            x = jnp.tanh(x @ w) + jax.random.normal(key, x.shape) / 8
            order = jnp.argmax(x[:, 0]) + jnp.arange(rows)
            return x[order % rows], (x.sum(0), jnp.cumsum(x, 0)[-1])

        return lax.scan(step, x, jax.random.split(key, 4))

    arguments = x, w, jax.random.key(0)
    with kernels(1):
        found = jax.jit(jax_nano.accelerate(f))(*arguments)
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(f)(*arguments)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *arguments)
    assert report.kernel
    if rows == 40 and columns in (2, 3):
        assert any(layout.strides[:1] == (1,) for layout in report.kernel.plan.layouts if len(layout.strides) == 2)
