"""Elementary functions: errors in units in the last place, special values, and what the processor runs."""

import functools
import re

import mpmath
import numpy as np
import pytest
import scipy.special
from elementwise_runner import NUMPY_TYPES, TARGETS, assembly, run

from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.power import power

MOST_ULPS = {"f32": 2.0, "f64": 4.0}
INF, NAN = np.inf, np.nan


def logistic(x):
    return np.where(
        x < 0, np.exp(np.minimum(x, 0)) / (1 + np.exp(np.minimum(x, 0))), 1 / (1 + np.exp(-np.maximum(x, 0)))
    )


ONE = mpmath.mpf(1)
FUNCTIONS = {  # in NumPy, in mpmath
    "exp": (np.exp, mpmath.exp),
    "exp2": (np.exp2, lambda x: mpmath.power(2, x)),
    "expm1": (np.expm1, mpmath.expm1),
    "log": (np.log, mpmath.log),
    "log1p": (np.log1p, mpmath.log1p),
    "tanh": (np.tanh, mpmath.tanh),
    "logistic": (logistic, lambda x: ONE / (1 + mpmath.exp(-x))),
    "erf": (scipy.special.erf, mpmath.erf),
    "erfc": (scipy.special.erfc, lambda x: mpmath.erfc(mpmath.sign(x) * min(abs(x), 99))),
    "sqrt": (np.sqrt, mpmath.sqrt),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x: ONE / mpmath.sqrt(x)),
    "cbrt": (np.cbrt, lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x))),
    "sin": (np.sin, mpmath.sin),
    "cos": (np.cos, mpmath.cos),
}
F32_ONLY = {"sin", "cos"}
CASES = [(name, dtype) for dtype in MOST_ULPS for name in FUNCTIONS if dtype == "f32" or name not in F32_ONLY]

# Where formulas change, and where results become subnormal, zero, infinite or 1.
BOUNDARIES = [
    0.0, 1e-30, 2**-24, 0.17328, 1 / 3, 0.34657, 0.5, 0.55, 2 / 3, 0.70711, 1.0, 4 / 3, 1.5, 3.93, 6.0, 8.32, 9.0, 9.01,
    10.05, 10.1, 16.63, 17.33, 18.02, 18.71, 19.06, 26.54, 27.3, 37.4, 86.64, 87.33, 88.03, 88.72, 89.0, 103.28, 103.97,
    104.67, 126.0, 127.0, 128.0, 149.0, 150.0, 708.4, 709.78, 744.44, 745.13, 746.0, 1022.0, 1024.0, 1074.0, 1e5, 2**24,
    2.0**44, 2.0**64, 1e19, 1e38,
]  # fmt: skip


@functools.cache
def emit_one(name):
    function = getattr(vmath, name)
    return lambda operands: [function(operands[0])]


def computed(name, x, target, **options):
    (result,) = run(emit_one(name), [x], [{4: "f32", 8: "f64"}[x.dtype.itemsize]], target, **options)
    return result


def neighbours(x, dtype, steps=8):
    """Numbers, their negatives, and what lies beside both."""
    x = np.asarray(x, NUMPY_TYPES[dtype])
    integers = x.view({4: np.int32, 8: np.int64}[x.itemsize])
    near = np.concatenate([np.maximum(integers + step, 0).view(x.dtype) for step in range(-steps, steps + 1)])
    return np.concatenate([near, -near])


def sample(dtype, count, seed=0):
    """Numbers of every magnitude, more of them where functions bend, and the boundaries."""
    rng, kind = np.random.default_rng(seed), NUMPY_TYPES[dtype]
    bits = {"f32": np.uint32, "f64": np.uint64}[dtype]
    with np.errstate(over="ignore"):
        parts = [
            rng.integers(0, np.iinfo(bits).max, count, dtype=bits, endpoint=True).view(kind),
            *(rng.uniform(-reach, reach, count).astype(kind) for reach in (1.0, 12.0, 110.0, 800.0)),
            np.exp(rng.uniform(-100, 3, count)).astype(kind) * rng.choice([-1, 1], count).astype(kind),
            neighbours(BOUNDARIES, dtype),
            neighbours([np.finfo(kind).tiny, np.finfo(kind).smallest_subnormal, np.finfo(kind).max], dtype),
        ]
    return np.concatenate(parts)


def ulps(actual, exact):
    """|actual - exact| in spacings of actual's type at `exact`; infinity is what comes after the largest number."""
    info, wide = np.finfo(actual.dtype), exact.dtype
    top = wide.type(2) ** info.maxexp
    with np.errstate(invalid="ignore"):  # casting a NaN of any payload
        actual, exact = (np.clip(x.astype(wide), -top, top) for x in (actual, exact))
    _, exponent = np.frexp(np.minimum(np.abs(exact), wide.type(info.max)))
    spacing = np.ldexp(wide.type(1), np.maximum(exponent, info.minexp + 1) - info.nmant - 1)
    error = np.where(np.isnan(actual) & np.isnan(exact), 0, np.abs(actual - exact) / spacing)
    return np.where(np.isnan(error), INF, error).astype(np.float64)


