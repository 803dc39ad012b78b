"""A plan of one task, shared out among threads in every way worth weighing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Machine
from jax_nano.schedule.plan import Plan

# A thread's scratch, and what all share, stay within these.
LOCAL_BYTES = 12 << 20
SHARED_BYTES = 16 << 20
PER_THREAD = (1, 2, 3, 4, 6, 8, 16)
FEW_PER_THREAD = (4, 16)  # enough to tell kernels apart: large tasks and small ones
TASKS_PER_THREAD = 16  # at most, where tasks have neither all rows nor all columns


def undivided(plan: Plan, machine: Machine) -> Iterator[Plan]:
    """The plan as one task, with B packed whole or piece by piece."""
    yield plan
    if pieces := piece_columns(plan, machine, plan.nt):
        yield plan.replace(nb=pieces, nt=-(-plan.nt // pieces) * pieces, mc=plan.mt)


def task_plans(plan: Plan, machine: Machine, per_thread: Sequence[int] = PER_THREAD) -> Iterator[Plan]:
    """The plan divided into tasks in every way worth weighing, within a thread's scratch.

    Args:
      plan: the plan of one task.
      machine: where it runs.
      per_thread: how many parts of the rows or columns there may be for each thread.
    """
    divided = divisions_of(plan, machine, per_thread)
    fitting = [plan for plan in divided if plan.local_bytes <= LOCAL_BYTES]
    yield from fitting or [smallest(plan, machine)]


def smallest(plan: Plan, machine: Machine) -> Plan:
    """The plan in tasks whose scratch is within bounds whatever the product: a third each for A, B and sums."""
    nt = min(resident_columns(plan, machine), plan.nt)
    mc, mt = plan.mc, plan.mt
    if plan.lhs != "unpacked":
        mc = min(mc, whole_rows(bytes_of(plan.instruction.lhs, plan.scratch.lhs_stride), plan.lhs_panel))
        mt = -(-plan.m.size // mc) * mc
    if plan.has_partial:
        mt = min(mt, whole_rows(bytes_of(plan.instruction.acc, nt), plan.mr if plan.lhs == "unpacked" else mc))
    mc = mc if plan.rows_in_blocks else mt
    return plan.replace(mt=mt, mc=mc, nt=nt, outer_per_task=1, overlap_packing=False)


def whole_rows(row_bytes: int, step: int) -> int:
    """How many rows a third of a thread's scratch holds, in whole steps."""
    return max(1, LOCAL_BYTES // 3 // row_bytes // step) * step


class Area(NamedTuple):
    """The columns and rows of C in a task, and the rows in its blocks of A."""

    nt: int
    mt: int
    mc: int
    whole: bool  # all of C, but for the outer axes


def divisions_of(plan: Plan, machine: Machine, per_thread: Sequence[int]) -> Iterator[Plan]:
    """The plan divided into tasks, whatever scratch they take: by columns and rows, or by the outer axes' elements.

    Where B is packed, all threads can also pack it once, in a phase before.
    """
    yield plan
    outer = plan.outer_elements
    alone = not plan.outer and not plan.k_outer and plan.split_k == 1
    can_share = alone and plan.rhs == "per_task" and not plan.inner_product and not plan.overlap_packing
    for nt, mt, mc, whole in areas(plan, machine, per_thread):
        pieces = piece_columns(plan, machine, nt)
        for nb in (0, pieces) if pieces else (0,):
            columns = -(-nt // nb) * nb if nb else nt
            # With several blocks of columns, or of panels, all of A is packed before the first one.
            block = mt if nb or plan.overlap_packing else mc
            for parts in divisions(outer, machine.threads, per_thread) if whole else (outer,):
                yield plan.replace(nt=columns, nb=nb, mt=mt, mc=block, outer_per_task=-(-outer // parts))
        if can_share:
            yield from packed_per_round(plan.replace(nt=nt, mt=mt, mc=mc), machine)


def areas(plan: Plan, machine: Machine, per_thread: Sequence[int]) -> Iterator[Area]:
    """The areas of C that a task may compute: panels of columns and of rows in nearly equal parts."""
    cols, rows = -(-plan.n.size // plan.nr), -(-plan.m.size // plan.mr)
    to_stay_in_l2 = -(-cols * plan.nr // resident_columns(plan, machine))
    column_parts = sorted({*divisions(cols, machine.threads, per_thread), to_stay_in_l2})
    if plan.streamed and plan.split_k >= machine.threads:
        column_parts = [1]
    for n_parts, m_parts in itertools.product(column_parts, divisions(rows, machine.threads, per_thread)):
        if m_parts > 1 and n_parts > 1 and m_parts * n_parts > TASKS_PER_THREAD * machine.threads:
            continue
        mt = -(-rows // m_parts) * plan.mr
        mc = min(plan.mc, -(-mt // plan.lhs_panel) * plan.lhs_panel) if plan.rows_in_blocks else mt
        yield Area(-(-cols // n_parts) * plan.nr, -(-mt // mc) * mc, mc, whole=n_parts * m_parts == 1)


def piece_columns(plan: Plan, machine: Machine, nt: int) -> int:
    """How many columns of B a task packs at a time, if it should not pack all of its `nt` at once; else 0."""
    if plan.rhs != "per_task" or plan.overlap_packing or plan.prefetch_lhs:
        return 0
    room = resident_columns(plan, machine)
    return room if room < nt else 0


def resident_columns(plan: Plan, machine: Machine) -> int:
    """How many columns of B, packed, leave room in L2 for A, for C and for what is prefetched."""
    panel = bytes_of(plan.instruction.rhs, plan.nr * plan.scratch.panel_rows(plan.kc))
    return max(1, machine.l2.bytes // 8 // panel) * plan.nr


def packed_per_round(plan: Plan, machine: Machine) -> Iterator[Plan]:
    """The plan with B packed once, by all threads, in as many rounds as its scratch has room for."""
    panel = bytes_of(plan.instruction.rhs, plan.nr * plan.scratch.panel_rows(plan.k.size))
    most = SHARED_BYTES // panel * plan.nr
    if most == 0 or machine.threads == 1:
        return
    rounds = -(-plan.nc // most)
    nc = -(-plan.nc // plan.nr // rounds) * plan.nr
    nt = min(plan.nt, nc)
    pack_panels = max(1, nc // plan.nr // (4 * machine.threads))
    yield plan.replace(rhs="per_round", nc=nc, nt=nt, pack_panels=pack_panels)


def divisions(count: int, threads: int, per_thread: Sequence[int]) -> list[int]:
    """Into how many parts to divide `count` steps: one, as many as threads can have, and a few multiples of those."""
    many = {64} if per_thread == PER_THREAD else set()
    wanted = {1, min(count, threads), *(threads * i for i in per_thread), *many}
    return sorted(parts for parts in wanted if parts <= count)
