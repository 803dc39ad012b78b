"""Narrow types: bf16, f16, 8-bit floats, 8-bit and 4-bit integers, and every mixture of them."""

import functools
import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.core import ShapedArray
from oracle import assert_close, assert_dot_general, equation, kernels

import jax_nano
from jax_nano import _native
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.machine import host, x86
from jax_nano.runtime.compiler import compile_plan
from jax_nano.runtime.kernel import TARGET_NAME, processor_for
from jax_nano.runtime.kernels import kernel_for
from jax_nano.schedule.choose import choose

TARGETS = [isa.name for isa in host.machine().isas]
FLOAT8 = [f"float8_{name}" for name in "e5m2 e5m2fnuz e4m3 e4m3fn e4m3fnuz e4m3b11fnuz e3m4".split()]
INTEGERS = ["int8", "uint8", "int4", "uint4"]
TYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", *INTEGERS]
PAIRS = list(itertools.product(TYPES, TYPES))
MATRICES = (((1,), (0,)), ((), ()))
LAYOUTS = {
    "nn": MATRICES, "nt": (((1,), (1,)), ((), ())), "tn": (((0,), (0,)), ((), ())), "tt": (((0,), (1,)), ((), ())),
}  # fmt: skip


def dtype(name):
    return jnp.dtype(name)


def random(shape, name, seed=0):
    rng = np.random.default_rng([seed, *shape])
    if name in INTEGERS:
        info = ml_dtypes.iinfo(dtype(name))
        return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype(name))
    return rng.standard_normal(shape).astype(dtype(name))


def product(lhs, rhs, dimension_numbers, out, target):
    """The kernel of one target on two arrays, as XLA runs it."""
    a, b = (Operand.row_major(x.shape, dtype_name(x.dtype)) for x in (lhs, rhs))
    dot = Dot.of(a, b, dimension_numbers, dtype_name(dtype(out)))
    shape = lax.dot_general_p.abstract_eval(
        *(ShapedArray(x.shape, np.float32) for x in (lhs, rhs)), dimension_numbers=dimension_numbers,
        precision=None, preferred_element_type=None, out_sharding=None,
    )[0].shape  # fmt: skip
    call = jax.ffi.ffi_call(TARGET_NAME, jax.ShapeDtypeStruct(shape, dtype(out)))
    return np.asarray(jax.jit(lambda a, b: call(a, b, **kernel_for(dot, target).attributes()))(lhs, rhs))


def operands(layout, m, n, k, lhs, rhs):
    a = (k, m) if layout[0] == "t" else (m, k)
    b = (n, k) if layout[1] == "t" else (k, n)
    return random(a, lhs, seed=1), random(b, rhs, seed=2)


def results(lhs, rhs):
    """Types of results that kernels give for these operands."""
    if lhs in INTEGERS and rhs in INTEGERS:
        return ["int32", "float32", "int8", "uint16"]
    return ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("lhs", "rhs"), PAIRS)
def test_every_pair_of_types(lhs, rhs, target):
    for i, (layout, out) in enumerate(itertools.product(("nn", "nt"), results(lhs, rhs)[:2])):
        a, b = operands(layout, 3 + i, 17, 21, lhs, rhs)
        assert_dot_general(product(a, b, LAYOUTS[layout], out, target), a, b, LAYOUTS[layout])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 70, 300), (33, 1, 31), (37, 65, 17), (128, 96, 64)])
@pytest.mark.parametrize(
    ("lhs", "rhs", "out"),
    [
        ("bfloat16", "bfloat16", "bfloat16"), ("float16", "float16", "float16"), ("int8", "int8", "int32"),
        ("float8_e4m3fn", "bfloat16", "bfloat16"), ("float8_e5m2", "float8_e4m3fn", "float32"),
        ("uint8", "uint8", "float32"), ("int8", "uint8", "int16"),
        ("uint8", "int4", "int32"), ("uint4", "int4", "int8"),
        ("bfloat16", "int4", "bfloat16"), ("float32", "uint4", "float32"),
    ],
)  # fmt: skip
def test_shapes_and_layouts(lhs, rhs, out, m, n, k, layout, target):
    a, b = operands(layout, m, n, k, lhs, rhs)
    assert_dot_general(product(a, b, LAYOUTS[layout], out, target), a, b, LAYOUTS[layout])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("narrow", ["bfloat16", "float8_e4m3fn", "int8", "int4"])
