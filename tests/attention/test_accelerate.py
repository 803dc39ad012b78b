"""Attention that accelerate finds, as jax.nn writes it and by hand, and what it leaves alone."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from attention import assert_attention
from oracle import kernels

import jax_nano

NN: Any = jax.nn.dot_product_attention
KEYS = jax.random.split(jax.random.key(0), 5)
BIAS = jax.random.normal(KEYS[3], (1, 4, 70, 90))
MASK = jax.random.uniform(KEYS[4], (2, 1, 70, 90)) < 0.5
LENGTHS = jnp.array([50, 90], np.int32)
TYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def arrays(dtype=jnp.float32, kv=2):
    shapes = (2, 70, 4, 16), (2, 90, kv, 16), (2, 90, kv, 16)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(KEYS, shapes, strict=False)]


def one_attention(f, *operands):
    """The report of the only product of a program."""
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *operands)
    assert report.kernel and "attention" in report.kernel.name
    return report


NAMESAKE = {
    "nothing": ({}, {}),
    "causal": ({"is_causal": True}, {"causal": True}),
    "window": ({"local_window_size": (7, 3)}, {"window": (7, 3)}),
    "causal window": ({"local_window_size": (7, 3), "is_causal": True}, {"causal": True, "window": (7, 3)}),
    "bias": ({"bias": BIAS}, {"bias": np.asarray(BIAS)}),
    "mask": ({"mask": MASK, "scale": 0.5}, {"mask": np.asarray(MASK), "scale": 0.5}),
    "lengths": ({"key_value_seq_lengths": LENGTHS}, {"key_lengths": np.asarray(LENGTHS)}),
    "query lengths": (
        {"key_value_seq_lengths": LENGTHS, "query_seq_lengths": LENGTHS - 30, "is_causal": True},
        {"key_lengths": np.asarray(LENGTHS), "query_lengths": np.asarray(LENGTHS - 30), "causal": True},
    ),
}


@TYPES
@pytest.mark.parametrize("options", NAMESAKE.values(), ids=NAMESAKE)
def test_as_jax_nn_writes_it(options, dtype):
    theirs, named = options
    operands = arrays(dtype)

    def f(*x):
        return NN(*x, **theirs)

    with kernels(1):
        out = jax.jit(jax_nano.accelerate(f))(*operands)
    assert_attention(out, *map(np.asarray, operands), **named)


@pytest.mark.parametrize("name", ["causal", "window", "lengths"])
def test_masks_are_read_by_what_they_mean(name):
    theirs, named = NAMESAKE[name]
    problem = one_attention(lambda *x: NN(*x, **theirs), *arrays()).problem
    assert problem.mask is None
    assert problem.causal == named.get("causal", False)
    if jax.__version_info__ >= (0, 12):  # before, a constant of a program is one of its arguments to a pass
        assert problem.window == named.get("window")
    assert problem.key_lengths == ("key_lengths" in named)


def by_hand(q, k, v):
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(16)
    scores = jnp.where(jnp.tril(jnp.ones((70, 90), bool)), scores, jnp.finfo(scores.dtype).min)
    p = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(v.dtype)
    return jnp.einsum("bnts,bsnh->btnh", p, v)


def without_softmax(q, k, v):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    i, j = jnp.arange(70)[:, None], jnp.arange(90)[None]
    scores = (q @ k.mT) * 0.25 + jnp.where(j > i, -1e9, 0.0)
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    return ((e / e.sum(-1, keepdims=True)).astype(v.dtype) @ v).swapaxes(1, 2)


def exchanged(q, k, v):
    scores = jnp.einsum("bsnh,btnh->btns", k, q * 0.25)
    scores = jnp.where(jnp.arange(70)[:, None] < jnp.arange(90), -1e30, scores.swapaxes(1, 2))
    return jnp.einsum("bsnh,bnts->btnh", v, jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype))


def heads_mapped(q, k, v):
    def one(q, k, v):
        scores = jnp.where(jnp.arange(70)[:, None] >= jnp.arange(90), q @ k.T / 4, -1e30)
        return jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype) @ v

    return jax.vmap(jax.vmap(one, (1, 1, 1), 1))(q, k, v)


@TYPES
@pytest.mark.parametrize("f", [by_hand, without_softmax, exchanged, heads_mapped, jax.jit(by_hand)])
def test_by_hand(f, dtype):
    operands = arrays(dtype, kv=4)
    report = one_attention(f, *operands)
    assert report.problem.causal
    assert report.problem.mask is None
    out = jax.jit(jax_nano.accelerate(f))(*operands)
    # The scores of bf16 programs are rounded, which ours are not.
    exact = f(*(x.astype(jnp.float32) for x in operands))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=tolerance, rtol=tolerance)


def test_one_head_without_batch():
    q, k, v = (x[0, :, 0] for x in arrays())

    def f(q, k, v):
        return jax.nn.softmax(q @ k.T) @ v

    one_attention(f, q, k, v)
    np.testing.assert_allclose(jax_nano.accelerate(f)(q, k, v), f(q, k, v), rtol=1e-5, atol=1e-5)


def test_the_last_visible_key_as_a_decoder_has_it():
    q, k, v = arrays()

    def f(q, k, v, place):
        mask = (jnp.arange(90) <= place)[None, None, None]
        return NN(q[:, :1], k, v, mask=mask)

    report = one_attention(f, q, k, v, jnp.int32(40))
    assert report.problem.key_lengths
    assert report.problem.mask is None
    for place in (40, 2**31 - 1, -1):
        np.testing.assert_allclose(jax_nano.accelerate(f)(q, k, v, place), f(q, k, v, place), rtol=1e-5, atol=1e-5)


def dropout(q, k, v):
    p = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k))
    return jnp.einsum("bnts,bsnh->btnh", jnp.where(jax.random.bernoulli(KEYS[0], 0.5, p.shape), p, 0), v)


def residual(q, k, v):
    p = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k))
    return jnp.einsum("bnts,bsnh->btnh", p, v), p


def over_queries(q, k, v):
    p = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k), axis=2)
    return jnp.einsum("bnts,bsnh->btnh", p, v)


def summed_on(q, k, v):
    p = jax.nn.softmax(jnp.cumsum(jnp.einsum("btnh,bsnh->bnts", q, k), axis=-1))
    return jnp.einsum("bnts,bsnh->btnh", p, v)


REASONS = {
    dropout: None,
    residual: "what div makes is used by the caller as well",
    over_queries: "the softmax is over another axis than the second product's sum",
    summed_on: "no product makes its scores, or what is done to them is not elementwise",
}


@pytest.mark.parametrize("f", REASONS, ids=lambda f: f.__name__)
def test_what_is_left_alone(f):
    operands = arrays(kv=4)
    reports = jax_nano.inspect(jax_nano.accelerate(f), *operands)
    assert not any(report.kernel and "attention" in report.kernel.name for report in reports)
    assert REASONS[f] is None or REASONS[f] in [report.reason for report in reports]
    for a, b in zip(*(jax.tree.leaves(g(*operands)) for g in (jax_nano.accelerate(f), f)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_derivatives_and_maps_of_accelerated_attention():
    operands = arrays(kv=4)

    def loss(f):
        return lambda *x: (f(*x) ** 2).sum()

    found, right = (jax.grad(loss(f), (0, 1, 2))(*operands) for f in (jax_nano.accelerate(by_hand), by_hand))
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)
    q, k, v = operands
    mapped = [jax.vmap(f, (0, None, None))(jnp.stack([q, -q]), k, v) for f in (jax_nano.accelerate(by_hand), by_hand)]
    np.testing.assert_allclose(*mapped, rtol=1e-5, atol=1e-5)


def gradient_of(f):
    """Differentiated before it is accelerated: as in a training step."""
    return jax.grad(lambda *x: (f(*x).astype(jnp.float32) ** 2 * jnp.arange(70)[:, None, None]).sum(), (0, 1, 2))


GRADIENTS = {
    "nothing": NN,
    "causal": lambda *x: NN(*x, is_causal=True),
    "mask": lambda *x: NN(*x, mask=MASK),
    "bias": lambda *x: NN(*x, BIAS),
    "lengths": lambda *x: NN(*x, key_value_seq_lengths=LENGTHS),
    "by hand": lambda q, k, v: by_hand(q, *(jnp.repeat(x, 2, 2) for x in (k, v))),
    "without softmax": lambda q, k, v: without_softmax(q, *(jnp.repeat(x, 2, 2) for x in (k, v))),
}


def assert_same_gradients(g, operands, dtype):
    """Those of an accelerated program are plain JAX's, to rounding of their largest element."""
    found, right = (jax.jit(h)(*operands) for h in (jax_nano.accelerate(g), g))
    for a, b in zip(found, right, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        exact, tolerance = np.asarray(b, np.float64), 1e-5 if dtype == jnp.float32 else 4e-2
        np.testing.assert_allclose(np.asarray(a, np.float64), exact, atol=tolerance * np.abs(exact).max(), rtol=0)


@TYPES
@pytest.mark.parametrize("f", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("kv", [2])
def test_programs_that_were_differentiated_before(f, kv, dtype):
    operands = arrays(dtype, kv)
    g = gradient_of(f)
    reports = jax_nano.inspect(jax_nano.accelerate(g), *operands)
    names = [report.kernel.name for report in reports if report.kernel]
    assert sum("attention" in name and "gradient" not in name for name in names) == 1, reports
    assert not any("m70n90" in report.reason for report in reports)
    assert_same_gradients(g, operands, dtype)


def test_some_gradients_alone():
    operands = arrays(kv=4)

    def f(k):
        return (by_hand(operands[0], k, operands[2]) ** 2).sum()

    a, b = (jax.jit(h)(operands[1]) for h in (jax_nano.accelerate(jax.grad(f)), jax.grad(f)))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


BIASED = {
    "jax.nn": NN,
    "causal": lambda *x: NN(*x, is_causal=True),
    "mask": lambda *x: NN(*x, mask=MASK),
    "by hand": lambda q, k, v, bias: jnp.einsum(
        "bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 4 + bias), v
    ),
}


def gradients_of(names):
    return [of for of in ("queries", "keys", "bias") if any(f"gradient_of_{of}" in name for name in names)]


@TYPES
@pytest.mark.parametrize("f", BIASED.values(), ids=BIASED)
@pytest.mark.parametrize("shape", [(1, 4, 70, 90), (2, 4, 70, 90), (2, 1, 70, 90), (1, 1, 70, 90)])
def test_programs_whose_bias_has_a_gradient(shape, f, dtype):
    operands = *arrays(dtype, 4), jax.random.normal(KEYS[4], shape).astype(dtype)
    g = jax.grad(lambda *x: (f(*x).astype(jnp.float32) ** 2 * jnp.arange(70)[:, None, None]).sum(), (0, 1, 2, 3))
    reports = jax_nano.inspect(jax_nano.accelerate(g), *operands)
    names = [report.kernel.name for report in reports if report.kernel]
    assert gradients_of(names) == ["queries", "keys", "bias"], reports
    assert_same_gradients(g, operands, dtype)


def test_the_gradient_of_a_bias_alone():
    operands = arrays(kv=4)

    def f(bias):
        return (NN(*operands, bias) ** 2).sum()

    step = jax.grad(f)
    names = [x.kernel.name for x in jax_nano.inspect(jax_nano.accelerate(step), BIAS) if x.kernel]
    assert gradients_of(names) == ["bias"]
    a, b = (jax.jit(h)(BIAS) for h in (jax_nano.accelerate(step), step))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_a_training_step_with_a_table_of_biases():
    operands, table = arrays(kv=4), jax.random.normal(KEYS[3], (200, 4))
    places = jnp.arange(90)[None] - jnp.arange(70)[:, None] + 100

    def step(table, *x):
        def loss(table, *x):
            return (NN(*x, table[places].transpose(2, 0, 1)[None]) ** 2).sum()

        value, gradients = jax.value_and_grad(loss, (0, 1, 2, 3))(table, *x)
        return value, *(y - 0.1 * g for y, g in zip((table, *x), gradients, strict=True))

    names = [x.kernel.name for x in jax_nano.inspect(jax_nano.accelerate(step), table, *operands) if x.kernel]
    assert gradients_of(names) == ["queries", "keys", "bias"]
    for a, b in zip(*(jax.jit(h)(table, *operands) for h in (jax_nano.accelerate(step), step)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("shape", [(2, 4, 1, 90), (2, 1, 70, 1)])
def test_biases_along_one_axis_are_left_to_products(shape):
    bias = jax.random.normal(KEYS[3], shape)
    g = jax.grad(lambda *x: (NN(*x) ** 2).sum(), (0, 1, 2, 3))
    for a, b in zip(*(jax.jit(h)(*arrays(kv=4), bias) for h in (jax_nano.accelerate(g), g)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-4, rtol=0)


def test_in_a_scan_with_remat():
    q, k, v = arrays(kv=4)

    def f(q):
        step = jax.checkpoint(lambda x, _: (by_hand(x, k, v), None))
        return jax.lax.scan(step, q, None, length=2)[0]

    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(q), f(q), rtol=1e-5, atol=1e-5)


def test_what_takes_less_time_than_a_call_is_left_alone():
    x = jax.random.normal(KEYS[0], (4, 4))

    def f(x):
        return jax.lax.scan(lambda x, _: (jax.nn.softmax(x @ x.T) @ x, None), x, None, length=5)[0]

    reports = jax_nano.inspect(jax_nano.accelerate(f), x)
    assert not any(report.kernel and "attention" in report.kernel.name for report in reports)
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(x), f(x), rtol=1e-5, atol=1e-5)


def test_operands_that_are_parts_of_one_array():
    q, w = arrays()[0], jax.random.normal(KEYS[3], (16, 48))

    def f(x):
        q, k, v = jnp.split(x @ w, 3, axis=-1)
        return NN(q, k, v, is_causal=True)

    names = [report.kernel.name for report in jax_nano.inspect(jax_nano.accelerate(f), q) if report.kernel]
    assert sum("attention" in name for name in names) == 1
    np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(q), f(q), rtol=1e-4, atol=1e-4)


def test_symbolic_sizes_are_left_alone():
    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((2, n, 4, 16), jnp.float32)
    exported = jax.export.export(jax.jit(jax_nano.accelerate(NN)))(shape, shape, shape)
    q, _, _ = arrays()
    np.testing.assert_allclose(exported.call(q, q, q), NN(q, q, q), rtol=1e-5, atol=1e-5)
