"""Elementwise programs on registers, against NumPy: each operation on each type, casts, and whole epilogues."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from elementwise_runner import NUMPY_TYPES, TARGETS, assembly, evaluate, program
from jax import lax

from jax_nano.codegen.vector import evaluate as evaluation
from jax_nano.ir.program import ANYTHING, FLOATS, INTEGERS, NUMBERS, OPERATIONS, Input, Operation, Program
from jax_nano.machine import host

TYPES = sorted(ANYTHING)
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
BINARY = (
    "add", "sub", "mul", "div", "rem", "max", "min", "and", "or", "xor", "pow", *COMPARISONS,
    "shift_left", "shift_right_arithmetic", "shift_right_logical",
)  # fmt: skip
TERNARY = ("clamp", "select_n")


def single(name, operands, result, **params):
    """The program of one operation."""
    return Program(
        inputs=tuple(Input(argument=i, dtype=dtype) for i, dtype in enumerate(operands)),
        constants=(),
        operations=(
            Operation(name=name, operands=tuple(range(len(operands))), dtype=result, params=tuple(params.items())),
        ),
        results=(len(operands),),
    )


def special(dtype):
    """Numbers where something may go wrong."""
    kind = NUMPY_TYPES[dtype]
    if dtype == "pred":
        return np.array([False, True])
    if dtype in INTEGERS:
        info = np.iinfo(kind)
        inside = {-129, -128, -127, -3, -2, -1, 0, 1, 2, 3, 5, 31, 32, 33, 100, 127, 128, 255, 256, 1000}
        ends = {info.min, info.min + 1, info.max // 2, info.max - 1, info.max}
        return np.array(sorted(n for n in inside | ends if info.min <= n <= info.max), kind)
    info = ml_dtypes.finfo(kind)
    positive = [0.0, 1e-3, 0.2, 0.49999997, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 100.3, 1e4, np.inf]
    positive += [float(x) for x in (info.max, info.tiny, info.smallest_subnormal)]
    numbers = np.array([*positive, *(-x for x in positive), np.nan])
    with np.errstate(over="ignore"):
        return numbers.astype(kind)


def combinations(*dtypes, random=64):
    """Arrays in which specials meet each other, and random numbers."""
    rng = np.random.default_rng(0)

    def numbers(dtype):
        if dtype == "pred":
            return rng.integers(0, 2, random).astype(bool)
        if dtype in INTEGERS:
            return rng.integers(0, 256, random * np.dtype(NUMPY_TYPES[dtype]).itemsize, np.uint8).view(
                NUMPY_TYPES[dtype]
            )
        return (rng.standard_normal(random) * 8).astype(NUMPY_TYPES[dtype])

    grids = np.meshgrid(*(np.arange(special(dtype).size) for dtype in dtypes), indexing="ij")
    return [
        np.concatenate([special(dtype)[grid.ravel()], numbers(dtype)])
        for dtype, grid in zip(dtypes, grids, strict=True)
    ]


def rounded(x, dtype):
    """Wide floats to nearest even in a type, once."""
    kind = NUMPY_TYPES[dtype]
    info = ml_dtypes.finfo(kind)
    _, exponent = np.frexp(x)
    unit = np.maximum(exponent, int(info.minexp) + 1) - info.nmant - 1
    with np.errstate(all="ignore"):
        exact = np.ldexp(np.rint(np.ldexp(x, -unit)), unit)
        exact = np.where(np.abs(exact) > np.longdouble(info.max), np.sign(x) * np.inf, exact)
        exact = np.where(np.isfinite(x), exact, x)
        return np.copysign(exact, x).astype(np.float64 if dtype != "f64" else kind).astype(kind)


def wrapped(numbers, dtype):
    """Python's integers modulo 2**width."""
    bits = np.dtype(NUMPY_TYPES[dtype]).itemsize * 8
    return np.array([int(n) % (1 << bits) for n in numbers], np.uint64).astype(f"uint{bits}").view(NUMPY_TYPES[dtype])


FLOAT_MEANING = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "neg": np.negative, "abs": np.abs, "floor": np.floor, "ceil": np.ceil, "sqrt": np.sqrt, "square": np.square,
    "sign": lambda x: np.where((x == 0) | np.isnan(x), x, np.copysign(1, x)),
    "clamp": lambda low, x, high: np.minimum(np.maximum(low, x), high),
    "is_finite": np.isfinite,
}  # fmt: skip

