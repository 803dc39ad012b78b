"""The public functions behave as their namesakes of jax.numpy and jax.lax, and kernels compute them."""

import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from oracle import assert_close, assert_dot_general, kernels, normal

import jax_nano

NAMESAKES = {
    "matmul": jnp.matmul,
    "dot": jnp.dot,
    "inner": jnp.inner,
    "tensordot": jnp.tensordot,
    "vecdot": jnp.vecdot,
    "einsum": jnp.einsum,
    "dot_general": lax.dot_general,
}
MATRICES = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize("name", NAMESAKES)
def test_signature_is_the_namesakes(name):
    ours, theirs = (inspect.signature(f).parameters for f in (getattr(jax_nano, name), NAMESAKES[name]))
    assert [(p.name, p.kind) for p in ours.values()] == [(p.name, p.kind) for p in theirs.values()]
    defaults = {p.name: p.default for p in theirs.values() if p.name != "_dot_general"}
    assert {p.name: p.default for p in ours.values() if p.name != "_dot_general"} == defaults


@pytest.mark.parametrize("name", NAMESAKES)
def test_has_a_docstring_and_pickles_by_name(name):
    f = getattr(jax_nano, name)
    assert "Args:" in f.__doc__
    assert "Returns:" in f.__doc__
    assert "Raises:" in f.__doc__
    assert pickle.loads(pickle.dumps(f)) is f


SHAPES = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((1, 1, 2, 3), (1, 3, 4)),
]


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matmul(x64, a, b, dtype):
    a, b = normal(*a, dtype=dtype), normal(*b, seed=1, dtype=dtype)
    with kernels(1):
        c = jax_nano.matmul(a, b)
    assert c.dtype == dtype
    np.testing.assert_allclose(c, np.matmul(a.astype(np.float64), b.astype(np.float64)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "exact"),
    [
        ("dot", (normal(5, 2, 3), normal(6, 3, 4)), np.dot),
        ("dot", (normal(2, 3), normal(3)), np.dot),
        ("inner", (normal(5, 2, 3), normal(4, 3)), np.inner),
        ("inner", (normal(3), normal(3)), np.inner),
        ("tensordot", (normal(2, 3, 4), normal(3, 4, 5)), np.tensordot),
        ("tensordot", (normal(2, 3, 4), normal(4, 3, 5), [[1, 2], [1, 0]]), np.tensordot),
        ("tensordot", (normal(2, 3, 4), normal(4, 5), (2, 0)), np.tensordot),
        ("tensordot", (normal(2, 3), normal(4, 5), 0), np.tensordot),
        ("vecdot", (normal(5, 3), normal(5, 3)), np.vecdot),
        ("vecdot", (normal(5, 1, 3), normal(6, 3)), np.vecdot),
        ("einsum", ("ij,jk", normal(2, 3), normal(3, 4)), np.einsum),
        ("einsum", ("bqhd,bkhd->bhqk", normal(2, 5, 3, 4), normal(2, 6, 3, 4)), np.einsum),
        ("einsum", ("ij,jk,kl->li", normal(2, 3), normal(3, 4), normal(4, 5)), np.einsum),
        ("einsum", ("...ij,...j->...i", normal(6, 2, 3), normal(6, 3)), np.einsum),
        ("einsum", (normal(2, 3), [0, 1], normal(3, 4), [1, 2], [2, 0]), np.einsum),
    ],
)
def test_namesakes_of_numpy(name, args, exact):
    with kernels():
        result = getattr(jax_nano, name)(*args)
    wide = [x.astype(np.float64) if isinstance(x, np.ndarray) else x for x in args]
    np.testing.assert_allclose(result, exact(*wide), rtol=1e-5, atol=1e-5)


def test_vecdot_takes_an_axis():
    a, b = normal(4, 3), normal(4, 3, seed=1)
    np.testing.assert_allclose(jax_nano.vecdot(a, b, axis=0), (a * b).sum(axis=0), rtol=1e-5, atol=1e-6)


def test_einsum_takes_a_path_and_another_product():
    a, b, c = normal(2, 3), normal(3, 4), normal(4, 5)
    for optimize in ("optimal", True, False, [(1, 2), (0, 1)]):
        with kernels(2):
            result = jax_nano.einsum("ij,jk,kl", a, b, c, optimize=optimize)
        np.testing.assert_allclose(result, a @ b @ c, rtol=1e-4, atol=1e-5)
    with kernels(0):
        jax_nano.einsum("ij,jk", a, b, _dot_general=lax.dot_general)


