"""What a task prefetches while its microkernels run: the next panel of B, the next block of A.

            plan                                  the next one is
    B       packed by the task                    the columns that are packed next
            packed weights                        a panel's further rows, which lie behind one another
            unpacked                              the panel to the right, then the first one of the next k block
            unpacked, streamed                    the next k block of all of the task's columns, as it lies in memory
    A       by blocks of rows                     the rows below, then the first ones of the next k block
            by k blocks                           the next k block of all of the task's rows

After the last k block comes A of the next element of the outer axes; of B, nothing that is not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jax_nano.codegen.index import Index, add, divmod_, less, minimum, mul, select, subtract
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import StepHook
from jax_nano.codegen.operands import Area, offsets
from jax_nano.codegen.prefetch import PanelPrefetch
from jax_nano.codegen.windows.reference import WindowRef
from jax_nano.ir.dot import extent
from jax_nano.schedule.plan import Plan


@dataclass(frozen=True)
class RhsPrefetch:
    """Prefetches panels of B, where the plan says so."""

    plan: Plan
    area: Area

    def next_panel(self, panel: MatrixRef, b: MatrixRef | WindowRef, k0: Index, j: Index) -> MatrixRef | None:
        """The piece of B that is wanted after its panel at (k0, j)."""
        plan, columns = self.plan, self.area.columns
        if not plan.prefetches_rhs or isinstance(b, WindowRef):
            return None
        if plan.rhs == "panels":
            return panel.block(plan.prefetch_distance)
        if plan.rhs == "per_task":
            return b.block(k0, add(j, 2 * plan.nr if plan.overlap_packing else plan.block_columns))
        has_more_columns = False if plan.streamed else less(add(j, plan.nr), columns.end)
        next_k = minimum(add(k0, plan.kc), plan.k.size - plan.kc)
        return b.block(select(has_more_columns, k0, next_k), select(has_more_columns, add(j, plan.nr), columns.begin))

    @property
    def shared_rows(self) -> int:
        """The rows of C whose blocks share a panel's lines out."""
        return min(self.plan.mt, self.plan.m.size)

    def hooks(self, panel: MatrixRef | None, i: Index, j: Index, cols: int) -> list[StepHook]:
        """Prefetches the share of a panel that belongs to the block of C at (i, j)."""
        plan, rows, columns = self.plan, self.area.rows, self.area.columns
        if panel is None:
            return []
        blocks = -(-self.shared_rows // plan.mr)
        block = divmod_(subtract(i, rows.begin), plan.mr)[0]
        if plan.streamed:
            block = add(mul(divmod_(subtract(j, columns.begin), plan.nr)[0], blocks), block)
            cols = min(plan.nt, plan.n.size)
            blocks *= -(-cols // plan.nr)
        return [PanelPrefetch(panel, block, blocks, plan.kc, cols, in_order=plan.streamed).emit]


@dataclass(frozen=True)
class LhsPrefetch:
    """Prefetches blocks of A, where the plan says so."""

    plan: Plan
    area: Area
    to_next_element: Index = 0  # elements of A from this element of the outer axes to the task's next one

    def next_block(self, a: MatrixRef | WindowRef, i: Index, k0: Index) -> MatrixRef | None:
        """The block of A that is wanted after the one at (i, k0), over k and m."""
        plan, rows = self.plan, self.area.rows
        if not plan.prefetch_lhs or isinstance(a, WindowRef):
            return None
        has_more_steps = less(add(k0, plan.kc), plan.k.size)
        next_steps = a.block(rows.begin, minimum(add(k0, plan.kc), plan.k.size - plan.kc))
        next_element = a.advance(self.to_next_element).block(rows.begin, 0)
        first_rows = replace(a, at=select(has_more_steps, next_steps.at, next_element.at))
        if plan.lhs_by_steps:
            return first_rows.transposed
        has_more_rows = less(add(i, plan.mc), rows.end)
        next_rows = a.block(minimum(add(i, plan.mc), max(0, plan.m.size - plan.mc)), k0)
        return replace(a, at=select(has_more_rows, next_rows.at, first_rows.at)).transposed

    def hooks(self, block: MatrixRef | None, begin: Index, i: Index, j: Index) -> list[StepHook]:
        """Prefetches the share of a block that belongs to the block of C at (i, j), in the block of rows at `begin`."""
        plan, area = self.plan, self.area
        if block is None:
            return []
        rows, columns = min(plan.mc, plan.m.size), -(-min(plan.nt, plan.n.size) // plan.nr)
        panels = -(-rows // plan.mr)
        column = divmod_(subtract(j, area.columns.begin), plan.nr)[0]
        number = add(mul(column, panels), divmod_(subtract(i, begin), plan.mr)[0])
        blocks = panels * columns
        if plan.lhs_by_steps:
            number = add(mul(divmod_(subtract(begin, area.rows.begin), plan.mc)[0], blocks), number)
            rows = min(plan.mt, plan.m.size)
            blocks *= -(-rows // plan.mc)
        return [PanelPrefetch(block, number, blocks, plan.kc, rows).emit]


def to_next_element(plan: Plan, outer: Index) -> Index:
    """Elements of A from one element of the outer axes to the task's next one; 0 where it has no other."""
    if not plan.prefetch_lhs or plan.outer_per_task == 1:
        return 0
    other = minimum(add(outer, 1), extent(plan.outer) - 1)
    here, there = (offsets(plan, plan.outer, number)[0] for number in (outer, other))
    return subtract(there, here)
