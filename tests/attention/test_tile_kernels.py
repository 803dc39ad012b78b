"""Attention by tiles, on every edge, under the emulator where the processor has none."""

import ml_dtypes
import numpy as np
import pytest
from attention import AttentionRunner, assert_attention, described, exact
from attention_gradients import assert_gradients, gradient_arrays, problem_of
from tile_kernels import AMX, MACHINE, needs_tile_vectors

from jax_nano.schedule.attention.choose import choose_attention

pytestmark = needs_tile_vectors
TYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


def check(t, s, n, k, d, dv=None, b=1, dtype=ml_dtypes.bfloat16, **options):
    rng = np.random.default_rng([t, s, n, k, d])
    shapes = (b, t, n, d), (b, s, k, d), (b, s, k, dv or d)
    qkv = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    plan = choose_attention(described(*qkv, **options), MACHINE, AMX)
    assert plan.instruction.tiles
    extras = [options[name] for name in ("bias", "mask", "query_lengths", "key_lengths") if name in options]
    residual = options.pop("residual", False)
    out, *lse = AttentionRunner(plan, MACHINE)(*qkv, *extras, before=True)
    assert_attention(out.reshape(b, t, n, dv or d), *qkv, **options)
    if residual:
        np.testing.assert_allclose(lse[0].reshape(b, n, t), exact(*qkv, **options)[1], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("sizes", [(9, 1), (16, 32), (17, 33), (40, 70), (33, 64), (70, 129)])
def test_edges_of_queries_and_keys(sizes, dtype):
    t, s = sizes
    check(t, s, 2, 1, 16, dtype=dtype, residual=True)


@pytest.mark.parametrize(("depth", "value_depth"), [(1, 1), (20, 33), (32, 16), (64, 64), (80, 100)])
def test_depths(depth, value_depth):
    check(20, 40, 1, 1, depth, value_depth)


def test_masks():
    rng = np.random.default_rng(0)
    check(40, 100, 2, 2, 8, causal=True)
    check(40, 100, 2, 2, 8, window=(5, 3))
    check(
        40, 70, 2, 2, 8, b=3, key_lengths=np.array([0, 33, 70], np.int32), query_lengths=np.array([0, 40, 5], np.int32)
    )
    check(40, 70, 2, 2, 8, mask=rng.random((1, 2, 40, 70)) < 0.3, causal=True)
    check(40, 70, 2, 2, 8, bias=rng.standard_normal((1, 2, 40, 70)).astype(ml_dtypes.bfloat16))


def test_splits():
    check(20, 1100, 1, 1, 8)


@pytest.mark.parametrize("sizes", [(1, 40, 70, 4, 2, 16, 16), (2, 17, 33, 1, 1, 20, 33), (1, 70, 40, 1, 1, 64, 64)])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients(sizes, causal):
    assert_gradients(
        lambda problem: AttentionRunner(choose_attention(problem, MACHINE, AMX), MACHINE),
        lambda of: problem_of(sizes, "bf16", of, causal=causal), gradient_arrays(sizes, "bf16"), causal=causal,
    )  # fmt: skip


def test_gradients_with_bias_mask_and_lengths():
    sizes, rng = (2, 40, 70, 4, 2, 16, 16), np.random.default_rng(0)
    masks = {
        "bias": rng.standard_normal((1, 4, 40, 70)).astype(ml_dtypes.bfloat16),
        "mask": rng.random((2, 1, 40, 70)) < 0.6, "key_lengths": np.array([0, 60], np.int32),
    }  # fmt: skip
    assert_gradients(
        lambda problem: AttentionRunner(choose_attention(problem, MACHINE, AMX), MACHINE),
        lambda of: problem_of(sizes, "bf16", of, **masks), gradient_arrays(sizes, "bf16"), **masks,
    )  # fmt: skip
