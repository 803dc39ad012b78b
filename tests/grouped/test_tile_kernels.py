"""Grouped products by tiles, on every edge, under the emulator where the processor has none."""

import ml_dtypes
import numpy as np
import pytest
from grouped import ROWS, SUMS, TRANSPOSED, GroupedRunner, assert_grouped, described
from tile_kernels import AMX, MACHINE, needs_tile_vectors

from jax_nano.schedule.grouped_plans import choose_grouped

pytestmark = needs_tile_vectors


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


@pytest.mark.parametrize("numbers", [ROWS, TRANSPOSED], ids=["rows", "transposed"])
@pytest.mark.parametrize("sizes", [[70, 0, 33, 17], [15, 16, 1, 64], [0, 100, 0, 0]])
@pytest.mark.parametrize("out", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def test_edges_of_tiles(out, sizes, numbers):
    rng = np.random.default_rng(sizes)
    shape = (4, 70, 45) if numbers is ROWS else (4, 45, 70)
    lhs, rhs = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((130, 70), shape))
    sizes = np.array(sizes, np.int32)
    plan = choose_grouped(described(lhs, rhs, sizes, numbers, out), MACHINE, AMX)
    assert plan.many
    assert plan.many.instruction.tiles
    result = GroupedRunner(plan, MACHINE)(lhs, rhs, sizes, before=True)
    assert_grouped(result.reshape(130, 45), lhs, rhs, sizes, numbers)


def test_sums_over_groups_go_by_vectors():
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((70, 40), (70, 33)))
    plan = choose_grouped(described(lhs, rhs, np.zeros(3, np.int32), SUMS), MACHINE, AMX)
    assert not plan.instruction.tiles
