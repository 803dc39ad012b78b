"""Packed and quantized experts: grouped products read them as they are kept, expert by expert at a stride."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import bounds, fused_kernel, run_fused
from jax import lax
from oracle import kernels, normal, wide
from quantized import EPS, exact

import jax_nano
from jax_nano.machine import host
from jax_nano.schedule.grouped.choose import choose_grouped

pack: Any = jax_nano.pack
quantize: Any = jax_nano.quantize
OPTIONS = [
    {}, {"bits": 4}, {"group": 32}, {"bits": 4, "group": 32}, {"symmetric": False},
    {"bits": 4, "group": 64, "symmetric": False},
]  # fmt: skip
FILLED = {"few": [3, 0, 17, 1], "many": [0, 70, 25, 0], "too_few": [4, 20, 0, 6], "none": [0, 0, 0, 0]}
each_filling = pytest.mark.parametrize("sizes", FILLED.values(), ids=FILLED)
each_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])


def operands(sizes, dtype=jnp.float32, k=70, n=45):
    weight = jnp.asarray(normal(4, k, n, seed=1), dtype)
    return jnp.asarray(normal(95, k), dtype), weight, jnp.asarray(sizes, jnp.int32)


def product(x, w, sizes):
    return lax.ragged_dot(x, jnp.asarray(w), sizes, preferred_element_type=jnp.float32)


def assert_groups(actual, x, matrices, sizes):
    """|actual - x @ w| <= (K + 3) eps |x| |w| + ulp / 2 in each group; zeros behind all groups."""
    result, magnitude = np.zeros(actual.shape), np.zeros(actual.shape)
    for (i, j), w in zip(bounds(sizes, len(x)), matrices, strict=True):
        result[i:j], magnitude[i:j] = wide(x[i:j]) @ w, np.abs(wide(x[i:j])) @ np.abs(w)
    bound = (x.shape[1] + 3) * EPS * magnitude + float(jnp.finfo(actual.dtype).eps) / 2 * np.abs(result)
    assert np.all(np.abs(wide(actual) - result) <= bound)


@each_filling
@each_dtype
def test_panels_are_read(dtype, sizes):
    x, w, sizes = operands(sizes, dtype)
    problem, _ = fused_kernel(product, x, pack(w), sizes)
    assert problem.dot.panels.matrices == 4
    assert_groups(run_fused(product, x, pack(w), sizes).reshape(-1, 45), x, wide(w), sizes)


@each_filling
@each_dtype
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_integers_are_read(options, dtype, sizes):
    x, w, sizes = operands(sizes, dtype)
    small = quantize(w, **options)
    problem, _ = fused_kernel(product, x, small, sizes)
    assert problem.dot.rhs in ("s8", "u8", "s4x8", "u4x8")
    assert_groups(run_fused(product, x, small, sizes).reshape(-1, 45), x, exact(small), sizes)


@pytest.mark.parametrize("weight", [pack, quantize, lambda w: quantize(w, bits=4, group=32)], ids=["p", "q8", "q4"])
def test_one_kernel_without_and_within_accelerate(weight):
    x, w, sizes = operands([10, 0, 20, 3])
    small = weight(w)
    expected = lax.ragged_dot(x, small.__jax_array__(), sizes)
    for f in (jax_nano.ragged_dot, jax_nano.accelerate(lambda x, w, g: lax.ragged_dot(x, w.__jax_array__(), g))):
        with kernels(1):
            result = jax.jit(f)(x, small, sizes)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "weight", [lambda w: w, quantize, lambda w: quantize(w, bits=4, group=64)], ids=["w", "8", "4"]
)
def test_large_experts_of_one_row_are_streamed(weight):
    sizes = jnp.array([1, 0, 1, 0, 5, 1], jnp.int32)
    x = jnp.asarray(normal(9, 771), jnp.bfloat16)
    small = weight(jnp.asarray(normal(6, 771, 1500, seed=1), jnp.bfloat16))
    problem, _ = fused_kernel(product, x, small, sizes)
    plan = choose_grouped(problem, host.machine(), host.target(host.machine()))
    assert plan.one
    assert plan.one.streamed or host.machine().l2.bytes > 4 << 20
    matrices = exact(small) if isinstance(small, jax_nano.QuantizedWeight) else wide(small)
    assert_groups(run_fused(product, x, small, sizes).reshape(9, 1500), x, matrices, sizes)


def test_experts_by_columns_are_read_as_they_lie():
    x, w, sizes = operands([10, 0, 20, 3], k=64, n=48)
    packed = pack(w)
    numbers = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
    f = lambda x, w, g: jax_nano.ragged_dot_general(x, jnp.swapaxes(w.__jax_array__(), 1, 2), g, numbers)  # noqa: E731
    np.testing.assert_allclose(
        jax_nano.accelerate(f)(x, packed, sizes), lax.ragged_dot(x, w, sizes), rtol=1e-4, atol=1e-4
    )


def test_what_is_not_packed_for_this_layout_is_unpacked():
    """Sums along the columns of the packed matrices are not by panels."""
    x, w, sizes = operands([10, 0, 20, 3], k=48, n=48)
    numbers = lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
    for weight in (pack(w), quantize(w, bits=4)):
        expected = lax.ragged_dot_general(x, weight.__jax_array__(), sizes, numbers)
        result = jax_nano.ragged_dot_general(x, weight, sizes, numbers)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_rows_pass_through_weights():
    x, w, sizes = operands([10, 0, 20, 3])
    for small in (pack(w), quantize(w)):
        array = small.__jax_array__()
        expected = jax.grad(lambda x, w=array: jnp.sum(jnp.sin(lax.ragged_dot(x, w, sizes))))(x)
        actual = jax.grad(lambda x, w=small: jnp.sum(jnp.sin(jax_nano.ragged_dot(x, w, sizes))))(x)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@each_filling
@each_dtype
def test_activations_are_rounded_row_by_row(dtype, sizes):
    x, w, sizes = operands(sizes, dtype)
    small = quantize(w, activations="int8")
    largest = np.abs(wide(x)).max(1, keepdims=True) / 127
    rounded = np.round(wide(x) / largest)
    with kernels(1):
        result = jax.block_until_ready(jax.jit(jax_nano.ragged_dot)(x, small, sizes))
    for (i, j), matrix in zip(bounds(sizes, len(x)), exact(small), strict=True):
        close = (rounded[i:j] * largest[i:j]) @ matrix
        np.testing.assert_allclose(wide(result[i:j]), close, rtol=1e-2, atol=2e-2 * np.abs(wide(x)).max())
    assert not np.any(wide(result[int(sizes.sum()) :]))


def test_rounded_activations_are_multiplied_as_integers():
    x, w, sizes = operands([10, 0, 20, 3], n=150)
    (report,) = jax_nano.inspect(jax_nano.ragged_dot, x, quantize(w, activations="int8"), sizes)
    assert "s8 x s8 -> f32, summed in s32" in str(report)
    grad = jax.grad(lambda x: jnp.sum(jax_nano.ragged_dot(x, quantize(w, activations="int8"), sizes)))(x)
    expected = jax.grad(lambda x: jnp.sum(lax.ragged_dot(x, quantize(w).dequantize(), sizes)))(x)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-3)


def test_groups_that_share_out_the_sum_do_not_round():
    x, w = jnp.asarray(normal(64, 12)), jnp.asarray(normal(64, 20))
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    sizes, small = jnp.array([30, 0, 20], jnp.int32), quantize(w, activations="int8")
    expected = lax.ragged_dot_general(x, small.dequantize(), sizes, numbers)
    actual = jax_nano.ragged_dot_general(x, small, sizes, numbers)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_layers_is_scanned():
    x, _, sizes = operands([10, 0, 20, 3], k=32, n=32)
    stack = jnp.stack([jnp.asarray(normal(4, 32, 32, seed=i)) / 6 for i in range(3)])
    expected = x
    for w in stack:
        expected = lax.ragged_dot(expected, w, sizes)

    def step(x, w):
        return jax_nano.ragged_dot(x, w, sizes), None

    for weight in (pack, lambda w: quantize(w, group=32)):
        small = weight(stack)
        result, _ = jax.jit(lambda x, small=small: lax.scan(step, x, small))(x)
        np.testing.assert_allclose(result, expected, rtol=0.2, atol=0.02 * float(jnp.abs(expected).max()))


def test_inspect_names_panels_and_integers():
    x, w, sizes = operands([10, 0, 20, 3])
    (report,) = jax_nano.inspect(jax_nano.ragged_dot, x, pack(w), sizes)
    assert "B in panels of" in str(report)
    assert "nano_grouped_f32_panels_g4m95n45k70" in str(report)
    (report,) = jax_nano.inspect(jax_nano.ragged_dot, x, quantize(w), sizes)
    assert "4 groups that share out M; M 95, N 45, K 70; f32 x s8 -> f32" in str(report)