def in_mpmath(function, x):
    """A function of f64 numbers, in longdouble."""

    def exactly(number):
        if np.isnan(number):
            return np.longdouble(NAN)
        result = function(mpmath.mpf(float(number)))
        if isinstance(result, mpmath.mpc):
            return np.longdouble(NAN)
        high = float(result)
        return np.longdouble(high) + np.longdouble(float(result - high) if np.isfinite(high) else 0)

    with mpmath.workprec(128):
        return np.array([exactly(number) for number in x])


def worst(actual, exact, x):
    error = ulps(actual, exact)
    i = error.argmax()
    return error[i], f"{error[i]:.3f} ulp at {x[i]!r}: {actual[i]!r}, exactly {exact[i]!r}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_errors_are_within_the_bound(name, dtype, target):
    x = sample(dtype, 1 << 16)
    wide = np.float64 if dtype == "f32" else np.longdouble
    if dtype == "f64" and name in ("erf", "erfc"):
        x = sample(dtype, 100)
        exact = in_mpmath(FUNCTIONS[name][1], x)
    else:
        with np.errstate(all="ignore"):
            exact = FUNCTIONS[name][0](x.astype(wide))
    error, report = worst(computed(name, x, target), exact, x)
    assert error <= MOST_ULPS[dtype], report


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_errors_are_within_the_bound_by_mpmath(name, dtype):
    x = sample(dtype, 20, seed=1)
    x = x[np.isfinite(x) & (x != 0)]
    error, report = worst(computed(name, x, TARGETS[0]), in_mpmath(FUNCTIONS[name][1], x), x)
    assert error <= MOST_ULPS[dtype], report


@pytest.mark.exhaustive  # half an hour
def test_errors_are_within_the_bound_for_every_f32():
    step, worst_of = 1 << 24, {}
    for start in range(0, 1 << 32, step):
        x = np.arange(start, start + step, dtype=np.uint32).view(np.float32)
        for name, (function, _) in FUNCTIONS.items():
            with np.errstate(all="ignore"):
                found = worst(computed(name, x, TARGETS[0]), function(x.astype(np.float64)), x)
            worst_of[name] = max(found, worst_of.get(name, (0.0, "")))
    assert all(error <= MOST_ULPS["f32"] for error, _ in worst_of.values()), worst_of


