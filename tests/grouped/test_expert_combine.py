"""expert_combine: the program that it stands for, in one kernel, under every transformation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import kernels, normal, wide

import jax_nano

TOKENS, ROWS, K, N = 23, 95, 33, 45
expert_combine: Any = jax_nano.expert_combine
quantize: Any = jax_nano.quantize


def operands(dtype=jnp.float32):
    """Rows, experts, the token of each row, sizes, and weights of rows."""
    x, w = (jnp.asarray(normal(*shape, seed=i), dtype) for i, shape in enumerate(((ROWS, K), (4, K, N))))
    rows = np.random.default_rng(3).integers(-TOKENS - 3, TOKENS + 3, ROWS)
    weights = jnp.asarray(normal(ROWS, seed=7), dtype)
    return x, w, jnp.asarray(rows, jnp.int32), jnp.asarray((20, 0, 33, 2), jnp.int32), weights


def combined(x, w, rows, sizes, weights, residual=None):
    """The program, in f32."""
    x, w, weights = (a.astype(jnp.float32) for a in (x, w, weights))
    base = jnp.zeros((TOKENS, N)) if residual is None else residual.astype(jnp.float32)
    return base.at[rows].add(jax.lax.ragged_dot(x, w, sizes) * weights[:, None])


@pytest.mark.parametrize("options", [(), ("weights",), ("residual",), ("weights", "residual")], ids=str)
def test_expert_combine_is_the_program_that_it_says(options):
    x, w, rows, sizes, weights = operands(dtype=jnp.bfloat16)
    given = {"weights": weights.astype(jnp.float32), "residual": jnp.asarray(normal(TOKENS, N, seed=5), jnp.bfloat16)}
    given = {name: given[name] for name in options}
    with kernels(1):
        result = jax.block_until_ready(expert_combine(x, w, rows, sizes, tokens=TOKENS, **given))
    assert result.dtype == jnp.bfloat16
    expected = combined(x, w, rows, sizes, given.get("weights", jnp.ones(ROWS)), given.get("residual"))
    np.testing.assert_allclose(wide(result), expected, rtol=2e-2, atol=0.2)


def test_expert_combine_under_transformations():
    x, w, rows, sizes, weights = operands()
    f = lambda x, w, weights: expert_combine(x, w, rows, sizes, tokens=TOKENS, weights=weights)  # noqa: E731
    plain = lambda x, w, weights: combined(x, w, rows, sizes, weights)  # noqa: E731
    loss = lambda f: lambda *a: jnp.sum(jnp.sin(f(*a)))  # noqa: E731
    found, wanted = (jax.jit(jax.grad(loss(g), (0, 1, 2)))(x, w, weights) for g in (f, plain))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    _, tangent = jax.jvp(lambda x: f(x, w, weights), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, plain(jnp.ones_like(x), w, weights), rtol=1e-4, atol=1e-4)
    batched = jax.vmap(f, (0, None, 0))(jnp.stack([x, 2 * x]), w, jnp.stack([weights, weights]))
    np.testing.assert_allclose(batched, [plain(x, w, weights), plain(2 * x, w, weights)], rtol=1e-4, atol=1e-4)


def test_turned_off_it_is_the_program(monkeypatch):
    x, w, rows, sizes, weights = operands()
    monkeypatch.setenv("JAX_NANO", "0")
    result = expert_combine(x, quantize(w), rows, sizes, tokens=TOKENS, weights=weights)
    expected = combined(x, jnp.asarray(quantize(w)), rows, sizes, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_no_rows_and_no_tokens():
    x, w, rows, sizes, _ = operands()
    assert not expert_combine(x[:0], w, rows[:0], sizes, tokens=TOKENS).any()
    assert expert_combine(x, w, rows, sizes, tokens=0).shape == (0, N)


def test_errors_say_what_does_not_go_together():
    x, w, rows, sizes, _ = operands()
    with pytest.raises(ValueError, match="the residual has 22 rows, for 23 tokens; give one row for each token"):
        expert_combine(x, w, rows, sizes, tokens=TOKENS, residual=jnp.ones((22, N)))