FLOAT_APPROXIMATION = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
    "logistic": lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x))),
    "erf": np.vectorize(math.erf), "erfc": np.vectorize(math.erfc), "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt,
    "pow": np.power, "sin": np.sin, "cos": np.cos,
    "one_minus_square": lambda x: (1 - x) * (1 + x),
}  # fmt: skip


def divided(a, b):
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def shifted_right(a, b, bits):
    """The highest bit comes in from the left, of unsigned numbers too."""
    signed = (a + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    return signed >> (b if 0 <= b < bits else bits - 1)


INTEGER_MEANING = {  # of Python's integers, modulo 2**bits
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul": lambda a, b, bits: a * b,
    "square": lambda a, bits: a * a,
    "one_minus_square": lambda a, bits: 1 - a * a,
    "div": lambda a, b, bits: divided(a, b),
    "rem": lambda a, b, bits: a - b * divided(a, b),
    "neg": lambda a, bits: -a,
    "abs": lambda a, bits: abs(a),
    "sign": lambda a, bits: (a > 0) - (a < 0),
    "max": lambda a, b, bits: max(a, b),
    "min": lambda a, b, bits: min(a, b),
    "clamp": lambda low, a, high, bits: min(max(low, a), high),
    "and": lambda a, b, bits: a & b,
    "or": lambda a, b, bits: a | b,
    "xor": lambda a, b, bits: a ^ b,
    "not": lambda a, bits: ~a,
    "shift_left": lambda a, b, bits: a << b if 0 <= b < bits else 0,
    "shift_right_logical": lambda a, b, bits: a % (1 << bits) >> b if 0 <= b < bits else 0,
    "shift_right_arithmetic": shifted_right,
}
COMPARED = dict(
    zip(COMPARISONS, (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal), strict=True)
)


def assert_same(actual, expected):
    """The same type and numbers; NumPy's own assertion does not know that bf16 has NaN."""
    assert actual.dtype == expected.dtype
    if actual.dtype.name == "bfloat16":
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(actual, expected)


def operands_of(name, dtype):
    count = 3 if name in TERNARY else 2 if name in BINARY else 1
    return ["pred", dtype, dtype] if name == "select_n" else [dtype] * count


def cases(names, dtypes):
    return [(name, dtype) for name in names for dtype in sorted(OPERATIONS[name] & set(dtypes))]


def test_every_operation_is_tested():
    special_cases = {"convert", "select_n", "integer_pow", "round"}
    assert set(OPERATIONS) == special_cases | {*FLOAT_MEANING, *FLOAT_APPROXIMATION, *INTEGER_MEANING, *COMPARED}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "dtype"), cases(FLOAT_MEANING, FLOATS))
def test_exact_operations_on_floats_are_rounded_once(name, dtype, target):
    arrays = combinations(*operands_of(name, dtype))
    result = "pred" if name == "is_finite" else dtype
    (actual,) = evaluate(single(name, operands_of(name, dtype), result), arrays, target)
    with np.errstate(all="ignore"):
        expected = FLOAT_MEANING[name](*(x.astype(np.float64) for x in arrays))
    assert_same(actual, expected if result == "pred" else rounded(expected, dtype))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "dtype"), cases(FLOAT_APPROXIMATION, FLOATS))
def test_approximations_are_within_their_bound(name, dtype, target):
    arrays = combinations(*operands_of(name, dtype))
    (actual,) = evaluate(single(name, operands_of(name, dtype), dtype), arrays, target)
    with np.errstate(all="ignore"):
        wide = np.longdouble if dtype == "f64" else np.float64
        expected = FLOAT_APPROXIMATION[name](*(x.astype(wide) for x in arrays)).astype(np.float64)
    ulps = {"f64": 4, "f32": 2}.get(dtype, 0.51)
    info = ml_dtypes.finfo(NUMPY_TYPES[dtype])
    inside = np.isfinite(expected) & (np.abs(expected) < float(info.max))
    assert_same(actual[~inside], rounded(expected[~inside], dtype))
    spacing = np.ldexp(1.0, np.maximum(np.frexp(expected[inside])[1], int(info.minexp) + 1) - info.nmant - 1)
    assert np.all(np.abs(actual[inside].astype(np.float64) - expected[inside]) <= ulps * spacing)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "dtype"), cases(INTEGER_MEANING, INTEGERS))
