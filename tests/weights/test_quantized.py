"""Quantized weights: how far they are from what they stand for, and products of them, in the integers' own memory."""

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import kernels, normal, wide
from quantized import EPS, assert_product, exact, of_rows, weight

import jax_nano

# A weight is an array to JAX's functions, but not to their annotations.
quantize: Callable[..., Any] = jax_nano.quantize
BITS, GROUPS, SYMMETRIC = (8, 4), (None, 32, 64, 128), (True, False)
OPTIONS = [
    {"bits": bits, "group": group, "symmetric": symmetric}
    for bits, group, symmetric in itertools.product(BITS, GROUPS, SYMMETRIC)
]
CASES = [  # (M, K, N), and the types of A and B
    ((1, 300, 130), jnp.bfloat16, jnp.bfloat16),
    ((1, 65, 17), jnp.float32, jnp.float32),
    ((3, 128, 16), jnp.bfloat16, jnp.float32),
    ((5, 31, 40), jnp.float16, jnp.float16),
    ((21, 129, 50), jnp.bfloat16, jnp.bfloat16),
    ((40, 200, 70), jnp.float32, jnp.float32),
    ((2, 999, 1100), jnp.bfloat16, jnp.bfloat16),  # streamed
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))


def fused(f, *args):
    """What runs in the kernels of a program, product by product."""
    return [report.fused for report in jax_nano.inspect(jax_nano.accelerate(f), *args)]


@every_option
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 7), (129, 16), (2, 33, 4)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_no_weight_moves_by_more_than_half_a_scale(options, shape, dtype):
    w = weight(*shape, dtype=dtype)
    q = quantize(w, **options)
    assert (q.shape, q.dtype, q.ndim) == (w.shape, w.dtype, w.ndim)
    assert np.all(np.abs(exact(q) - wide(w)) <= of_rows(q.scales, q) * 0.5 * (1 + 2**-10))


@every_option
def test_dequantizing_rounds_what_integers_stand_for(options):
    q = quantize(weight(2, 100, 5), **options)
    np.testing.assert_allclose(wide(q.dequantize()), exact(q), rtol=EPS)


@every_option
def test_zeros_stay_zeros(options):
    w = weight(70, 6).at[3:9].set(0).at[:, 2].set(0)
    assert np.all(wide(quantize(w, **options).dequantize())[wide(w) == 0] == 0)


@pytest.mark.parametrize(("bits", "share"), [(8, 1), (4, 0.5)])
def test_integers_take_their_bits(bits, share):
    assert quantize(weight(64, 256), bits=bits).nbytes == share * 64 * 256 + 4 * 256


@every_option
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join([str(case[0]), *(np.dtype(x).name for x in case[1:])])
)
def test_products_read_the_integers(options, case):
    (m, k, n), lhs, rhs = case
    x, w, b = jnp.asarray(normal(m, k), lhs), weight(k, n, dtype=rhs), weight(n)
    q = quantize(w, **options)
    with kernels(1):
        result = jax.jit(jax_nano.accelerate(lambda x, q, b: jnp.matmul(x, q, preferred_element_type=jnp.float32) + b))(
            x, q, b
        )
    assert_product(result, x, q, [b])
    assert "nano_dequantize" in fused(lambda x, q: x @ q, x, q)[0]


@every_option
def test_products_of_another_target(options, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "avx2")
    for m, dtype in ((1, jnp.float32), (20, jnp.bfloat16)):
        x, q = jnp.asarray(normal(m, 130), dtype), quantize(weight(130, 40, dtype=dtype), **options)
        with kernels(1):
            assert_product(jax_nano.matmul(x, q), x, q)


PRODUCTS = {
    "matmul": jax_nano.matmul,
    "dot": jax_nano.dot,
    "dot_general": lambda x, w: jax_nano.dot_general(x, w, (((1,), (0,)), ((), ()))),
    "einsum": lambda x, w: jax_nano.einsum("mk,kn->mn", x, w),
    "tensordot": lambda x, w: jax_nano.tensordot(x, w, 1),
    "operator": jax_nano.accelerate(lambda x, w: x @ w),
    "jnp": jax_nano.accelerate(jnp.matmul),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("options", [{}, {"bits": 4, "group": 32}], ids=str)
def test_every_product_takes_weights(name, options):
    x, q = normal(3, 64), quantize(weight(64, 20), **options)
    for product in (PRODUCTS[name], jax.jit(PRODUCTS[name])):
        with kernels(1):
            assert_product(product(x, q), x, q)


@pytest.mark.parametrize("options", [{}, {"bits": 4, "group": 32, "symmetric": False}], ids=str)
def test_other_functions_take_the_array(options):
    x, q = normal(20, 64), quantize(weight(64, 20), **options)
    np.testing.assert_allclose(wide(jnp.sin(q)), np.sin(exact(q)), atol=1e-5)
    np.testing.assert_allclose(wide(x @ q), wide(x) @ exact(q), atol=1e-3)
    np.testing.assert_allclose(wide(q @ x), exact(q) @ wide(x), atol=1e-3)
    with kernels(2):  # along other dimensions than its rows
        np.testing.assert_allclose(wide(jax_nano.matmul(x.T, q.T)), wide(x).T @ exact(q).T, atol=1e-3)
        np.testing.assert_allclose(wide(jax_nano.matmul(q, x)), exact(q) @ wide(x), atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"group": 32}, {"bits": 4}, {"bits": 4, "group": 64}], ids=str)
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)], ids=str)
def test_heads_that_are_apart_in_memory_are_summed_in_the_order_of_the_rows(options, order):
    """Attention's result, whose heads have rows of their own, times the weight that mixes them."""
    shape = (3, 5, 64) if order == (1, 0, 2) else (64, 3, 5)
    x, q = jnp.asarray(normal(*shape), jnp.bfloat16), quantize(weight(192, 40, dtype=jnp.bfloat16), **options)
    with kernels(1):
        result = jax.jit(jax_nano.accelerate(lambda x, q: x.transpose(order).reshape(5, 192) @ q))(x, q)
    assert_product(result, x.transpose(order).reshape(5, 192), q)


