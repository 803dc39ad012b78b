"""Kernels of grouped products on vectors: within the bound of NumPy, nothing touched beside the arrays."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from grouped import ROWS, SUMS, TRANSPOSED, GroupedRunner, assert_grouped, described, run
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import host
from jax_nano.schedule.grouped.choose import choose_grouped

TYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16, "f64": np.float64}
each_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
each_isa = pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas if not isa.vectors])
each_kind = pytest.mark.parametrize("numbers", [ROWS, TRANSPOSED, SUMS], ids=["rows", "transposed", "sums"])
FILLED = {
    "even": [10, 10, 10, 10],
    "empty": [0, 0, 0, 0],
    "one_has_all": [0, 40, 0, 0],
    "one_row_each": [1, 1, 1, 1],
    "too_few": [3, 0, 14, 5],
    "too_many": [30, 9, 100, 7],
    "random": [17, 1, 16, 6],
}


def operands(rows, k, n, groups, numbers=ROWS, dtype=np.float32):
    rng = np.random.default_rng([rows, k, n, groups])
    shapes = {ROWS: (groups, k, n), TRANSPOSED: (groups, n, k), SUMS: (rows, n)}
    return [rng.standard_normal(shape).astype(dtype) for shape in ((rows, k), shapes[numbers])]


def check(rows, k, n, sizes, numbers=ROWS, dtype=np.float32, **options):
    lhs, rhs = operands(rows, k, n, len(sizes), numbers, dtype)
    sizes = np.asarray(sizes, np.int32)
    assert_grouped(run(lhs, rhs, sizes, numbers, **options), lhs, rhs, sizes, numbers)


@each_kind
@each_type
@each_isa
def test_sizes_that_are_multiples_of_nothing(isa, dtype, numbers):
    check(75, 37, 53, [20, 0, 33, 1, 2], numbers, dtype, isa=isa)


@each_kind
@pytest.mark.parametrize("sizes", FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_groups_that_are_filled_in_every_way(dtype, sizes, numbers):
    check(40, 20, 35, sizes, numbers, dtype)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_packed_blocks_of_few_steps(dtype):
    lhs, rhs = operands(90, 601, 1100, 2, ROWS, dtype)
    plan = choose_grouped(described(lhs, rhs, np.zeros(2, np.int32)), host.machine(), host.target(host.machine()))
    many = plan.many
    assert many
    assert many.instruction.tiles or (many.nb and many.k_blocks > 1) or many.rhs == "unpacked"
    check(90, 601, 1100, [70, 17], ROWS, dtype)


@each_kind
def test_one_row_one_column_one_step(numbers):
    check(1, 1, 2, [1], numbers)
    check(2, 1, 1 if numbers is SUMS else 2, [1, 1], numbers)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 13, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_every_number_of_rows(rows, dtype):
    check(128, 24, 40, [rows, 3, 0], dtype=dtype)


@pytest.mark.parametrize("sizes", [[300, 5, 700], [0, 1000, 0]])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_groups_of_several_tasks_and_sums_of_several_blocks(dtype, sizes):
    check(1005, 48, 72, sizes, dtype=dtype)
    check(1005, 48, 72, sizes, SUMS, dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
def test_sizes_of_every_integer_type(dtype):
    lhs, rhs = operands(20, 8, 16, 3)
    sizes = np.array([5, 0, 9], dtype)
    assert_grouped(run(lhs, rhs, sizes), lhs, rhs, sizes)


def test_sizes_that_are_no_sizes_touch_nothing_else():
    lhs, rhs = operands(20, 8, 16, 3)
    for sizes in ([-5, 30, -1], [np.iinfo(np.int32).max] * 3, [np.iinfo(np.int32).min] * 3):
        assert np.all(np.isfinite(run(lhs, rhs, np.array(sizes, np.int32))))


@pytest.mark.parametrize(("dtype", "out"), [(np.int8, np.int32), (np.uint8, np.float32)])
def test_integers_are_exact(dtype, out):
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.integers(0, 100, shape).astype(dtype) for shape in ((50, 70), (3, 70, 33)))
    sizes = np.array([20, 3, 25], np.int32)
    assert_grouped(run(lhs, rhs, sizes, out=out), lhs, rhs, sizes)


def test_bits_depend_on_a_group_alone():
    lhs, rhs = operands(200, 64, 96, 4)
    first = run(lhs, rhs, np.array([20, 100, 7, 73], np.int32))
    moved = np.concatenate([lhs[120:127], lhs[:20]])
    second = run(np.concatenate([moved, lhs[:173]]), rhs[[2, 0, 1, 3]], np.array([7, 20, 0, 0], np.int32))
    np.testing.assert_array_equal(second[7:27], first[:20])
    np.testing.assert_array_equal(second[:7], first[120:127])
    assert not second[27:].any()


def test_weights_of_empty_groups_are_not_read():
    lhs, rhs = operands(40, 20, 35, 4)
    rhs[1] = np.nan
    assert np.all(np.isfinite(run(lhs, rhs, np.array([20, 0, 10, 10], np.int32))))


def test_what_is_not_a_number_stays_in_its_row():
    lhs, rhs = operands(40, 20, 35, 3)
    lhs[21] = np.nan
    found = np.isnan(run(lhs, rhs, np.array([20, 15, 5], np.int32))).any(1)
    assert np.array_equal(found, np.arange(40) == 21)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    rows=st.integers(1, 90),
    k=st.integers(1, 40),
    n=st.integers(2, 70),
    numbers=st.sampled_from([ROWS, TRANSPOSED, SUMS]),
    dtype=st.sampled_from([np.float32, ml_dtypes.bfloat16]),
)
def test_random_groups(sizes, rows, k, n, numbers, dtype):
    check(rows, k, n, sizes, numbers, dtype)


@each_kind
def test_plans_that_differ_in_tasks_give_the_same_bits(numbers):
    lhs, rhs = operands(300, 40, 500, 3, numbers)
    sizes = np.array([120, 9, 150], np.int32)
    plan = choose_grouped(described(lhs, rhs, sizes, numbers), host.machine(), host.machine().isas[0])
    narrow = plan.replace(
        few=plan.few and plan.few.replace(nt=plan.few.nr, nb=0),
        many=plan.many and plan.many.replace(nt=plan.many.nr, nb=0),
    )
    assert narrow.tasks["compute"] > plan.tasks["compute"]
    first, second = (GroupedRunner(x)(lhs, rhs, sizes) for x in (plan, narrow))
    np.testing.assert_array_equal(first, second)


def test_what_has_no_kernel_says_why():
    lhs, rhs = operands(20, 8, 16, 3)
    problem = described(lhs, rhs, np.array([5, 0, 9], np.int32))
    with pytest.raises(UnsupportedDot, match="no kernel reads group sizes of f32; convert them to s32"):
        replace(problem, sizes="f32")
    with pytest.raises(UnsupportedDot, match="there is no group: there is nothing to multiply"):
        replace(problem, groups=0)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1, 1], [1, 2, 0, 1, 0, 3], [0, 0, 17, 1, 0, 1], [1, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_groups_of_one_row_beside_others(dtype, sizes):
    """Where groups have few rows, three plans share the work: bits depend on a group's own rows alone."""
    lhs, rhs = operands(24, 130, 300, 6, dtype=dtype)
    plan = choose_grouped(described(lhs, rhs, np.array(sizes, np.int32)), host.machine(), host.target(host.machine()))
    assert plan.one
    check(24, 130, 300, sizes, dtype=dtype)


def test_one_row_has_the_same_bits_whatever_others_have():
    lhs, rhs = operands(24, 130, 300, 6)
    first = run(lhs, rhs, np.array([1, 5, 0, 1, 0, 3], np.int32))
    second = run(lhs, rhs, np.array([1, 0, 0, 0, 0, 20], np.int32))
    np.testing.assert_array_equal(first[:1], second[:1])


def test_plans_of_a_grouped_product_are_ranked_by_rows():
    lhs, rhs = operands(24, 130, 300, 6)
    plan = choose_grouped(described(lhs, rhs, np.zeros(6, np.int32)), host.machine(), host.target(host.machine()))
    assert [above for _, above, _ in plan.kinds] == [16, 1, 0]
    assert plan.main is plan.few
    with pytest.raises(ValueError, match="a plan for single rows stands beside one for few"):
        plan.replace(few=None)