@st.composite
def dot_generals(draw):
    """Any dimension numbers: operands' shapes in any order of batch, contracting and free dimensions."""
    sizes = st.sampled_from([0, 1, 1, 2, 3, 5, 17])
    batch, contract, lhs_free, rhs_free = (draw(st.lists(sizes, max_size=2)) for _ in range(4))

    def operand(free):
        dimensions = [("batch", i, n) for i, n in enumerate(batch)]
        dimensions += [("contract", i, n) for i, n in enumerate(contract)]
        order = draw(st.permutations([*dimensions, *(("free", i, n) for i, n in enumerate(free))]))
        where = {(kind, i): at for at, (kind, i, _) in enumerate(order)}
        shape = tuple(n for _, _, n in order)
        return (
            shape,
            tuple(where["contract", i] for i in range(len(contract))),
            tuple(where["batch", i] for i in range(len(batch))),
        )

    (lhs, lhs_contract, lhs_batch), (rhs, rhs_contract, rhs_batch) = operand(lhs_free), operand(rhs_free)
    return lhs, rhs, ((lhs_contract, rhs_contract), (lhs_batch, rhs_batch))


@settings(max_examples=60, deadline=None)
@given(dot_generals(), st.sampled_from([np.float32, np.float64]))
def test_dot_general_contracts_any_dimensions(problem, dtype):
    lhs_shape, rhs_shape, dimension_numbers = problem
    lhs, rhs = normal(*lhs_shape, dtype=dtype), normal(*rhs_shape, seed=1, dtype=dtype)
    with jax.enable_x64(True), kernels(0 if 0 in (*lhs_shape, *rhs_shape) else 1):
        result = jax_nano.dot_general(lhs, rhs, dimension_numbers)
    assert result.dtype == dtype
    assert_dot_general(result, lhs, rhs, dimension_numbers)


def test_dimension_numbers_may_be_any_sequences():
    a, b = normal(2, 3), normal(3, 4)
    any_sequences: list[Any] = [([[1], [0]], [[], []]), ((np.array([1]), range(1)), ((), ())), ((1, 0), ((), ()))]
    for numbers in any_sequences:
        with kernels(1):
            assert_close(jax_nano.dot_general(a, b, numbers), "ij,jk->ik", a, b)


@pytest.mark.parametrize("shapes", [((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0)), ((0, 2, 3), (0, 3, 4))])
def test_empty_products_are_the_namesakes(shapes):
    a, b = (jnp.ones(shape) for shape in shapes)
    with kernels(0):
        np.testing.assert_array_equal(jax_nano.matmul(a, b), np.matmul(a, b))


TYPES = ["float32", "float64", "bfloat16", "float16", "int8", "uint8", "int32", "bool", "complex64", "float8_e4m3fn"]
WEAK = [2, 2.5, True, 1j]


@pytest.mark.parametrize("lhs", TYPES)
@pytest.mark.parametrize("rhs", TYPES)
@pytest.mark.parametrize("preferred", [None, "float32", "float64", "int32"])
def test_result_types_are_the_namesakes(x64, lhs, rhs, preferred):
    a, b = jax.ShapeDtypeStruct((2, 3), lhs), jax.ShapeDtypeStruct((3, 4), rhs)
    for f in (jnp.matmul, jnp.dot):
        assert outcome(getattr(jax_nano, f.__name__), a, b, preferred) == outcome(f, a, b, preferred)


def outcome(f, a, b, preferred):
    """The type of the result, or the error."""
    try:
        result = jax.eval_shape(lambda a, b: f(a, b, preferred_element_type=preferred), a, b)
    except (TypeError, ValueError, NotImplementedError) as error:
        return type(error), str(error)
    return result.shape, result.dtype, result.weak_type


@pytest.mark.parametrize("scalar", WEAK)
@pytest.mark.parametrize("name", ["dot", "inner"])
def test_weak_types_are_the_namesakes(scalar, name):
    f, namesake = getattr(jax_nano, name), NAMESAKES[name]
    for x in (scalar, jnp.ones(3, jnp.bfloat16), jnp.ones((2, 3), jnp.int32)):
        ours, theirs = f(scalar, x), namesake(scalar, x)
        assert jax.typeof(ours) == jax.typeof(theirs)
        assert jax.typeof(ours).weak_type == jax.typeof(theirs).weak_type
        np.testing.assert_array_equal(ours, theirs)


