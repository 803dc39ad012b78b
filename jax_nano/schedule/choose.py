"""The choice of a plan: the cheapest kernel on one thread, then the cheapest division into tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

from jax_nano.ir.attention import Attention, Problem
from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.ir.pipeline import Pipeline
from jax_nano.machine.isa import Isa, Machine
from jax_nano.schedule.attention.choose import attention_plans, choose_attention
from jax_nano.schedule.attention.plan import AnyPlan, AttentionPlan
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.cost.estimate import Estimate, KernelCost
from jax_nano.schedule.gated.choose import choose_gated, gated_plans
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.grouped.choose import choose_grouped, grouped_plans
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.pipelines.choose import choose_pipeline
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.tasks import FEW_PER_THREAD, task_plans, undivided

# Of kernels that add up in one order, fastest first on one thread: so many are divided in a few ways, and of those so
# many in all. Over 120 random products for each of two processors, the choice is the one among all divisions of all.
GLANCED_AT, WEIGHED = 12, 4


@overload
def choose(problem: Dot, machine: Machine, isa: Isa) -> Plan: ...
@overload
def choose(problem: Attention, machine: Machine, isa: Isa) -> AttentionPlan: ...
@overload
def choose(problem: Grouped, machine: Machine, isa: Isa) -> GroupedPlan: ...
@overload
def choose(problem: Gated, machine: Machine, isa: Isa) -> GatedPlan: ...
@overload
def choose(problem: Problem, machine: Machine, isa: Isa) -> AnyPlan: ...
def choose(problem: Problem, machine: Machine, isa: Isa) -> AnyPlan:
    """The plan for a product, an attention or a grouped product.

    Raises:
      UnsupportedDot: the target has no instruction for these types.
    """
    if isinstance(problem, Attention):
        return choose_attention(problem, machine, isa)
    if isinstance(problem, Pipeline):
        return choose_pipeline(problem, machine, isa)
    if isinstance(problem, Gated):
        return choose_both(problem, machine, isa)
    if isinstance(problem, Grouped):
        return choose_grouped(problem, machine, isa)
    return choose_product(problem, machine, isa)


def choose_both(problem: Gated, machine: Machine, isa: Isa) -> GatedPlan:
    """The plan for a gated product, whose sums have the bits of both products by themselves.

    Raises:
      UnsupportedDot: two kernels take less time, or one would add up in another order.
    """
    first, second = (
        choose_grouped(product, machine, isa) if isinstance(product, Grouped) else choose_product(product, machine, isa)
        for product in (problem.first, problem.second)
    )
    plan = choose_gated(problem, first, second, machine)
    alone, together = ([order_of_sums(x) for x in plans_of(each)] for each in (first, plan.first))
    if alone != together:
        raise UnsupportedDot("the first product's sums would be added up in another order than by themselves")
    return plan


def plans_of(plan: Plan | GroupedPlan) -> tuple[Plan, ...]:
    """A plan, or those of its groups."""
    return plan.plans if isinstance(plan, GroupedPlan) else (plan,)


def choose_product(dot: Dot, machine: Machine, isa: Isa) -> Plan:
    """The plan for a product: the cheapest kernel on one thread, then the cheapest division into tasks.

    What decides about the order of additions (the instruction, what stands in the lanes, the parts of a sum) does not
    depend on the number of threads, so neither do the bits of the result.

    Raises:
      UnsupportedDot: the target has no instruction for these types.
    """
    return cheapest(list(kernel_plans(dot, machine, isa)), machine)


def cheapest(kernels: Sequence[Plan], machine: Machine) -> Plan:
    """The cheapest kernel, and of all that add up in its order, the cheapest tasks."""
    ranked = sorted(kernels, key=lambda kernel: one_thread_cost(kernel, machine))
    order = order_of_sums(ranked[0])
    alike = promising([plan for plan in ranked if order_of_sums(plan) == order], machine)
    divided = [row for kernel in alike for row in priced(kernel, task_plans(kernel, machine), machine)]
    plan, cost = min(divided, key=lambda row: row[1].total)
    return plan.replace(why=reason(cost, machine, len(kernels)), predicted_seconds=cost.total)


def one_thread_cost(kernel: Plan, machine: Machine) -> tuple[float, bool]:
    """By which kernels are ranked: their time on one thread, and of two that are as fast, whether one is corrected."""
    seconds = min(cost.total for _, cost in priced(kernel, undivided(kernel, machine), machine, threads=1))
    return seconds, kernel.instruction.lhs_offset != 0


def promising(ranked: Sequence[Plan], machine: Machine) -> Sequence[Plan]:
    """The kernels worth dividing in every way: all, where they are few; else those that do best in a few ways."""
    if len(ranked) <= WEIGHED:
        return ranked

    def cost(kernel: Plan) -> float:
        return min(cost.total for _, cost in priced(kernel, task_plans(kernel, machine, FEW_PER_THREAD), machine))

    return sorted(ranked[:GLANCED_AT], key=cost)[:WEIGHED]


def priced(
    kernel: Plan, plans: Iterable[Plan], machine: Machine, threads: int | None = None
) -> list[tuple[Plan, Estimate]]:
    """Plans of one kernel, each with its predicted times; on all threads, or so many."""
    cost = KernelCost(kernel, machine)
    return [(plan, cost.seconds(plan, threads)) for plan in plans]


def order_of_sums(plan: Plan) -> tuple:
    """All that decides about the bits of the result. Sums of integers are exact in any order."""
    if plan.instruction.acc == "s32":
        return (plan.instruction,)
    chained = (plan.accumulator_chains, plan.unroll) if plan.accumulator_chains > 1 else ()
    return plan.swapped, plan.instruction, plan.inner_product, plan.k, plan.k_outer, plan.kc, plan.split_k, chained


@overload
def ranked_plans(problem: Dot, machine: Machine, isa: Isa, count: int) -> Sequence[Plan]: ...
@overload
def ranked_plans(problem: Attention, machine: Machine, isa: Isa, count: int) -> Sequence[AttentionPlan]: ...
@overload
def ranked_plans(problem: Grouped, machine: Machine, isa: Isa, count: int) -> Sequence[GroupedPlan]: ...
@overload
def ranked_plans(problem: Gated, machine: Machine, isa: Isa, count: int) -> Sequence[GatedPlan]: ...
@overload
def ranked_plans(problem: Problem, machine: Machine, isa: Isa, count: int) -> Sequence[AnyPlan]: ...
def ranked_plans(problem: Problem, machine: Machine, isa: Isa, count: int) -> Sequence[AnyPlan]:
    """The cost model's choice and up to `count` - 1 others."""
    if isinstance(problem, Attention):
        return attention_plans(problem, machine, isa)[:count]
    if isinstance(problem, Pipeline):
        return [choose_pipeline(problem, machine, isa)]
    if isinstance(problem, Gated):
        if isinstance(problem.second, Grouped):
            plans = gated_plans(problem, grouped_plans(problem.second, machine, isa))
        else:
            plans = gated_plans(problem, ranked_products(problem.second, machine, isa, count))
        return list(dict.fromkeys([choose_both(problem, machine, isa), *plans]))[:count]
    if isinstance(problem, Grouped):
        return grouped_plans(problem, machine, isa)[:count]
    return ranked_products(problem, machine, isa, count)


