"""Kernels of attention's gradients, on every edge: beside NumPy in float64, nothing touched beside the arrays."""

from dataclasses import replace

import numpy as np
import pytest
from attention import AttentionRunner
from attention_gradients import arrays_of, assert_gradients, exact_gradients, gradient_arrays, problem_of
from products import DTYPES

from jax_nano.ir.attention import UnsupportedAttention
from jax_nano.ir.attention_gradient import has_gradient_kernels
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.ir.score_function import ScoreFunction
from jax_nano.machine import host
from jax_nano.schedule.attention.choose import choose_attention

TYPES = ["f32", "bf16", "f16", "f64"]
each_type = pytest.mark.parametrize("dtype", TYPES)
each_isa = pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas if not isa.vectors])


def check(sizes, dtype, isa=None, **masks):
    machine = host.machine()
    level = machine.isa(isa) if isa else machine.isas[0]
    assert_gradients(
        lambda problem: AttentionRunner(choose_attention(problem, machine, level)),
        lambda of: problem_of(sizes, dtype, of, **masks), gradient_arrays(sizes, dtype), **masks,
    )  # fmt: skip


@each_type
@each_isa
def test_sizes_that_are_multiples_of_nothing(isa, dtype):
    check((2, 37, 75, 2, 2, 20, 13), dtype, isa)


@each_type
def test_one_query_one_key_one_element(dtype):
    check((1, 1, 1, 1, 1, 1, 1), dtype)


@each_type
def test_query_heads_that_share_keys_add_up(dtype):
    check((2, 40, 70, 6, 2, 16, 16), dtype, causal=True)


