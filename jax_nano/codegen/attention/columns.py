"""The block of columns of a task, of attention or of its gradients: panels, of which the last may be narrower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jax_nano.codegen.index import Index, add, minimum, mul, subtract, unequal
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Span, for_range, panels, when
from jax_nano.schedule.attention.plan import AttentionPlan


@dataclass(frozen=True)
class Columns:
    """Columns [begin, end) of a plan's, with the plan of each panel: the last one may have its own."""

    plan: AttentionPlan
    begin: Index
    end: Index

    @classmethod
    def of_block(cls, plan: AttentionPlan, block: Index) -> Columns:
        """Those of a block by its number."""
        begin = mul(block, plan.query_block)
        return cls(plan, begin, minimum(add(begin, plan.query_block), plan.columns))

    @property
    def whole(self) -> int:
        """How many of all columns are in panels that the plan itself computes."""
        plan = self.plan
        return plan.columns - plan.columns % plan.nr if plan.last_panel else plan.columns

    @property
    def _whole_end(self) -> Index:
        return minimum(self.end, self.whole)

    def panels(self, name: str) -> Iterator[tuple[AttentionPlan, Index]]:
        """Emits a loop over panels, padded ones among them: (the plan of one, its first column in the block).

        A last one with a plan of its own is written once more.
        """
        columns = subtract(self._whole_end, self.begin)
        if self.whole:
            with section(name), for_range(0, columns, self.plan.nr) as panel:
                yield self.plan, panel.i
        if last := self.plan.last_panel:
            with section(f"{name}, the last one"), when(unequal(self._whole_end, self.end)):
                yield last, columns

    def spans(self) -> Iterator[tuple[AttentionPlan, Span]]:
        """Emits what is done for all columns of a plan's panels, plan by plan."""
        if self.whole:
            yield self.plan, Span(self.begin, self._whole_end, self.whole)
        if last := self.plan.last_panel:
            with when(unequal(self._whole_end, self.end)):
                yield last, Span(self.whole, self.plan.columns, self.plan.columns)

    def stored(self, name: str) -> Iterator[tuple[AttentionPlan, Index, int]]:
        """Emits a loop over panels without padding: (the plan of one, its first column, how many it has)."""
        for plan, span in self.spans():
            for column, count in panels(span, plan.nr, name):
                yield plan, column, count
