"""Kernels of attention's gradients, on every edge: beside NumPy in float64, nothing touched beside the arrays."""

from dataclasses import replace

import numpy as np
import pytest
from attention import AttentionRunner
from attention_gradients import assert_gradients, exact_gradients, gradient_arrays, problem_of

from jax_nano.ir.attention import UnsupportedAttention
from jax_nano.ir.attention_gradient import has_gradient_kernels
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.ir.score_function import ScoreFunction
from jax_nano.machine import host
from jax_nano.schedule.attention_plans import choose_attention

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
    if window and t - 1 - window[0] >= s:
        pytest.skip("rows without keys have no kernel")
    check((1, t, s, 2, 1, 8, 8), dtype, causal=causal, window=window)


@pytest.mark.parametrize("depth", [16, 64, 80, 128, 257])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_depths(dtype, depth):
    check((1, 40, 50, 1, 1, depth, depth + 3), dtype)


def test_blocks_of_columns_do_not_change_bits():
    sizes = (1, 300, 300, 1, 1, 16, 16)
    operands = gradient_arrays(sizes, "f32")
    statistics = [np.ascontiguousarray(x.astype(np.float32)) for x in exact_gradients(*operands, causal=True)[1:]]
    for of in ("queries", "keys"):
        plan = choose_attention(problem_of(sizes, "f32", of, causal=True), host.machine(), host.machine().isas[0])
        plans = [replace(plan, query_block=blocks * plan.nr) for blocks in (1, 2, 4)]
        results = [AttentionRunner(plan)(*operands, *statistics) for plan in plans]
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize(("t", "s"), [(40, 71), (35, 99)])
def test_blocks_that_a_mask_leaves_whole(t, s):
    for dtype in TYPES:
        check((1, t, s, 1, 1, 8, 8), dtype, causal=True)


def test_what_has_no_gradient_kernels():
    problem = problem_of((1, 8, 8, 1, 1, 8, 8), "f32", "keys")
    with pytest.raises(
        UnsupportedAttention, match="no kernel has gradients of an attention with bias, score function, mask"
    ):
        replace(problem, key_lengths=True)
    assert has_gradient_kernels(AttentionSpec(scale=1.0, window=(3, 3)), 8, 8)
    assert not has_gradient_kernels(AttentionSpec(scale=1.0, window=(3, 3)), 12, 8)
    assert not has_gradient_kernels(AttentionSpec(scale=1.0, bias=True), 8, 8)
    score = ScoreFunction.identity("f32")
    blocks = AttentionSpec(scale=1.0, score=score, blocks=(128, 128))
    for spec in (AttentionSpec(scale=1.0, score=score), blocks, AttentionSpec(scale=1.0, quantized=True)):
        assert not has_gradient_kernels(spec, 8, 8)
    with pytest.raises(UnsupportedAttention, match="score function"):
        replace(problem, score=score)
