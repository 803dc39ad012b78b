"""Kernels of attention on vectors, on every edge: within the bound of NumPy, nothing touched beside the arrays."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from attention import assert_attention, described, exact, run

from jax_nano.ir.attention import Attention, UnsupportedAttention
from jax_nano.machine import host
from jax_nano.schedule.attention.choose import choose_attention

TYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16, "f64": np.float64}
each_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
each_isa = pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas if not isa.vectors])


def arrays(b, t, s, n, k, d, dv=None, dtype=np.float32):
    rng = np.random.default_rng([b, t, s, n, k, d])
    shapes = (b, t, n, d), (b, s, k, d), (b, s, k, dv or d)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check(qkv, **options):
    isa = options.pop("isa", None)
    assert_attention(run(*qkv, isa=isa, **options), *qkv, **options)


@each_type
@each_isa
def test_sizes_that_are_multiples_of_nothing(isa, dtype):
    check(arrays(2, 37, 75, 2, 2, 20, 13, dtype=dtype), isa=isa)


@each_type
def test_one_query_one_key_one_element(dtype):
    check(arrays(1, 1, 1, 1, 1, 1, dtype=dtype))


@pytest.mark.parametrize("keys", [1, 63, 64, 65, 128, 131])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_edges_of_blocks_of_keys(dtype, keys):
    check(arrays(1, 5, keys, 1, 1, 8, dtype=dtype))


@pytest.mark.parametrize("depth", [16, 64, 80, 128])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64], ids=["f32", "bf16", "f64"])
def test_register_blocks_of_every_shape(dtype, depth):
    for queries in (16, 32, 64, 96):
        check(arrays(1, queries, 300, 1, 1, depth, dtype=dtype), causal=True)


@pytest.mark.parametrize("queries", [1, 15, 16, 17, 63, 64, 65, 100])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_edges_of_panels_of_queries(dtype, queries):
    check(arrays(1, queries, 70, 1, 1, 8, dtype=dtype), causal=True)


LAST_PANELS = [(70, 1200, {}), (270, 70, {"causal": True}), (130, 300, {"window": (40, 7)}), (270, 40, {"masks": True})]


@pytest.mark.parametrize(("queries", "keys", "masks"), LAST_PANELS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_last_panels_that_are_narrower(dtype, queries, keys, masks):
    qkv = arrays(2, queries, keys, 1, 1, 8, 7, dtype=dtype)
    plan = choose_attention(described(*qkv), host.machine(), host.machine().isas[0])
    assert plan.last_panel is not None
    assert plan.last_panel.nr < plan.nr
    if masks.get("masks"):
        rng = np.random.default_rng(0)
        masks = {
            "bias": rng.standard_normal((1, 1, queries, keys)).astype(np.float32),
            "mask": rng.random((2, 1, queries, keys)) < 0.7,
            "query_lengths": np.array([queries, 258], np.int32), "key_lengths": np.array([0, 30], np.int32),
        }  # fmt: skip
    check(qkv, **masks)


DEPTHS = [(1, 1), (2, 33), (31, 4), (64, 128), (80, 80), (257, 7), (512, 512)]


@pytest.mark.parametrize(("depth", "value_depth"), DEPTHS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_depths(dtype, depth, value_depth):
    check(arrays(1, 20, 40, 1, 1, depth, value_depth, dtype=dtype))


@each_type
@pytest.mark.parametrize("queries", [1, 19])
def test_query_heads_share_keys(queries, dtype):
    check(arrays(2, queries, 70, 6, 2, 16, dtype=dtype))


@pytest.mark.parametrize(("t", "s"), [(70, 70), (20, 90), (150, 40)])
@pytest.mark.parametrize("window", [(0, 0), (3, 2), (16, 0), (0, 5), (200, 200), (1, -1), (-1, 3), (-3, -3), (9, -40)])
@pytest.mark.parametrize("causal", [False, True])
def test_windows(causal, window, t, s):
    check(arrays(1, t, s, 2, 1, 8), causal=causal, window=window)


@each_type
def test_lengths_and_rows_without_keys(dtype):
    lengths = {"query_lengths": np.array([0, 3, 40, 40], np.int32), "key_lengths": np.array([9, 70, 0, 65], np.int32)}
    check(arrays(4, 40, 70, 2, 2, 8, dtype=dtype), **lengths)
    check(arrays(4, 40, 70, 2, 2, 8, dtype=dtype), causal=True, **lengths)
    check(arrays(4, 1, 70, 4, 2, 8, dtype=dtype), key_lengths=np.array([1, 0, 69, 70], np.int32))


BROADCASTS = [(1, 1, 1, 70), (2, 1, 1, 70), (1, 4, 40, 70), (2, 4, 40, 70), (1, 1, 40, 70), (1, 4, 40, 1), (1, 4, 1, 1)]


@pytest.mark.parametrize("shape", BROADCASTS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_bias_of_every_shape(dtype, shape):
    bias = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    check(arrays(2, 40, 70, 4, 2, 8, dtype=dtype), bias=bias)


@pytest.mark.parametrize("shape", BROADCASTS)
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_every_shape(causal, shape):
    mask = np.random.default_rng(1).random(shape) < 0.3
    mask.reshape(-1)[:2] = False
    check(arrays(2, 40, 70, 4, 2, 8), mask=mask, causal=causal)


@pytest.mark.parametrize("queries", [9, 24, 40, 79, 80, 112])
@pytest.mark.parametrize("keys", [96, 97, 144, 200])
@each_isa
def test_scores_are_copied_by_blocks_of_whole_registers(isa, keys, queries):
    """A block of keys that ended within a register would read the next block's bias, or none behind the last key."""
    rng = np.random.default_rng([queries, keys])
    qkv = arrays(1, queries, keys, 1, 1, 24)
    check(qkv, isa=isa, bias=rng.standard_normal((1, 1, queries, keys)).astype(np.float32))
    check(qkv, isa=isa, mask=rng.random((1, 1, queries, keys)) < 0.5)


