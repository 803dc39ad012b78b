"""Every row of the table of kernels, at every edge and in every way to divide the work, against exact results."""

import itertools
import random

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


# Sizes of a dimension beside its block: of m and n in the register block, of k in an iteration of the loop.
EDGES = {
    "One": lambda block: 1,
    "BlockMinusOne": lambda block: max(1, block - 1),
    "Block": lambda block: block,
    "BlockPlusOne": lambda block: block + 1,
    "Unaligned": lambda block: 2 * block + 3,
}
# Of m, n and k, such that each of them has each edge once; and whether A's registers stay while B's change.
CORNERS = [
    ("One", "Unaligned", "BlockPlusOne", True),
    ("BlockMinusOne", "BlockPlusOne", "One", False),
    ("Block", "Block", "Block", True),
    ("BlockPlusOne", "One", "Unaligned", False),
    ("Unaligned", "BlockMinusOne", "BlockMinusOne", True),
]


def named(corner):
    m, n, k, lhs_stationary = corner
    return f"{m}M-{n}N-{k}K-{'AStationary' if lhs_stationary else 'BStationary'}"


@every_row
@pytest.mark.parametrize("corner", CORNERS, ids=named)
def test_edges_of_the_planned_register_block(row, corner):
    *edges, lhs_stationary = corner
    plan = row.plan(1, 1, 1, **row.planned)
    sizes = [EDGES[edge](block) for edge, block in zip(edges, (plan.mr, plan.nr, plan.step), strict=True)]
    product, run = row.product(*sizes), Runner(row.plan(*sizes, **row.planned | {"lhs_stationary": lhs_stationary}))
    operands = product.operands()
    product.check(run.at_both_ends(*operands), *operands)


def divisions(row):
    """Ways to divide the work, as changes of a plan with blocks of `mr` x `nr`."""
    plan = row.plan(1, 1, 1)
    mr, nr, steps = plan.lhs_panel, plan.nr, plan.k_multiple
    ways = {
        "TasksOfTwoPanels": {"mt": 2 * mr, "nt": nr},
        "BlocksWithinTasks": {"mc": mr, "mt": 3 * mr, "nt": 2 * nr, "nc": 3 * nr, "pack_panels": 2},
        "BlocksOfTwoSteps": {"kc": row.plan(1, 1, 1, unroll=2).k_multiple, "unroll": 2, "lhs_stationary": True},
        "BlocksOfEverySize": {"kc": steps, "mc": 2 * mr, "nc": 2 * nr, "nt": nr},
        "UnrolledByFour": {"unroll": 4, "lhs_stationary": True},
    }
    if row.kind.rhs != "per_round":
        ways["SplitKByThree"] = {"kc": steps, "split_k": 3, "nt": 2 * nr}
        ways["SplitKByTwo"] = {"kc": 2 * steps, "split_k": 2, "mt": mr}
    if row.kind.rhs == "per_task":
        ways["BPackedInParts"] = {"kc": 2 * steps, "nb": nr, "nt": 3 * nr}
    return ways


def some_divisions(row):
    """Two of the divisions, which depend on the row's name: other rows of its types, and of its kind, have others."""
    return random.Random(str(row)).sample(sorted(divisions(row)), 2)


DIVIDED = [pytest.param(row, name, id=f"{row}-{name}") for row in ROWS for name in some_divisions(row)]


@pytest.mark.parametrize(("row", "division"), DIVIDED)
def test_divided_work(row, division):
    plan = row.plan(1, 1, 1)
    sizes = 4 * plan.lhs_panel + 2, 4 * plan.nr + 5, 5 * plan.k_multiple + plan.step + 1
    product = row.product(*sizes)
    operands = product.operands()
    product.check(Runner(row.plan(*sizes, **divisions(row)[division])).at_both_ends(*operands), *operands)


def test_every_target_has_every_division():
    met = {(row.target, name) for row in ROWS for name in some_divisions(row)}
    assert met == {(row.target, name) for row in ROWS for name in divisions(row)}


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


@each([row for row in FLOATS if row.types == ("f32", "f32", "f32") and row.kind.rhs != "per_round"])
def test_splits_of_a_sum_are_added_in_their_order(row):
    """In any other one, a large number swallows the 1."""
    steps = row.plan(1, 1, 1).k_multiple
    sizes = 2, 5, 3 * steps
    a, b = row.product(*sizes).operands()
    a[...], b[...] = 0, 1
    a[:, [0, steps, 2 * steps]] = 2.0**30, -(2.0**30), 1
    assert np.all(Runner(row.plan(*sizes, kc=steps, split_k=3)).at_both_ends(a, b) == 1)


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


@pytest.fixture(scope="module", params=FLOATS, ids=str)
def ragged(request):
    """(row, product, kernel): a little more than a block of each dimension. Tests of a row share its kernel."""
    row = request.param
    plan = row.plan(1, 1, 1)
    sizes = plan.mr + 2, plan.nr + 3, plan.k_multiple + 1
    return row, row.product(*sizes), Runner(row.plan(*sizes))


def test_nan_and_infinities_reach_the_sums_that_contain_them(ragged):
    """They stand in the last row, column and step, next to what is not there."""
    row, product, run = ragged
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


def test_a_sum_of_negative_zeros_is_zero(ragged):
    row, product, run = ragged
    a, b = product.operands()
    a[...] = -0.0
    b[...] = 1 if row.types[0] not in INTEGERS else -1
    result = run(a, b)
    assert np.all(result == 0)
    assert not np.signbit(result).any()
