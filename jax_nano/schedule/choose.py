"""The choice of a plan: the cheapest kernel on one thread, then the cheapest division into tasks."""

from __future__ import annotations

from dataclasses import replace

from jax_nano.ir.dot import Dot
from jax_nano.machine.isa import Isa, Machine
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.cost import estimate
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.tasks import task_plans, undivided


def choose(dot: Dot, machine: Machine, isa: Isa) -> Plan:
    """The plan for a product: the cheapest kernel on one thread, then the cheapest division into tasks.

    What decides about the order of additions (the instruction, what stands in the lanes, the parts of a sum) does not
    depend on the number of threads, so neither do the bits of the result.

    Raises:
      UnsupportedDot: the target has no instruction for these types.
    """
    kernels = list(kernel_plans(dot, machine, isa))

    def cost(plan: Plan) -> tuple[float, bool]:
        seconds = min(estimate.seconds(p, machine, 1).total for p in undivided(plan, machine))
        return seconds, plan.instruction.lhs_offset != 0  # of two that are as fast, the one that corrects nothing

    kernel = min(kernels, key=cost)
    alike = [plan for plan in kernels if order_of_sums(plan) == order_of_sums(kernel)]
    divided = [plan for kernel in alike for plan in task_plans(kernel, machine)]
    plan = min(divided, key=lambda plan: estimate.seconds(plan, machine).total)
    predicted = estimate.seconds(plan, machine).total
    return replace(plan, why=reason(plan, machine, len(kernels)), predicted_seconds=predicted)


def order_of_sums(plan: Plan) -> tuple:
    """What decides about the bits of the result. Sums of integers are exact in any order."""
    if plan.instruction.acc == "s32":
        return (plan.instruction,)
    chained = (plan.accumulator_chains, plan.unroll) if plan.accumulator_chains > 1 else ()
    return plan.swapped, plan.instruction, plan.inner_product, plan.k, plan.k_outer, plan.kc, plan.split_k, chained


def ranked_plans(dot: Dot, machine: Machine, isa: Isa, count: int) -> list[Plan]:
    """The model's choice and up to `count` - 1 others: of every kernel the cheapest tasks, then others."""
    choice = choose(dot, machine, isa)

    def cost(plan: Plan) -> float:
        return estimate.seconds(plan, machine).total

    divided = [sorted(task_plans(kernel, machine), key=cost) for kernel in kernel_plans(dot, machine, isa)]
    divided.sort(key=lambda plans: cost(plans[0]))
    best = [plans[0] for plans in divided] + [plan for plans in divided for plan in plans[2:8:2]]
    plans = list(dict.fromkeys([choice, *best]))[:count]
    return [replace(plan, predicted_seconds=cost(plan)) for plan in plans]


def reason(plan: Plan, machine: Machine, candidates: int) -> str:
    """What the model says of a plan."""
    cost = estimate.seconds(plan, machine)
    note = f"; {machine.note}" if machine.note else ""
    return (
        f"cheapest of {candidates} kernels: {1e6 * cost.total:.1f} us expected on {machine.threads} threads "
        f"(one thread: compute {1e6 * cost.compute:.1f}, packing {1e6 * cost.packing:.1f}; "
        f"memory {1e6 * cost.memory:.1f})" + note
    )
