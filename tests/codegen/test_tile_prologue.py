"""Prologues on tiles: rows of A go through a program while they are packed, and what is beside them stays zero."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.lax import DotAlgorithmPreset
from oracle import normal
from tile_kernels import AMX, MACHINE, TileRunner, blocked, needs_tile_vectors

import jax_nano
from jax_nano.schedule.candidates import kernel_plans

pytestmark = needs_tile_vectors
BF16, EPS = ml_dtypes.bfloat16, np.finfo(np.float32).eps


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


def reciprocal(x, column, row):
    """Of what stands beside A, which is zero, it makes infinities and NaN."""
    return (column / x + row / column).astype(jnp.bfloat16)


def to_bytes(x, column, row):
    return jnp.round(20 * x + column * row).astype(jnp.int8)


def scaled(x, column, row):
    return x * column + row


def operands(m, n, k, other):
    x = normal(m, k)
    x = np.where(x > 0, 1, -1) + x
    w = np.round(3 * normal(k, n, seed=1)) if other == np.int8 else normal(k, n, seed=1)
    return x.astype(np.float32), w.astype(other), 1 + np.abs(normal(m, 1, seed=2)), normal(k, seed=3)


def plans_of(prologue, arrays, *, columns=False, precision=None):
    """Every plan by tiles of the product, with A stored by rows or by columns."""
    x, *others = arrays

    def product(x, w, column, row):
        a = prologue(x.T if columns else x, column, row)
        out = jnp.int32 if w.dtype == jnp.int8 else jnp.float32
        return jnp.matmul(a, w, precision=precision, preferred_element_type=out)

    (report,) = jax_nano.inspect(jax_nano.accelerate(product), x.T.copy() if columns else x, *others)
    assert report.problem
    assert report.problem.prologue
    assert {axis.lhs for axis in report.problem.k} == {len(x) if columns else 1}
    plans = [plan for plan in kernel_plans(report.problem, MACHINE, AMX) if plan.instruction.tiles]
    assert plans
    return plans


def check(prologue, arrays, plans, eps: float = float(EPS), **run):
    x, w, column, row = arrays
    a, b = (np.asarray(matrix).astype(np.float64) for matrix in (prologue(*map(jnp.asarray, (x, column, row))), w))
    exact, bound = a @ b, eps * x.shape[1] * (np.abs(a) @ np.abs(b))
    for plan in plans:
        lhs = x if plan.k.lhs == 1 else x.T.copy()
        extras = (row if along_k else column for along_k in plan.k.extras)
        assert np.all(np.abs(TileRunner(plan)(lhs, w, *extras, **run).reshape(exact.shape) - exact) <= bound)


SHAPES = [(2, 7, 3), (1, 40, 17), (15, 5, 33), (16, 64, 64), (33, 17, 70), (50, 40, 128)]
RESULTS = {"reciprocal": (reciprocal, BF16), "bytes": (to_bytes, np.int8)}


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("name", RESULTS)
def test_nothing_beside_the_operands_is_multiplied(name, m, n, k, columns):
    prologue, other = RESULTS[name]
    arrays = operands(m, n, k, other)
    # A quotient one ulp of f32 away may be rounded to the neighbour in bf16.
    eps = ml_dtypes.finfo(BF16).eps / k if name == "reciprocal" else 0
    plans = plans_of(prologue, arrays, columns=columns)
    check(prologue, arrays, plans, eps, before=columns)


@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (2, 2), (1, 3), (4, 1)])
def test_register_blocks_and_parts_of_sums(tall, wide):
    arrays = operands(70, 100, 256, np.int8)
    for plan in {plan.overlap_packing: plan for plan in plans_of(to_bytes, arrays)}.values():
        ways = {}, {"panels": 1}, {"panels": 1, "depth": 128}
        check(to_bytes, arrays, [blocked(plan, tall, wide, **way) for way in ways], eps=0)


@pytest.mark.parametrize("terms", [6, 9])
def test_what_is_made_of_a_is_taken_apart_into_components(terms):
    arrays = operands(33, 40, 90, np.float32)
    precision = DotAlgorithmPreset[f"BF16_BF16_F32_X{terms}"]
    check(scaled, arrays, plans_of(scaled, arrays, precision=precision))


def test_a_program_has_its_prologue_and_epilogue_around_tiles(here):
    x, w, column, row = operands(50, 70, 96, BF16)
    bias = normal(70, seed=4)

    def layer(x, w, column, row, bias):
        return jax_nano.fused_matmul(
            x, w, bias, epilogue=lambda acc, bias: jnp.tanh(acc + bias),
            prologue=reciprocal, prologue_extras=(column, row),
        )  # fmt: skip

    (report,) = jax_nano.inspect(layer, x, w, column, row, bias)
    assert report.plan
    assert report.plan.instruction.name == "tdpbf16ps"
    assert report.problem and report.problem.prologue
    assert report.problem and report.problem.epilogue
    before = jax_nano.executed_kernels()
    result = layer(x, w, column, row, bias)
    assert jax_nano.executed_kernels() == before + 1
    a = np.asarray(reciprocal(x, column, row)).astype(np.float64)
    np.testing.assert_allclose(np.asarray(result), np.tanh(a @ w.astype(np.float64) + bias), atol=1e-2)