@pytest.mark.parametrize(
    "options", [{}, {"bits": 4}, {"group": 32, "symmetric": False}, {"bits": 4, "group": 32}], ids=str
)
def test_transformations(options):
    x, w = normal(4, 3, 70), weight(4, 70, 24)
    q = quantize(w, **options)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], q) for i in range(4)]
    product = jax_nano.matmul
    with kernels(1):
        assert_product(jax.jit(product)(x, q), x, q)
    with kernels(1):
        assert_product(jax.jit(jax.vmap(product))(x, q), x, q)
    with kernels(1):
        assert_product(jax.jit(jax.vmap(product, (0, None)))(x, each[1]), x, each[1])
    with kernels(4):
        _, results = jax.jit(lambda x, q: jax.lax.scan(lambda _, pair: (None, product(*pair)), None, (x, q)))(x, q)
    for actual, x_i, q_i in zip(results, x, each, strict=True):
        assert_product(actual, x_i, q_i)


@every_option
@pytest.mark.parametrize("k", [5, 70])
def test_a_row_for_all_of_a_stack_of_weights(options, k):
    x, q = normal(3, k), quantize(weight(4, k, 20), **options)
    for product in (jax_nano.matmul, jax.vmap(jax_nano.matmul, (None, 0)), jax_nano.accelerate(jnp.matmul)):
        with kernels(1):
            assert_product(product(x, q), x, q)


@every_option
def test_derivatives_with_respect_to_the_other_operand(options):
    x, t, q = normal(3, 70), normal(3, 20, seed=2), quantize(weight(70, 20), **options)
    for f in (jax_nano.matmul, jax_nano.accelerate(lambda x, q: x @ q), jax.jit(jax_nano.matmul)):
        np.testing.assert_allclose(wide(jax.vjp(lambda x: f(x, q), x)[1](t)[0]), wide(t) @ exact(q).T, atol=1e-3)  # noqa: B023
        np.testing.assert_allclose(wide(jax.jvp(lambda x: f(x, q), [x], [x])[1]), wide(x) @ exact(q), atol=1e-3)  # noqa: B023


def test_weights_are_equal_to_themselves_alone():
    q, same = quantize(weight(3, 4)), quantize(weight(3, 4))
    assert {q: "found"}[q] == "found"
    assert q != same


def test_weights_have_no_derivative():
    x, q = normal(3, 70), quantize(weight(70, 20))
    with pytest.raises(TypeError) as error:
        jax.vjp(jax_nano.matmul, x, q)
    assert str(error.value) == (
        "a QuantizedWeight has no derivative: its integers do not change by small steps; differentiate with respect to "
        "the array that its dequantize() gives, and quantize the outcome"
    )


@every_option
def test_weights_are_pytrees_that_can_be_kept(options, tmp_path):
    q = quantize(weight(40, 8), **options)
    path = tmp_path / "weight"
    path.write_bytes(pickle.dumps(q))
    for same in (
        pickle.loads(path.read_bytes()),
        jax.device_put(q),
        jax.tree.map(lambda leaf: leaf, q),
        jax.jit(lambda q: q)(q),
    ):
        assert jax.tree.structure(same) == jax.tree.structure(q)
        assert np.array_equal(same.dequantize(), q.dequantize())


ROUNDED = [*OPTIONS, {"activations": "int8"}, {"bits": 4, "activations": "int8"}]


@pytest.mark.parametrize("options", ROUNDED, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_errors_are_within_what_is_stated(options, dtype):
    x, w = jnp.asarray(normal(5, 200), dtype), weight(200, 30, dtype=dtype)
    q = quantize(w, **options)
    with kernels(1):
        result = jax_nano.matmul(x, q)
    error, bound = np.abs(wide(result) - wide(x) @ wide(w)), wide(jax_nano.quantization_error(x, q, dtype))
    assert np.all(error <= bound)
    assert np.all(bound <= 40 * error.max())


REFUSALS = [
    (
        (TypeError, jnp.ones((3, 4), int), {}),
        "a weight of int32 cannot be quantized; convert it to bfloat16, float16 or float32",
    ),
    *(
        (
            (ValueError, jnp.ones(shape), {"group": 32}),
            f"a weight of the shape {shape} cannot be quantized; its last two dimensions have to be (K, N)",
        )
        for shape in ((3,), (0, 4), (4, 0), (0, 3, 4))
    ),
    ((ValueError, jnp.ones((3, 4)), {"bits": 5}), "bits=5: weights are quantized to 8 or 4 bits"),
    ((ValueError, jnp.ones((3, 4)), {"group": 5}), "group=5: 32, 64, 128 rows share a scale, or all of them: None"),
    (
        (ValueError, jnp.ones((3, 4)), {"activations": "int4"}),
        "activations='int4': they stay as they are (None) or are quantized to \"int8\"",
    ),
    (
        (ValueError, jnp.ones((3, 4)), {"activations": "int8", "group": 32}),
        'activations="int8" goes with one scale for a column: group=None and symmetric=True',
    ),
]


@pytest.mark.parametrize(("asked", "text"), REFUSALS, ids=[text.split(":")[0] for _, text in REFUSALS])
def test_refusals(asked, text):
    error, w, options = asked
    with pytest.raises(error) as caught:
        quantize(w, **options)
    assert str(caught.value) == text
