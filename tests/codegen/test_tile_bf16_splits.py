"""Products of f32 by components of bf16, on tiles: the same sums, with the same bounds, as on vectors."""

from dataclasses import replace

import numpy as np
import pytest
from algorithms import (
    LEFT_OUT,
    assert_follows,
    assert_near_product,
    assert_special_rows,
    with_exact_row,
    with_special_rows,
)
from jax.lax import DotAlgorithmPreset
from tile_kernels import MATMUL, TileRunner, blocked, needs_tile_vectors, numbers, tile_plans

import jax_nano

pytestmark = needs_tile_vectors
F32 = ("f32", "f32", "f32")
every_algorithm = pytest.mark.parametrize("name", LEFT_OUT)


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


def plans_of(name, m, n, k, types=F32, **options):
    plans = tile_plans((m, k), (k, n), MATMUL, types, precision=DotAlgorithmPreset[name], **options)
    assert plans
    assert all(plan.instruction.name == "tdpbf16ps" and len(plan.terms) > 1 for plan in plans)
    return plans


def operands(m, n, k, types=F32):
    rng = np.random.default_rng([m, n, k])
    return numbers(rng, (m, k), types[0]), numbers(rng, (k, n), types[1])


def check(name, plans, a, b, **options):
    for plan in plans:
        actual = TileRunner(plan)(a, b, **options).reshape(a.shape[0], b.shape[1])
        assert_follows(name, actual, a, b)


@every_algorithm
@pytest.mark.parametrize("m", [1, 15, 16, 17, 33])
def test_every_edge_of_c(name, m):
    for n in (1, 15, 16, 17, 35):
        check(name, plans_of(name, m, n, 37), *operands(m, n, 37))


@every_algorithm
def test_every_edge_of_the_sum(name):
    for k in (1, 2, 3, 31, 32, 33, 64, 103):
        check(name, plans_of(name, 20, 40, k), *operands(20, 40, k), before=k % 2 > 0)


@every_algorithm
@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_register_blocks(name, tall, wide):
    for m, n, k in ((16 * (tall + 1), 16 * (wide + 1), 128), (33 * tall, 40 * wide, 149)):
        (plan, *_) = plans_of(name, m, n, k)
        plans = [blocked(plan, tall, wide), blocked(plan, tall, wide, panels=1, depth=40)]
        check(name, plans, *operands(m, n, k))


@pytest.mark.parametrize("out", ["f32", "bf16"])
def test_every_way_to_share_out_work(out):
    name, types = "BF16_BF16_F32_X6", ("f32", "f32", out)
    for m, n in ((70, 100), (64, 96)):
        (plan, *_) = plans_of(name, m, n, 620, types)
        tasks = blocked(plan, 2, 2, panels=1)
        parts = blocked(plan, 2, 2, panels=1, depth=128)
        plans = [
            parts, replace(tasks, rhs="per_round"), replace(parts, rhs="per_round"), replace(parts, split_k=2),
            replace(blocked(plan, 2, 2), nb=32),
        ]  # fmt: skip
        check(name, plans, *operands(m, n, 620))


@every_algorithm
def test_components_packed_beside_products(name):
    m, n, k = 40, 70, 256
    plans = plans_of(name, m, n, k, overlap_packing=True)
    check(name, [*plans[:3], blocked(plans[0], 2, 1, panels=1, depth=128)], *operands(m, n, k))


@pytest.mark.parametrize("types", [("bf16", "f32", "f32"), ("f32", "bf16", "f32")], ids="-".join)
@every_algorithm
def test_an_operand_of_bf16_is_its_only_component(name, types):
    for m, n, k in ((32, 32, 64), (21, 35, 45)):
        check(name, plans_of(name, m, n, k, types), *operands(m, n, k, types))


@pytest.mark.parametrize("layout", ["nt", "tn", "tt"])
def test_transposed_operands(layout):
    name = "BF16_BF16_F32_X3"
    a, b = operands(21, 35, 45)
    lhs, rhs = a.T.copy() if layout[0] == "t" else a, b.T.copy() if layout[1] == "t" else b
    dimension_numbers = (((layout[0] == "n",), (layout[1] == "t",)), ((), ()))
    for plan in tile_plans(lhs.shape, rhs.shape, dimension_numbers, F32, precision=DotAlgorithmPreset[name]):
        assert_follows(name, TileRunner(plan)(lhs, rhs).reshape(21, 35), a, b)


@every_algorithm
def test_more_products_are_more_exact(name):
    a, b = operands(50, 60, 500)
    for plan in plans_of(name, 50, 60, 500):
        assert_near_product(name, TileRunner(plan)(a, b).reshape(50, 60), a, b)


@every_algorithm
def test_what_is_not_finite_stays_where_it_is(name):
    """In one part of the sum, and where it is added to others."""
    for m, n, k in ((20, 21, 45), (32, 32, 128)):
        a, b = operands(m, n, k)
        a, b = with_special_rows(a), with_exact_row(b)
        plans = plans_of(name, m, n, k)
        for plan in {*plans, *(blocked(plan, 2, 2, depth=32) for plan in plans)}:
            assert_special_rows(name, TileRunner(plan)(a, b).reshape(m, n), a, b)


def test_a_program_runs_products_of_components_by_tiles(here):
    a, b = operands(50, 70, 60)
    bias = numbers(np.random.default_rng(0), (70,), "f32")

    def layer(a, b, bias):
        return jax_nano.matmul(a, b, precision="BF16_BF16_F32_X3") + bias

    (report,) = jax_nano.inspect(jax_nano.accelerate(layer), a, b, bias)
    assert "3 products of bf16 splits" in str(report)
    assert "target   amx, tdpbf16ps" in str(report)
    before = jax_nano.executed_kernels()
    actual = np.asarray(jax_nano.accelerate(layer)(a, b, bias))
    assert jax_nano.executed_kernels() == before + 1
    np.testing.assert_allclose(actual, a.astype(np.float64) @ b + bias, rtol=1e-3, atol=1e-3)