def ranked_products(dot: Dot, machine: Machine, isa: Isa, count: int) -> list[Plan]:
    """The plans of a product worth measuring: of every kernel the cheapest tasks, then others."""
    kernels = list(kernel_plans(dot, machine, isa))
    choice = cheapest(kernels, machine)
    divided = [
        sorted(priced(kernel, task_plans(kernel, machine), machine), key=lambda row: row[1].total) for kernel in kernels
    ]
    divided.sort(key=lambda rows: rows[0][1].total)
    best = [rows[0] for rows in divided] + [row for rows in divided for row in rows[2:8:2]]
    others = [plan.replace(predicted_seconds=cost.total) for plan, cost in best]
    return list(dict.fromkeys([choice, *others]))[:count]


def reason(cost: Estimate, machine: Machine, candidates: int) -> str:
    """The cost model's words on a plan."""
    note = f"; {machine.note}" if machine.note else ""
    facts = "measured" if machine.measured else "the table's"
    return (
        f"cheapest of {candidates} kernels: {1e6 * cost.total:.1f} us expected on {machine.threads} threads "
        f"(one thread: compute {1e6 * cost.compute:.1f}, packing {1e6 * cost.packing:.1f}; "
        f"memory {1e6 * cost.memory:.1f}), by {facts} facts" + note
    )
