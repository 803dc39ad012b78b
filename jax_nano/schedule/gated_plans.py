"""The choice of a plan of a gated product: the cheapest tasks of the second product's kernel that two products fit in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.gated import Gated
from jax_nano.machine.isa import Machine
from jax_nano.schedule.cost.estimate import KernelCost
from jax_nano.schedule.gated import GatedPlan
from jax_nano.schedule.grouped import GroupedPlan
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.tasks import LOCAL_BYTES, task_plans


def choose_gated(problem: Gated, first: Plan | GroupedPlan, second: Plan | GroupedPlan, machine: Machine) -> GatedPlan:
    """The plan of a gated product.

    Args:
      problem: what is computed.
      first: the plan of the first product on its own.
      second: that of the second one.
      machine: where it runs.

    Raises:
      UnsupportedDot: two kernels take no longer, or what their plans do is done for one product only.
    """
    seconds = first.predicted_seconds + second.predicted_seconds
    for plan in ways_to_divide(second, machine):
        with suppress(UnsupportedDot):
            return with_reason(GatedPlan.of(problem, plan), seconds, machine)
    raise UnsupportedDot("no plan of the second product is one of both")


def ways_to_divide(plan: Plan | GroupedPlan, machine: Machine) -> Iterator[Plan | GroupedPlan]:
    """A plan, and the same kernel in other tasks, the cheapest first."""
    yield plan
    if isinstance(plan, GroupedPlan):
        many = plan.many
        if many and many.mc < many.mt:
            yield plan.replace(many=many.replace(mt=many.mc))
        return
    kernel = plan.replace(rhs="per_task", nc=-(-plan.n.size // plan.nr) * plan.nr) if plan.rhs == "per_round" else plan
    cost = KernelCost(kernel, machine)
    yield from sorted(task_plans(kernel, machine), key=lambda each: cost.seconds(each).total)


def with_reason(plan: GatedPlan, seconds: float, machine: Machine) -> GatedPlan:
    """The plan with its predicted time.

    Raises:
      UnsupportedDot: a task has more scratch than a thread.
    """
    if plan.local_bytes > LOCAL_BYTES:
        raise UnsupportedDot("a task of two products takes more scratch than a thread has")
    why = f"one kernel takes less time than two: {1e6 * seconds:.1f} us expected on {machine.threads} threads"
    return replace(plan, why=why, predicted_seconds=seconds)


def gated_plans(problem: Gated, plans: Iterable[Plan | GroupedPlan]) -> list[GatedPlan]:
    """The plans worth measuring, by those of the second product."""
    found = []
    for plan in plans:
        with suppress(UnsupportedDot):
            found.append(GatedPlan.of(problem, plan))
    return found
