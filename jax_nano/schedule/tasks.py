"""Division: a plan of one task, shared out among threads in every way worth weighing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from jax_nano.ir.dot import extent
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Machine
from jax_nano.schedule.plan import Plan

# A thread's scratch, and what all share, stay within these.
LOCAL_BYTES = 12 << 20
SHARED_BYTES = 16 << 20


def undivided(plan: Plan, machine: Machine) -> Iterator[Plan]:
    """The plan as one task, with B packed whole or piece by piece."""
    yield plan
    room = near(plan, machine)
    if plan.rhs == "per_task" and room < plan.nt and not (plan.overlap_packing or plan.prefetch_lhs):
        yield replace(plan, nb=room, nt=-(-plan.nt // room) * room, mc=plan.mt)


def task_plans(plan: Plan, machine: Machine) -> Iterator[Plan]:
    """The plan divided into tasks in every way worth weighing, within a thread's scratch."""
    fitting = [divided for divided in divisions_of(plan, machine) if divided.local_bytes <= LOCAL_BYTES]
    yield from fitting or [smallest(plan, machine)]


def smallest(plan: Plan, machine: Machine) -> Plan:
    """The plan in tasks whose scratch is within bounds whatever the product: a third each for A, B and sums."""
    nt = min(near(plan, machine), plan.nt)
    mc, mt = plan.mc, plan.mt
    if plan.lhs != "unpacked":
        mc = min(mc, whole_rows(bytes_of(plan.instruction.lhs, plan.lhs_stride), plan.lhs_panel))
        mt = -(-plan.m.size // mc) * mc
    if plan.has_partial:
        mt = min(mt, whole_rows(bytes_of(plan.instruction.acc, nt), plan.mr if plan.lhs == "unpacked" else mc))
    mc = mc if plan.rows_in_blocks else mt
    return replace(plan, mt=mt, mc=mc, nt=nt, outer_per_task=1, overlap_packing=False)


def whole_rows(row_bytes: int, step: int) -> int:
    """How many rows a third of a thread's scratch holds, in whole steps."""
    return max(1, LOCAL_BYTES // 3 // row_bytes // step) * step


def divisions_of(plan: Plan, machine: Machine) -> Iterator[Plan]:
    """The plan divided into tasks, whatever scratch they take."""
    yield plan
    outer = extent(plan.outer)
    cols = -(-plan.n.size // plan.nr)
    rows = -(-plan.m.size // plan.mr)
    room = near(plan, machine)
    column_parts = sorted({*divisions(cols, machine.threads), -(-cols * plan.nr // room)})
    for n_parts in [1] if plan.streamed and plan.split_k >= machine.threads else column_parts:
        nt = -(-cols // n_parts) * plan.nr
        for m_parts in divisions(rows, machine.threads):
            mt = -(-rows // m_parts) * plan.mr
            if m_parts > 1 and n_parts > 1 and m_parts * n_parts > 16 * machine.threads:
                continue
            mc = min(plan.mc, -(-mt // plan.lhs_panel) * plan.lhs_panel) if plan.rows_in_blocks else mt
            mt = -(-mt // mc) * mc
            in_pieces = plan.rhs == "per_task" and room < nt and not (plan.overlap_packing or plan.prefetch_lhs)
            for nb in {0, room if in_pieces else 0}:
                # With several blocks of columns, or of panels, all of A is packed before the first one.
                block = mt if nb or plan.overlap_packing else mc
                candidate = replace(plan, nt=-(-nt // nb) * nb if nb else nt, nb=nb, mt=mt, mc=block)
                for outer_parts in divisions(outer, machine.threads) if n_parts * m_parts == 1 else (outer,):
                    yield replace(candidate, outer_per_task=-(-outer // outer_parts))
            alone = not plan.outer and not plan.k_outer and plan.split_k == 1
            if plan.rhs == "per_task" and not plan.inner_product and alone and not plan.overlap_packing:
                yield from shared(replace(plan, nt=nt, mt=mt, mc=mc), machine)


def near(plan: Plan, machine: Machine) -> int:
    """How many columns of B, packed, leave room in the second cache for A, for C and for what is asked for ahead."""
    room = machine.l2.bytes // 8
    panel = bytes_of(plan.instruction.rhs, plan.nr * plan.panel_rows(plan.kc))
    return max(1, room // panel) * plan.nr


def shared(plan: Plan, machine: Machine) -> Iterator[Plan]:
    """The plan with B packed once, by all threads, in as many rounds as its scratch has room for."""
    panel = bytes_of(plan.instruction.rhs, plan.nr * plan.panel_rows(plan.k.size))
    most = SHARED_BYTES // panel * plan.nr
    if most == 0 or machine.threads == 1:
        return
    rounds = -(-plan.nc // most)
    nc = -(-plan.nc // plan.nr // rounds) * plan.nr
    nt = min(plan.nt, nc)
    pack_panels = max(1, nc // plan.nr // (4 * machine.threads))
    yield replace(plan, rhs="per_round", nc=nc, nt=nt, pack_panels=pack_panels)


def divisions(count: int, threads: int) -> list[int]:
    """Into how many parts to divide `count` steps: one, as many as threads can have, and a few multiples of those."""
    wanted = {1, min(count, threads), *(threads * i for i in (1, 2, 3, 4, 6, 8, 16)), *((64,) if count > 64 else ())}
    return sorted(parts for parts in wanted if parts <= count)
