"""What an entry point of a grouped product is given: its operands, the sizes of groups, and the table in scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.grouped.gathered_rows import read_integer
from jax_nano.codegen.grouped.row_sums import AddedRows
from jax_nano.codegen.index import Index, add, index, less, maximum, mul, select
from jax_nano.codegen.load_store import load_scalar, store
from jax_nano.codegen.matrix_ref import scratch
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.operands import Arguments, Operands
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.types import element_type
from jax_nano.schedule.grouped.plan import TABLE, GroupedPlan
from jax_nano.schedule.plan import Plan


@dataclass(frozen=True)
class GroupedOperands:
    """What an entry point of a grouped product is given."""

    plan: GroupedPlan
    task: Index
    shared: ir.Value
    local: ir.Value
    arrays: Sequence[ir.Value]

    def arguments(self) -> Arguments:
        """As the macrokernel of a group's product wants them."""
        lhs, rhs, _, *extras, out = self.arrays
        if self.plan.problem.gather:
            _, *extras = extras
        if added := self.added_rows:
            extras, out = extras[: len(self.plan.problem.dot.extras)], added.rows
        return Arguments(0, self.task, self.shared, self.local, lhs, rhs, out, tuple(extras))

    def of_plan(self, plan: Plan) -> Operands:
        """The matrices of a group's product."""
        return Operands(plan, self.arguments())

    @property
    def added_rows(self) -> AddedRows | None:
        """C, where its rows are added up."""
        sums, plan = self.plan.row_sums, self.plan.plans[0]
        if not sums:
            return None
        *extras, out = self.arrays[4 if self.plan.problem.gather else 3 :]
        places, *weights = extras[len(plan.dot.extras) :]
        base = weights.pop() if sums.scatter.base else None
        lanes, native_bf16 = plan.instruction.shape[1], rounds_to_bf16(plan.instruction)
        return AddedRows(sums, self.shared, places, tuple(weights), base, out, lanes, native_bf16)

    def size(self, batch: Index, group: Index) -> ir.Value:
        """How many rows a group is said to have; numbers below zero are zero."""
        problem = self.plan.problem
        number = read_integer(self.arrays[2], add(mul(batch, problem.sizes_stride), group), problem.sizes)
        if problem.sizes == "u64":  # from 2 ** 63 on, more than there can be rows
            number = select(less(number, 0), problem.rows, number)
        return index(maximum(number, 0))

    def read(self, at: Index) -> Index:
        """A number of the table."""
        return arith.index_cast(ir.IndexType.get(), load_scalar(self._table, at))

    def write(self, at: Index, *numbers: Index) -> None:
        """Puts numbers behind one another into the table."""
        kind = element_type(TABLE)
        for i, number in enumerate(numbers):
            store(broadcast(arith.index_cast(kind, index(number)), 1), self._table, add(at, i))

    @property
    def _table(self) -> ir.Value:
        return scratch(self.shared, 0, self.plan.table_elements, TABLE)