def test_a_block_of_keys_is_whole_registers_where_these_are_transposed():
    q, k, v = arrays(1, 40, 96, 1, 1, 24)
    plan = choose_attention(described(q, k, v), host.machine(), host.machine().isas[0])
    mask = np.ones((1, 1, 40, 96), bool)
    with pytest.raises(ValueError, match=r"is not a multiple of \d+: panels would overlap"):
        replace(plan, problem=described(q, k, v, mask=mask), mr=1, key_block=plan.lanes * 3 // 2)


def test_masks_and_biases_of_folded_heads():
    rng = np.random.default_rng(1)
    mask, bias = rng.random((2, 6, 1, 70)) < 0.3, rng.standard_normal((2, 6, 1, 70)).astype(np.float32)
    check(arrays(2, 1, 70, 6, 2, 8), mask=mask, bias=bias, causal=True)


def test_rows_whose_keys_are_all_masked_average_every_value():
    mask = np.ones((1, 1, 100, 90), bool)
    mask[:, :, 7] = mask[:, :, 99] = False
    check(arrays(1, 100, 90, 2, 2, 8), mask=mask, causal=True)
    check(arrays(1, 100, 90, 2, 2, 8), mask=mask, key_lengths=np.array([30], np.int32))


@pytest.mark.parametrize("lowest", [-1e9, np.finfo(np.float32).min])
def test_additive_masks(lowest):
    bias = np.where(np.random.default_rng(1).random((1, 1, 40, 70)) < 0.5, 0, lowest).astype(np.float32)
    bias[:, :, 3] = lowest
    check(arrays(1, 40, 70, 2, 2, 8), bias=bias)


def test_infinite_biases_mask_and_leave_nothing():
    bias = np.where(np.random.default_rng(1).random((1, 1, 40, 150)) < 0.5, 0, -np.inf).astype(np.float32)
    bias[..., :70] = -np.inf
    bias[..., 149] = 0
    q, k, v = arrays(1, 40, 150, 2, 2, 8)
    out, _, _ = exact(q, k, v, bias=bias)
    np.testing.assert_allclose(run(q, k, v, bias=bias), out, rtol=1e-4, atol=1e-5)
    bias[:, :, 3] = -np.inf
    assert np.array_equal(np.isnan(run(q, k, v, bias=bias)).any((0, 2, 3)), np.arange(40) == 3)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.0, 30.0])
