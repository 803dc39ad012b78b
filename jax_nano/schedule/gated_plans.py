"""The choice of a plan of a gated product: that of the second product on its own, where one kernel takes less time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.gated import Gated
from jax_nano.machine.isa import Machine
from jax_nano.schedule.gated import GatedPlan
from jax_nano.schedule.grouped import GroupedPlan
from jax_nano.schedule.plan import Plan


def choose_gated(
    problem: Gated, first: Plan | GroupedPlan, second: Plan | GroupedPlan, machine: Machine
) -> GatedPlan:
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
    return GatedPlan.of(problem, second, predicted_seconds=seconds, why="")


def gated_plans(problem: Gated, plans: Iterable[Plan | GroupedPlan]) -> list[GatedPlan]:
    """The plans worth measuring, by those of the second product."""
    found = []
    for plan in plans:
        with suppress(UnsupportedDot):
            found.append(GatedPlan.of(problem, plan))
    return found
