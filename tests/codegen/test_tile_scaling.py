"""Products with quantized weights on tiles: sums of whole tiles, which vectors scale group by group."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import normal
from quantized import assert_product, weight
from tile_kernels import AMX, MACHINE, TileRunner, blocked, needs_tile_vectors

import jax_nano
from jax_nano.schedule.candidates import kernel_plans

pytestmark = needs_tile_vectors


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


def product(m, k, n, **options):
    """A, a quantized B, and every plan by tiles for their product."""
    x, q = jnp.asarray(normal(m, k), jnp.bfloat16), jax_nano.quantize(weight(k, n, dtype=jnp.bfloat16), **options)
    (report,) = jax_nano.inspect(jax_nano.matmul, x, q)
    assert report.problem
    assert report.problem.scaling
    plans = [plan for plan in kernel_plans(report.problem, MACHINE, AMX) if plan.instruction.tiles]
    assert plans
    return x, q, plans


def check(x, q, plans, **run):
    arrays = [np.asarray(array) for array in (x, q.values, q.scales, q.zeros) if array is not None]
    for plan in plans:
        out = TileRunner(plan)(*arrays, **run).reshape(x.shape[0], q.shape[-1])
        assert_product(out, x, q)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_groups_are_scaled(bits, group, symmetric):
    for m, k, n in ((1, 129, 17), (16, 256, 32), (21, 300, 50), (33, 155, 16)):
        check(*product(m, k, n, bits=bits, group=group, symmetric=symmetric), before=k % 2 > 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_points_of_whole_columns(bits):
    for m, k, n in ((5, 31, 40), (32, 200, 32)):
        check(*product(m, k, n, bits=bits, symmetric=False))


@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_register_blocks(tall, wide):
    for m, n in ((16 * (tall + 1), 16 * (wide + 1)), (33 * tall, 40 * wide)):
        x, q, (plan, *_) = product(m, 200, n, group=64)
        shared = blocked(plan, tall, wide, panels=1, depth=64)
        check(x, q, [blocked(plan, tall, wide, depth=32), shared, replace(shared, rhs="per_round")])


def test_a_program_scales_groups_by_tiles(here):
    x, q = jnp.asarray(normal(64, 256), jnp.bfloat16), jax_nano.quantize(weight(256, 128), bits=4, group=64)
    layer = jax_nano.accelerate(lambda x, q, b: jnp.matmul(x, q, preferred_element_type=jnp.float32) + b)
    bias = normal(128)
    (report,) = jax_nano.inspect(layer, x, q, bias)
    assert report.plan and report.plan.instruction.name == "tdpbf16ps"
    before = jax_nano.executed_kernels()
    assert_product(layer(x, q, bias), x, q, [bias])
    assert jax_nano.executed_kernels() == before + 1