SPECIAL = {
    "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (-0.0, 1.0), (1e4, INF), (-1e4, 0.0)],
    "exp2": [
        (INF, INF),
        (-INF, 0.0),
        (0.0, 1.0),
        (-0.0, 1.0),
        (1e4, INF),
        (-1e4, 0.0),
        (3.0, 8.0),
        (-126.0, 2.0**-126),
    ],
    "expm1": [(INF, INF), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e4, INF), (-1e4, -1.0), (2e-38, 2e-38)],
    "log": [(INF, INF), (-INF, NAN), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (1.0, 0.0), (-1e-30, NAN)],
    "log1p": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (30.0, 1.0), (-30.0, -1.0)],
    "logistic": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (-0.0, 0.5), (60.0, 1.0), (-1e4, 0.0)],
    "erf": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (7.0, 1.0), (-7.0, -1.0)],
    "erfc": [(INF, 0.0), (-INF, 2.0), (0.0, 1.0), (-0.0, 1.0), (30.0, 0.0), (-7.0, 2.0)],
    "sqrt": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0), (-1.0, NAN), (4.0, 2.0)],
    "rsqrt": [(INF, 0.0), (-INF, NAN), (0.0, INF), (-0.0, -INF), (-1.0, NAN), (4.0, 0.5)],
    "cbrt": [(INF, INF), (-INF, -INF), (0.0, 0.0), (-0.0, -0.0), (-8.0, -2.0), (27.0, 3.0)],
    "sin": [(INF, NAN), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0)],
    "cos": [(INF, NAN), (-INF, NAN), (0.0, 1.0), (-0.0, 1.0)],
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("subnormals", [True, False])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_special_values_are_exact(name, dtype, target, subnormals):
    expected = [(NAN, NAN), (-NAN, NAN), *SPECIAL[name]]
    x, y = (np.array(column, NUMPY_TYPES[dtype]) for column in zip(*expected, strict=True))
    actual = computed(name, x, target, subnormals=subnormals)
    np.testing.assert_array_equal(actual, y)
    np.testing.assert_array_equal(np.signbit(actual[~np.isnan(y)]), np.signbit(y[~np.isnan(y)]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_of_any_payload_gives_nan(name):
    payloads = np.array([0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFC001FF, 0x7FC001FF, 0x7FC00081], np.uint32)
    assert np.isnan(computed(name, payloads.view(np.float32), TARGETS[0])).all()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_where_subnormal_numbers_are_zeros_the_others_are_the_same(name, dtype):
    x = sample(dtype, 1 << 12)
    smallest = np.finfo(x.dtype).tiny
    kept = computed(name, x, TARGETS[0])
    flushed = computed(name, x, TARGETS[0], subnormals=False)
    is_normal = (np.abs(x) >= smallest) | (x == 0) | np.isnan(x)
    is_safe = is_normal & ((np.abs(kept) > 2 * smallest) | np.isnan(kept))
    np.testing.assert_array_equal(flushed[is_safe], kept[is_safe])
    is_tiny = is_normal & (np.abs(kept) < smallest)
    assert np.all(np.abs(flushed[is_tiny]) <= smallest)


@pytest.mark.parametrize("dtype", MOST_ULPS)
@pytest.mark.parametrize("name", ["tanh", "erf", "cbrt", "expm1", "log1p"])
def test_odd_functions_are_odd_and_the_others_keep_the_sign(name, dtype):
    x = sample(dtype, 1 << 12)
    x = x[np.abs(x) < 1] if name in ("expm1", "log1p") else x
    result = computed(name, x, TARGETS[0])
    if name in ("expm1", "log1p"):
        assert np.array_equal(np.signbit(result), np.signbit(x))
    else:
        np.testing.assert_array_equal(computed(name, -x, TARGETS[0]), -result)


@pytest.mark.parametrize(("name", "low", "high"), [("tanh", -1, 1), ("erf", -1, 1), ("erfc", 0, 2), ("logistic", 0, 1)])
@pytest.mark.parametrize("dtype", MOST_ULPS)
def test_results_stay_within_their_range(name, low, high, dtype):
    x = sample(dtype, 1 << 14)
    result = computed(name, x[~np.isnan(x)], TARGETS[0])
    assert result.min() >= low
    assert result.max() <= high


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16, 32, 48])
def test_any_number_of_lanes(lanes):
    x = np.linspace(-5, 5, 96, dtype=np.float32)
    np.testing.assert_array_equal(
        computed("erfc", x, TARGETS[0], lanes=lanes), computed("erfc", x, TARGETS[0])
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_code_is_straight_vector_arithmetic(name, dtype, target):
    text = assembly(emit_one(name), (dtype,), (dtype,), target)
    assert not re.search(r"\bcall", text)
    assert "gather" not in text
    scalar = re.findall(r"\bv(?:add|sub|mul|div|sqrt|fn?m\w+)s[sd]\b", text)
    assert not scalar, "no lane is computed by itself"


def raised(operands):
    return [power(*operands)]


POWERS = [
    0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, -8.0, 1 / 3, -1 / 3, 0.1, 1e30, 2.0**24 + 1, 2.0**53,
    -(2.0**53) + 1, 1e-40, 1e-310, INF, -INF, NAN,
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", MOST_ULPS)
def test_powers_of_special_values_are_those_of_c99(dtype, target):
    x, y = (grid.astype(NUMPY_TYPES[dtype]) for grid in np.meshgrid(POWERS, POWERS))
    (actual,) = run(raised, [x, y], [dtype], target)
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    np.testing.assert_allclose(actual, expected, rtol=MOST_ULPS[dtype] * np.finfo(x.dtype).eps)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[number]), np.signbit(expected[number]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", MOST_ULPS)
def test_errors_of_powers_are_within_the_bound(dtype, target):
    count = 2000 if dtype == "f32" else 300
    rng, reach = np.random.default_rng(0), {"f32": 88, "f64": 700}[dtype]
    x = np.concatenate(
        [np.exp(rng.uniform(-reach, reach, count)), rng.uniform(0.5, 2, count), 1 + rng.normal(0, 1e-3, count)]
    )
    y = np.concatenate([rng.uniform(-2, 2, count), rng.uniform(-reach, reach, count), rng.uniform(-7e4, 7e4, count)])
    x, y = (z.astype(NUMPY_TYPES[dtype]) for z in (x, y))
    (actual,) = run(raised, [x, y], [dtype], target)
    pairs = {i: (mpmath.mpf(float(a)), mpmath.mpf(float(b))) for i, (a, b) in enumerate(zip(x, y, strict=True))}
    exact = in_mpmath(lambda i: mpmath.power(*pairs[int(i)]), np.arange(x.size))
    error, report = worst(actual, exact, x)
    assert error <= MOST_ULPS[dtype], report
