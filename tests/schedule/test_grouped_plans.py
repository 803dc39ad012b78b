"""Blocks of grouped products: B of few rows comes by long runs."""

from dataclasses import replace

import pytest
from grouped import ROWS

from jax_nano.ir.axes import Operand
from jax_nano.ir.dtypes import bytes_of
from jax_nano.jaxpr.grouped.dimensions import grouped_of
from jax_nano.machine import x86
from jax_nano.schedule.grouped.choose import choose_grouped

ZEN5 = next(machine for machine in x86.MACHINES if machine.name == "znver5")


def many_rows(dtype, groups, m, k, n, threads=1):
    """The plan of groups of many rows."""
    machine = replace(ZEN5, threads=threads)
    x, w, out = (Operand.row_major(shape, dtype) for shape in ((m, k), (groups, k, n), (m, n)))
    problem = grouped_of(ROWS, x, w, Operand.row_major((groups,), "s32"), out)
    plan = choose_grouped(problem, machine, machine.isas[0]).many
    assert plan
    return plan


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(8, 512, 1024, 1024), (32, 1576, 768, 3072), (16, 1024, 512, 512)], ids=str)
def test_packed_blocks_have_long_rows_and_the_next_one_is_prefetched(shape, threads):
    plan = many_rows("bf16", *shape, threads=threads)
    assert plan.rhs == "per_task"
    assert plan.prefetches_rhs
    assert bytes_of("bf16", plan.block_columns) >= 480
    assert bytes_of("bf16", plan.kc * plan.nr) <= ZEN5.l1.bytes
    assert bytes_of("bf16", plan.kc * plan.block_columns) <= ZEN5.l2.bytes // 4


def test_what_fits_into_the_share_is_packed_at_once():
    plan = many_rows("bf16", 4, 1024, 128, 256)
    assert plan.kc == 128
    assert plan.nb == 0
