"""What a task of a group prefetches of B."""

from typing import Any

import numpy as np
import pytest
from grouped import described

from jax_nano.codegen import prefetch
from jax_nano.codegen.grouped.prefetch import GroupRhsPrefetch
from jax_nano.codegen.loops import Span
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operands import Area
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine import x86
from jax_nano.schedule.grouped.choose import choose_grouped
from jax_nano.schedule.plan import LINE_BYTES

NOWHERE: Any = None
ZEN5 = next(machine for machine in x86.MACHINES if machine.name == "znver5")
K, N = 1024, 2048


def many_rows(rows):
    """The plan of groups that are expected to have so many rows, and its prefetches of a task of all columns."""
    lhs, rhs = np.empty((8 * rows, K), np.float32), np.empty((8, K, N), np.float32)
    problem = described(lhs, rhs, np.zeros(8, np.int32))
    plan = choose_grouped(problem, ZEN5, ZEN5.isas[0]).many
    assert plan
    assert plan.rhs == "per_task"
    area = Area(Span(0, rows, None), Span(0, N, N))
    return plan, GroupRhsPrefetch(plan, area, expected_rows=problem.expected_rows)


B = MatrixRef(NOWHERE, 0, (N, 1), "f32")


@pytest.mark.parametrize("rows", [40, 64, 90])
def test_expected_rows_prefetch_a_whole_panel(rows, monkeypatch):
    plan, target = many_rows(rows)
    found: set[int] = set()
    line = LINE_BYTES // bytes_of("f32")
    monkeypatch.setattr(prefetch, "prefetch", lambda _base, at: found.add(at // line))
    following: Any = target.next_panel(B, B, 0, 0)
    for i in range(0, rows, plan.mr):
        (emit,) = target.hooks(following, i, 0, plan.nr)
        for k in range(plan.kc):
            emit(k, 1)
    begin = following.offset(0, 0)
    wanted = {(begin + k * N + j) // line for k in range(plan.kc) for j in range(0, plan.nr, line)}
    assert wanted <= found


def test_behind_the_last_columns_come_the_next_steps():
    plan, target = many_rows(64)

    def after(k0, j):
        panel: Any = target.next_panel(B, B, k0, j)
        return divmod(panel.offset(0, 0), N)

    last = (N - 1) // plan.block_columns * plan.block_columns
    assert after(0, plan.nr) == (0, plan.block_columns + plan.nr)
    assert after(0, last) == (plan.kc, 0)
    assert after(plan.kc, last + plan.nr) == (2 * plan.kc, plan.nr)
    assert after(K - plan.kc, last) == (K - plan.kc, 0), "and nothing beyond the last ones"