def test_operations_on_integers_wrap_around(name, dtype, target):
    arrays = combinations(*operands_of(name, dtype))
    (actual,) = evaluate(single(name, operands_of(name, dtype), dtype), arrays, target)
    bits = actual.dtype.itemsize * 8
    expected = [INTEGER_MEANING[name](*map(int, numbers), bits) for numbers in zip(*arrays, strict=True)]
    assert_same(actual, wrapped(expected, dtype))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "dtype"), cases(COMPARED, ANYTHING))
def test_comparisons(name, dtype, target):
    arrays = combinations(dtype, dtype)
    (actual,) = evaluate(single(name, [dtype, dtype], "pred"), arrays, target)
    assert_same(actual, COMPARED[name](*arrays))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["and", "or", "xor", "not", "max", "min"])
def test_operations_on_truth_values(name, target):
    arrays = combinations(*operands_of(name, "pred"))
    (actual,) = evaluate(single(name, operands_of(name, "pred"), "pred"), arrays, target)
    meaning = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}
    assert_same(actual, {**meaning, "max": np.logical_or, "min": np.logical_and}[name](*arrays))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", TYPES)
def test_select_n_takes_the_second_case_where_true(dtype, target):
    which, off, on = combinations("pred", dtype, dtype)
    (actual,) = evaluate(single("select_n", ["pred", dtype, dtype], dtype), [which, off, on], target)
    assert_same(actual, np.where(which, on, off))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("y", [-3, -1, 0, 1, 2, 3, 7, 10])
@pytest.mark.parametrize("dtype", sorted(NUMBERS))
def test_integer_pow(dtype, y, target):
    if y < 0 and dtype in INTEGERS:
        return
    (x,) = combinations(dtype)
    (actual,) = evaluate(single("integer_pow", [dtype], dtype, y=y), [x], target)
    if dtype in INTEGERS:
        assert_same(actual, wrapped([int(n) ** y for n in x], dtype))
        return
    with np.errstate(all="ignore"):
        expected = rounded(x.astype(np.float64) ** y, dtype).astype(np.float64)
    tolerance = (abs(y) + 1) * float(ml_dtypes.finfo(x.dtype).eps)
    is_normal = np.abs(expected) >= float(ml_dtypes.finfo(x.dtype).tiny)
    is_safe = is_normal & (np.abs(expected) < float(ml_dtypes.finfo(x.dtype).max) / 2) | ~np.isfinite(expected)
    np.testing.assert_allclose(actual.astype(np.float64)[is_safe], expected[is_safe], rtol=tolerance)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("method", list(lax.RoundingMethod))
def test_round(method, dtype, target):
    (x,) = combinations(dtype)
    x = np.concatenate(
        [x, *(np.array([n, -n], x.dtype) for n in (2**10 + 0.5, 2**22 + 0.5, 2**23 + 1, 2**51 + 0.5, 0.5 - 2**-54))]
    )
    (actual,) = evaluate(single("round", [dtype], dtype, rounding_method=int(method)), [x], target)
    wide = x.astype(np.longdouble)
    away = np.copysign(np.floor(np.abs(wide) + np.longdouble(0.5)), wide)
    expected = np.rint(wide) if method == lax.RoundingMethod.TO_NEAREST_EVEN else away
    assert_same(actual, expected.astype(x.dtype))
    assert np.array_equal(np.signbit(actual), np.signbit(x))


def converted(x, target):
    """What lax.convert_element_type makes of an array."""
    kind = np.dtype(NUMPY_TYPES[target])
    source = "float" if x.dtype.kind in "fV" or x.dtype.name == "bfloat16" else "integer"
    if target == "pred":
        return x.astype(np.longdouble) != 0
    if target in FLOATS:
        return rounded(x.astype(np.longdouble), target)
    if source == "integer":
        return wrapped(x, target)
    info = np.iinfo(kind)

    def integer(number):
        if math.isnan(number):
            return 0
        return (
            (info.max if number > 0 else info.min) if math.isinf(number) else max(info.min, min(info.max, int(number)))
        )

    return np.array([integer(float(number)) for number in x], kind)


