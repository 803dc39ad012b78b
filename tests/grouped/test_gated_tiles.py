"""Gated layers by tiles, dense and of experts: the bits of two kernels, under the emulator where there are no tiles."""

import jax.numpy as jnp
import numpy as np
import pytest
from gated import apart, dense, grouped, operands
from grouped import GroupedRunner, fused_kernel
from tile_kernels import AMX, MACHINE, needs_tile_vectors

from jax_nano.schedule.choose import choose

pytestmark = needs_tile_vectors


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


@pytest.mark.parametrize("sizes", [None, [70, 0, 33, 17], [1, 16, 0, 2]], ids=["dense", "many", "few"])
def test_both_products_by_tiles(sizes):
    if sizes:
        arguments = *operands(130, 70, 45, groups=(4,), dtype=jnp.bfloat16), jnp.asarray(sizes, jnp.int32)
    else:
        arguments = operands(130, 70, 45, dtype=jnp.bfloat16)
    problem, arrays = fused_kernel(grouped if sizes else dense, *arguments)

    def run(product, given):
        plan = choose(product, MACHINE, AMX)
        assert plan.instruction.tiles
        return GroupedRunner(plan, MACHINE)(*given, before=True)

    np.testing.assert_array_equal(run(problem, arrays), apart(problem, arrays, run))
