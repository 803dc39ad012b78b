"""The choice of a plan of a gated product: the cheapest tasks of the second product's kernel that both fit in.

One kernel then takes no longer than two. Measured on 2 cores of Zen 5 in 34 cases, dense ones of 1 to 2048 rows, groups
of 16 and 64 rows, and single rows of 128 experts, two kernels took 1.00 to 1.20 times as long, 1.03 in the mean: A is
at hand, H does not go through memory, and threads are woken once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.gated import Gated
from jax_nano.machine.isa import Machine
from jax_nano.schedule.cost.estimate import KernelCost
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.grouped.plan import GroupedPlan
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
    alone, saved = first.predicted_seconds + second.predicted_seconds, saved_seconds(problem, second, machine)
    for plan in ways_to_divide(second, machine):
        longer = 2 * (plan.predicted_seconds - second.predicted_seconds)  # than by the tasks of kernels of their own
        if longer > saved:
            break
        with suppress(UnsupportedDot):
            return with_reason(GatedPlan.of(problem, plan), alone + longer - saved, machine)
    raise UnsupportedDot("no tasks that both products fit in take less time than those of two kernels")


def saved_seconds(problem: Gated, second: Plan | GroupedPlan, machine: Machine) -> float:
    """What one kernel saves of the time of two: waking threads and, where no cache holds H, its way to memory and back.

    Of dense f32 products of 2048 x 1024 x 4096 that is 1.4 of 73 ms, where 3.5 were measured (2 cores of Zen 5).
    """
    b, m, n, _ = problem.dot.sizes
    held = bytes_of(problem.gate_type, b * m * n)
    through_memory = 2 * held / (machine.memory_gb_per_s[machine.threads > 1] * 1e9) if held >= machine.llc.bytes else 0
    return 1e-6 * machine.fitted.wake_us * (second.tasks["compute"] > 1) + through_memory


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
    divided = (each.replace(predicted_seconds=cost.seconds(each).total) for each in task_plans(kernel, machine))
    yield from sorted(divided, key=lambda each: each.predicted_seconds)


def with_reason(plan: GatedPlan, seconds: float, machine: Machine) -> GatedPlan:
    """The plan with its predicted time.

    Raises:
      UnsupportedDot: a task has more scratch than a thread.
    """
    if plan.local_bytes > LOCAL_BYTES:
        raise UnsupportedDot("a task of both products takes more scratch than a thread has")
    why = f"one kernel for both: {1e6 * seconds:.1f} us expected on {machine.threads} threads, less than two take"
    return replace(plan, why=why, predicted_seconds=seconds)


def gated_plans(problem: Gated, plans: Iterable[Plan | GroupedPlan]) -> list[GatedPlan]:
    """The plans worth measuring, by those of the second product."""
    found = []
    for plan in plans:
        with suppress(UnsupportedDot):
            found.append(GatedPlan.of(problem, plan))
    return found