@pytest.mark.parametrize("dimensions", [(((2, 3), (3, 1)), ((0,), (0,))), (((2,), (0,)), ((0,), (2,)))])
def test_any_dimensions(dimensions, narrow, target):
    a, b = ((3, 5, 7, 9), (3, 9, 4, 7)) if len(dimensions[0][0]) == 2 else ((5, 33, 4), (4, 9, 5))
    a, b = random(a, narrow, seed=1), random(b, narrow, seed=2)
    assert_dot_general(product(a, b, dimensions, "float32", target), a, b, dimensions)


# Exact values


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("other", ["float32", "bfloat16", "float16", "itself"])
@pytest.mark.parametrize("name", FLOAT8)
def test_every_code_of_8_bit_floats_is_exact(name, other, target):
    """NaN, infinities and subnormal numbers too, on threads where XLA makes the processor take subnormals for zeros."""
    codes = np.arange(256, dtype=np.uint8).view(dtype(name))
    one = np.ones((1, 1), dtype(name if other == "itself" else other))
    exact = codes.astype(np.float32)
    for lhs, rhs in ((codes[:, None], one), (one, codes[None, :])):
        actual = product(lhs, rhs, MATRICES, "float32", target).reshape(-1)
        np.testing.assert_array_equal(actual, exact)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("other", ["float32", "bfloat16", "int8", "uint8"])
@pytest.mark.parametrize("name", INTEGERS)
def test_every_integer_is_exact(name, other, target):
    info = ml_dtypes.iinfo(dtype(name))
    numbers = np.arange(info.min, info.max + 1).astype(dtype(name))
    one = np.ones((1, 1), dtype(other))
    for lhs, rhs in ((numbers[:, None], one), (one, numbers[None, :])):
        actual = product(lhs, rhs, MATRICES, "float32", target).reshape(-1)
        np.testing.assert_array_equal(actual, numbers.astype(np.float32))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize("width", [1, 2, 7, 16, 33, 63])
def test_4_bit_rows_begin_in_the_middle_of_bytes(width, name, target):
    """XLA stores two elements in a byte, row after row without a gap: rows of odd width begin with an upper half."""
    for layout in LAYOUTS:
        for m, n, k in ((5, width, 3), (5, 3, width), (width, 3, 5)):
            a, b = operands(layout, m, n, k, name, name)
            assert_dot_general(product(a, b, LAYOUTS[layout], "int32", target), a, b, LAYOUTS[layout])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", ["int32", "uint32", "int16", "uint16", "int8", "uint8"])
@pytest.mark.parametrize(("lhs", "rhs"), [("int8", "int8"), ("uint8", "uint8"), ("int8", "uint8"), ("uint8", "int8")])
def test_integers_wrap(lhs, rhs, out, target):
    """Also in a last column on its own: beside it stands the next row."""
    a, b = random((37, 301), lhs), random((301, 17), rhs)
    assert_dot_general(product(a, b, MATRICES, out, target), a, b, MATRICES)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_sums_of_integers_wrap_where_the_result_does(name, target):
    largest = -128 if name == "int8" else 255
    k = 2 * (1 << 31) // largest**2
    a, b = np.full((2, k), largest, dtype(name)), np.full((k, 3), largest, dtype(name))
    assert_dot_general(product(a, b, MATRICES, "int32", target), a, b, MATRICES)
    assert_dot_general(product(a, b, MATRICES, "float32", target), a, b, MATRICES)


# Rounding, and the smallest numbers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("operand", "out"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")]
)
def test_results_are_rounded_once_to_nearest_even(operand, out, target):
    """Sums in the middle between two neighbours, and one place beside it; what is too large is infinite."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype(out)).astype(np.float32)
    numbers = numbers[np.isfinite(numbers) & (np.abs(numbers) >= 2.0**-100)]
    half = np.ldexp(1.0, np.frexp(numbers)[1] - ml_dtypes.finfo(out).nmant - 2).astype(np.float32)
    for aside in (0.0, 2.0**-6, -(2.0**-6)):
        terms = np.stack([numbers, half, half * np.float32(aside)], axis=1)
        a = terms.astype(dtype(operand))
        exact = a.astype(np.float64).sum(1)
        with np.errstate(over="ignore"):
            expected = exact.astype(np.float32).astype(dtype(out))
        actual = product(a, np.ones((3, 1), dtype(operand)), MATRICES, out, target)[:, 0]
        np.testing.assert_array_equal(actual.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_subnormal_bf16_counts_as_zero(out, target):
    """In operands, as VDPBF16PS has it and XLA's threads have all f32; the smallest normal number does not."""
    codes = np.array([1, 0x7F, 0x8001, 0x80], np.uint16).view(dtype("bfloat16"))
    actual = product(codes[:, None], np.array([[2.0**30]], dtype("bfloat16")), MATRICES, out, target)[:, 0]
    np.testing.assert_array_equal(actual.astype(np.float64), [0, 0, 0, 2.0**-96])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_results_below_the_smallest_normal_number_are_zero(out, target):
    a = np.array([[2.0**-100], [-(2.0**-100)]], dtype("bfloat16"))
    b = np.array([[2.0**-26, 2.0**-27, 2.0**-60]], dtype("bfloat16"))
    actual = product(a, b, MATRICES, out, target).astype(np.float64)
    np.testing.assert_array_equal(actual, [[2.0**-126, 0, 0], [-(2.0**-126), 0, 0]])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("other", ["float16", "float32", "bfloat16"])
