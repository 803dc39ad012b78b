"""Dot algorithms: what kernels make of `precision`."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from algorithms import (
    BFLOAT16,
    EPS,
    LEFT_OUT,
    TERMS,
    assert_follows,
    assert_near_product,
    assert_special_rows,
    with_exact_row,
    with_special_rows,
)
from jax.lax import DotAlgorithm, DotAlgorithmPreset, Precision
from oracle import kernels, normal

import jax_nano
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.lowering.precision import with_precision
from jax_nano.machine import host

TARGETS = [isa.name for isa in host.machine().isas]
NO_KERNEL = {
    "F16_F16_F16": "F16_F16_F16 sums in f16; kernels sum products of f32 and f32 in f32",
    "BF16_BF16_BF16": "BF16_BF16_BF16 sums in bf16; kernels sum products of f32 and f32 in f32",
    "F64_F64_F64": "F64_F64_F64 sums in f64; kernels sum products of f32 and f32 in f32",
    "TF32_TF32_F32": "TF32_TF32_F32 rounds to tf32; kernels round to bf16 or f16",
    "TF32_TF32_F32_X3": "TF32_TF32_F32_X3 rounds to tf32; kernels round to bf16 or f16",
    "ANY_F8_ANY_F8_F32": "ANY_F8_ANY_F8_F32 is an algorithm of 8-bit floats, not of f32 and f32",
    "ANY_F8_ANY_F8_ANY_FAST_ACCUM": "ANY_F8_ANY_F8_ANY_FAST_ACCUM is an algorithm of 8-bit floats, not of f32 and f32",
}


@pytest.fixture(params=TARGETS)
def target(request, monkeypatch):
    """Every target in turn."""
    monkeypatch.setenv("JAX_NANO_TARGET", request.param)
    jax.clear_caches()
    return request.param


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 40, 300), (70, 1, 31), (33, 65, 17), (20, 100, 600)])
def test_operands_are_rounded_to_components(name, m, n, k, target):
    a, b = normal(m, k), normal(k, n, seed=1)
    for lhs, rhs, layout in ((a, b, (1, 0)), (a.T.copy(), b.T.copy(), (0, 1)), (a, b.T.copy(), (1, 1))):
        dimensions = (((layout[0],), (layout[1],)), ((), ()))
        with kernels(1):
            actual = jax_nano.dot_general(lhs, rhs, dimensions, precision=name)
        assert actual.dtype == np.float32
        assert_follows(name, actual, a, b)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_more_products_are_more_exact(name, target):
    a, b = normal(100, 500), normal(500, 90, seed=1)
    with kernels(1):
        assert_near_product(name, jax_nano.matmul(a, b, precision=name), a, b)


def test_batches_and_several_contracted_dimensions(target):
    a, b = normal(3, 5, 7, 9), normal(3, 9, 4, 7, seed=1)
    with kernels(1):
        actual = jax_nano.einsum("bmij,bjni->bmn", a, b, precision="BF16_BF16_F32_X3")
    for i in range(3):
        assert_follows("BF16_BF16_F32_X3", actual[i], a[i].reshape(5, 63), b[i].transpose(2, 0, 1).reshape(63, 4))


@pytest.mark.parametrize("name", list(TERMS)[1:])
def test_what_is_not_finite_stays_where_it_is(name, target):
    a, b = with_special_rows(normal(4, 6)), with_exact_row(normal(6, 5, seed=1))
    assert_special_rows(name, np.asarray(jax_nano.matmul(a, b, precision=name)), a, b)


@pytest.mark.parametrize(("lhs", "rhs"), [(BFLOAT16, np.float32), (np.float32, BFLOAT16), (BFLOAT16, BFLOAT16)])
@pytest.mark.parametrize("name", TERMS)
def test_an_operand_of_bf16_is_its_only_component(name, lhs, rhs, target):
    a, b = normal(9, 33, dtype=lhs), normal(33, 20, seed=1, dtype=rhs)
    matmul = functools.partial(jax_nano.matmul, precision=name, preferred_element_type="float32")
    (report,) = jax_nano.inspect(matmul, a, b)
    narrow = (lhs, rhs).count(BFLOAT16)
    assert report.problem and report.problem.terms == (1 if narrow == 2 else {0: 1, 2: 2, 5: 3, 8: 3}[len(TERMS[name])])
    assert report.problem and (report.problem.algorithm is None) == (narrow == 2)
    actual = matmul(a, b)
    assert_follows(name, actual, a, b)


@pytest.mark.parametrize(("operand", "out"), [(np.float16, "float16"), (np.float32, "float32"), (BFLOAT16, "float32")])
def test_f16_rounds_to_f16(operand, out, target):
    a, b = normal(9, 33, dtype=operand), normal(33, 20, seed=1, dtype=operand)
    with kernels(1):
        actual = jax_nano.matmul(a, b, precision="F16_F16_F32", preferred_element_type=out)
    a, b = (x.astype(np.float16).astype(np.float64) for x in (a, b))
    bound = 33 * EPS * (np.abs(a) @ np.abs(b)) + float(np.finfo(out).eps) * np.abs(a @ b)
    assert np.all(np.abs(np.asarray(actual, np.float64) - a @ b) <= bound)


def test_f16_is_rounded_to_bf16(target):
    """As JAX has it: BF16_BF16_F32 takes bf16 and f32 as they are and casts all else to bf16."""
    a, b = normal(9, 33, dtype=np.float16), normal(33, 20, seed=1, dtype=np.float16)
    with kernels(1):
        actual = jax_nano.matmul(a, b, precision="BF16_BF16_F32")
    assert actual.dtype == np.float16
    rounded = [x.astype(BFLOAT16).astype(np.float64) for x in (a, b)]
    bound = 33 * EPS * (np.abs(rounded[0]) @ np.abs(rounded[1])) + 2**-11 * np.abs(rounded[0] @ rounded[1])
    assert np.all(np.abs(np.asarray(actual, np.float64) - rounded[0] @ rounded[1]) <= bound)


@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [preset.name for preset in DotAlgorithmPreset if preset.name.startswith("ANY_F8")])
def test_algorithms_of_8_bit_floats_sum_in_f32(name, out):
    a, b = normal(9, 33, dtype=ml_dtypes.float8_e4m3fn), normal(33, 20, seed=1, dtype=ml_dtypes.float8_e5m2)
    with kernels(1):
        actual = jax_nano.matmul(a, b, precision=name, preferred_element_type=out)
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = 33 * EPS * (np.abs(a) @ np.abs(b)) + float(ml_dtypes.finfo(out).eps) / 2 * np.abs(a @ b)
    assert np.all(np.abs(np.asarray(actual, np.float64) - a @ b) <= bound)


@pytest.mark.parametrize(
    ("precision", "same"),
    [
        (DotAlgorithm(BFLOAT16, BFLOAT16, np.float32), "BF16_BF16_F32"),
        (DotAlgorithm(BFLOAT16, BFLOAT16, np.float32, allow_imprecise_accumulation=True), "BF16_BF16_F32"),
        (DotAlgorithm(np.float32, np.float32, np.float32), "F32_F32_F32"), (Precision.DEFAULT, "F32_F32_F32"),
        (Precision.HIGHEST, None), ("bfloat16", "DEFAULT"),
    ],
)  # fmt: skip
def test_what_is_the_same(precision, same):
    a, b = normal(9, 33), normal(33, 20, seed=1)
    with kernels(2):
        one, other = (jax_nano.matmul(a, b, precision=x) for x in (precision, same))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("name", "reason"), NO_KERNEL.items())
def test_what_kernels_do_not_compute_is_left_to_jax(name, reason):
    operand = Operand.row_major((8, 8), "f32")
    with pytest.raises(UnsupportedDot, match=f"^{reason}$"):
        with_precision(DotAlgorithmPreset[name], Dot.of(operand, operand, (((1,), (0,)), ((), ())), "f32"))
    x = jax.ShapeDtypeStruct((8, 8), np.float32)
    outcomes = []
    for matmul in (jnp.matmul, jax_nano.matmul):
        try:
            outcomes.append(jax.jit(functools.partial(matmul, precision=name)).trace(x, x).lower() and "lowered")
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_algorithms_that_kernels_do_not_follow_say_why():
    x = jax.ShapeDtypeStruct((8, 8), np.float16)
    (report,) = jax_nano.inspect(functools.partial(jax_nano.matmul, precision="F16_F16_F16"), x, x)
    assert report.reason == "F16_F16_F16 sums in f16; kernels sum products of f16 and f16 in f32"


def test_reports_say_which_algorithm():
    x = jax.ShapeDtypeStruct((8, 8), np.float32)
    (report,) = jax_nano.inspect(functools.partial(jax_nano.matmul, precision="BF16_BF16_F32_X6"), x, x)
    assert report.kernel and report.kernel.name.startswith("nano_f32_bf16x6_m8n8k8_")
    assert "; 6 products of bf16 splits" in str(report)


def test_gradients_follow_the_algorithm_too():
    a, b = normal(9, 33), normal(33, 20, seed=1)

    def loss(x, y):
        return jnp.sum(jax_nano.matmul(x, y, precision="BF16_BF16_F32_X3") ** 2)

    with kernels(3):
        gradients = jax.grad(loss, (0, 1))(a, b)
    product = 2 * (a.astype(np.float64) @ b)
    np.testing.assert_allclose(gradients[0], product @ b.T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(gradients[1], a.T @ product, rtol=1e-3, atol=1e-3)
    assert [x.dtype for x in gradients] == [np.float32, np.float32]


def test_a_default_precision_counts():
    a, b = normal(9, 33), normal(33, 20, seed=1)
    with jax.default_matmul_precision("BF16_BF16_F32"), kernels(1):
        actual = jax_nano.matmul(a, b)
    assert_follows("BF16_BF16_F32", actual, a, b)