def test_scales_and_large_scores(scale):
    check(arrays(1, 40, 150, 2, 2, 8), scale=scale)


def test_nan_stays_in_its_row():
    q, k, v = arrays(1, 40, 70, 1, 1, 8)
    q[0, 5] = np.nan
    assert np.array_equal(np.isnan(run(q, k, v)).any((0, 2, 3)), np.arange(40) == 5)


@each_type
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"key_lengths": np.array([0, 50], np.int32)}])
def test_residuals(options, dtype):
    q, k, v = arrays(2, 40, 70, 4, 2, 8, dtype=dtype)
    _, residual = run(q, k, v, residual=True, **options)
    _, lse, _ = exact(q, k, v, **options)
    np.testing.assert_allclose(residual, lse, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"key_lengths": np.array([0, 1, 700, 1300], np.int32)}, {"residual": True}])
@pytest.mark.parametrize("queries", [1, 3])
def test_keys_are_split_where_tasks_are_few(queries, options):
    q, k, v = arrays(4, queries, 1300, 2, 2, 16)
    problem = described(q, k, v, **options)
    plan = choose_attention(problem, host.machine(), host.machine().isas[0])
    assert plan.splits > 1
    out = run(q, k, v, **options)
    out = out[0] if options.get("residual") else out
    options = {name: value for name, value in options.items() if name != "residual"}
    assert_attention(out, q, k, v, **options)


def test_plans_that_differ_in_tasks_give_the_same_bits():
    q, k, v = arrays(1, 300, 200, 1, 1, 16)
    plan = choose_attention(described(q, k, v, causal=True), host.machine(), host.machine().isas[0])
    results = [run(q, k, v, causal=True, plan=replace(plan, query_block=blocks * plan.nr)) for blocks in (1, 2, 4)]
    for result in results[1:]:
        np.testing.assert_array_equal(results[0], result)


@each_type
def test_a_block_of_keys_that_a_mask_leaves_whole(dtype):
    check(arrays(1, 40, 71, 1, 1, 8, dtype=dtype), causal=True)


def test_what_has_no_kernel_says_why():
    q, k, v = arrays(1, 3, 4, 1, 1, 8)
    problem = described(q, k, v)
    with pytest.raises(UnsupportedAttention, match=r"no kernel attends in s8 \(there are f64, f32, bf16, f16\)"):
        replace(problem, dtype="s8")
    with pytest.raises(UnsupportedAttention, match="a dimension is 0: there is nothing to compute"):
        replace(problem, keys=0)
    assert isinstance(problem, Attention)


@pytest.mark.parametrize("keys", [100, 288, 300])
@pytest.mark.parametrize("depth", [24, 48, 64])
@pytest.mark.parametrize("queries", [16, 40])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_biases_and_masks_over_several_blocks_of_keys(dtype, queries, depth, keys):
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((1, 2, queries, keys)).astype(dtype)
    check(arrays(1, queries, keys, 2, 1, depth, dtype=dtype), bias=bias)
    check(arrays(1, queries, keys, 2, 1, depth, dtype=dtype), mask=rng.random((1, 1, queries, keys)) < 0.5)


@pytest.mark.parametrize("keys", [100, 288, 300])
def test_biases_of_folded_heads_over_several_blocks_of_keys(keys):
    bias = np.random.default_rng(0).standard_normal((2, 6, 1, keys)).astype(np.float32)
    check(arrays(2, 1, keys, 6, 2, 48), bias=bias)