def test_subnormal_f16_counts(other, target):
    """In operands and in results: f32 has these numbers, and conversions take and give them in every mode."""
    codes = np.arange(1, 1 << 10, dtype=np.uint16).view(np.float16)
    one = np.ones((1, 1), dtype(other))
    for out in ("float32", "float16"):
        actual = product(codes[:, None], one, MATRICES, out, target)[:, 0]
        np.testing.assert_array_equal(actual.astype(np.float64), codes.astype(np.float64))


# What JAX sees


@pytest.mark.parametrize(("lhs", "rhs"), [*PAIRS, ("int16", "int8"), ("int32", "int32"), ("float64", "float32")])
def test_every_result_type_has_a_kernel_or_a_reason(lhs, rhs):
    floats, integers = ("float32", "bfloat16", "float16"), ("int32", "uint32", "int16", "uint16", "int8", "uint8")
    narrow = lhs in TYPES and rhs in TYPES
    for out in (*floats, *integers, "int4", "float8_e4m3fn", "complex64", "bool"):
        a, b = (Operand.row_major((40, 40), dtype_name(dtype(x))) for x in (lhs, rhs))
        name = dtype_name(dtype(out))
        expected = narrow and (out in floats or (out in integers and lhs in INTEGERS and rhs in INTEGERS))
        if expected:
            assert choose(Dot.of(a, b, MATRICES, name), host.machine(), host.machine().isas[-1])
        else:
            reason = f"no kernel multiplies {a.dtype} by {b.dtype} into {name}"
            with pytest.raises(UnsupportedDot, match=f"^{reason}$"):
                Dot.of(a, b, MATRICES, name)


@pytest.mark.parametrize(("lhs", "rhs"), PAIRS)
def test_result_types_are_those_of_lax(lhs, rhs):
    a, b = jax.ShapeDtypeStruct((4, 8), dtype(lhs)), jax.ShapeDtypeStruct((8, 4), dtype(rhs))
    for out in (None, "float32", "int32"):
        of_lax, of_nano = (
            jax.eval_shape(functools.partial(f, dimension_numbers=MATRICES, preferred_element_type=out), a, b)
            for f in (lax.dot_general, jax_nano.dot_general)
        )
        assert of_nano.dtype == of_lax.dtype


@pytest.mark.parametrize(
    ("lhs", "rhs", "out", "executed"),
    [
        ("bfloat16", "int8", None, 1), ("float16", "float8_e5m2", None, 1), ("uint4", "int8", None, 1),
        ("float8_e4m3fn", "float8_e4m3fn", "bfloat16", 1), ("float8_e4m3fn", "float8_e4m3fn", None, 0),
        ("float32", "bfloat16", "float16", 1), ("int4", "int4", "int32", 1), ("bfloat16", "int8", "int32", 0),
        ("int16", "int16", None, 0),
    ],
)  # fmt: skip
def test_products_run_as_kernels_or_as_lax(lhs, rhs, out, executed):
    a, b = (random((6, 40), name) if name in TYPES else np.ones((6, 40), name) for name in (lhs, rhs))

    def f(x, y):
        return jax_nano.dot_general(x, y, LAYOUTS["nt"], preferred_element_type=out)

    with kernels(executed):
        actual = f(a, b)
    (report,) = jax_nano.inspect(f, a, b)
    assert (report.kernel is not None) == bool(executed)
    if executed:
        assert_dot_general(actual, a, b, LAYOUTS["nt"])
    else:
        np.testing.assert_array_equal(actual, lax.dot_general(a, b, LAYOUTS["nt"], preferred_element_type=out))


