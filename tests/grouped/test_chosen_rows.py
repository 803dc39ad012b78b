"""Rows of a grouped product that are chosen by their places and added up: in guarded memory and in programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import exact, fused_kernel, run_fused
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from oracle import normal, wide

import jax_nano

TOKENS, CHOICES, K, N = 9, 4, 33, 150
ROWS = TOKENS * CHOICES
BY_ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
FILL, CLIP = lax.GatherScatterMode.FILL_OR_DROP, lax.GatherScatterMode.CLIP


def operands(dtype=jnp.float32, tokens=TOKENS, choices=CHOICES, rows=ROWS, k=K, n=N, sizes=(17, 0, 3, 12)):
    """Rows, experts, which rows each token chooses, sizes, and weights of choices."""
    x, w = (jnp.asarray(normal(*shape, seed=i), dtype) for i, shape in enumerate(((rows, k), (4, k, n))))
    places = np.random.default_rng(3).integers(-3, rows + 3, tokens * choices)
    weights = jnp.asarray(normal(tokens, choices, seed=7), dtype)
    return x, w, jnp.asarray(places, jnp.int32)[:, None], jnp.asarray(sizes, jnp.int32), weights


def summed(mode=CLIP, fill=None, *, weighted=True):
    """The program of places (T * C, 1) as they are."""

    def f(x, w, places, sizes, weights):
        y = lax.ragged_dot(x, jnp.asarray(w), sizes)
        rows = lax.gather(y, places, BY_ROWS, (1, y.shape[1]), mode=mode, fill_value=fill)
        rows = rows.reshape(*weights.shape, y.shape[1])
        return (rows * weights[..., None] if weighted else rows).sum(1)

    return f


def assert_sums(actual, x, w, places, sizes, weights, *, mode=CLIP):
    """The result is within the bound of products and of sums in f32, docs/numerics.md, around NumPy's in float64."""
    (y, magnitude), terms = exact(x, w, sizes)
    at, weights = np.asarray(places, np.int64).reshape(weights.shape), np.asarray(weights, np.float64)[..., None]
    exists = ((at >= 0) & (at < len(y)) | (mode == CLIP))[..., None]
    at = np.clip(at, 0, len(y) - 1)
    out = np.sum(y[at] * weights * exists, 1)
    most = np.sum(magnitude[at] * np.abs(weights) * exists, 1)
    own = float(jnp.finfo(np.asarray(actual).dtype).eps)
    bound = (terms + at.shape[1]) * np.finfo(np.float32).eps * most + 2 * own * most + 1e-30
    error = np.abs(np.asarray(actual, np.float64).reshape(out.shape) - out)
    assert np.all(error <= bound), f"{np.max(error / bound):.2f} times the bound"


def in_kernel(f, *arguments):
    """What the kernel gives in guarded memory."""
    problem, _ = fused_kernel(f, *arguments)
    assert problem.scatter
    assert problem.scatter.choices == arguments[-1].shape[1]
    return run_fused(f, *arguments)


def fused(f, *arguments):
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *arguments)
    assert report.ran_as == "kernel"
    return report.fused


# The kernel.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda x: x.__name__)
@pytest.mark.parametrize(("mode", "fill"), [(CLIP, None), (FILL, 0)], ids=["nearest", "zeros"])
def test_rows_are_chosen_weighted_and_added_up(dtype, mode, fill):
    arguments = operands(dtype)
    assert_sums(in_kernel(summed(mode, fill), *arguments), *arguments, mode=mode)


def test_rows_that_do_not_exist_are_nan_where_the_program_says_so():
    arguments = operands()
    found = in_kernel(summed(FILL), *arguments).reshape(TOKENS, N)
    np.testing.assert_allclose(found, summed(FILL)(*arguments), rtol=1e-4, atol=1e-4)
    assert np.isnan(found).any()
    assert np.isfinite(found).any()


def test_rows_without_weights():
    x, w, places, sizes, weights = operands(jnp.bfloat16)
    found = in_kernel(summed(weighted=False), x, w, places, sizes, weights)
    assert_sums(found, x, w, places, sizes, jnp.ones_like(weights))


def test_sums_of_f32_have_the_bits_of_xlas():
    arguments = operands()
    x, w, places, sizes, weights = arguments
    y = jax.jit(jax_nano.accelerate(lax.ragged_dot))(x, w, sizes)
    expected = (y[np.clip(places[:, 0], 0, ROWS - 1)].reshape(TOKENS, CHOICES, N) * weights[..., None]).sum(1)
    np.testing.assert_array_equal(in_kernel(summed(), *arguments).reshape(TOKENS, N), expected)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_random_sizes(data):
    tokens, choices, rows, k = (data.draw(st.integers(1, most)) for most in (20, 5, 50, 40))
    n = data.draw(st.integers(2, 300))
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=4, max_size=4))
    arguments = operands(tokens=tokens, choices=choices, rows=rows, k=k, n=n, sizes=sizes)
    f = summed(FILL, 0)
    problem, _ = fused_kernel(f, *arguments)
    if problem.scatter:  # with one choice of each, programs may be simpler
        assert_sums(run_fused(f, *arguments), *arguments, mode=FILL)


