"""What a task of a group prefetches: B for as many rows as groups have, which is fewer than a task may have."""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.codegen.index import Index, add, divmod_, less, minimum, select, subtract
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.prefetch_targets import RhsPrefetch
from jax_nano.codegen.windows.reference import WindowRef


@dataclass(frozen=True)
class GroupRhsPrefetch(RhsPrefetch):
    """Prefetches panels of B in the course of so many rows; where a group has fewer, a part of each."""

    expected_rows: int = 1

    @property
    def shared_rows(self) -> int:
        """See RhsPrefetch.shared_rows."""
        return min(self.expected_rows, super().shared_rows)

    def next_panel(self, panel: MatrixRef, b: MatrixRef | WindowRef, k0: Index, j: Index) -> MatrixRef | None:
        """See RhsPrefetch.next_panel. Behind the last columns that are packed come those of the next k block."""
        plan, columns = self.plan, self.area.columns
        if plan.rhs != "per_task" or not plan.prefetches_rhs or plan.k_blocks == 1 or isinstance(b, WindowRef):
            return super().next_panel(panel, b, k0, j)
        following = add(j, plan.block_columns)
        has_more_columns = less(following, columns.end)
        within = divmod_(subtract(j, columns.begin), plan.block_columns)[1]
        next_k = minimum(add(k0, plan.kc), plan.k.size - plan.kc)
        return b.block(
            select(has_more_columns, k0, next_k), select(has_more_columns, following, add(columns.begin, within))
        )
