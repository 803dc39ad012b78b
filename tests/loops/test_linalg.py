"""Factorizations, triangular systems and orders of a few elements in the steps of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core.primitives import slice_p
from jax.sharding import PartitionSpec as P
from oracle import kernels, normal

import jax_nano

pytestmark = pytest.mark.usefixtures("x64")


def matrices(*shape):
    x = normal(*shape).astype(np.float64)
    return x @ np.swapaxes(x, -1, -2) + 0.5 * np.eye(shape[-1])


def assert_one_kernel_does_it(step, x, *others, count=1):
    """A loop whose step is given a matrix that grows and a product of it."""

    def loop(x, *others):
        return lax.scan(lambda x, _: (1.1 * x, (x @ x, step(x, x @ x, *others))), x, None, length=4)[1]

    with kernels(count):
        found = jax.jit(jax_nano.accelerate(loop))(x, *others)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(loop)(x, *others)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_matrices_are_factorized_and_systems_solved(size):
    def step(x, square, b):
        factor = jnp.linalg.cholesky(x)
        return (
            factor,
            jax.scipy.linalg.cho_solve((factor, True), b),
            jax.scipy.linalg.solve_triangular(factor, square, trans=1, lower=True),
            jnp.linalg.solve(x - 3 * jnp.eye(size), b),
            jnp.linalg.inv(square)[0],
            lax.linalg.triangular_solve(factor, square, unit_diagonal=True, lower=True),
        )

    assert_one_kernel_does_it(step, matrices(size, size), normal(size, seed=1).astype(np.float64))


def test_rows_change_places_as_lapack_has_them():
    def step(x, square):
        return lax.linalg.lu(x), lax.linalg.lu(square - 20 * x)

    x = np.array([[0.0, 2, 1, 3], [4, 2, 0, 1], [-4, 1, 5, 0], [1, 7, 2, 2]])
    assert_one_kernel_does_it(step, x)


def test_what_has_no_factor_is_nan():
    x = matrices(3, 3)
    x[2, 2] = -1
    assert_one_kernel_does_it(lambda x, _: lax.linalg.cholesky(x), x)
    assert_one_kernel_does_it(lambda x, _: lax.linalg.lu(x)[0], np.zeros((3, 3)))


def test_batches_and_gradients():
    def solved(x, b):
        def step(x, _):
            y = jnp.linalg.solve(x, b)
            return x + 0.1 * jnp.outer(y, b) @ x, (y, jnp.linalg.cholesky(x @ x.T))

        return sum(jnp.sum(y) for y in lax.scan(step, x, None, length=3)[1])

    f = jax.vmap(jax.value_and_grad(solved, (0, 1)))
    arguments = matrices(4, 3, 3), normal(4, 3).astype(np.float64)
    with kernels(2):
        found = jax.jit(jax_nano.accelerate(f))(*arguments)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(f)(*arguments)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_a_few_elements_are_sorted(dtype):
    values = np.array([[3, 1, 2, 1, 0, 7, 7], [0, 5, 4, 9, 1, 3, 2]]).astype(dtype)
    if dtype == np.float32:
        values[0, :4] = np.nan, -0.0, 0.0, -np.inf

    def step(x, _, values):
        values = values + x[0, 0].astype(dtype)
        return jnp.sort(values, 0), lax.sort((values, -values), num_keys=1), jnp.argsort(values, 1)

    assert_one_kernel_does_it(step, np.zeros((2, 2)), values)


def test_the_largest_elements_are_chosen():
    values = np.array([[3, 1, -np.inf, 1, np.nan, 7, 7], [-np.inf] * 6 + [1]], np.float32)
    assert_one_kernel_does_it(lambda x, _, values: lax.top_k(values + x[0, 0], 3), np.zeros((2, 2)), values)


def test_large_matrices_and_long_arrays_stay_with_xla():
    def loop(x):
        return lax.scan(lambda x, _: (x @ x, (jnp.linalg.cholesky(x), jnp.sort(x))), x, None, length=100)

    (report,) = (r for r in jax_nano.inspect(loop, jax.ShapeDtypeStruct((40, 40), jnp.float64)) if "scan" in r.equation)
    assert report.reason == "cholesky is not elementwise, or has no vector code"


@pytest.mark.parametrize("last", [np.inf, np.nan])
def test_factors_of_what_is_not_finite(last):
    def step(x, _):
        return lax.linalg.cholesky(jnp.where(jnp.eye(2) > 0, x, 0).at[1, 1].set(last))

    assert_one_kernel_does_it(step, matrices(2, 2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_the_largest_elements_in_total_order(dtype):
    special = jnp.asarray([np.nan, -0.0, 0, -np.inf, 1, 1, np.inf, -np.nan], dtype)

    def step(x, _):
        found, places = lax.top_k(jnp.where(jnp.isnan(x[0, 0]), 0, special), 8)
        return places, jnp.signbit(found), jnp.isnan(found)

    assert_one_kernel_does_it(step, matrices(2, 2))


@pytest.mark.parametrize("order", [
    lambda x: lax.sort((x[0], x[0] * 1j), num_keys=1)[0], lambda x: lax.top_k(x, 0)[0],
    lambda x: jnp.sort(x[:, :0]), lambda x: lax.reduce_window(x > 0, False, lax.max, (1, 2), (1, 1), "SAME"),
], ids=["complex", "none chosen", "no elements", "truth values"])  # fmt: skip
def test_what_is_not_ordered_here_is_left_without_an_error(order):
    def loop(x):
        return lax.scan(lambda x, _: (1.1 * x, (x @ x, order(x))), x, None, length=4)[1]

    x = matrices(3, 3)
    for got, expected in zip(jax.jit(jax_nano.accelerate(loop))(x), jax.jit(loop)(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("work", [
    lambda x: jnp.cumsum(x, 0), lambda x: x[jnp.argmax(x, 0)], lambda x: x.at[jnp.argmax(x[:, 0])].add(1),
], ids=["cumsum", "gather", "scatter"])  # fmt: skip
def test_within_shard_map(work):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def loop(x, w):
        return lax.scan(lambda x, _: (x + 0.1 * x @ w, work(x)), x[0], None, length=3)[1][None]

    f = jax.shard_map(loop, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    x, w = (normal(*shape).astype(np.float64) for shape in ((4, 40, 3), (3, 3)))
    with kernels(4):
        found = jax.jit(jax_nano.accelerate(f))(x, w)
    np.testing.assert_allclose(found, jax.jit(f)(x, w), rtol=1e-9, atol=1e-9)


def test_slices_by_integers_of_numpy():
    zero, one = np.int64(0), np.int64(1)  # as JAX has them in gradients of lax.pad

    def step(x, _):
        first = slice_p.bind(x, start_indices=(zero, zero), limit_indices=(2, 2), strides=(one, one))
        return jnp.exp(first)

    assert_one_kernel_does_it(step, matrices(2, 2))
