"""Grouped products by tiles, on every edge, under the emulator where the processor has none."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from grouped import ROWS, SUMS, TRANSPOSED, GroupedRunner, assert_grouped, bounds, described, fused_kernel
from jax import lax
from oracle import normal, wide
from quantized import exact as exact_weight
from tile_kernels import AMX, MACHINE, needs_tile_vectors

import jax_nano
from jax_nano.schedule.grouped.choose import choose_grouped

QUANTIZED = [{}, {"bits": 4}, {"group": 64}, {"bits": 4, "group": 32, "symmetric": False}]
pytestmark = needs_tile_vectors


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


@pytest.mark.parametrize("numbers", [ROWS, TRANSPOSED], ids=["rows", "transposed"])
@pytest.mark.parametrize("sizes", [[70, 0, 33, 17], [15, 16, 1, 64], [0, 100, 0, 0]])
@pytest.mark.parametrize("out", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_edges_of_tiles(out, sizes, numbers):
    rng = np.random.default_rng(sizes)
    shape = (4, 70, 45) if numbers is ROWS else (4, 45, 70)
    lhs, rhs = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((130, 70), shape))
    sizes = np.array(sizes, np.int32)
    plan = choose_grouped(described(lhs, rhs, sizes, numbers, out), MACHINE, AMX)
    assert plan.many
    assert plan.many.instruction.tiles
    result = GroupedRunner(plan, MACHINE)(lhs, rhs, sizes, before=True)
    assert_grouped(result.reshape(130, 45), lhs, rhs, sizes, numbers)


def test_sums_over_groups_go_by_vectors():
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((70, 40), (70, 33)))
    plan = choose_grouped(described(lhs, rhs, np.zeros(3, np.int32), SUMS), MACHINE, AMX)
    assert not plan.instruction.tiles


def by_tiles(f, *operands):
    """What the kernel of f's region gives by tiles, in guarded memory."""
    problem, arrays = fused_kernel(f, *operands)
    plan = choose_grouped(problem, MACHINE, AMX)
    assert plan.many
    assert plan.many.instruction.tiles
    return GroupedRunner(plan, MACHINE)(*arrays, before=True)


def product(x, w, sizes):
    return lax.ragged_dot(x, jnp.asarray(w), sizes, preferred_element_type=jnp.float32)


each_filling = pytest.mark.parametrize("sizes", [[70, 0, 33, 17], [15, 16, 1, 64], [0, 100, 0, 0]], ids=str)


def arguments(sizes, n=45):
    x, w = (jnp.asarray(normal(*shape), jnp.bfloat16) for shape in ((130, 128), (4, 128, n)))
    return x, w, jnp.asarray(sizes, jnp.int32)


@each_filling
def test_work_on_the_result_touches_no_row_beyond(sizes):
    x, w, sizes = arguments(sizes)
    bias, residual = jnp.asarray(normal(4, 45)), jnp.asarray(normal(130, 45))

    def f(x, w, sizes, bias, residual):
        y = lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.float32)
        return jnp.tanh(y + jax_nano.repeat_by_group(bias, sizes, 130)) + residual

    actual = by_tiles(f, x, w, sizes, bias, residual).reshape(130, 45)
    np.testing.assert_allclose(actual, f(x, w, sizes, bias, residual), rtol=1e-2, atol=1e-2)


@each_filling
@pytest.mark.parametrize(
    "options", [{}, {"bits": 4}, {"group": 64}, {"bits": 4, "group": 32, "symmetric": False}], ids=str
)
def test_integers_are_widened_for_tiles(options, sizes):
    x, w, sizes = arguments(sizes)
    small = jax_nano.quantize(w, **options)
    actual = by_tiles(product, x, small, sizes).reshape(130, 45)
    groups = zip(bounds(sizes, 130), exact_weight(small), strict=True)
    for (i, j), matrix in groups:
        np.testing.assert_allclose(actual[i:j], wide(x[i:j]) @ matrix, rtol=1e-3, atol=1e-2)
    assert not actual[int(sizes.sum()) :].any()


@each_filling
def test_panels_are_read_by_tiles(sizes, monkeypatch):
    x, w, sizes = arguments(sizes)
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    packed = jax_nano.pack(w)
    assert packed.target == "amx"
    actual = by_tiles(product, x, packed, sizes).reshape(130, 45)
    np.testing.assert_allclose(actual, product(x, w, sizes), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.int8], ids=["bf16", "s8"])
def test_single_rows_beside_groups_of_few(dtype):
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.integers(-9, 9, s).astype(dtype) for s in ((24, 128), (8, 128, 96)))
    sizes = np.array([1, 2, 0, 1, 9, 0, 1, 5], np.int32)
    out = np.float32 if dtype != np.int8 else np.int32
    plan = choose_grouped(described(lhs, rhs, sizes, out=out), MACHINE, AMX)
    assert plan.one
    result = GroupedRunner(plan, MACHINE)(lhs, rhs, sizes, before=True)
    assert_grouped(result.reshape(24, 96), lhs, rhs, sizes)


@each_filling
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8], ids=["bf16", "s8"])
def test_gathered_rows_are_packed_for_tiles(dtype, sizes):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.integers(-9, 9, s), dtype) for s in ((23, 128), (4, 128, 45)))
    places = jnp.asarray(rng.integers(-3, 26, (130, 1)), jnp.int32)
    sizes = jnp.asarray(sizes, jnp.int32)
    one_by_one = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

    def f(x, w, places, sizes):
        rows = lax.gather(x, places, one_by_one, (1, 128), mode=lax.GatherScatterMode.CLIP)
        return lax.ragged_dot(rows, w, sizes, preferred_element_type=jnp.int32 if dtype == jnp.int8 else jnp.float32)

    actual = by_tiles(f, x, w, places, sizes).reshape(130, 45)
    np.testing.assert_array_equal(actual, f(x, w, places, sizes))


@each_filling
def test_rows_are_worked_on_while_they_are_packed_for_tiles(sizes):
    x, w, sizes = arguments(sizes)
    scale, gain = jnp.asarray(normal(130, 1, seed=2), x.dtype), jnp.asarray(normal(128, seed=3), x.dtype)
    f = lambda x, w, sizes, scale, gain: product(x * scale * gain, w, sizes)  # noqa: E731
    assert fused_kernel(f, x, w, sizes, scale, gain)[0].dot.prologue
    actual = by_tiles(f, x, w, sizes, scale, gain).reshape(130, 45)
    np.testing.assert_allclose(actual, f(x, w, sizes, scale, gain), rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8], ids=["bf16", "s8"])
def test_rows_that_tiles_make_are_added_up(dtype):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.integers(-9, 9, s), dtype) for s in ((130, 128), (4, 128, 45)))
    places = jnp.asarray(rng.integers(-3, 26, (130, 1)), jnp.int32)
    sizes = jnp.asarray([70, 0, 33, 17], jnp.int32)
    by_rows = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
    )

    def f(x, w, places, sizes):
        out = jnp.int32 if dtype == jnp.int8 else jnp.float32
        rows = lax.ragged_dot(x, w, sizes, preferred_element_type=out)
        return lax.scatter_add(jnp.zeros((23, 45), out), places, rows, by_rows)

    actual = by_tiles(f, x, w, places, sizes).reshape(23, 45)
    np.testing.assert_array_equal(actual, f(x, w, places, sizes))
