"""accelerate on attention whose scores are made by more than scale, bias and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention import assert_attention
from oracle import kernels

import jax_nano

B, N, T, S, D = 2, 4, 60, 80, 16
RNG = np.random.default_rng(0)
SLOPES = jnp.asarray(RNG.random((N, 1, 1)), jnp.float32)
IDS = jnp.asarray(np.sort(RNG.integers(0, 3, (B, 1, S))))
ROWS, J = np.arange(T)[:, None], np.arange(S)[None]
LENGTH = jnp.int32(20)

SCORES = {
    "soft cap": (lambda s: 5 * jnp.tanh(s / 5), lambda s: 5 * np.tanh(s / 5)),
    "soft cap and alibi": (
        lambda s: 5 * jnp.tanh((s + SLOPES * jnp.asarray(J - ROWS, jnp.float32)) / 5),
        lambda s: 5 * np.tanh((s + np.asarray(SLOPES) * (J - ROWS)) / 5),
    ),
    "infinite mask": (lambda s: jnp.where(J <= ROWS, s, -jnp.inf), lambda s: np.where(J <= ROWS, s, -np.inf)),
    "place at run time": (
        lambda s: jnp.where(jnp.arange(S) <= LENGTH + jnp.arange(T)[:, None], s, -jnp.inf),
        lambda s: np.where(J <= 20 + ROWS, s, -np.inf),
    ),
    "documents": (
        lambda s: jnp.where(IDS[:, :, None, :] == IDS[:, :, :T, None], s, -jnp.inf),
        lambda s: np.where(np.asarray(IDS)[:, :, None, :] == np.asarray(IDS)[:, :, :T, None], s, -np.inf),
    ),
    "squares": (lambda s: s * s / 4, lambda s: s * s / 4),
}
each_score = pytest.mark.parametrize("name", SCORES)


def arrays(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, T, N, D), (B, S, N, D), (B, S, N, D)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def attention(score):
    def f(q, k, v):
        scores = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32) / np.sqrt(D)
        return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(score(scores), axis=-1).astype(v.dtype), v)

    return f


@each_score
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_one_kernel(dtype, name):
    ours, plain = SCORES[name]
    q, k, v = arrays(dtype)
    with kernels(1):
        out = jax.jit(jax_nano.accelerate(attention(ours)))(q, k, v)
        out.block_until_ready()
    assert_attention(out, *map(np.asarray, (q, k, v)), score=lambda s, *_: plain(s))


def test_inspect_shows_what_is_fused():
    (report,) = jax_nano.inspect(jax_nano.accelerate(attention(SCORES["soft cap"][0])), *arrays())
    assert report.fused == ("score function score (2 div, tanh, mul)",)


@each_score
def test_gradients(name):
    f, weights = attention(SCORES[name][0]), jnp.asarray(RNG.standard_normal((B, T, N, D)), jnp.float32)

    def loss(f):
        return jax.jit(jax.grad(lambda *x: (f(*x) * weights).sum(), (0, 1, 2)))(*arrays())

    for a, b in zip(loss(jax_nano.accelerate(f)), loss(f), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_rows_that_see_nothing_are_nan_as_in_the_program():
    f = attention(lambda s: jnp.where(J < ROWS, s, -jnp.inf))
    out = jax.jit(jax_nano.accelerate(f))(*arrays())
    np.testing.assert_allclose(out, f(*arrays()), rtol=1e-4, atol=1e-5)
    assert np.isnan(out[:, 0]).all()


def test_scores_that_are_used_elsewhere_stay():
    def f(q, k, v):
        scores = jnp.tanh(jnp.einsum("btnd,bsnd->bnts", q, k))
        return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores, axis=-1), v), scores

    q, k, v = arrays()
    reports = jax_nano.inspect(jax_nano.accelerate(f), q, k, v)
    assert any("what tanh makes is used by the caller as well" in report.reason for report in reports)
    for a, b in zip(jax.jit(jax_nano.accelerate(f))(q, k, v), f(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_work_that_is_not_elementwise_stays():
    def f(q, k, v):
        return attention(lambda s: jnp.cumsum(s, axis=-1))(q, k, v)

    q, k, v = arrays()
    reports = jax_nano.inspect(jax_nano.accelerate(f), q, k, v)
    assert all(not report.equation.startswith("attention") or report.ran_as != "kernel" for report in reports)
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(q, k, v), f(q, k, v), rtol=1e-3, atol=1e-4)
