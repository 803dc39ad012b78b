"""Gradients of dot_product_attention with biases, masks and lengths, beside jax.nn's; and which are kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_options import KEYS, NN, OPTIONS, arrays, assert_gradients, loss

import jax_nano


@pytest.mark.parametrize("batch", [1, 2])
def test_vmap_of_the_gradient_of_a_bias(batch):
    q, k, v = (jnp.stack([x, -x])[:, :batch] for x in arrays())
    bias = jax.random.normal(KEYS[3], (1, 4, 70, 90))

    def gradient(f):
        def of(bias, q, k, v):
            return (f(q, k, v, bias) ** 2).sum()

        mapped = jax.vmap(jax.grad(of), (None, 0, 0, 0))(bias, q, k, v)
        return mapped, jax.vmap(jax.grad(of), (0, 0, None, None))(jnp.stack([bias, 2 * bias]), q, k[0], v[0])

    for a, b in zip(gradient(jax_nano.dot_product_attention), gradient(NN), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def gradient_names(attention, operands, options):
    """The kernels of gradients, and what else inspect says of attention."""
    places = tuple(range(len(operands)))
    reports = jax_nano.inspect(jax.grad(loss(attention, options), places), *operands)
    names = [report.kernel.name for report in reports if report.kernel]
    return [name for name in names if "gradient" in name]


@pytest.mark.parametrize("name", ["causal", "bias", "mask", "window", "lengths"])
def test_gradients_are_kernels(name):
    options = dict(OPTIONS[name])
    bias = [options.pop("bias")] if "bias" in options else []
    names = gradient_names(jax_nano.dot_product_attention, [*arrays(), *bias], options)
    assert [of for of in ("queries", "keys", "bias") if any(f"gradient_of_{of}" in x for x in names)] == [
        "queries", "keys", *(["bias"] if bias else []),
    ]  # fmt: skip


def test_gradients_of_all_but_the_bias():
    f = loss(jax_nano.dot_product_attention, OPTIONS["bias"]), loss(NN, OPTIONS["bias"])
    for a, b in zip(*(jax.jit(jax.grad(g, (0, 1, 2)))(*arrays()) for g in f), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)
    assert len(gradient_names(jax_nano.dot_product_attention, arrays(), OPTIONS["bias"])) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_queries_that_see_nothing(dtype):
    hidden = jnp.arange(70)[:, None] % 7 == 0
    mask = (jax.random.uniform(KEYS[4], (2, 1, 70, 90)) < 0.7) & ~hidden
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    assert_gradients(dtype, {"mask": mask, "is_causal": True}, tolerance, arrays(dtype))
    assert_gradients(dtype, {"mask": ~hidden[None, None]}, tolerance, arrays(dtype))


def test_gradients_by_blocks_where_kernels_are_turned_off(monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", 32)
    monkeypatch.setenv("JAX_NANO", "0")
    jax.clear_caches()
    for name in ("mask", "lengths", "bias"):
        assert_gradients(jnp.float32, OPTIONS[name], 1e-5, arrays())
    jax.clear_caches()


def test_the_gradient_of_a_bias_along_one_axis_goes_by_blocks():
    bias = jax.random.normal(KEYS[3], (2, 4, 1, 90))
    operands = [*arrays(), bias]
    step = jax.grad(loss(jax_nano.dot_product_attention, {}), (0, 1, 2, 3))
    reports = {report.equation: report for report in jax_nano.inspect(step, *operands)}
    (report,) = (report for equation, report in reports.items() if "gradients of bias" in equation)
    assert report.otherwise == "a scan over blocks"
    assert report.reason == "no kernel adds up gradients of scores to those of a bias [2, 4, 1, 90], but of 70 x 90"
    assert sum("gradient" in report.kernel.name for report in reports.values() if report.kernel) == 2


SQUARE = jax.random.uniform(KEYS[4], (2, 1, 100, 100))
FULL = 2, 4, 70, 90
VIEWS = {
    "lengths that are one number": lambda f, q, k, v: f(q, k, v, key_value_seq_lengths=jnp.full((2,), q.shape[1] - 30)),
    "a mask of keys, repeated": lambda f, q, k, v: f(q, k, v, mask=jnp.broadcast_to(SQUARE[0, 0, 0, :90] < 0.6, FULL)),
    "a mask, transposed": lambda f, q, k, v: f(q, k, v, mask=SQUARE[0, 0, :90, :70].T[None, None] < 0.6),
    "a part of a mask": lambda f, q, k, v: f(q, k, v, mask=(SQUARE < 0.6)[:, :, 10:80, 5:95]),
}  # fmt: skip


@pytest.mark.parametrize("f", VIEWS.values(), ids=VIEWS)
def test_masks_that_programs_make(f):
    def step(attention):
        return jax.jit(jax.grad(lambda *x: (f(attention, *x) ** 2).sum(), (0, 1, 2)))(*arrays())

    for a, b in zip(step(jax_nano.dot_product_attention), step(NN), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


BIASES = {
    "repeated": ((70, 90), lambda x: jnp.broadcast_to(x, (2, 4, 70, 90))),
    "transposed": ((70, 90, 4), lambda x: x.transpose(2, 0, 1)[None]),
    "a part": ((2, 1, 100, 100), lambda x: x[:, :, 10:80, 5:95]),
}


@pytest.mark.parametrize(("shape", "made"), BIASES.values(), ids=BIASES)
def test_biases_that_programs_make(shape, made):
    def step(attention):
        of = jax.grad(lambda *x: (attention(*x[:3], made(x[3])) ** 2).sum(), (0, 1, 2, 3))
        return jax.jit(of)(*arrays(), jax.random.normal(KEYS[3], shape))

    for a, b in zip(step(jax_nano.dot_product_attention), step(NN), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("name", ["mask", "lengths", "bias", "bias and mask"])
def test_second_derivatives(name):
    options = {key: x for part in name.split(" and ") for key, x in OPTIONS[part].items()}
    place = "bias" if "bias" in options else "query"
    q, k, v = arrays()
    moving = options.pop("bias", q)

    def step(attention):
        def of(x):
            out = attention(q, k, v, x, **options) if place == "bias" else attention(x, k, v, **options)
            return (out**2).sum()

        return jax.jit(jax.grad(lambda x: (jax.grad(of)(x) ** 2).sum()))(moving)

    found, right = step(jax_nano.dot_product_attention), step(NN)
    np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max(), rtol=0)


def test_residuals_of_biases_have_gradients():
    def step(attention):
        def of(*x):
            return sum((y**2).sum() for y in attention(*x, return_residual=True, mask=OPTIONS["mask"]["mask"]))

        return jax.jit(jax.grad(of, (0, 1, 2, 3)))(*arrays(), OPTIONS["bias"]["bias"])

    for a, b in zip(step(jax_nano.dot_product_attention), step(NN), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)