def conversions(source):
    """The program that gives its input in every other type."""
    targets = [dtype for dtype in TYPES if dtype != source]
    return Program(
        inputs=(Input(argument=0, dtype=source),),
        constants=(),
        operations=tuple(Operation(name="convert", operands=(0,), dtype=dtype) for dtype in targets),
        results=tuple(range(1, len(TYPES))),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", TYPES)
def test_conversions(source, target):
    (x,) = combinations(source)
    if source in FLOATS:
        limits = [2.0**n + step for n in (7, 8, 15, 16, 31, 32, 63, 64) for step in (-1, 0, 1)]
        # Just beside the middle of two numbers of f16 and of bf16, which a rounding to f32 in between would hide.
        middles = [1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40, 1 + 2.0**-8 - 2.0**-40]
        more = np.array([*limits, *middles, 1e300, 65519.999, 65520.0])
        with np.errstate(over="ignore"):
            x = np.concatenate([x, more.astype(x.dtype), (-more).astype(x.dtype)])
    elif source in INTEGERS and x.dtype.itemsize >= 4:
        x = np.concatenate([x, np.array([33685505, 16842753, 2**24 + 1, 2**24 + 3], x.dtype)])
    program = conversions(source)
    for number, actual in zip(program.results, evaluate(program, [x], target), strict=True):
        assert_same(actual, converted(x, program.dtype(number)))


def everything(dtype):
    """The program of all operations that a type has."""
    operations = []
    for name in OPERATIONS:
        if dtype in OPERATIONS[name] and name != "convert":
            result = "pred" if name in (*COMPARISONS, "is_finite") else dtype
            params = {"integer_pow": (("y", 3),), "round": (("rounding_method", 0),)}.get(name, ())
            numbers = (3, 0, 1) if name == "select_n" else tuple(range(len(operands_of(name, dtype))))
            operations.append(Operation(name=name, operands=numbers, dtype=result, params=params))
    types = [dtype, dtype, dtype, "pred"]
    return Program(
        inputs=tuple(Input(argument=i, dtype=kind) for i, kind in enumerate(types)),
        constants=(),
        operations=tuple(operations),
        results=tuple(range(4, 4 + len(operations))),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("make", [everything, conversions])
def test_no_operation_calls_a_function(make, dtype, target):
    program = make(dtype)
    operands = tuple(source.dtype for source in program.inputs)
    results = tuple(program.dtype(number) for number in program.results)
    text = assembly(functools.partial(evaluation.evaluate, program), operands, results, target)
    assert not re.findall(r"\bcall.*", text)


def test_the_larger_of_zeros_is_positive():
    x, y = np.array([0.0, -0.0, -0.0], np.float32), np.array([-0.0, 0.0, -0.0], np.float32)
    (largest,) = evaluate(single("max", ["f32", "f32"], "f32"), [x, y], TARGETS[0])
    (smallest,) = evaluate(single("min", ["f32", "f32"], "f32"), [x, y], TARGETS[0])
    assert np.signbit(largest).tolist() == [False, False, True]
    assert np.signbit(smallest).tolist() == [True, True, True]


def test_nan_keeps_being_nan_in_bf16():
    x = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    (actual,) = evaluate(single("convert", ["f32"], "bf16"), [x], TARGETS[0])
    assert np.isnan(actual.astype(np.float32)).all()
    wide = np.array([0x7FF0000000000001, 0xFFF0000000000001], np.uint64).view(np.float64)
    (actual,) = evaluate(single("convert", ["f64"], "bf16"), [wide], TARGETS[0])
    assert np.isnan(actual.astype(np.float32)).all()


# Whole epilogues


def normal(*shape, dtype: Any = np.float32, scale=3):
    return (np.random.default_rng(len(shape)).standard_normal(shape) * scale).astype(dtype)


def wide_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


EPILOGUES = {
    "relu": (jax.nn.relu, lambda x: np.maximum(x, 0)),
    "gelu": (jax.nn.gelu, wide_gelu),
    "exact gelu": (
        lambda x: 0.5 * x * jax.lax.erfc(-x * np.float32(0.5**0.5)).astype(x.dtype),
        lambda x: x * scipy.special.erfc(-x / np.sqrt(2)) / 2,
    ),
    "silu": (jax.nn.silu, lambda x: x / (1 + np.exp(-x))),
    "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0)),
    "mish": (jax.nn.mish, lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "elu": (jax.nn.elu, lambda x: np.where(x > 0, x, np.expm1(x))),
    "hard swish": (jax.nn.hard_swish, lambda x: x * np.clip(x + 3, 0, 6) / 6),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", EPILOGUES)
def test_activations(name, dtype, target):
    function, exact = EPILOGUES[name]
    x = normal(1000, dtype=NUMPY_TYPES[dtype])
    found = program(function, x)
    wide = exact(x.astype(np.float64))
    eps = float(ml_dtypes.finfo(x.dtype).eps)
    (actual,) = evaluate(found, [x], target)
    np.testing.assert_allclose(actual.astype(np.float64), wide, rtol=8 * eps, atol=8 * eps)
    (actual,) = evaluate(found.widened(), [x], target)
    # Constants have been rounded to the narrow type before.
    np.testing.assert_allclose(actual.astype(np.float64), wide, rtol=3 * eps, atol=3 * eps)


@pytest.mark.parametrize("target", TARGETS)
def test_bias_scale_residual_and_mask(target):
    x, bias, scale, residual = normal(12, 32), normal(32), normal(12), normal(12, 32, scale=1)
    mask = normal(12, 32) > 0

    def f(x, bias, scale, residual, mask):
        return jnp.where(mask, jnp.tanh((x + bias) * scale) + residual, -1e9)

    found = program(f, x, bias, scale, residual, mask)
    spread = [x, np.tile(bias, (12, 1)), np.tile(scale[:, None], 32), residual, mask]
    (actual,) = evaluate(found, spread, target)
    wide = [a.astype(np.float64) for a in (x, bias, scale, residual)]
    exact = np.where(mask, np.tanh((wide[0] + wide[1]) * wide[2][:, None]) + wide[3], -1e9)
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_each_operation_of_a_narrow_program_is_rounded(target):
    x, b = normal(1000, dtype=ml_dtypes.bfloat16), normal(1000, 1, dtype=ml_dtypes.bfloat16).ravel()
    found = program(lambda x, b: (x + b) * b - x, x, b)
    (actual,) = evaluate(found, [x, b], target)
    assert_same(actual, (x + b) * b - x)
    (once,) = evaluate(found.widened(), [x, b], target)
    wide_x, wide_b = x.astype(np.float64), b.astype(np.float64)
    exact = (wide_x + wide_b) * wide_b - wide_x
    error = np.abs(once.astype(np.float64) - exact)
    bound = 2.0**-8 * np.abs(exact) + 2.0**-22 * (np.abs(wide_x) + np.abs(wide_b)) * (1 + np.abs(wide_b))
    assert np.all(error <= bound)


def test_a_product_and_a_sum_are_rounded_once():
    x, y, z = (normal(1000, *[1] * n).ravel() for n in range(3))
    (actual,) = evaluate(program(lambda x, y, z: x * y + z, x, y, z), [x, y, z], TARGETS[0])
    assert_same(actual, rounded(x.astype(np.longdouble) * y + z, "f32"))


@pytest.mark.parametrize("target", TARGETS)
def test_requantization_saturates(target):
    acc = np.array([-(2**31), -100000, -1000, -3, -1, 0, 1, 2, 3, 1000, 100000, 2**31 - 1], np.int32)

    def f(acc):
        return lax.convert_element_type(jnp.round(acc.astype(jnp.float32) * np.float32(0.125) + 3), jnp.int8)

    (actual,) = evaluate(program(f, acc), [acc], target)
    assert_same(actual, np.clip(np.rint(acc * 0.125 + 3), -128, 127).astype(np.int8))


def test_several_results():
    x = normal(100)
    before, after = evaluate(program(lambda x: (x + 1, jax.nn.relu(x + 1)), x), [x], TARGETS[0])
    assert_same(before, x + 1)
    assert_same(after, np.maximum(x + 1, 0))


@pytest.mark.skipif(not host.has(("avx512bf16",)), reason="this processor has no vcvtneps2bf16")
def test_native_rounding_to_bf16_is_one_instruction():
    found = program(lambda x: jnp.tanh(x).astype(jnp.bfloat16), np.zeros(1, np.float32))

    def emit(operands):
        return evaluation.evaluate(found, operands, native_bf16=True)

    text = assembly(emit, ("f32",), ("bf16",), "avx512", features=("avx512bf16",))
    assert len(re.findall("vcvtneps2bf16", text)) == 1
    assert not re.search(r"\bcall", text)


@pytest.mark.parametrize("target", TARGETS)
def test_f16_is_converted_by_single_instructions(target):
    found = program(lambda x: x * 2, np.zeros(1, np.float16))
    text = assembly(functools.partial(evaluation.evaluate, found), ("f16",), ("f16",), target)
    assert re.search("vcvtph2ps", text)
    assert re.search("vcvtps2ph", text)
