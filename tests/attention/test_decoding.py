"""Few queries: heads that share keys are columns of one product, and memory is read from end to end."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from attention import assert_attention, described, exact, run

from jax_nano.machine import host
from jax_nano.schedule.attention.choose import choose_attention

TYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16, "f64": np.float64}
each_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)


def arrays(b, t, s, n, k, d, dv=None, dtype=np.float32):
    rng = np.random.default_rng([b, t, s, n, k, d])
    shapes = (b, t, n, d), (b, s, k, d), (b, s, k, dv or d)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check(qkv, isa=None, **options):
    assert_attention(run(*qkv, isa=isa, **options), *qkv, **options)


def plan_of(qkv, **options):
    machine = host.machine()
    return choose_attention(described(*qkv, **options), machine, machine.isas[0])


@each_type
@pytest.mark.parametrize(("queries", "heads"), [(2, 6), (3, 4), (4, 8), (1, 8), (5, 2)])
def test_queries_of_heads_that_share_keys_are_columns_of_one_product(queries, heads, dtype):
    qkv = arrays(2, queries, 70, heads, 2, 20, 13, dtype=dtype)
    assert plan_of(qkv).folds_heads == (heads > 2)
    check(qkv)


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (30, 2)}, {"causal": True, "window": (1, 0)}])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_folded_heads_are_masked_by_their_query(options, dtype):
    check(arrays(2, 4, 70, 8, 2, 16, dtype=dtype), **options)


def test_folded_heads_have_lengths_and_residuals():
    lengths = {"query_lengths": np.array([0, 3, 4], np.int32), "key_lengths": np.array([9, 0, 65], np.int32)}
    qkv = arrays(3, 4, 70, 8, 2, 16)
    check(qkv, **lengths)
    _, residual = run(*qkv, residual=True)
    np.testing.assert_allclose(residual, exact(*qkv)[1], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("keys", "splits"), [(70, 1), (600, 2)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_heads_whose_rows_are_neighbours_share_a_task(queries, keys, splits, dtype):
    qkv = arrays(16, queries, keys, 8, 4, 32, dtype=dtype)
    plan = plan_of(qkv)
    assert (plan.heads_per_task, plan.splits) == (4, splits)
    check(qkv)
    check(qkv, key_lengths=np.array([0, keys - 3] * 8, np.int32))


@pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas if not isa.vectors])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8])
@each_type
def test_few_columns_stand_by_rows(isa, columns, dtype):
    qkv = arrays(2, 1, 70, columns, 1, 37, 70, dtype=dtype)
    check(qkv, isa=isa)
    check(qkv, isa=isa, key_lengths=np.array([1, 66], np.int32))


def test_few_columns_have_biases_and_masks():
    rng = np.random.default_rng(1)
    mask, bias = rng.random((2, 4, 1, 700)) < 0.3, rng.standard_normal((2, 4, 1, 700)).astype(np.float32)
    check(arrays(2, 1, 700, 4, 1, 37), mask=mask, bias=bias)


def test_a_task_has_no_more_heads_than_a_page_holds_rows_of():
    assert plan_of(arrays(16, 1, 70, 12, 12, 128)).heads_per_task == 6
    assert plan_of(arrays(16, 1, 70, 3, 3, 2048)).heads_per_task == 1


def test_heads_have_tasks_to_themselves_where_these_are_few():
    assert plan_of(arrays(1, 1, 70, 12, 12, 16)).heads_per_task == 1
    assert plan_of(arrays(1, 1, 2048, 8, 8, 16)).heads_per_task == 4


def test_splits_do_not_depend_on_threads():
    qkv = arrays(1, 1, 5000, 8, 2, 64)
    machines = [replace(host.machine(), threads=threads) for threads in (1, 64)]
    plans = [choose_attention(described(*qkv), machine, machine.isas[0]) for machine in machines]
    assert plans[0].splits == plans[1].splits > 1
    assert plans[0].key_block == plans[1].key_block
    assert_attention(run(*qkv, plan=plans[1]), *qkv)
