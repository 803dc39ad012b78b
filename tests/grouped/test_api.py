"""ragged_dot and ragged_dot_general under every transformation, installed and accelerated: kernels, JAX's values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import ROWS, SUMS, TRANSPOSED, assert_grouped
from jax import lax
from oracle import kernels, normal

import jax_nano

SIZES = np.array([5, 0, 17, 6], np.int32)


def operands(dtype=jnp.float32, rows=30, k=12, n=20):
    return jnp.asarray(normal(rows, k), dtype), jnp.asarray(normal(4, k, n), dtype), jnp.asarray(SIZES)


def ran_as(f, *args):
    return [report.ran_as for report in jax_nano.inspect(f, *args)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8], ids=lambda x: x.__name__)
def test_ragged_dot_is_its_namesake(dtype):
    x, w, sizes = operands(dtype)
    result = jax_nano.ragged_dot(x, w, sizes)
    assert result.dtype == lax.ragged_dot(x, w, sizes).dtype
    if dtype != jnp.int8:
        assert_grouped(result, x, w, sizes)
    else:
        np.testing.assert_array_equal(result, lax.ragged_dot(x, w, sizes))
    assert ran_as(jax_nano.ragged_dot, x, w, sizes) == ["kernel"]


def test_preferred_types_and_precision():
    x, w, sizes = operands(jnp.bfloat16)
    result = jax_nano.ragged_dot(x, w, sizes, preferred_element_type=jnp.float32)
    assert result.dtype == jnp.float32
    assert_grouped(result, x, w, sizes)
    x, w, sizes = operands()
    for precision in ("highest", lax.Precision.DEFAULT, lax.DotAlgorithmPreset.BF16_BF16_F32_X3):
        close = jax_nano.ragged_dot(x, w, sizes, precision)
        np.testing.assert_allclose(close, lax.ragged_dot(x, w, sizes), rtol=1e-4, atol=1e-4)


def numbers(contract, batch=((), ()), ragged=0, group=(0,)):
    return lax.RaggedDotDimensionNumbers((contract, batch), [ragged], group)


CASES = {
    "rows": ((30, 12), (4, 12, 20), (4,), ROWS),
    "transposed": ((30, 12), (4, 20, 12), (4,), TRANSPOSED),
    "sums": ((30, 12), (30, 20), (4,), SUMS),
    "batch_of_rows": ((3, 30, 12), (4, 3, 12, 20), (4,), numbers(((2,), (2,)), ((0,), (1,)), 1)),
    "batch_with_sizes": ((3, 30, 12), (4, 3, 12, 20), (3, 4), numbers(((2,), (2,)), ((0,), (1,)), 1)),
    "rows_before": ((3, 30, 12), (4, 12, 20), (3, 4), numbers(((2,), (1,)), ragged=1)),
    "rows_behind": ((30, 3, 12), (4, 12, 20), (4,), numbers(((2,), (1,)))),
    "groups_behind": ((30, 12), (12, 4, 20), (4,), numbers(((1,), (0,)), group=(1,))),
    "two_sums": ((30, 3, 4), (4, 3, 4, 20), (4,), numbers(((1, 2), (1, 2)))),
    "batch_of_sums": ((3, 30, 12), (3, 30, 20), (3, 4), numbers(((1,), (1,)), ((0,), (0,)), 1, ())),
    "ragged_batch": ((30, 5, 12), (30, 12, 20), (4,), numbers(((2,), (1,)), ((0,), (0,)), 0, ())),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_dimension_numbers(case):
    lhs, rhs, sizes_shape, dims = case
    x, y = jnp.asarray(normal(*lhs)), jnp.asarray(normal(*rhs))
    sizes = jnp.asarray(np.random.default_rng(0).integers(0, 12, sizes_shape), jnp.int32)
    expected = lax.ragged_dot_general(x, y, sizes, dims)
    np.testing.assert_allclose(jax_nano.ragged_dot_general(x, y, sizes, dims), expected, rtol=1e-4, atol=1e-4)
    found = ran_as(lambda x, y, g: jax_nano.ragged_dot_general(x, y, g, dims), x, y, sizes)
    assert found == ["kernel"]


def test_gradients_are_kernels_of_both_kinds():
    x, w, sizes = operands()

    def loss(x, w):
        return jnp.sum(jnp.sin(lax.ragged_dot(x, w, sizes)))

    fast = jax.grad(jax_nano.accelerate(loss), (0, 1))
    for actual, expected in zip(jax.jit(fast)(x, w), jax.grad(loss, (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert ran_as(fast, x, w) == ["kernel"] * 3


def test_second_derivatives():
    x, w, sizes = operands(rows=10, k=3, n=4)

    def loss(f):
        return lambda w: jnp.sum(jnp.sin(f(x, w, sizes)))

    moved = jnp.asarray(normal(4, 3, 4, seed=1))

    def along(f):
        return jax.jit(lambda w: jax.jvp(jax.grad(loss(f)), (w,), (moved,))[1])(w)

    np.testing.assert_allclose(along(jax_nano.ragged_dot), along(lax.ragged_dot), rtol=1e-4, atol=1e-4)

    def twice(w):
        return jax.grad(lambda w: jnp.sum(jax.grad(loss(jax_nano.ragged_dot))(w) ** 2))(w)

    step = 1e-2
    ends = [jnp.sum(jax.grad(loss(lax.ragged_dot))(w + s * step * moved) ** 2) for s in (1, -1)]
    np.testing.assert_allclose(jnp.vdot(twice(w), moved), (ends[0] - ends[1]) / (2 * step), rtol=2e-2)


@pytest.mark.parametrize(
    "axes", [(0, None, None), (0, None, 0), (None, 0, None), (0, 0, 0), (None, None, 0), (1, 2, 0)]
)
@pytest.mark.parametrize("dims", [ROWS, SUMS], ids=["rows", "sums"])
def test_vmap_over_any_operands(dims, axes):
    shapes = [(30, 12), (4, 12, 20) if dims is ROWS else (30, 20)]
    x, y = (
        jnp.asarray(normal(*shape) if axis is None else np.moveaxis(normal(3, *shape), 0, axis))
        for shape, axis in zip(shapes, axes, strict=False)
    )
    sizes = SIZES if axes[2] is None else np.stack([SIZES, SIZES[::-1], [30, 0, 0, 0]])
    mapped = jax.vmap(lambda x, y, g: jax_nano.ragged_dot_general(x, y, g, dims), axes)
    result = mapped(x, y, jnp.asarray(sizes, jnp.int32))
    for i in range(3):
        a, b, g = (
            jnp.asarray(v if axis is None else np.take(np.asarray(v), i, axis))
            for v, axis in zip((x, y, sizes), axes, strict=True)
        )
        np.testing.assert_allclose(result[i], lax.ragged_dot_general(a, b, g, dims), rtol=1e-4, atol=1e-4)
    assert ran_as(mapped, x, y, jnp.asarray(sizes, jnp.int32)) == ["kernel"]


def test_remat_and_scan():
    x, w, sizes = operands(n=12)

    def layers(product):
        @jax.checkpoint
        def layer(x, _):
            return jnp.tanh(product(x, w, sizes)), None

        return lambda x: jnp.sum(lax.scan(layer, x, None, length=3)[0])

    expected = jax.grad(layers(lax.ragged_dot))(x)
    np.testing.assert_allclose(jax.grad(layers(jax_nano.ragged_dot))(x), expected, rtol=1e-4, atol=1e-5)


def test_install_takes_grouped_products():
    x, w, sizes = operands()
    expected = lax.ragged_dot(x, w, sizes)
    with jax_nano.installed(), kernels(1):
        result = jax.jit(lax.ragged_dot)(x, w, sizes)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_inspect_says_what_became_of_it():
    x, w, sizes = operands()
    (report,) = jax_nano.inspect(lax.ragged_dot, x, w, sizes)
    text = str(report)
    assert text.startswith("f32[30,12] x f32[4,12,20] -> f32[30,20], groups of s32[4] along dimension 0, contracting")
    assert "runs as  kernel nano_grouped_f32_g4m30n20k12_" in text
    assert "problem  4 groups that share out M; M 30, N 20, K 12; f32 x f32 -> f32, summed in f32" in text
    assert "phases   group in 1 task, then compute in" in text


def test_without_a_kernel_it_is_the_namesake(monkeypatch):
    x, w, sizes = operands(jnp.int32)
    (report,) = jax_nano.inspect(lax.ragged_dot, x, w, sizes)
    assert report.ran_as == "lax.ragged_dot_general"
    assert "no kernel multiplies s32 by s32" in report.reason
    monkeypatch.setenv("JAX_NANO", "0")
    np.testing.assert_array_equal(jax_nano.ragged_dot(x, w, sizes), lax.ragged_dot(x, w, sizes))


def test_errors_are_the_namesakes():
    x, w, sizes = operands()
    for f in (lax.ragged_dot, jax_nano.ragged_dot):
        with pytest.raises(TypeError, match="group dimension size to be 3"):
            f(x, w, sizes[:3])


def test_autotune_measures_them():
    x, w, sizes = operands()
    tuned = jax_nano.autotune(lax.ragged_dot, x, w, sizes)
    assert "4 groups that share out M" in str(tuned)


def test_shard_map_gives_each_device_a_kernel():
    x, w, sizes = operands()
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((1,), ("experts",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        jax_nano.ragged_dot, mesh=mesh, in_specs=(spec(), spec("experts"), spec("experts")), out_specs=spec("experts")
    )
    np.testing.assert_allclose(sharded(x, w, sizes), lax.ragged_dot(x, w, sizes), rtol=1e-4, atol=1e-4)
    assert ran_as(sharded, x, w, sizes) == ["kernel"]


def test_packed_and_quantized_experts_are_the_arrays_they_stand_for():
    x, w, sizes = operands(k=16, n=32)
    expected = lax.ragged_dot(x, w, sizes)
    packed: Any = jax_nano.pack(w)
    np.testing.assert_allclose(jax_nano.ragged_dot(x, packed, sizes), expected, rtol=1e-4, atol=1e-4)
    small: Any = jax_nano.quantize(w)
    expected = lax.ragged_dot(x, small.dequantize(), sizes)
    np.testing.assert_allclose(jax_nano.ragged_dot(x, small, sizes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_single_row_of_quantized_experts_is_a_kernel(bits):
    weights: Any = jax_nano.quantize(normal(2, 32, 16), bits=bits)
    x, sizes = normal(1, 32, seed=1), jnp.array([0, 1], jnp.int32)
    with kernels(1):
        found = jax_nano.ragged_dot(x, weights, sizes)
    np.testing.assert_allclose(found, x @ np.asarray(weights.dequantize())[1], rtol=1e-4, atol=1e-4)
