"""Plans of gated products: those of two products that go through A, and through tasks, together.

A task computes a block of H, then the same block of C. Where it packs A, it does so once for both:

    for each k block:                       as macrokernels do
        pack A's block of all rows
        for each block of columns:
            pack B1's block, multiply       where the plan packs per task; per round, in a phase before
            pack B2's block, multiply       its epilogue reads H

Where A is read in place there is nothing to share: all of the block of H comes first, then that of C. Both products'
own scratch is one unless sums of both stand there at a time, between k blocks; H's block is behind it:

    | A's block | B2 | sums of C | B1 | sums of H | H |        or        | A's block | B1 or B2 | sums of H or C | H |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.gated import Gated, dot_of
from jax_nano.ir.grouped import Grouped
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.loop_nest import LoopNest
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.scratch import whole_lines


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The plans of both products of a block: equal in all but arrays."""

    first: Plan
    second: Plan

    @property
    def first_at(self) -> int:
        """Where the first product's scratch begins, A's block included, which it does not use."""
        one_by_one = self.second.lhs == "unpacked" or self.second.k_blocks == 1
        return 0 if one_by_one else whole_lines(self.second.local_bytes) - self.first.scratch.rhs_at

    @property
    def held_at(self) -> int:
        """Where H's block stands."""
        return whole_lines(max(self.second.local_bytes, self.first_at + self.first.local_bytes))

    @property
    def held_shape(self) -> tuple[int, int]:
        """Rows and columns of H's block."""
        return -(-self.second.mt // self.second.mr) * self.second.mr, self.second.nt  # whole tiles reach further

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        rows, columns = self.held_shape
        return self.held_at + bytes_of(self.first.dot.out, rows * columns)

    @property
    def shared_at(self) -> int:
        """Where the first product's part of what all tasks see begins."""
        return whole_lines(self.second.shared_bytes)


@dataclass(frozen=True, kw_only=True)
class GatedPlan:
    """Everything that shapes the code of one gated product on one target.

    Attributes:
      problem: what is computed.
      first: the plan of the first product.
      second: the plan of the second one, which is alike.
      why: why it was chosen.
      predicted_seconds: by the cost model, on all threads.
    """

    problem: Gated
    first: Plan | GroupedPlan
    second: Plan | GroupedPlan
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, problem: Gated, second: Plan | GroupedPlan, **more: Any) -> GatedPlan:
        """The plan by that of the second product.

        Raises:
          UnsupportedDot: what the plan does is done for one product only.
        """
        return cls(problem=problem, first=alike(second, problem.first), second=second, **more)

    def replace(self, **changes: Any) -> GatedPlan:
        """The plan with some fields changed."""
        return replace(self, **changes)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The plans of both products, of groups with that for the most rows first."""
        first, second = (x.plans if isinstance(x, GroupedPlan) else (x,) for x in (self.first, self.second))
        return tuple(Pair(first=one, second=two) for one, two in zip(first, second, strict=True))

    def pair(self, second: Plan) -> Pair:
        """The pair with this plan of the second product."""
        return next(pair for pair in self.pairs if pair.second is second)

    # What plans of every kind have.

    @property
    def isa(self) -> str:
        """The instruction set."""
        return self.second.isa

    @property
    def instruction(self) -> DotInstruction:
        """What multiplies most."""
        return self.second.instruction

    @property
    def features(self) -> tuple[str, ...]:
        """Features that its instructions need beyond the instruction set's own."""
        return self.second.features if isinstance(self.second, GroupedPlan) else self.instruction.features

    @property
    def mr(self) -> int:
        """Rows of the main register block."""
        return self.second.mr

    @property
    def nr(self) -> int:
        """Its columns."""
        return self.second.nr

    @property
    def unroll(self) -> int:
        """How often its loop over k is unrolled."""
        return self.second.unroll

    @property
    def rounds(self) -> int:
        """Rounds."""
        return self.second.rounds

    @property
    def tasks(self) -> dict[str, int]:
        """Phases in order, and how many tasks each has in a round: B1 is packed where B2 is."""
        return {phase: count * (2 if phase == "pack" else 1) for phase, count in self.second.tasks.items()}

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return max(pair.local_bytes for pair in self.pairs)

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see: the table of groups, or panels of both products of a round."""
        if isinstance(self.second, GroupedPlan):
            return self.second.shared_bytes
        (pair,) = self.pairs
        return pair.shared_at + pair.first.shared_bytes if pair.first.shared_bytes else self.second.shared_bytes


def alike(plan: Plan | GroupedPlan, product: Dot | Grouped) -> Any:
    """The plan of another product that goes through the same loops.

    Raises:
      UnsupportedDot: what the plan does is done for one product only.
    """
    if isinstance(plan, Plan):
        return alike_plan(plan, dot_of(product))
    assert isinstance(product, Grouped)
    plans = {
        name: of and alike_plan(of, product.with_rows(of.m.size))
        for name, of in (("few", plan.few), ("many", plan.many), ("one", plan.one))
    }
    return plan.replace(problem=product, **plans)


def alike_plan(plan: Plan, dot: Dot) -> Plan:
    """The plan of another product that goes through the same loops, with A at hand.

    Raises:
      UnsupportedDot: what the plan does is done for one product only.
    """
    if plan.swapped or plan.split_k > 1 or plan.channelwise:
        raise UnsupportedDot("both products read rows of one A, and sum them whole")
    if plan.lhs != "unpacked" and plan.mc < plan.mt:
        raise UnsupportedDot("a task packs all of its rows for both products")
    nest = LoopNest.of(dot)
    loops = {"m": nest.m, "n": nest.n, "k": nest.k, "outer": nest.outer, "k_outer": nest.k_outer}
    return plan.replace(dot=nest.dot, prefetch_lhs=False, **loops)
