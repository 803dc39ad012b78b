"""The choice of a plan of a grouped product: the cheapest plans of products of as many rows as groups may have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.grouped import Grouped
from jax_nano.machine.isa import Isa, Machine
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.cost.estimate import KernelCost
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.tasks import LOCAL_BYTES, piece_columns, resident_columns

FEW_ROWS = 16  # of groups that read B where it lies, as packing it would take longer than the products
FEWEST_ROWS = 4  # of a panel, where groups have no more: wide blocks, which go through memory by long runs of B
MANY_ROWS = (64, 256)  # of a task of the others: enough to pack B for, few enough to share out a large group
SUM_ROWS = (64, 512)  # that a plan of sums over the rows of groups is made for
TASKS_PER_THREAD = 4  # that there should be
RUN_BYTES = 1 << 10  # of a row of B, that a task reads at least: shorter runs come from memory at a lower rate
# Of L2, for a packed block of B; a panel has all of L1. On Zen 5, groups of 32 to 256 rows in bf16 take up to 7 % less
# time than by blocks of an eighth of L2 and 512 steps, those of f32 up to 15 %; the slowest of sixteen shapes took 2 %
# more.
BLOCK_SHARE = 1 / 4
ALTERNATIVES = 3  # of each plan, that are worth measuring
SETUP_SECONDS = 5e-6


def grouped_plans(problem: Grouped, machine: Machine, isa: Isa) -> list[GroupedPlan]:
    """The plans worth measuring, the cost model's choice first.

    Raises:
      UnsupportedDot: the target has no instruction for these types, or none that reads operands as they lie.
    """
    if problem.ragged == "k":
        rows = min(problem.rows, max(SUM_ROWS[0], min(SUM_ROWS[1], 2 * problem.expected_rows)))
        plans = [fitting(for_all_rows(plan, problem), machine) for plan in best_plans(problem, rows, machine, isa)]
        plans = within_scratch(plans)
        return [with_reason(GroupedPlan(problem=problem, few=None, many=plan, few_rows=0), machine) for plan in plans]
    few_rows = min(FEW_ROWS, problem.rows)
    is_sparse = problem.expected_rows <= FEWEST_ROWS
    few = vector_plans(problem, FEWEST_ROWS, machine, isa) if is_sparse and few_rows > FEWEST_ROWS else []
    few = few and within_scratch([for_rows(plan, problem, few_rows, machine) for plan in few])
    few = few or best_plans(problem, few_rows, machine, isa)
    ones = (vector_plans(problem, 1, machine, isa) if is_sparse and few_rows > 1 else []) or [None]
    # Whole tiles of rows: all code of a kernel then has tiles of one shape.
    wanted = max(MANY_ROWS[0], min(MANY_ROWS[1], -(-2 * problem.expected_rows // MANY_ROWS[0]) * MANY_ROWS[0]))
    many = plans_of_many(problem, wanted, machine, isa) if problem.rows > FEW_ROWS else [None]
    first = GroupedPlan(problem=problem, few=few[0], many=many[0], few_rows=few_rows, one=ones[0])
    others = [
        *(first.replace(many=plan) for plan in many[1:]),
        *(first.replace(few=plan) for plan in few[1:]),
        *(first.replace(one=plan) for plan in ones[1:]),
    ]
    return [with_reason(plan, machine) for plan in (first, *others)]


def plans_of_many(problem: Grouped, rows: int, machine: Machine, isa: Isa) -> list[Plan]:
    """The cheapest plans of tasks of so many rows of a group, a multiple of 64, the best one first.

    Groups have any number of rows, so blocks of vectors are weighed on one that panels of 2 to 6, 10 and 12 rows
    divide, not by the rows that these leave of a task.

    Raises:
      UnsupportedDot: there is none.
    """
    if isa.vectors:  # tiles are cut into whole ones
        return best_plans(problem, rows, machine, isa)
    plans = best_plans(problem, rows // 64 * 60, machine, isa)
    return within_scratch([fitting(in_rows(plan, problem, rows), machine) for plan in plans])


def choose_grouped(problem: Grouped, machine: Machine, isa: Isa) -> GroupedPlan:
    """The plan of a grouped product.

    Raises:
      UnsupportedDot: the target has no instruction for these types, or none that reads operands as they lie.
    """
    return grouped_plans(problem, machine, isa)[0]


def best_plans(problem: Grouped, rows: int, machine: Machine, isa: Isa) -> list[Plan]:
    """The cheapest plans of a group of so many rows, of different kernels and divided into tasks, the best one first.

    Raises:
      UnsupportedDot: there is none.
    """
    plans = list(candidates(problem.with_rows(rows), machine, isa, problem.ragged))
    if not plans:
        raise UnsupportedDot("no kernel reads operands of groups as they lie")
    return within_scratch(cheapest(plans, problem, rows, machine))


def cheapest(plans: Sequence[Plan], problem: Grouped, rows: int, machine: Machine) -> list[Plan]:
    """The cheapest of plans of so many rows, divided into tasks whose scratch a thread has, the best one first."""
    ranked = sorted(plans, key=lambda plan: KernelCost(plan, machine).seconds(plan, 1).total)
    found = (plan for each in ranked if (plan := divided(each, problem, rows, machine)).local_bytes <= LOCAL_BYTES)
    return list(itertools.islice(found, ALTERNATIVES))


def within_scratch(plans: Sequence[Plan]) -> list[Plan]:
    """The plans whose scratch a thread has.

    Raises:
      UnsupportedDot: there is none.
    """
    found = [plan for plan in plans if plan.local_bytes <= LOCAL_BYTES]
    if not found:
        raise UnsupportedDot("a block of a group takes more scratch than a thread has")
    return found


def candidates(dot: Dot, machine: Machine, isa: Isa, ragged: str) -> Iterator[Plan]:
    """The plans of a product that do with any number of rows, each as one task."""
    for plan in kernel_plans(dot, machine, isa):
        if plan.swapped or plan.channelwise or plan.overlap_packing or (plan.k_outer and ragged == "k"):
            continue
        if plan.instruction.tiles and (plan.lhs == "unpacked" or ragged == "k"):
            continue  # tiles would read rows beyond the last one
        if ragged == "m" and plan.lhs == "columns":
            continue
        if ragged == "k" and not sums_any_rows(plan):
            continue
        whole = plan.replace(split_k=1, prefetch_lhs=False, outer_per_task=1)
        if ragged == "m" and (runs := in_long_runs(whole, machine)):
            yield runs
            continue
        yield whole
        if pieces := piece_columns(whole, machine, whole.nt):
            yield whole.replace(nb=pieces, nt=-(-whole.nt // pieces) * pieces, mc=whole.mt)


def in_long_runs(plan: Plan, machine: Machine) -> Plan | None:
    """The plan with B packed by wide blocks of few steps, where it packs more than a share of L2 at once.

    With few rows, packing B takes much of the time, and long runs of its rows come from memory at a higher rate. A
    panel stays in L1, and a block in L2 while the next one is prefetched.
    """
    if plan.rhs != "per_task" or plan.n.rhs != 1 or plan.inner_product or plan.instruction.tiles or plan.dot.scaling:
        return None
    element = bytes_of(plan.instruction.rhs, plan.dot.bf16_splits[1])
    room = int(machine.l2.bytes * BLOCK_SHARE)
    if element * plan.kc * plan.nt <= room:
        return None
    parts = -(-plan.k.size * element * plan.nr // machine.l1.bytes)
    kc = min(plan.kc, -(-plan.k.size // parts // plan.k_multiple) * plan.k_multiple)
    columns = room // (element * kc) // plan.nr * plan.nr
    return in_columns(plan.replace(kc=kc, nb=max(plan.nr, columns), nt=max(plan.nr, columns), mc=plan.mt), plan.n.size)


def sums_any_rows(plan: Plan) -> bool:
    """Packing and products end at any step of k."""
    by_steps = plan.lhs == "unpacked" or (plan.lhs == "columns" and plan.m.lhs == 1)
    return by_steps and plan.n.rhs == 1 and not plan.inner_product and plan.instruction.vnni <= 2


def vector_plans(problem: Grouped, rows: int, machine: Machine, isa: Isa) -> list[Plan]:
    """The cheapest plans of a group of so few rows by vectors, if there are any: tiles of a kernel are of one shape."""
    plans = [plan for plan in candidates(problem.with_rows(rows), machine, isa, "m") if not plan.instruction.tiles]
    return cheapest(plans, problem, rows, machine)


def in_rows(plan: Plan, problem: Grouped, rows: int) -> Plan:
    """The plan whose tasks have so many rows at least, in whole blocks of A."""
    step = plan.mc if plan.mc < plan.mt else plan.lhs_panel
    whole = -(-rows // step) * step
    mc = plan.mc if plan.mc < plan.mt else whole
    return plan.replace(dot=problem.with_rows(rows), m=replace(plan.m, size=rows), mt=whole, mc=mc)


def for_rows(plan: Plan, problem: Grouped, rows: int, machine: Machine) -> Plan:
    """The plan of so many rows, of which each of its panels takes as many as it was made for."""
    whole = -(-rows // plan.lhs_panel) * plan.lhs_panel
    return fitting(plan.replace(dot=problem.with_rows(rows), m=replace(plan.m, size=rows), mt=whole, mc=whole), machine)


def for_all_rows(plan: Plan, problem: Grouped) -> Plan:
    """The plan of sums over up to all rows, in blocks of as many as it was made for."""
    kc = plan.kc
    if kc < problem.rows:
        kc = max(plan.k_multiple, kc // plan.k_multiple * plan.k_multiple)
    return plan.replace(k=replace(plan.k, size=problem.rows), kc=min(kc, problem.rows))


def divided(plan: Plan, problem: Grouped, rows: int, machine: Machine) -> Plan:
    """The plan with as many columns in a task as leave tasks for all threads, and no more than scratch holds."""
    is_sparse = problem.ragged == "m" and rows <= FEWEST_ROWS
    expected = -(-problem.rows // max(1 if is_sparse else rows, problem.expected_rows))
    if problem.ragged == "k":
        expected = problem.groups * problem.batch.size
    wanted = max(1 if is_sparse else machine.threads, -(-TASKS_PER_THREAD * machine.threads // expected))
    if plan.streamed and expected >= machine.threads:
        return fitting(plan, machine)  # rows of B from end to end: pieces of up to 1 KB come at half the rate (Zen 5)
    run = max(plan.nr, RUN_BYTES // bytes_of(plan.dot.rhs))
    parts = max(1, min(wanted, plan.n.size // run))
    return fitting(in_columns(plan, -(-plan.n.size // parts)), machine)


def in_columns(plan: Plan, columns: int) -> Plan:
    """The plan whose tasks have about so many columns, of B packed in pieces two at least: the next is prefetched."""
    step = plan.nr
    if plan.nb:
        step = max(plan.nr, min(plan.nb, -(-columns // 2 // plan.nr) * plan.nr))
    return plan.replace(nt=-(-columns // step) * step, nb=step if plan.nb else 0)


def fitting(plan: Plan, machine: Machine) -> Plan:
    """The plan with smaller blocks, if it has too much scratch: groups of few rows keep them all in a task."""
    while plan.local_bytes > LOCAL_BYTES:
        panel = plan.lhs_panel
        rows = max(-(-FEW_ROWS // panel) * panel, 4 * panel, plan.mt // 2 // panel * panel)
        mc = min(plan.mc, rows)
        rows = -(-rows // mc) * mc
        if rows < plan.mt:
            plan = plan.replace(mt=rows, mc=mc)
            continue
        columns = max(plan.nr, min(plan.nt // 2, resident_columns(plan, machine)))
        if columns >= plan.nt:
            break
        plan = in_columns(plan.replace(nb=0), columns)
    return plan


def with_reason(plan: GroupedPlan, machine: Machine) -> GroupedPlan:
    """The plan with its predicted time, if rows are shared out evenly, and why it was chosen."""
    seconds = predicted_seconds(plan, machine)
    rows = plan.problem.expected_rows
    why = f"cheapest for groups of few rows and of many: {1e6 * seconds:.1f} us expected on {machine.threads} threads"
    return plan.replace(why=f"{why} for groups of {rows} rows", predicted_seconds=seconds)


def predicted_seconds(plan: GroupedPlan, machine: Machine) -> float:
    """The time of all groups, on all threads, if rows are shared out evenly."""
    problem = plan.problem
    count = problem.batch.size * min(problem.groups, problem.rows)
    main = plan.main
    blocks = max(1.0, problem.expected_rows / (main.m.size if problem.ragged == "m" else main.k.size))
    cost = KernelCost(main, machine).seconds(main, 1)
    share = problem.expected_rows / (blocks * (main.m.size if problem.ragged == "m" else main.k.size))
    threads = min(machine.threads, count * main.n_tasks)
    compute = count * blocks * max(share, 1 / main.mr) * (cost.compute + cost.packing) / threads
    waiting = plan.row_sums.end if plan.row_sums else 0  # written, and read again
    memory = (problem.bytes + 2 * waiting) / (machine.memory_gb_per_s[threads > 1] * 1e9)
    return max(compute, memory) + SETUP_SECONDS
