"""Every row of the table of kernels, at every edge and in every way to divide the work, against exact results."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from kernel_runner import Runner
from kernel_table import ROWS, every_row
from products import DTYPES, INTEGERS

FLOATS = [row for row in ROWS if row.instruction.acc != "s32"]
WHOLE_NUMBERS = [row for row in ROWS if row.instruction.acc == "s32"]
WRAPPING = [row for row in WHOLE_NUMBERS if row.types[2] in INTEGERS]  # long sums of the others are floats
ROUNDED = [row for row in FLOATS if row.types[2] != row.instruction.acc]
SAME_TYPE = [row for row in ROUNDED if row.types[0] == row.types[2]]


def each(rows):
    return pytest.mark.parametrize("row", rows, ids=str)


def around(block):
    return [1, block - 1, block, block + 1, 2 * block + 3]


def edges(row):
    """Five times (m, n, k) around the planned register block and an iteration of its loop: each edge of each once.

    Which edges meet differs from row to row.
    """
    plan = row.plan(1, 1, 1, **row.planned)
    sides = around(plan.mr), around(plan.nr), around(plan.step)
    turns = [ROWS.index(row) * side for side in range(3)]
    for i in range(5):
        yield [max(1, sizes[(i + turn) % 5]) for sizes, turn in zip(sides, turns, strict=True)]


@every_row
def test_edges_of_the_planned_register_block(row):
    for sizes, lhs_stationary in zip(edges(row), itertools.cycle((True, False)), strict=False):
        product, run = row.product(*sizes), Runner(row.plan(*sizes, **row.planned | {"lhs_stationary": lhs_stationary}))
        operands = product.operands()
        product.check(run.at_both_ends(*operands), *operands)


def divisions(row):
    """Ways to divide the work, as changes of a plan with blocks of `mr` x `nr`."""
    plan = row.plan(1, 1, 1)
    mr, nr, steps = plan.lhs_panel, plan.nr, plan.k_multiple
    yield {"mt": 2 * mr, "nt": nr}
    yield {"mc": mr, "mt": 3 * mr, "nt": 2 * nr, "nc": 3 * nr, "pack_panels": 2}
    yield {"kc": row.plan(1, 1, 1, unroll=2).k_multiple, "unroll": 2, "lhs_stationary": True}
    yield {"kc": steps, "mc": 2 * mr, "nc": 2 * nr, "nt": nr}
    yield {"unroll": 4, "lhs_stationary": True}
    if row.kind.rhs != "per_round":
        yield {"kc": steps, "split_k": 3, "nt": 2 * nr}
        yield {"kc": 2 * steps, "split_k": 2, "mt": mr}
    if row.kind.rhs == "per_task":
        yield {"kc": 2 * steps, "nb": nr, "nt": 3 * nr}


@every_row
def test_divided_work(row):
    """Three divisions of each row; which ones differs from row to row."""
    plan = row.plan(1, 1, 1)
    sizes = 4 * plan.lhs_panel + 2, 4 * plan.nr + 5, 5 * plan.k_multiple + plan.step + 1
    product = row.product(*sizes)
    operands = product.operands()
    turns = itertools.cycle(divisions(row))
    for changes in itertools.islice(turns, ROWS.index(row), ROWS.index(row) + 3):
        product.check(Runner(row.plan(*sizes, **changes)).at_both_ends(*operands), *operands)


# Integers


@each(WRAPPING)
def test_extreme_integers_wrap_as_s32_does(row):
    """The largest products of one sign, in a sum that leaves s32."""
    lhs, rhs = (ml_dtypes.iinfo(DTYPES[dtype]) for dtype in row.types[:2])
    product = row.product(2, 3, 1 << 18 | 5)
    run = Runner(row.plan(2, 3, 1 << 18 | 5))
    a, b = product.operands()
    for extremes in itertools.product((lhs.min, lhs.max), (rhs.min, rhs.max)):
        a[...], b[...] = extremes
        product.check(run(a, b), a, b)


# Floats


def whole_numbers(product, most):
    """Operands whose products and sums are exact in f32."""
    rng = np.random.default_rng(0)
    a, b = product.operands()
    for x in (a, b):
        x[...] = rng.integers(0 if x.dtype == np.uint8 else -most, most, x.shape, endpoint=True)
    return a, b


@each(ROUNDED)
@pytest.mark.parametrize("parts", [1, 3])
def test_sums_are_rounded_once_to_nearest_even(row, parts):
    """Parts of a sum stand in the accumulator's type between, whatever the type of the result."""
    steps = 3 * row.plan(1, 1, 1).k_multiple
    sizes = 5, 40, parts * steps
    product = row.product(*sizes)
    a, b = whole_numbers(product, 100)
    exact = product.exact(a, b).astype(np.float32)
    expected = exact.astype(DTYPES[product.out])
    assert np.any(halfway(exact, expected.dtype)), "no sum is halfway"
    assert np.array_equal(Runner(row.plan(*sizes, kc=steps))(a, b), expected.ravel())


def halfway(x, dtype):
    """Which numbers of f32 stand in the middle between two neighbours in a narrower type."""
    dropped = 23 - ml_dtypes.finfo(dtype).nmant
    return x.view(np.uint32) & ((1 << dropped) - 1) == 1 << (dropped - 1)


@each(SAME_TYPE)
def test_sums_round_to_the_largest_number_or_to_infinity(row):
    product, run = row.product(2, 3, 2), Runner(row.plan(2, 3, 2))
    facts = ml_dtypes.finfo(DTYPES[product.out])
    largest = float(facts.max)
    half_ulp = largest - float(np.nextafter(facts.max, facts.dtype.type(0)))
    a, b = product.operands()
    b[...] = 1
    for sign in (1, -1):
        a[...] = [[sign * largest, sign * half_ulp / 2], [sign * largest, sign * half_ulp / 4]]
        assert np.array_equal(run(a, b), [sign * np.inf] * 3 + [sign * largest] * 3)


@each(FLOATS)
def test_nan_and_infinities_reach_the_sums_that_contain_them(row):
    """They stand in the last row, column and step, next to what is not there."""
    sizes = row.plan(1, 1, 1).mr + 2, row.plan(1, 1, 1).nr + 3, row.plan(1, 1, 1).k_multiple + 1
    product, run = row.product(*sizes), Runner(row.plan(*sizes))
    a, b = product.operands()
    if row.types[0] not in INTEGERS:
        a[-1, -1], a[0, 0], a[1, 0] = np.nan, np.inf, -np.inf
    if row.types[1] not in INTEGERS:
        b[-1, -1], b[0, 0], b[0, 1] = np.nan, np.inf, 0
    with np.errstate(invalid="ignore"):
        exact = product.exact(a, b).ravel()
    result = run.at_both_ends(a, b).astype(exact.dtype)
    assert np.isnan(exact).any() and np.isinf(exact).any() and np.isfinite(exact).any()
    finite = np.isfinite(exact)
    assert np.array_equal(result[~finite], exact[~finite], equal_nan=True)
    assert np.all(np.isfinite(result[finite]))


@each(FLOATS)
def test_a_sum_of_negative_zeros_is_zero(row):
    sizes = 4, 5, row.plan(1, 1, 1).step + 1
    a, b = row.product(*sizes).operands()
    a[...] = -0.0
    b[...] = 1 if row.types[0] not in INTEGERS else -1
    result = Runner(row.plan(*sizes))(a, b)
    assert np.all(result == 0)
    assert not np.signbit(result).any()
