"""jax_nano.dot_product_attention beside jax.nn's: results, types, errors, and what inspect says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention import assert_attention
from attention import exact as exact_attention
from attention_options import KEYS, NN, OPTIONS, arrays, assert_gradients
from oracle import kernels, primitives

import jax_nano

ORACLE: dict[str, str] = {"is_causal": "causal", "local_window_size": "window", "query_seq_lengths": "query_lengths",
          "key_value_seq_lengths": "key_lengths"}  # fmt: skip
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def of_oracle(options: dict[str, Any]) -> dict[str, Any]:
    """The options by the oracle's names."""
    named = {ORACLE.get(name, name): value for name, value in options.items()}
    if isinstance(named.get("window"), int):
        named["window"] = (named["window"],) * 2
    return {name: np.asarray(x) if isinstance(x, jax.Array) else x for name, x in named.items()}


@each_option
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_results(dtype, options):
    q, k, v = arrays(dtype)
    with kernels(1):
        out = jax_nano.dot_product_attention(q, k, v, **options)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert_attention(out, *map(np.asarray, (q, k, v)), **of_oracle(options))


@each_option
def test_residuals(options):
    ours, theirs = (f(*arrays(), return_residual=True, **options) for f in (jax_nano.dot_product_attention, NN))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_three_dimensions():
    q, k, v = (x[0] for x in arrays())
    out, residual = jax_nano.dot_product_attention(q, k, v, return_residual=True)
    assert out.shape == q.shape
    assert residual.shape == q.shape[:-1]
    np.testing.assert_allclose(out, NN(q, k, v), rtol=1e-5, atol=1e-5)


def test_arguments_of_numpy_and_within_jit():
    q, k, v = map(np.asarray, arrays())
    out = jax_nano.dot_product_attention(q, k, v, is_causal=True)
    inside = jax.jit(lambda *x: jax_nano.dot_product_attention(*x, is_causal=True))(q, k, v)
    np.testing.assert_array_equal(out, inside)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda q, k, v: (q, k, v[:, 1:]), {}),
        (lambda q, k, v: (q[..., 1:], k, v), {}),
        (lambda q, k, v: (q[:, :, :3], k, v), {}),
        (lambda q, k, v: (q.astype(jnp.bfloat16), k, v), {}),
        (lambda q, k, v: (q, k, v), {"mask": jnp.ones((2, 1, 70, 90))}),
        (lambda q, k, v: (q, k, v), {"query_seq_lengths": jnp.ones(2)}),
        (lambda q, k, v: (q, k, v), {"implementation": "other"}),
    ],
)
def test_errors_are_those_of_the_namesake(change, options):
    operands = change(*arrays())
    with pytest.raises(Exception) as theirs:  # noqa: PT011  whatever it is
        NN(*operands, **options)
    with pytest.raises(type(theirs.value)) as ours:
        jax_nano.dot_product_attention(*operands, **options)
    assert str(ours.value) == str(theirs.value)


def test_a_scale_that_is_computed_runs_as_the_namesake():
    q, k, v = arrays()
    f = jax.jit(lambda s: jax_nano.dot_product_attention(q, k, v, scale=s))
    np.testing.assert_allclose(f(0.3), NN(q, k, v, scale=0.3), rtol=1e-5, atol=1e-5)
    first, *_ = jax_nano.inspect(lambda s: jax_nano.dot_product_attention(q, k, v, scale=s), jnp.float32(0.3))
    assert first.ran_as == "its equations"
    assert first.reason == "its scale is computed at run time; multiply the queries by it, and give scale=1"


def test_what_has_no_kernel_runs_by_its_equations():
    bias = jnp.arange(90, dtype=jnp.int32)[None, None, None]
    reports = jax_nano.inspect(jax_nano.dot_product_attention, *arrays(), bias)
    assert reports[0].reason == "no kernel adds a bias of s32 to scores; convert it to f32"
    assert reports[0].ran_as == "its equations"
    out = jax_nano.dot_product_attention(*arrays(), bias=bias)
    np.testing.assert_allclose(out, NN(*arrays(), bias=bias), rtol=1e-5, atol=1e-5)


def test_inspect_shows_one_attention():
    (report,) = jax_nano.inspect(lambda *x: jax_nano.dot_product_attention(*x, is_causal=True), *arrays())
    assert report.ran_as == "kernel"
    text = str(report)
    for words in (
        "attention of f32[2, 70, 4, 16], f32[2, 90, 2, 16]", "nano_attention_f32_b2t70s90h4kv2d16_causal",
        "4 heads that share 2 of 16", "queries a task", "keys a block", "61 % of the scores are masked",
    ):  # fmt: skip
        assert words in text
    assert report.mlir and report.llvm_ir and report.assembly


