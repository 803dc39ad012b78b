"""Plans of grouped products: plans of products whose rows are known at run time only, and the tasks around them.

A first phase, of one task, writes a table of what there is to do; the tasks that follow are as many as there could be
at most, and those beyond the table's end do nothing. A task has a block of rows of one group and a block of columns.
Where the groups share out the sum, the table only says where groups begin, and tasks are blocks of the groups' results.

    "m"    | entries | batch, group, first row, rows, kind | ...       a line for each block of rows
    "k"    | first row, rows | ...                                     a line for each group

Where rows of C are added up, the first phase has a second task, which sorts them by their targets; C stands in shared
scratch, and a last phase adds up its rows, as row_sums describes.

Groups of one row, of few and of many are computed by plans of their own. Which one it is depends on the group's own
rows, so its bits do not depend on how other groups are filled.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.grouped import Grouped
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.grouped.row_sums import RowSums
from jax_nano.schedule.plan import Plan

ENTRY_FIELDS = 5  # of a block of rows: batch, group, first row, rows, kind
FEW, MANY, NO_GROUP, ONE = range(4)  # kinds
TABLE = "s32"


@dataclass(frozen=True, kw_only=True)
class GroupedPlan:
    """Everything that shapes the code of one grouped product on one target.

    Attributes:
      problem: what is computed.
      few: computes groups of up to `few_rows` rows; None where no group can have so few that it pays.
      many: computes all others; None where no group can have more.
      few_rows: rows of the largest group that `few` computes.
      one: computes groups of a single row; None where `few` or `many` does.
      why: why it was chosen.
      predicted_seconds: by the cost model, on all threads, if rows are shared out evenly.
    """

    problem: Grouped
    few: Plan | None
    many: Plan | None
    few_rows: int
    one: Plan | None = None
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)

    def __post_init__(self):
        if not self.plans:
            raise ValueError("a grouped product needs a plan for groups of few rows or of many")
        if self.few and self.few.mt < self.few_rows:
            raise ValueError(f"groups of {self.few_rows} rows do not fit into one task of {self.few.mt}")
        if self.problem.ragged == "k" and (self.few or self.one):
            raise ValueError("sums over few rows and over many go by one plan")
        if self.one and not self.few:
            raise ValueError("a plan for single rows stands beside one for few")

    def replace(self, **changes: Any) -> GroupedPlan:
        """The plan with some fields changed."""
        return replace(self, **changes)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of groups, that for the most rows first."""
        return tuple(plan for plan in (self.many, self.few, self.one) if plan)

    @property
    def kinds(self) -> tuple[tuple[int, int, Plan], ...]:
        """By how many rows groups have, the most first: the kind, more rows than which it has, and its plan."""
        found = ((MANY, self.few_rows if self.few else 0, self.many), (FEW, 1 if self.one else 0, self.few))
        return tuple((kind, above, plan) for kind, above, plan in (*found, (ONE, 0, self.one)) if plan)

    @property
    def main(self) -> Plan:
        """The plan of the groups that there are if rows are shared out evenly."""
        return next(plan for _, above, plan in self.kinds if self.problem.expected_rows > above)

    @property
    def isa(self) -> str:
        """The instruction set: that of tiles, where any plan has them."""
        return next((plan.isa for plan in self.plans if plan.instruction.tiles), self.plans[0].isa)

    @property
    def instruction(self) -> DotInstruction:
        """What multiplies most."""
        return self.main.instruction

    @property
    def features(self) -> tuple[str, ...]:
        """Features that its instructions need beyond the instruction set's own."""
        return tuple(dict.fromkeys(feature for plan in self.plans for feature in plan.instruction.features))

    @property
    def mr(self) -> int:
        """Rows of the main plan's register block."""
        return self.main.mr

    @property
    def nr(self) -> int:
        """Its columns."""
        return self.main.nr

    @property
    def unroll(self) -> int:
        """How often its loop over k is unrolled."""
        return self.main.unroll

    # Tasks.

    @property
    def rounds(self) -> int:
        """Rounds."""
        return 1

    @property
    def block_rows(self) -> int:
        """Rows of a task at most: a group of more is several tasks."""
        return self.many.mt if self.many else self.few_rows

    @property
    def n_tasks(self) -> int:
        """Tasks along n of a block of rows: where one plan has fewer than the other, the last ones do nothing."""
        return max(plan.n_tasks for plan in self.plans)

    @property
    def entries(self) -> int:
        """Blocks of rows at most: each group may end with a shorter one, and so do the rows of no group."""
        problem = self.problem
        if problem.ragged == "k":
            return problem.batch.size * problem.groups
        return problem.batch.size * (problem.rows // self.block_rows + min(problem.groups, problem.rows) + 1)

    @functools.cached_property
    def tasks(self) -> dict[str, int]:
        """Phases in order, and how many tasks each has."""
        blocks = self.plans[0].m_tasks if self.problem.ragged == "k" else 1
        compute = self.entries * blocks * self.outer_elements * self.n_tasks
        if not self.row_sums:
            return {"group": 1, "compute": compute}
        return {"group": 1 + bool(self.row_sums.lists), "compute": compute, "combine": self.row_sums.tasks}

    @property
    def outer_elements(self) -> int:
        """Elements of the loops around a group's product, each a task of its own."""
        return self.plans[0].outer_elements

    # Scratch.

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return max(plan.local_bytes for plan in self.plans)

    @property
    def table_elements(self) -> int:
        """Numbers in the table."""
        return 2 * self.entries if self.problem.ragged == "k" else 1 + ENTRY_FIELDS * self.entries

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see: the table, and what becomes of C where its rows are added up."""
        return self.row_sums.end if self.row_sums else bytes_of(TABLE, self.table_elements)

    @functools.cached_property
    def row_sums(self) -> RowSums | None:
        """How rows of C are added up, where they are."""
        if not self.problem.scatter:
            return None
        _, rows, columns, _ = self.problem.dot.sizes
        begin = bytes_of(TABLE, self.table_elements)
        return RowSums(self.problem.scatter, rows, columns, self.problem.dot.out, begin)
