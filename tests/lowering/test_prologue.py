"""Prologues: elementwise work on A while it is packed, asked for by fused_matmul or found by accelerate."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from kernel_table import TARGETS
from oracle import kernels, normal, primitives

import jax_nano
from jax_nano.ir.axes import loops_of
from jax_nano.ir.dot import Dot, Operand, Prologue
from jax_nano.ir.program import Input, Operation, Program
from jax_nano.machine import host, x86
from jax_nano.schedule.choose import choose
from jax_nano.schedule.cost import estimate

X, W = normal(6, 24), normal(24, 10, seed=1)
ROW, COLUMN, MATRIX = normal(24, seed=2), normal(6, 1, seed=3), normal(6, 24, seed=4)


def exact(f, *arrays):
    """What plain JAX makes of the arrays in f64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*(np.asarray(x, np.float64) for x in arrays)))


def assert_close(actual, wanted, atol=1e-5):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert x.shape == y.shape
        scale = np.abs(y).max(initial=1.0)
        np.testing.assert_allclose(np.asarray(x, np.float64) / scale, y / scale, atol=atol)


def fused(prologue):
    return lambda x, w, *extras: jax_nano.fused_matmul(x, w, prologue=prologue, prologue_extras=extras)


def plain(prologue):
    return lambda x, w, *extras: prologue(x, *extras) @ w


