"""Maxima over windows: those of lax, to the bit, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import normal

import jax_nano
from jax_nano.lowering.pooling import is_slow

OVERLAPPING = {
    "3 x 3, strided": ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "3 x 3": ((1, 3, 3, 1), (1, 1, 1, 1), "VALID"),
    "5 x 2, padded": ((1, 5, 2, 1), (1, 3, 1, 1), ((0, 0), (4, 1), (0, 3), (0, 0))),
    "cut": ((1, 3, 3, 1), (1, 2, 1, 1), ((0, 0), (-1, 0), (2, -2), (0, 0))),
    "batch and channels": ((2, 1, 1, 3), (1, 1, 1, 2), "VALID"),
}
DTYPES = ["float32", "bfloat16", "float16"]


def pool(x, window, strides, padding):
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, strides, padding)


def slow_windows(f, x):
    """The maxima over windows in the program of f: whether XLA goes through each element by element."""
    equations = jax.make_jaxpr(f)(x).eqns
    return [is_slow(eqn.invars[0].aval, eqn.params) for eqn in equations if eqn.primitive.name == "reduce_window_max"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OVERLAPPING)
def test_maxima_are_those_of_lax_to_the_bit(name, dtype):
    def f(x):
        return pool(x, *OVERLAPPING[name])

    x = jnp.asarray(normal(2, 9, 8, 5), dtype)
    assert not slow_windows(jax_nano.accelerate(f), x)
    want = np.asarray(jax.jit(f)(x))
    np.testing.assert_array_equal(jax.jit(jax_nano.accelerate(f))(x), want)
    with jax_nano.installed():
        np.testing.assert_array_equal(jax.jit(f)(x), want)


def test_nan_and_infinities_pass():
    x = normal(1, 6, 6, 3)
    x[0, 2, 2, 0], x[0, :, :, 1], x[0, 3, 3, 2] = np.nan, -np.inf, np.inf

    def f(x):
        return pool(x, *OVERLAPPING["3 x 3, strided"])

    np.testing.assert_array_equal(jax.jit(jax_nano.accelerate(f))(x), jax.jit(f)(x))


@pytest.mark.parametrize("outside", [False, True])
def test_derivatives_are_those_of_lax_where_elements_are_equal(outside):
    """Of equal elements, lax gives one the gradient, where lax.max would share it out."""
    x = np.maximum(normal(2, 9, 8, 5), 0)

    def loss(f):
        return lambda x: (f(x) ** 2 + f(x)).sum()

    def f(x):
        return pool(x, *OVERLAPPING["3 x 3, strided"])

    want = jax.jit(jax.grad(loss(f)))(x)
    ours = jax.grad(loss(jax_nano.accelerate(f))) if outside else jax_nano.accelerate(jax.grad(loss(f)))
    np.testing.assert_allclose(jax.jit(ours)(x), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax_nano.accelerate(f)))(x[None]), jax.vmap(f)(x[None]))


@pytest.mark.parametrize(
    ("window", "strides", "dtype"),
    [((1, 2, 2, 1), (1, 2, 2, 1), "float32"), ((1, 3, 1, 1), (1, 1, 1, 1), "float32"),
     ((1, 3, 3, 1), (1, 1, 1, 1), "int32"), ((1, 7, 7, 1), (1, 1, 1, 1), "float32")],
)  # fmt: skip
def test_windows_that_xla_is_good_at_or_that_are_many_slices_are_left_to_it(window, strides, dtype):
    def f(x):
        return pool(x, window, strides, "VALID") if dtype != "int32" else lax.reduce_window(
            x, np.iinfo(np.int32).min, lax.max, window, strides, "VALID"
        )  # fmt: skip

    assert slow_windows(jax_nano.accelerate(f), jnp.zeros((2, 9, 8, 5), dtype)) == [False]


@pytest.mark.parametrize(
    ("shape", "window", "padding"), [((1, 7), (3, 3), "VALID"), ((4, 3), (2, 4), ((1, -2), (-2, -2)))]
)
def test_windows_that_fit_nowhere_make_no_elements(shape, window, padding):
    def f(x):
        return pool(x, window, (1, 1), padding)

    found = jax.jit(jax_nano.accelerate(f))(jnp.ones(shape))
    assert found.shape == f(jnp.ones(shape)).shape
    assert found.size == 0