def test_turned_off_it_is_the_namesake(monkeypatch):
    monkeypatch.setenv("JAX_NANO", "0")
    with kernels(0):
        out = jax_nano.dot_product_attention(*arrays())
    np.testing.assert_array_equal(out, NN(*arrays()))


def test_autotune_measures_attention():
    (tuned,) = jax_nano.autotune(jax_nano.dot_product_attention, *arrays())
    assert "attention_f32_b2t70s90h4kv2d16" in str(tuned)


SPELLINGS = [
    ({"scale": np.array(0.5)}, {"scale": 0.5}),
    ({"local_window_size": np.array([2, 1])}, {"local_window_size": (2, 1)}),
    ({"local_window_size": [2, 1]}, {"local_window_size": (2, 1)}),
    ({"is_causal": jnp.array(True)}, {"is_causal": True}),
    ({"is_causal": True, "local_window_size": 2**31 - 1}, {"is_causal": True}),
    ({"is_causal": True, "local_window_size": (2**31 - 1, -(2**30))}, {"local_window_size": (200, -200)}),
]


@pytest.mark.parametrize(("given", "meant"), SPELLINGS)
def test_options_as_the_namesake_takes_them(given, meant):
    with kernels(1):
        out = jax_nano.dot_product_attention(*arrays(), **given)
    np.testing.assert_allclose(out, NN(*arrays(), **meant), rtol=1e-5, atol=1e-5)


def test_nested_lists():
    q, k, v = (x[:, :3] for x in arrays())
    lists: list[Any] = [x.tolist() for x in (q, k, v)]
    out = jax_nano.dot_product_attention(*lists)
    np.testing.assert_allclose(out, NN(q, k, v), rtol=1e-5, atol=1e-5)


def test_a_bias_with_more_columns_than_keys_is_left_to_the_namesake():
    q, k, v = arrays(s=1)
    bias = jnp.arange(5.0)[None, None, None]
    np.testing.assert_allclose(jax_nano.dot_product_attention(q, k, v, bias), NN(q, k, v, bias), rtol=1e-5, atol=1e-5)
    first, *_ = jax_nano.inspect(jax_nano.dot_product_attention, q, k, v, bias)
    assert first.reason == "its bias of [1, 1, 1, 5] does not broadcast to scores of [2, 4, 70, 1]"


@pytest.mark.parametrize(("t", "s"), [(0, 9), (9, 0)])
def test_gradients_of_nothing_are_zero(t, s):
    operands = arrays(t=t, s=s)
    found = jax.grad(lambda *x: jax_nano.dot_product_attention(*x).sum(), (0, 1, 2))(*operands)
    for x, like in zip(found, operands, strict=True):
        np.testing.assert_array_equal(x, np.zeros_like(like))


# Derivatives and transformations.


@each_option
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_gradients(dtype, tolerance, options):
    assert_gradients(dtype, options, tolerance, arrays(dtype))