PROLOGUES = {
    "nothing": (lambda x: x, ()),
    "a scalar": (lambda x, a: x * a, (np.float32(3),)),
    "a row": (lambda x, row: x * row, (ROW,)),
    "a column": (lambda x, column: x - column, (COLUMN,)),
    "a matrix": (lambda x, matrix: jnp.where(matrix > 0, x, matrix), (MATRIX,)),
    "a normalization": (lambda x, mean, scale, row: (x - mean) * scale * row + 1, (COLUMN, COLUMN**2, ROW)),
    "all of them": (lambda x, row, column, matrix, a: jax.nn.silu(x * column + row) + matrix / a,
                    (ROW, COLUMN, MATRIX, np.float32(2))),
    "a function with its own derivative": (jax.nn.relu, ()),
    "elementary functions": (lambda x: jnp.exp(x) + jnp.tanh(x) + jax.nn.gelu(x), ()),
    "work on an extra": (lambda x, row: x * jnp.exp(row - row.max()), (ROW,)),
    "views there and back": (lambda x: (x.T * 2).reshape(24, 2, 3).reshape(24, 6).T, ()),
    "a value used twice": (lambda x: x * jax.nn.sigmoid(x) + x, ()),
    "no vector code": (lambda x, row: lax.digamma(2 + x**2) + row, (ROW,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROLOGUES)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_result_is_the_product_of_the_prologue(name, wrap):
    prologue, extras = PROLOGUES[name]
    with kernels(1):
        result = wrap(fused(prologue))(X, W, *extras)
    assert_close(result, exact(plain(prologue), X, W, *extras))


@pytest.mark.parametrize("name", sorted(PROLOGUES.keys() - {"no vector code"}))
def test_the_whole_prologue_is_in_the_kernel(name):
    prologue, extras = PROLOGUES[name]
    (report,) = jax_nano.inspect(fused(prologue), X, W, *extras)
    assert report.ran_as == "kernel"
    assert report.problem and (report.problem.prologue is not None) == (name != "nothing")
    assert (report.kept, report.stopped) == ("", "used by the caller")


def test_what_has_no_vector_code_is_computed_before():
    prologue, extras = PROLOGUES["no vector code"]
    (report,) = jax_nano.inspect(fused(prologue), X, W, *extras)
    assert report.fused[-1:] == ("add",)
    assert report.problem and report.problem.prologue is not None


def test_a_prologue_and_an_epilogue():
    bias = normal(10, seed=5)

    def both(x, w, bias, row):
        return jax_nano.fused_matmul(
            x, w, bias, epilogue=lambda acc, bias: jnp.tanh(acc + bias),
            prologue=lambda x, row: x * row, prologue_extras=(row,),
        )  # fmt: skip

    with kernels(1):
        result = both(X, W, bias, ROW)
    assert_close(result, exact(lambda x, w, bias, row: jnp.tanh((x * row) @ w + bias), X, W, bias, ROW))


# A in memory, and every type it can have there.

LAYOUTS = {
    "rows": lambda f: f,
    "columns": lambda f: lambda x, w, *extras: f(x.T, w, *(e.T if np.ndim(e) == 2 else e for e in extras)),
    "apart": lambda f: lambda x, w, *extras: f(x.reshape(*x.shape[:1], -1, 2)[..., 0], w, *extras),
}


def reciprocal(x, column, row):
    """Of what stands beside A, which is zero, it makes infinities and NaN."""
    return column / x + row / column


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("layout", ["rows", "columns", "apart"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 17, 40), (3, 33, 5), (13, 7, 33), (33, 70, 17)])
def test_nothing_beside_the_operands_is_multiplied(m, k, n, layout, dtype, target, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", target)
    with jax.enable_x64(dtype == "float64"):
        x, w = (jnp.asarray(normal(*shape), dtype) for shape in ((m, k), (k, n)))
        x = x + jnp.where(x > 0, 1, -1).astype(dtype)
        column, row = (1 + jnp.asarray(np.abs(normal(*shape)), dtype) for shape in ((m, 1), (k,)))
        f = fused(reciprocal)
        stored = {"rows": lambda: x, "columns": lambda: jnp.asarray(x.T), "apart": lambda: jnp.stack([x, x], -1)}[
            layout
        ]()
        seen = {"rows": lambda x: x, "columns": lambda x: x.T, "apart": lambda x: x[..., 0]}[layout]
        result = jax.jit(lambda x, *others: f(seen(x), *others))(stored, w, column, row)
    wanted = exact(lambda x, w, c, r: reciprocal(x, c, r) @ w, x, w, column, row)
    assert result.dtype == dtype
    eps = float(ml_dtypes.finfo(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).eps)
    bound = 4 * eps * exact(lambda x, w, c, r: reciprocal(jnp.abs(x), c, r) @ jnp.abs(w), x, w, column, row)
    assert np.all(
        np.abs(np.asarray(result, np.float64) - wanted) <= bound * max(1, k if dtype in ("float32", "float64") else 1)
    )


TYPES = {
    "bf16 out of f32": ("float32", "bfloat16", lambda x: (x * 3).astype(jnp.bfloat16)),
    "f32 out of bf16": ("bfloat16", "float32", lambda x: x.astype(jnp.float32) / 3),
    "s8 out of f32": ("float32", "int8", lambda x: jnp.round(x * 20).astype(jnp.int8)),
    "u8 out of f32": ("float32", "int8", lambda x: jnp.abs(x * 20).astype(jnp.uint8)),
    "f32 out of s8": ("int8", "float32", lambda x: x.astype(jnp.float32) * 0.1),
    "f32 out of s32": ("int32", "float32", lambda x: x.astype(jnp.float32) * 0.1),
    "s8 out of s32": ("int32", "int8", lambda x: jnp.clip(x, -100, 100).astype(jnp.int8)),
    "f32 out of truth values": ("bool", "float32", lambda x: jnp.where(x, 2.0, -1.0)),
    "bf16 out of f8": ("float8_e4m3fn", "bfloat16", lambda x: x.astype(jnp.bfloat16) * 3),
    "f32 out of int4": ("int4", "float32", lambda x: x.astype(jnp.float32) * 0.5),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_types_of_a_and_of_what_is_made_of_it(name, columns, target, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", target)
    source, other, prologue = TYPES[name]
    x, w = jnp.asarray(np.round(3 * normal(9, 70)), source), jnp.asarray(np.round(3 * normal(70, 37, seed=1)), other)
    f = jax.jit(lambda x, w: fused(prologue)(x.T if columns else x, w))
    with kernels(1):
        result = f(x.T.copy() if columns else x, w)
    a, b = np.asarray(prologue(x), np.float64), np.asarray(w, np.float64)
    assert result.dtype == jnp.result_type(prologue(x), w)
    eps = float(ml_dtypes.finfo(jnp.bfloat16).eps) if result.dtype == jnp.bfloat16 else 1e-5
    exact_sum = a @ b
    if jnp.issubdtype(result.dtype, jnp.integer):
        exact_sum = exact_sum.astype(np.int64).astype(result.dtype)
    assert np.all(np.abs(np.asarray(result, np.float64) - exact_sum) <= eps * (np.abs(a) @ np.abs(b)))


def test_a_conversion_rounds():
    x = normal(40, 64)
    w = np.eye(64, dtype=ml_dtypes.bfloat16)
    result = jax_nano.fused_matmul(x, w, prologue=lambda x: x.astype(jnp.bfloat16), epilogue=lambda acc: acc)
    assert np.array_equal(result, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_conversions_between_narrow_types_round():
    x, w = (3 * normal(40, 64)).astype(np.float16), np.eye(64, dtype=np.float32)
    result = jax_nano.fused_matmul(x, w, prologue=lambda x: x.astype(jnp.bfloat16).astype(x.dtype).astype(jnp.float32))
    assert np.array_equal(result, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_weak_type_is_that_of_the_product():
    with jax.enable_x64(True):
        x, w = np.ones((3, 4), np.int32), np.ones((4, 5), np.float32)
        result = jax_nano.fused_matmul(x, w, prologue=lambda x: x * 1.0, epilogue=lambda acc: acc)
    assert result.dtype == np.float32


# Ways to compute a product.

SHAPES = {
    "vectors": ((24,), (24, 10)),
    "a column of C": ((6, 24), (24,)),
    "batches": ((3, 6, 24), (3, 24, 10)),
    "a weight for all": ((2, 3, 6, 24), (24, 10)),
    "long sums": ((2, 9000), (9000, 3)),
    "many columns": ((40, 96), (96, 1500)),
    "nothing": ((0, 24), (24, 10)),
    "sums of nothing": ((6, 0), (0, 10)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_matmul(name):
    shape, other = SHAPES[name]
    x, w, row = normal(*shape), normal(*other, seed=1), normal(shape[-1], seed=2)
    f = jax.jit(fused(lambda x, row: jnp.exp(x / 4) - row))
    assert_close(f(x, w, row), exact(plain(lambda x, row: jnp.exp(x / 4) - row), x, w, row))


@pytest.mark.parametrize("m", [1, 2, 7])
def test_sums_along_the_lanes(m):
    x, w, row = normal(m, 200), normal(50, 200, seed=1), normal(200, seed=2)
    f = fused(lambda x, row: jnp.exp(x / 4) - row)
    (report,) = jax_nano.inspect(lambda x, w, row: f(x, w.T, row), x, w, row)
    assert report.problem and report.problem.prologue is not None
    assert_close(f(x, w.T, row), exact(plain(lambda x, row: jnp.exp(x / 4) - row), x, w.T, row))


@pytest.mark.parametrize("pack", [
    jax_nano.pack, functools.partial(jax_nano.quantize, bits=8), functools.partial(jax_nano.quantize, bits=4, group=32),
])  # fmt: skip
def test_weights_in_another_form(pack):
    x, w, column = normal(5, 64), pack(jnp.asarray(normal(64, 48, seed=1))), normal(5, 1, seed=2)
    f = jax.jit(jax_nano.accelerate(lambda x, w, column: (x * column) @ w))
    (report,) = jax_nano.inspect(f, x, w, column)
    assert report.problem and report.problem.prologue is not None
    assert_close(f(x, w, column), exact(lambda x, w, column: (x * column) @ w, x, np.asarray(w), column))


@pytest.mark.parametrize("precision", ["BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6"])
def test_algorithms(precision):
    preset = lax.DotAlgorithmPreset[precision]
    f = functools.partial(jax_nano.fused_matmul, prologue=lambda x, row: x * row, prologue_extras=(ROW,))
    wanted = exact(lambda x, w, row: (x * row) @ w, X, W, ROW)
    with kernels(1):
        assert_close(f(X, W, precision=preset), wanted, atol=2e-2 if precision == "BF16_BF16_F32" else 1e-4)


# Transformations.

NORMALIZED = "a normalization", "elementary functions", "a value used twice", "a matrix"


@pytest.mark.parametrize("name", NORMALIZED)
def test_gradients(name):
    prologue, extras = PROLOGUES[name]
    arrays, numbers = (X, W, *extras), tuple(range(2 + len(extras)))

    def loss(f):
        return lambda *arrays: jnp.sin(f(prologue)(*arrays)).sum()

    wanted = exact(jax.grad(loss(plain), numbers), *arrays)
    assert_close(jax.jit(jax.grad(loss(fused), numbers))(*arrays), wanted)
    assert_close(jax.jit(jax_nano.accelerate(jax.grad(loss(plain), numbers)))(*arrays), wanted)


@pytest.mark.parametrize("name", NORMALIZED)
def test_tangents(name):
    prologue, extras = PROLOGUES[name]
    arrays = (X, W, *extras)

    def tangent(f):
        return lambda *arrays: jax.jvp(f(prologue), arrays, arrays)

    with kernels():
        assert_close(jax.jit(tangent(fused))(*arrays), exact(tangent(plain), *arrays))


def test_second_derivatives():
    prologue, extras = PROLOGUES["a normalization"]

    def curvature(f):
        def loss(x):
            return jnp.sin(f(prologue)(x, W, *extras)).sum()

        return lambda x: jax.jvp(jax.grad(loss), (x,), (x,))[1]

    assert_close(jax.jit(curvature(fused))(X), exact(curvature(plain), X))


@pytest.mark.parametrize("axes", [(0, None, None), (None, 2, None), (1, 0, 1), (None, None, 0)])
def test_batches(axes):
    operands = [
        x if axis is None else np.stack([x, 2 * x, -x], axis) for x, axis in zip((X, W, ROW), axes, strict=True)
    ]
    with kernels():
        result = jax.vmap(fused(jnp.multiply), axes)(*operands)
    assert_close(result, exact(jax.vmap(plain(jnp.multiply), axes), *operands))


def test_loops():
    square = normal(24, 24) / 5

    def step(f, x):
        return lax.scan(lambda x, _: (f(lambda x, row: jnp.tanh(x) * row)(x, square, ROW), None), x, length=3)[0]

    with kernels(1):  # the whole loop
        result = jax.jit(functools.partial(step, fused))(X)
    assert_close(result, exact(functools.partial(step, plain), X))


def test_checkpoints():
    prologue, extras = PROLOGUES["a normalization"]

    def loss(f):
        return lambda x: jnp.sin(jax.checkpoint(f(prologue))(x, W, *extras)).sum()

    assert_close(jax.jit(jax.grad(loss(fused)))(X), exact(jax.grad(loss(plain)), X))


# What accelerate fuses by itself.


def report_of(f, *arrays):
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *arrays)
    return report


def normalized(x, scale, shift):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * scale + shift


FOUND = {
    "a row scale": (lambda x, w: (x * x[:, :1]) @ w, "mul"),
    "a normalization": (lambda x, w: normalized(x, w[:, 0], w[:, 1]) @ w, "sub"),
    "a conversion": (lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), "conversion to bfloat16"),
    "relu": (lambda x, w: jax.nn.relu(x) @ w, "relu"),
    "a softmax": (lambda x, w: jax.nn.softmax(x) @ w, "div"),
    "the other operand": (lambda x, w: w.T @ (x * 2).T, "mul"),
    "einsum": (lambda x, w: jnp.einsum("kn,mk->mn", w, x - 1), "sub"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_fused(name):
    f, fused_with = FOUND[name]
    report = report_of(f, X, W)
    assert report.problem
    made = report.problem.prologue
    if name == "the other operand":  # C's last dimension is that of x: it lies along the lanes
        assert made is None
        assert "lies along the result's last dimension" in report.kept
    else:
        assert made is not None
        assert fused_with in report.fused
    atol = 2e-2 if name == "a conversion" else 1e-5
    with kernels(1):
        assert_close(jax.jit(jax_nano.accelerate(f))(X, W), exact(f, X, W), atol)


KEPT = {
    "a value used elsewhere": (
        lambda x, w: (lambda h: h @ w + h.sum())(x * 2), "mul: used by dot_general and reduce_sum"
    ),
    "an operand of two products": (lambda x, w: (lambda h: (h @ w, h @ w[:, ::-1]))(x * 2), "mul: used by"),
    "many columns": (lambda x, w: (x * 2) @ jnp.tile(w, 300), "mul: takes no longer outside, with 3000 columns of C"),
    "a function that takes long": (
        lambda x, w: jnp.tanh(x) @ jnp.tile(w, 60), "tanh: takes no longer outside, with 600 columns of C"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_fused_and_why(name):
    f, reason = KEPT[name]
    report, *_ = jax_nano.inspect(jax_nano.accelerate(f), X, W)
    assert report.problem and report.problem.prologue is None
    assert report.kept.startswith(reason)
    assert f"before   {reason}" in str(report)
    assert_close(jax.jit(jax_nano.accelerate(f))(X, W), exact(f, X, W))


def test_two_arrays_of_a_size_that_would_both_have_to_be_made():
    report = report_of(lambda x, w: (jnp.sin(x) * jnp.cos(x)) @ w, jnp.tile(X, (60, 1)), jnp.tile(W, 60))
    assert report.problem and report.problem.prologue is None


def test_no_prologue_where_xla_goes_over_the_operand_anyway():
    f = lambda x, w: ((x / x[:, :1]) * 2).astype(jnp.bfloat16) @ jnp.tile(w, 20).astype(jnp.bfloat16)  # noqa: E731
    report = report_of(f, X, W)
    assert report.problem and report.problem.prologue is None
    assert report.kept.startswith("div: takes no longer outside")


ELEMENTARY = {
    "16 bits": (jnp.bfloat16, 400, lambda x, y: jax.nn.gelu(x), True),
    "16 bits, of two arrays": (jnp.float16, 400, lambda x, y: jax.nn.silu(x) * y, True),
    "16 bits, no elementary function": (jnp.bfloat16, 400, lambda x, y: x * y, False),
    "16 bits, very many columns": (jnp.bfloat16, 410, lambda x, y: jax.nn.silu(x) * y, False),
    "32 bits": (jnp.float32, 51, lambda x, y: jax.nn.silu(x) * y, True),
    "32 bits, many columns": (jnp.float32, 52, lambda x, y: jax.nn.silu(x) * y, False),
    "a softmax": (jnp.bfloat16, 51, lambda x, y: jax.nn.softmax(jnp.tile(x, (2000, 1))), False),
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_are_fused_where_xla_takes_long(name):
    dtype, times, work, expected = ELEMENTARY[name]
    x, w = jnp.asarray(X, dtype), jnp.asarray(jnp.tile(W, times), dtype)
    report = report_of(lambda x, y, w: work(x, y) @ w, x, x + 1, w)
    assert report.problem
    assert (report.problem.prologue is not None) == expected


def test_a_conversion_without_rounding_is_read_through_wherever_it_is_used():
    def f(x, w):
        wide = x.astype(jnp.float32)
        return ((wide - wide.mean(-1, keepdims=True)).astype(x.dtype) @ w).astype(jnp.float32)

    x, w = (jnp.asarray(t, jnp.bfloat16) for t in (X, W))
    report = report_of(f, x, w)
    assert report.problem and report.problem.prologue
    assert (report.problem.lhs, report.problem.prologue.made) == ("bf16", "bf16")


def test_a_gradient_computes_no_product_twice():
    def loss(x, w):
        return jnp.sin(normalized(x, 2.0, 1.0) @ w).sum()

    for f in (jax.grad(jax_nano.accelerate(loss), (0, 1)), jax_nano.accelerate(jax.grad(loss, (0, 1)))):
        with kernels(3):
            assert_close(jax.jit(f)(X, W), exact(jax.grad(loss, (0, 1)), X, W))


def test_a_fused_program_is_one_equation_beside_the_statistics():
    names = primitives(jax.make_jaxpr(jax_nano.accelerate(lambda x, w: ((x - 1) * 2).astype(x.dtype) @ w))(X, W).jaxpr)
    assert names == ["nano_region"]


# Plans.


def dot_with_prologue(m, n, k, operation="mul"):
    inputs = tuple(Input(argument=i, dtype="f32") for i in (0, 1))
    work = Operation(name=operation, operands=(0, 1), dtype="f32")
    program = Program(inputs=inputs, constants=(), operations=(work,), results=(2,))
    column = Operand(shape=(m, k), strides=(1, 0), dtype="f32")
    a, b, c = (Operand.row_major(shape, "f32") for shape in ((m, k), (k, n), (m, n)))
    loops = loops_of(a, b, (((1,), (0,)), ((), ())), c, [("prologue", column)])
    return Dot.over(loops, ("f32", "f32", "f32"), prologue=Prologue(program=program, extras=(("f32", m),)))


@pytest.mark.parametrize("machine", x86.MACHINES, ids=lambda machine: machine.name)
def test_a_is_packed_once_by_every_task(machine):
    for m, n, k in ((512, 4096, 1024), (128, 2304, 768), (1, 3072, 768)):
        plan = choose(dot_with_prologue(m, n, k), machine, machine.isas[0])
        assert plan.lhs != "unpacked"
        assert plan.lhs_packings == 1


def test_the_model_charges_for_work_that_tasks_do_again():
    machine = host.machine()
    costs = {}
    for operation in ("mul", "pow"):
        plan = choose(dot_with_prologue(256, 1024, 512), machine, machine.isas[0])
        plan = replace(plan, dot=dot_with_prologue(256, 1024, 512, operation))
        costs[operation] = estimate.seconds(plan, machine).packing
    assert costs["pow"] > 1.5 * costs["mul"]


def test_a_with_a_prologue_is_not_read_in_place():
    machine = host.machine()
    plan = choose(dot_with_prologue(8, 64, 64), machine, machine.isas[0])
    with pytest.raises(ValueError, match="a prologue is done while A is packed: A cannot stay unpacked"):
        replace(plan, lhs="unpacked")


# Errors.


@pytest.mark.parametrize(
    ("prologue", "reason"),
    [
        (jax.nn.softmax, "reduce_max is no elementwise operation"),
        (lambda x: jnp.cumsum(x, 0), "cumsum is no elementwise operation"),
        (lambda x: x + x.T, "add combines elements from different places of the first argument"),
        (lambda x: x.T, "elements of the first argument change their places"),
    ],
)
def test_prologues_that_are_not_elementwise(prologue, reason):
    with kernels(0), pytest.raises(ValueError, match=f"^the prologue is not elementwise: {reason}; do that before"):
        jax_nano.fused_matmul(X[:, :6], W[:6], prologue=prologue)


def test_prologues_that_return_something_else():
    text = r"^the prologue returns an array of the shape \(24,\); it has to return one of the first argument's shape"
    with pytest.raises(ValueError, match=text):
        jax_nano.fused_matmul(X, W, prologue=lambda x: x.sum(0))


def test_extras_that_do_not_broadcast():
    text = (
        r"^prologue_extra 0 has the shape \(10,\), which does not broadcast to the first argument's, \(6, 24\); extras"
    )
    with kernels(0), pytest.raises(ValueError, match=text):
        jax_nano.fused_matmul(X, W, prologue=jnp.multiply, prologue_extras=(W[0],))


def test_extras_without_a_function_of_them():
    with pytest.raises(TypeError, match="takes prologue_extras for a prologue, and there is none"):
        jax_nano.fused_matmul(X, W, prologue_extras=(ROW,))
    with pytest.raises(TypeError, match="takes extras for an epilogue, and there is none"):
        jax_nano.fused_matmul(X, W, ROW)


@pytest.mark.parametrize("prologue", [None, jnp.multiply])
def test_extras_that_are_one_array(prologue):
    text = r"^prologue_extras is a sequence of arrays, such as \(row,\); not <class 'numpy.ndarray'>$"
    with pytest.raises(TypeError, match=text):
        jax_nano.fused_matmul(X, W, prologue=prologue, prologue_extras=ROW)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("operands", "place"),
    [(([[1.0]], W), "0"), ((X, "w"), "1"), ((X, W, [1.0] * 10), "2")],
)
def test_operands_that_are_no_arrays(operands, place):
    text = rf"^fused_matmul requires ndarray or scalar arguments, got <class '(list|str)'> at position {place}\.$"
    with pytest.raises(TypeError, match=text):
        jax_nano.fused_matmul(*operands, epilogue=lambda acc, *extras: acc)
    with pytest.raises(TypeError, match=r"got <class 'list'> at position 0 of prologue_extras\.$"):
        jax_nano.fused_matmul(X, W, prologue=jnp.multiply, prologue_extras=([1.0],))  # pyright: ignore[reportArgumentType]