BAD_CALLS = [
    ("matmul", (np.ones((2, 3)), np.ones((4, 5)))),
    ("matmul", (np.ones((2, 2, 3)), np.ones((5, 3, 4)))),
    ("matmul", (np.ones((2, 3)), 2.0)),
    ("matmul", ([1.0, 2.0], np.ones(2))),
    ("matmul", ("text", np.ones(2))),
    ("matmul", (None, np.ones(2))),
    ("matmul", (np.array([object()]), np.ones(1))),
    ("dot", (np.ones((2, 3)), np.ones((4, 5)))),
    ("dot", ([1.0], np.ones(1))),
    ("inner", (np.ones((2, 3)), np.ones((4, 5)))),
    ("tensordot", (np.ones((2, 3)), np.ones((4, 5)), 1)),
    ("tensordot", (np.ones((2, 3)), np.ones((3, 5)), 7)),
    ("tensordot", (np.ones((2, 3)), np.ones((3, 5)), ((0,), (0, 1)))),
    ("vecdot", (np.ones((2, 3)), np.ones((2, 4)))),
    ("vecdot", (np.ones((2, 3)), np.ones((5, 3)))),
    ("einsum", ("ij,jk", np.ones((2, 3)), np.ones((4, 5)))),
    ("einsum", ("ij,jk", np.ones((2, 3)))),
    ("dot_general", (np.ones((2, 3)), np.ones((4, 5)), MATRICES)),
    ("dot_general", (np.ones((2, 3)), np.ones((3, 5)), (((7,), (0,)), ((), ())))),
    ("dot_general", (np.ones((2, 3)), np.ones((2, 3)), (((1,), (1,)), ((1,), (1,))))),
    ("dot_general", (np.ones((2, 3)), np.ones((3, 5)), (((1, 1), (0, 0)), ((), ())))),
    ("dot_general", (np.ones((2, 3), np.int8), np.ones((3, 5), np.int16), MATRICES, None, np.int8)),
    ("dot_general", (np.ones((2, 3)), np.ones((3, 5)), MATRICES, "exact")),
    ("matmul", (np.ones((2, 3)),)),
]


@pytest.mark.parametrize(("name", "args"), BAD_CALLS)
def test_errors_are_the_namesakes(name, args):
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whichever it is
        NAMESAKES[name](*args)
    with pytest.raises(theirs.type):
        getattr(jax_nano, name)(*args)


@pytest.mark.parametrize("precision", [None, "highest", "float32", lax.Precision.HIGH, ("default", "highest"),
                                       ["high", "high"], lax.DotAlgorithmPreset.DEFAULT, "F32_F32_F32",
                                       lax.DotAlgorithmPreset.F32_F32_F32])  # fmt: skip
def test_a_precision_that_bounds_the_error_runs_a_kernel(precision):
    a, b = normal(20, 30), normal(30, 40)
    with kernels(1):
        assert_close(jax_nano.matmul(a, b, precision=precision), "ij,jk->ik", a, b)


def test_an_algorithm_that_is_f32_throughout_runs_a_kernel():
    a, b = normal(20, 30), normal(30, 40)
    with kernels(1):
        assert_close(
            jax_nano.matmul(a, b, precision=lax.DotAlgorithm("float32", "float32", "float32")), "ij,jk->ik", a, b
        )


@pytest.mark.parametrize("precision", ["BF16_BF16_F32", "BF16_BF16_F32_X3"])
def test_an_algorithm_of_bf16_components_runs_a_kernel(precision):
    (report,) = jax_nano.inspect(lambda a, b: jax_nano.matmul(a, b, precision=precision), normal(2, 3), normal(3, 4))
    assert report.ran_as == "kernel"


def test_the_default_precision_is_respected():
    (plain,) = (report.problem for report in jax_nano.inspect(jax_nano.matmul, normal(2, 3), normal(3, 4)))
    with jax.default_matmul_precision("BF16_BF16_F32"):
        (report,) = jax_nano.inspect(jax_nano.matmul, normal(2, 3), normal(3, 4))
    assert report.problem != plain


def test_the_second_call_neither_traces_nor_compiles(caplog):
    a, b = normal(11, 13), normal(13, 17)

    def calls(dimension_numbers):
        caplog.clear()
        with jax.log_compiles(), kernels(2):
            jax_nano.matmul(a, b)
            jax_nano.dot_general(a, b, dimension_numbers)
        return caplog.messages

    assert calls([[[1], [0]], [[], []]])
    assert not calls(MATRICES)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(True, False), (False, True), (True, True)])
def test_transposed_operands_are_never_materialised(transpose_a, transpose_b):
    a, b = normal(70, 50), normal(50, 30)

    def f(a, b):
        return jax_nano.matmul(a.T if transpose_a else a, b.T if transpose_b else b)

    args = a.T.copy() if transpose_a else a, b.T.copy() if transpose_b else b
    program = jax.jit(f).lower(*args).compile()
    assert " transpose(" not in str(program.as_text())
    assert_close(program(*args), "ij,jk->ik", a, b)


def test_chained_transposes_are_read_through():
    x, w = normal(2, 3, 4, 5), normal(3, 5)

    def f(x, w):
        return jnp.tensordot(x.transpose(3, 1, 0, 2).transpose(2, 3, 1, 0), w, ((2, 3), (0, 1)))

    with jax_nano.installed(), kernels(1):
        program = jax.jit(f).lower(x, w).compile()
        assert " transpose(" not in str(program.as_text())
        assert_close(program(x, w), "ijkl,jl->ik", x, w)