# In programs.


def chosen(take):
    def f(x, w, places, sizes, weights):
        y = lax.ragged_dot(x, w, sizes)
        return take(y, places[:, 0]).reshape(TOKENS, CHOICES, N), weights

    return f


def weighted(rows, weights):
    return (rows * weights[..., None]).sum(1)


def by_einsum(rows, weights):
    return jnp.einsum("tcn,tc->tn", rows, weights)


def by_einsum_in_f32(rows, weights):
    sums = jnp.einsum("tcn,tc->tn", rows.astype(jnp.float32), weights.astype(jnp.float32))
    return sums.astype(jnp.bfloat16)


IDIOMS: dict[str, Any] = {
    "index": (lambda y, at: y[at], weighted),
    "take": (lambda y, at: jnp.take(y, at, axis=0), by_einsum),
    "take_in_f32": (lambda y, at: jnp.take(y, at, axis=0), by_einsum_in_f32),
    "get": (lambda y, at: y.at[at].get(mode="fill", fill_value=0), by_einsum),
    "weighted_before": (lambda y, at: y[at] * at[:, None].astype(y.dtype), lambda rows, _: rows.sum(1)),
    "worked_on": (lambda y, at: y[at], lambda rows, weights: (jnp.tanh(rows) * 0.5 * weights[..., None]).sum(1)),
}


@pytest.mark.parametrize(("take", "add"), IDIOMS.values(), ids=IDIOMS)
def test_accelerated_functions_choose_rows_in_the_kernel(take, add):
    x, w, places, sizes, weights = operands()
    arguments = x, w, places % ROWS, sizes, weights
    f = lambda *a: add(*chosen(take)(*a))  # noqa: E731
    fast = jax.jit(jax_nano.accelerate(f))
    tolerance = 1e-4 if f(*arguments).dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(wide(fast(*arguments)), wide(f(*arguments)), rtol=tolerance, atol=100 * tolerance)
    assert "sums of rows" in fused(f, *arguments)


STAYS: dict[str, Any] = {
    "columns_weighted": lambda rows, weights: (rows * jnp.arange(N, dtype=rows.dtype)).sum(1),
    "other_order": lambda rows, weights: (rows * weights.reshape(CHOICES, TOKENS).T[..., None]).sum(1),
    "over_tokens": lambda rows, weights: rows.sum(0),
    "over_columns": lambda rows, weights: rows.sum(2),
    "maximum": lambda rows, weights: rows.max(1),
    "used_twice": lambda rows, weights: rows.sum(1) + rows.max(1),
    "matrices": lambda rows, weights: jnp.einsum("tcn,tcm->tnm", rows, rows[..., :3]),
}


@pytest.mark.parametrize("add", STAYS.values(), ids=STAYS)
def test_other_sums_stay_in_the_program(add):
    x, w, places, sizes, weights = operands()
    arguments = x, w, places % ROWS, sizes, weights
    f = lambda *a: add(*chosen(lambda y, at: y[at])(*a))  # noqa: E731
    fast = jax.jit(jax_nano.accelerate(f))
    np.testing.assert_allclose(fast(*arguments), f(*arguments), rtol=1e-3, atol=1e-2)
    assert all("sums of rows" not in report.fused for report in jax_nano.inspect(fast, *arguments))


def test_rows_as_few_as_groups_are_added_up_outside():
    x, w, places, sizes, weights = operands(tokens=2, choices=2, rows=4)
    (report,) = jax_nano.inspect(jax_nano.accelerate(summed()), x, w, places, sizes, weights)
    assert report.ran_as == "kernel"
    assert "sums of rows" not in report.fused


def test_gradients_and_batches_are_those_of_the_program():
    x, w, places, sizes, weights = operands(n=20)

    def f(x, w, weights):
        y = lax.ragged_dot(x, w, sizes)
        return (y[places[:, 0] % ROWS].reshape(TOKENS, CHOICES, 20) * weights[..., None]).sum(1)

    fast = jax_nano.accelerate(f)
    found, wanted = (
        jax.jit(jax.grad(lambda *a, g=g: jnp.sin(g(*a)).sum(), (0, 1, 2)))(x, w, weights) for g in (fast, f)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    both = jax.vmap(fast, (0, None, None))(jnp.stack([x, 2 * x]), w, weights)
    np.testing.assert_allclose(both, [f(x, w, weights), f(2 * x, w, weights)], rtol=1e-4, atol=1e-3)