@pytest.mark.parametrize(("t", "s"), [(70, 70), (20, 90), (150, 40), (64, 128), (129, 65)])
@pytest.mark.parametrize("window", [None, (3, 2), (16, 0), (200, 200)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_masks_by_place(dtype, causal, window, t, s):
    check((1, t, s, 2, 1, 8, 8), dtype, causal=causal, window=window)


@pytest.mark.parametrize("depth", [16, 64, 80, 128, 257])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_depths(dtype, depth):
    check((1, 40, 50, 1, 1, depth, depth + 3), dtype)


def test_blocks_of_columns_do_not_change_bits():
    sizes = (1, 300, 300, 1, 1, 16, 16)
    operands = gradient_arrays(sizes, "f32")
    _, given = exact_gradients(*operands, causal=True)
    for of in ("queries", "keys"):
        problem = problem_of(sizes, "f32", of, causal=True)
        plan = choose_attention(problem, host.machine(), host.machine().isas[0])
        plans = [replace(plan, query_block=blocks * plan.nr) for blocks in (1, 2, 4)]
        results = [AttentionRunner(plan)(*arrays_of(problem, operands, given)) for plan in plans]
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize(("t", "s"), [(40, 71), (35, 99)])
def test_blocks_that_a_mask_leaves_whole(t, s):
    for dtype in TYPES:
        check((1, t, s, 1, 1, 8, 8), dtype, causal=True)


SHAPES = [(1, 1, 1, 1), (2, 1, 1, 0), (1, 4, 0, 1), (2, 4, 0, 0), (1, 1, 0, 0), (2, 4, 1, 0)]
"""Of masks; 0 stands for the queries or keys of an attention of 2 sequences, 4 heads and 2 heads of keys."""


def mask_of(shape, t, s, share=0.4):
    b, n, rows, columns = shape
    full = b, n, rows or t, columns or s
    return np.random.default_rng(full).random(full) < share


@pytest.mark.parametrize(("t", "s"), [(1, 1), (63, 65), (64, 64), (65, 63), (37, 200), (129, 32)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_masks_of_every_shape(dtype, shape, t, s):
    check((2, t, s, 4, 2, 16, 24), dtype, mask=mask_of(shape, t, s))


@each_type
@each_isa
def test_masks_beside_masks_by_place(isa, dtype):
    check((2, 70, 90, 4, 2, 8, 8), dtype, isa, mask=mask_of((2, 1, 0, 0), 70, 90, 0.1), causal=True, window=(30, 5))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_masks_that_hide_all_keys_of_some_queries(dtype):
    mask = mask_of((2, 1, 0, 0), 70, 90, 0.5)
    mask[:, :, [0, 3, 64, 69]] = False
    check((2, 70, 90, 4, 2, 8, 8), dtype, mask=mask)
    check((2, 70, 90, 4, 2, 8, 8), dtype, mask=mask, causal=True)
    check((2, 70, 90, 4, 2, 8, 8), dtype, mask=np.zeros((1, 1, 70, 1), bool))


LENGTHS = [(0, 0), (1, 1), (63, 64), (64, 65), (65, 63), (150, 150), (-3, 400)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("masks", [{}, {"causal": True}, {"window": (20, 4)}], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_lengths(dtype, masks, lengths):
    queries, keys = (np.array([length, 150], np.int32) for length in lengths)
    sizes = (2, 150, 150, 2, 1, 8, 16)
    check(sizes, dtype, query_lengths=queries, key_lengths=keys, **masks)
    check(sizes, dtype, query_lengths=queries, **masks)
    check(sizes, dtype, key_lengths=keys, **masks)


def test_a_mask_that_lies_transposed():
    sizes, mask = (2, 70, 128, 4, 2, 8, 8), mask_of((2, 1, 0, 0), 70, 128)
    operands = gradient_arrays(sizes, "f32")
    wanted, given = exact_gradients(*operands, mask=mask)
    lying = np.ascontiguousarray(mask.transpose(0, 1, 3, 2))
    for of, expected in (("queries", wanted[:1]), ("keys", wanted[1:3])):
        problem = problem_of(sizes, "f32", of, mask=mask)
        assert problem.mask
        problem = replace(problem, mask=replace(problem.mask, strides=(70 * 128, 0, 0, 1, 70)))
        plan = choose_attention(problem, host.machine(), host.machine().isas[0])
        results = AttentionRunner(plan)(*arrays_of(problem, operands, given, mask=lying))
        for found, exact in zip(results, expected, strict=True):
            np.testing.assert_allclose(found.reshape(exact.shape), exact, atol=1e-5 * np.abs(exact).max(), rtol=0)


def bias_of(shape, t, s, dtype="f32"):
    b, n, rows, columns = shape
    full = b, n, rows or t, columns or s
    return np.random.default_rng(full).standard_normal(full).astype(DTYPES[dtype])


@pytest.mark.parametrize(("t", "s"), [(1, 1), (63, 65), (64, 64), (65, 63)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "of_bias"), [("f32", "f32"), ("bf16", "bf16"), ("f32", "f16")])
def test_biases_of_every_shape(dtype, of_bias, shape, t, s):
    check((2, t, s, 4, 2, 16, 24), dtype, bias=bias_of(shape, t, s, of_bias))


@each_type
@each_isa
def test_biases_beside_masks(isa, dtype):
    bias, mask = bias_of((1, 4, 0, 0), 70, 90), mask_of((2, 1, 0, 0), 70, 90, 0.5)
    mask[:, :, [0, 3, 64, 69]] = False
    lengths = np.array([40, 70], np.int32)
    check((2, 70, 90, 4, 2, 8, 8), dtype, isa, bias=bias, mask=mask, causal=True, query_lengths=lengths)


@pytest.mark.parametrize("shape", [(1, 1, 0, 0), (2, 1, 0, 0), (1, 4, 0, 0), (2, 4, 0, 0)], ids=str)
@pytest.mark.parametrize(
    "masks", [{"causal": True}, {"window": (20, 4)}, {"window": (-3, 9)}, {"lengths": True}], ids=str
)
def test_gradients_of_biases_beside_masks(masks, shape):
    masks, (t, s) = dict(masks), (150, 90) if shape[0] == 1 else (70, 300)
    if masks.pop("lengths", None):
        masks = {"query_lengths": np.array([40, t], np.int32), "key_lengths": np.array([s, 33], np.int32)}
    check((2, t, s, 4, 2, 8, 8), "f32", bias=bias_of(shape, t, s), **masks)


def test_a_bias_of_one_head_of_keys():
    check((3, 40, 50, 2, 1, 8, 8), "f32", bias=bias_of((1, 2, 0, 0), 40, 50))
    check((1, 40, 50, 1, 1, 8, 8), "bf16", bias=bias_of((1, 1, 0, 0), 40, 50))


@pytest.mark.parametrize("lowest", [-1e30, np.finfo(np.float32).min])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_that_a_bias_hides(dtype, masked, lowest):
    bias = np.where(mask_of((2, 1, 0, 0), 70, 90, 0.5), 0, np.float32(lowest))
    bias[:, :, [0, 3, 64, 69]] = lowest
    masks = {"mask": mask_of((1, 4, 0, 0), 70, 90)} if masked else {}
    check((2, 70, 90, 4, 2, 8, 8), dtype, bias=bias, **masks)


def test_what_has_no_gradient_kernels():
    problem = problem_of((1, 8, 8, 1, 1, 8, 8), "f32", "keys")
    with pytest.raises(
        UnsupportedAttention, match="no kernel has gradients of an attention with score function, block mask"
    ):
        replace(problem, residual=True)
    assert has_gradient_kernels(AttentionSpec(scale=1.0, bias=True, mask=True, query_lengths=True, key_lengths=True))
    score = ScoreFunction.identity("f32")
    blocks = AttentionSpec(scale=1.0, score=score, blocks=(128, 128))
    for spec in (AttentionSpec(scale=1.0, score=score), blocks, AttentionSpec(scale=1.0, quantized=True)):
        assert not has_gradient_kernels(spec)
    with pytest.raises(UnsupportedAttention, match="score function"):
        replace(problem, score=score)