@pytest.mark.parametrize("out", [None, "float32"])
@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        ("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "float32"), ("float16", "bfloat16"),
        ("bfloat16", "float8_e4m3fn"), ("float8_e5m2", "float32"), ("bfloat16", "int8"), ("uint4", "float32"),
    ],
)  # fmt: skip
def test_gradients_have_the_types_of_jax(lhs, rhs, out):
    a, b = random((5, 24), lhs, seed=1), random((24, 9), rhs, seed=2)
    inexact = tuple(i for i, name in enumerate((lhs, rhs)) if name not in INTEGERS)

    def loss(dot):
        def f(x, y):
            return jnp.sum(dot(x, y, MATRICES, preferred_element_type=out).astype(jnp.float32))

        return jax.grad(f, inexact)

    with kernels():
        actual = loss(jax_nano.dot_general)(a, b)
    expected = [np.ones((5, 9)) @ b.astype(np.float64).T, a.astype(np.float64).T @ np.ones((5, 9))]
    for i, gradient in zip(inexact, actual, strict=True):
        assert gradient.dtype == (a, b)[i].dtype
        tolerance = float(ml_dtypes.finfo(gradient.dtype).eps)
        np.testing.assert_allclose(gradient.astype(np.float64), expected[i], rtol=4 * tolerance, atol=8 * tolerance)
    of_lax = jax.eval_shape(loss(lax.dot_general), a, b)
    assert [x.dtype for x in actual] == [x.dtype for x in of_lax]


def test_batches_of_narrow_types():
    a, b = random((3, 6, 40), "int4", seed=1), random((3, 7, 40), "float8_e4m3fn", seed=2)
    dot = functools.partial(jax_nano.dot_general, dimension_numbers=LAYOUTS["nt"], preferred_element_type="float32")
    with kernels(1):
        actual = jax.vmap(dot)(a, b)
    assert_close(actual, equation(3, 3, (((2,), (2,)), ((0,), (0,)))), a, b)


# Instructions that this machine may lack: composed for one that has them, to be read


def composed(lhs, rhs, out, isa, features, machine):
    """The kernel of a product on a machine that has these features."""
    (described,) = (m for m in x86.MACHINES if m.name == machine)
    described = replace(described, lacks=())
    (level,) = (level for level in described.isas if level.name == isa)
    operands = Operand.row_major((64, 64), lhs), Operand.row_major((64, 64), rhs)
    plan = choose(Dot.of(*operands, MATRICES, out), described, level)
    kernel = compile_plan(plan.dot, plan, processor_for(plan, described))
    assert set(features) <= set(str(kernel.attributes()["features"]).split(","))
    return kernel


@pytest.mark.parametrize(
    ("lhs", "rhs", "instruction"),
    [("s8", "s8", "vpdpbssd"), ("u8", "u8", "vpdpbuud"), ("s4", "s8", "vpdpbssd"), ("u8", "s8", "vpdpbusd")],
)
def test_bytes_of_one_sign_need_no_offset_where_instructions_take_them(lhs, rhs, instruction):
    features = ("avxvnniint8",) if instruction != "vpdpbusd" else ("avxvnni",)
    kernel = composed(lhs, rhs, "s32", "avx2", features, "alderlake")
    assert kernel.plan.instruction.lhs_offset == 0
    assert f"\t{instruction}\t" in kernel.assembly
    assert "%ymm" in kernel.assembly
    assert "%zmm" not in kernel.assembly


def test_code_with_instructions_that_this_machine_lacks_does_not_run():
    kernel = composed("s8", "s8", "s32", "avx2", ("avxvnniint8",), "alderlake")
    if not _native.missing_features("avxvnniint8"):
        pytest.skip("this machine has them")
    call = jax.ffi.ffi_call(TARGET_NAME, jax.ShapeDtypeStruct((64, 64), np.int32))
    x = np.zeros((64, 64), np.int8)
    with pytest.raises(Exception, match="avxvnniint8"):
        jax.jit(lambda a, b: call(a, b, **kernel.attributes()))(x, x)


def test_f16_is_converted_by_instructions_of_its_own_where_they_are():
    """They read an element in every lane at once. No other arithmetic of f16 is used."""
    kernel = composed("f16", "f16", "f16", "avx512", ("avx512fp16",), "sapphirerapids")
    assert "\tvcvtph2psx\t" in kernel.assembly
    assert "{1to16}" in kernel.assembly or kernel.plan.lhs != "unpacked"
    assert not re.search(r"\tv(fmadd|mul|add)\w*[ps]h\t", kernel.assembly)
    without = composed("f32", "f32", "f32", "avx512", (), "sapphirerapids")
    assert "avx512fp16" not in str(without.attributes()["features"])
