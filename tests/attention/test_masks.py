"""Masks of attention in programs, and conversions around them: what accelerate reads as one, and what it does not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_nano
from jax_nano.ir.attention import Attention

KEYS = jax.random.split(jax.random.key(0), 5)
MASK = jax.random.uniform(KEYS[4], (2, 1, 70, 90)) < 0.5


def arrays():
    shapes = (2, 70, 4, 16), (2, 90, 4, 16), (2, 90, 4, 16)
    return [jax.random.normal(key, shape) for key, shape in zip(KEYS, shapes, strict=False)]


def problems(f, *operands):
    """The attentions that accelerate finds in a program and has kernels for."""
    reports = jax_nano.inspect(jax_nano.accelerate(f), *operands)
    return [x.problem for x in reports if x.kernel and isinstance(x.problem, Attention)]


NUMBERS = jax.random.randint(KEYS[4], (2, 1, 70, 90), 0, 3)
CONVERTED = {
    "integers": (NUMBERS, lambda m: m.astype(bool)),
    "floats": (NUMBERS / 2, lambda m: m.astype(bool)),
    "inverted": (NUMBERS, lambda m: ~m.astype(bool)),
}


@pytest.mark.parametrize(("mask", "converted"), CONVERTED.values(), ids=CONVERTED)
def test_masks_that_are_converted_to_truth_values(mask, converted):
    operands = arrays()

    def f(q, k, v, mask) -> Any:
        scores = jnp.where(converted(mask), jnp.einsum("btnh,bsnh->bnts", q, k), -1e9)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v)

    assert any(getattr(x, "mask", None) for x in problems(f, *operands, mask))
    pair: list[Any] = [jax_nano.accelerate(f), f]
    found, right = (g(*operands, mask) for g in pair)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def through(dtype, x):
    return x.astype(dtype).astype(x.dtype)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e5m2, bool], ids=["s8", "f8", "pred"])
@pytest.mark.parametrize("place", ["scores", "probabilities", "gradient"])
def test_conversions_that_change_numbers_stay(place, dtype):
    operands = arrays()

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, ct: (through(dtype, ct),))

    def attention(q, k, v):
        scores = jnp.einsum("btnh,bsnh->bnts", q, k)
        scores = through(dtype, scores) if place == "scores" else same(scores) if place == "gradient" else scores
        p = jax.nn.softmax(scores)
        return jnp.einsum("bnts,bsnh->btnh", through(dtype, 9 * p) if place == "probabilities" else p, v)

    f = jax.grad(lambda *x: (attention(*x) ** 2).sum(), (0, 1, 2)) if place == "gradient" else attention
    assert all(x.score for x in problems(f, *operands))
    found, right = (jax.tree.leaves(g(*operands)) for g in (jax_nano.accelerate(f), f))
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * np.abs(b).max(), rtol=0)


def filled(fill, *, added=False):
    def hide(scores, mask):
        return scores + jnp.where(mask, 0.0, fill) if added else jnp.where(mask, scores, fill)

    return hide


def causal():
    return jnp.arange(70)[:, None] >= jnp.arange(90)


NOTHING = jnp.zeros((2, 1, 1, 90), bool)
HIDDEN = {
    "equal": (lambda s, m: filled(-1e9)(filled(-1e9)(s, m), causal()), ["causal", "mask"]),
    "greater behind": (lambda s, m: filled(-1e10)(filled(-1e9)(s, m), causal()), ["score"]),
    "less behind": (lambda s, m: filled(-1e9)(filled(-1e10)(s, m), causal()), ["score"]),
    "added twice": (lambda s, m: filled(-1e30, added=True)(filled(-1e30)(s, m), causal()), ["score"]),
    "added and hidden": (lambda s, m: filled(-1e30)(filled(-1e30, added=True)(s, m), causal()), ["causal", "mask"]),
    "swallowed": (lambda s, m: filled(-1e30, added=True)(30 * s, m), ["mask"]),
    "a bias": (lambda s, m: filled(-1e8, added=True)(30 * s, m), ["bias"]),
    "of small scores": (filled(-1e9, added=True), ["bias"]),
    "by place": (lambda s, _: filled(-1e9, added=True)(s, causal()), ["causal"]),
}


@pytest.mark.parametrize(("hide", "parts"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("mask", [NOTHING, MASK], ids=["nothing", "some"])
def test_rows_whose_keys_are_all_hidden(mask, hide, parts):
    operands = arrays()

    def f(q, k, v, mask) -> Any:
        p = jax.nn.softmax(hide(jnp.einsum("btnh,bsnh->bnts", q, k), mask))
        return jnp.einsum("bnts,bsnh->btnh", p, v)

    parts_found = problems(f, *operands, mask)
    assert [[n for n in ("causal", "mask", "bias", "score") if getattr(x, n)] for x in parts_found] == [parts]
    pair: list[Any] = [jax_nano.accelerate(f), f]
    found, right = (g(*operands, mask) for g in pair)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)
    if "mask" in parts and not mask.any():
        return  # hidden scores have no gradient, which the program's have where something is added to them
    gradient = jax.grad(lambda *x: (pair[1](*x, mask) ** 2).sum(), (0, 1, 2))
    for a, b in zip(*(jax.jit(g)(*operands) for g in (jax_nano.accelerate(gradient), gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0)