@pytest.mark.parametrize("name", ["nothing", "causal", "bias", "mask", "window", "lengths"])
def test_gradients_over_several_blocks(name, monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", 32)
    jax.clear_caches()
    assert_gradients(jnp.float32, OPTIONS[name], 1e-5, arrays())
    jax.clear_caches()


@pytest.mark.parametrize("window", [(4, -1), (-1, 3), (-3, -3), (5, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_windows_that_leave_queries_without_keys(causal, window, monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", 32)
    jax.clear_caches()
    assert_gradients(jnp.float32, {"local_window_size": window, "is_causal": causal}, 1e-5, arrays())
    jax.clear_caches()


@pytest.mark.parametrize("lowest", [-1e9, np.finfo(np.float32).min])
@pytest.mark.parametrize("name", ["nothing", "mask"])
def test_gradients_of_rows_that_a_bias_hides(name, lowest, monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", 32)
    jax.clear_caches()
    rows, columns = jnp.arange(70)[:, None], jnp.arange(90)
    bias = jnp.where((rows % 3 > 0) & (columns % 5 > 0), 0.0, lowest)[None, None]
    options = {"mask": OPTIONS["mask"]["mask"]} if name == "mask" else {}
    assert_gradients(jnp.float32, options, 1e-5, [*arrays(), bias])
    jax.clear_caches()


@pytest.mark.parametrize("shape", [(1, 1, 1, 90), (2, 4, 70, 90), (2, 1, 70, 90), (1, 4, 70, 90), (1, 1, 70, 90)])
def test_the_gradient_of_a_bias_has_its_shape(shape):
    assert_gradients(jnp.float32, {"bias": jax.random.normal(KEYS[3], shape)}, 1e-5, arrays())


def test_gradients_keep_no_scores():
    def f(*x):
        return (jax_nano.dot_product_attention(*x, is_causal=True) ** 2).sum()

    x = jnp.zeros((1, 4096, 1, 8))
    text = str(jax.make_jaxpr(jax.grad(f, (0, 1, 2)))(x, x, x))
    assert "4096,4096" not in text


@each_option
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tangents(dtype, options):
    operands = arrays(dtype)
    moving = [jax.random.normal(key, x.shape).astype(dtype) for key, x in zip(KEYS[1:], operands, strict=False)]

    def tangents(f):
        return jax.jit(lambda *x: jax.jvp(lambda *x: f(*x, **options), operands, list(x))[1])(*moving)

    ours, theirs = (np.asarray(tangents(f), np.float32) for f in (jax_nano.dot_product_attention, NN))
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


def test_tangents_of_a_bias():
    bias = jax.random.normal(KEYS[3], (1, 4, 70, 90))

    def moved(f):
        return jax.jvp(lambda bias: f(*arrays(), bias=bias), (bias,), (jnp.cos(bias),))[1]

    np.testing.assert_allclose(moved(jax_nano.dot_product_attention), moved(NN), atol=1e-5, rtol=0)


def test_tangents_keep_no_scores():
    def moved(*x):
        return jax.jvp(lambda *x: jax_nano.dot_product_attention(*x, is_causal=True), x, x)[1]

    x = jnp.zeros((1, 4096, 1, 8))
    assert "4096x4096" not in jax.jit(moved).lower(x, x, x).as_text()


def test_jvp_and_second_derivatives():
    q, k, v = arrays()

    def f(attention):
        return lambda q: attention(q, k, v, is_causal=True).sum(axis=-1)

    ours, theirs = (jax.jvp(f(g), (q,), (q * 2,)) for g in (jax_nano.dot_product_attention, NN))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def second(g):
        return jax.grad(lambda q: (jax.grad(lambda q: (f(g)(q) ** 2).sum())(q) ** 2).sum())(q)

    a, b = second(jax_nano.dot_product_attention), second(NN)
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("axes", [(0, 0, 0), (2, None, 1), (None, 0, 0), (4, 4, 4)])
@pytest.mark.parametrize("name", ["causal", "bias", "lengths"])
def test_vmap(name, axes):
    options = OPTIONS[name]
    operands = [x if a is None else jnp.stack([x, 2 * x, -x], a) for x, a in zip(arrays(), axes, strict=True)]

    def mapped(f):
        return jax.vmap(lambda *x: f(*x, **options), axes)(*operands)

    with kernels(1):
        out = mapped(jax_nano.dot_product_attention)
    np.testing.assert_allclose(out, mapped(NN), rtol=1e-4, atol=1e-5)


def test_vmap_of_a_bias_and_of_a_gradient():
    q, k, v = arrays()
    biases = jnp.stack([OPTIONS["bias"]["bias"]] * 2) * jnp.array([1, 2], jnp.float32)[:, None, None, None, None]

    def gradient(f):
        def of(q, bias):
            return (f(q, k, v, bias) ** 2).sum()

        return jax.vmap(jax.grad(of, (0, 1)), (None, 0))(q, biases)

    for a, b in zip(gradient(jax_nano.dot_product_attention), gradient(NN), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_remat_and_scan():
    q, k, v = arrays()

    def f(attention):
        def step(x, _):
            return jax.checkpoint(lambda x: attention(x, k, v, is_causal=True))(x), None

        return jax.jit(jax.grad(lambda q: (jax.lax.scan(step, q, None, length=3)[0] ** 2).sum()))(q)

    a, b = f(jax_nano.dot_product_attention), f(NN)
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_shard_map_runs_a_kernel_on_each_shard():
    mesh = jax.make_mesh((2,), ("x",))
    spec = jax.sharding.PartitionSpec("x")
    q, k, v = (jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in arrays())
    sharded = jax.jit(jax.shard_map(jax_nano.dot_product_attention, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec))
    with kernels(2):
        out = sharded(q, k, v)
    np.testing.assert_allclose(out, NN(q, k, v), rtol=1e-5, atol=1e-5)


def test_it_is_one_equation():
    jaxpr = jax.make_jaxpr(jax_nano.dot_product_attention)(*arrays())
    assert [name for name in primitives(jaxpr.jaxpr) if "nano" in name] == ["nano_attention"]


def test_x64():
    with jax.enable_x64(new_val=True):
        q, k, v = (jax.random.normal(key, (2, 33, 4, 16), jnp.float64) for key in KEYS[:3])
        out = jax_nano.dot_product_attention(q, k, v, is_causal=True)
        assert_attention(out, *map(np.asarray, (q, k, v)), causal=True)
        gradient = jax.grad(lambda q: (jax_nano.dot_product_attention(q, k, v, is_causal=True) ** 2).sum())(q)
        right, _, _ = exact_attention(q, k, v, causal=True)
        assert gradient.dtype == jnp.float64
        assert right.shape == gradient.shape
