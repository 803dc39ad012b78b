"""The kernel of gated products: macrokernels of two products that go through a task's block together.

H's block stands in the task's own scratch: C of the first product, and an array of the second one's epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jax.extend.mlir import ir

from jax_nano.codegen.dequantize import QuantizedMatrixRef
from jax_nano.codegen.grouped.kernel import Entry, GroupedKernel, GroupedOperands, RowsOfGroup, columns_of
from jax_nano.codegen.index import Index, add, divmod_, equal, mul, subtract
from jax_nano.codegen.loops import Span, when
from jax_nano.codegen.macrokernel import BlockColumns, Macrokernel, TaskBlock
from jax_nano.codegen.matrix_ref import MatrixRef, scratch
from jax_nano.codegen.operands import Area, Arguments, Offsets, Operands
from jax_nano.codegen.windows.reference import WindowRef
from jax_nano.schedule.gated.plan import GatedPlan, Pair
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.plan import Plan


class Memory(NamedTuple):
    """What one of both products finds: scratch, and its arrays."""

    shared: ir.Value
    local: ir.Value
    arrays: Sequence[ir.Value]


@dataclass(frozen=True)
class GatedOperands:
    """What an entry point of a gated product is given."""

    plan: GatedPlan
    round: Index
    task: Index
    shared: ir.Value
    local: ir.Value
    arrays: Sequence[ir.Value]

    def held(self, pair: Pair) -> ir.Value:
        """The block of H."""
        rows, columns = pair.held_shape
        return scratch(self.local, pair.held_at, rows * columns, pair.first.dot.out)

    def held_matrix(self, pair: Pair, area: Area) -> MatrixRef:
        """H by rows and columns of C, of which a task has those of an area."""
        _, columns = pair.held_shape
        begin = add(mul(area.rows.begin, columns), area.columns.begin)
        return MatrixRef(self.held(pair), subtract(0, begin), (columns, 1), pair.first.dot.out)

    def each(self, pair: Pair) -> tuple[Memory, Memory]:
        """What both products find, by plans of a pair."""
        first, second = self.plan.problem.arrays_of_each(self.arrays, self.held(pair))
        local = scratch(self.local, pair.first_at, max(1, pair.first.local_bytes), "u8")
        shared = self.shared
        if pair.first.shared_bytes:
            shared = scratch(self.shared, pair.shared_at, pair.first.shared_bytes, "u8")
        return Memory(shared, local, first), Memory(self.shared, self.local, second)


@dataclass(frozen=True)
class FirstOperands(Operands):
    """The matrices of the first product, whose result is H."""

    held: MatrixRef

    def out(self, at: Offsets) -> MatrixRef:  # noqa: ARG002
        """See Operands.out."""
        return self.held


@dataclass(frozen=True)
class SecondOperands(Operands):
    """The matrices of the second product, one of whose epilogue's arrays is H."""

    held: MatrixRef
    gate: int

    def epilogue_extras(self, at: Offsets) -> list[MatrixRef]:
        """See Operands.epilogue_extras."""
        extras = super().epilogue_extras(at)
        return [*extras[: self.gate], self.held, *extras[self.gate + 1 :]]


class GatedBlock(TaskBlock):
    """The second product's block of C, behind the first one's of H.

    Where A is packed, both go through its blocks together. Where it is not, one follows the other in the same scratch.
    """

    first: TaskBlock

    def emit(self) -> None:
        """See TaskBlock.emit."""
        if self.plan.lhs == "unpacked":
            self.first.emit()
        super().emit()

    def multiply_columns(self, block: BlockColumns) -> None:
        """See TaskBlock.multiply_columns."""
        if self.plan.lhs != "unpacked":
            self.first.multiply_columns(replace(block, b=self.b_of_first(block.b)))
        super().multiply_columns(block)

    def b_of_first(self, b: MatrixRef | WindowRef) -> MatrixRef:
        """The first product's B at a place of the second one's: both lie alike."""
        assert isinstance(b, MatrixRef)
        of_first = self.first.b
        there = replace(b, base=of_first.base)
        return replace(there, zeros=of_first.zeros) if isinstance(of_first, QuantizedMatrixRef) else there


class GatedProduct(Macrokernel):
    """Writes the phases of two products."""

    def __init__(self, given: GatedOperands):
        """Takes what the entry point is given."""
        (self.pair,) = given.plan.pairs
        super().__init__(self.pair.second)
        self.given, self.first = given, Macrokernel(self.pair.first)

    def arguments(self) -> tuple[Arguments, Arguments]:
        """Of both products."""
        given = self.given
        first, second = (
            Arguments(given.round, given.task, shared, local, lhs, rhs, out, tuple(extras))
            for shared, local, (lhs, rhs, *extras, out) in given.each(self.pair)
        )
        return first, second

    def pack_both_phase(self) -> None:
        """One task: a run of panels of one product's B."""
        number, task = divmod_(self.given.task, self.plan.tasks["pack"])
        for i, (kernel, arguments) in enumerate(zip((self.first, super()), self.arguments(), strict=True)):
            with when(equal(number, i)):
                kernel.pack_phase(replace(arguments, task=task))

    def task_block(self, operands: Operands, area: Area, outer: Index, split: Index) -> TaskBlock:
        """See Macrokernel.task_block."""
        of_first, _ = self.arguments()
        held = self.given.held_matrix(self.pair, area)
        gate = self.given.plan.problem.gate
        second = SecondOperands(self.plan, operands.arguments, held, gate)
        block = GatedBlock(self, second, area, outer, split)
        block.first = TaskBlock(self.first, FirstOperands(self.pair.first, of_first, held), area, outer, split)
        return block


# Of groups.


@dataclass(frozen=True)
class HoldingOperands(GroupedOperands):
    """What a phase of one of both grouped products is given; `gate` is -1 of the first one."""

    held: MatrixRef
    gate: int

    def of_plan(self, plan: Plan) -> Operands:
        """See GroupedOperands.of_plan."""
        if self.gate < 0:
            return FirstOperands(plan, self.arguments(), self.held)
        return SecondOperands(plan, self.arguments(), self.held, self.gate)


class GatedRows(GatedBlock, RowsOfGroup):
    """Rows of a group, of both products."""


class GatedGroups(GroupedKernel):
    """Writes the phases of two grouped products."""

    @property
    def block_of_rows(self) -> type[RowsOfGroup]:
        """See GroupedKernel.block_of_rows."""
        return GatedRows

    def __init__(self, given: GatedOperands):
        """Takes what the entry point is given."""
        first, second = given.plan.first, given.plan.second
        assert isinstance(first, GroupedPlan)
        assert isinstance(second, GroupedPlan)
        super().__init__(second)
        self.given, self.first = given, GroupedKernel(first)

    def operands(self) -> GroupedOperands:
        """Of the second product, whose sizes, and table of blocks, are those of both."""
        _, memory = self.given.each(self.given.plan.pairs[0])
        return GroupedOperands(self.plan, self.given.task, *memory)

    def operands_of_each(self, pair: Pair, n_task: Index) -> tuple[GroupedOperands, GroupedOperands]:
        """Of both products, for a block of rows."""
        given, area = self.given, Area(Span(0, 0, None), columns_of(pair.second, n_task))
        held = given.held_matrix(pair, area)
        gates = ((self.first.plan, -1), (self.plan, given.plan.problem.gate))
        first, second = (
            HoldingOperands(plan, given.task, *memory, held, gate)
            for (plan, gate), memory in zip(gates, given.each(pair), strict=True)
        )
        return first, second

    def rows_of_group(
        self,
        operands: GroupedOperands,  # noqa: ARG002
        plan: Plan,
        entry: Entry,
        n_task: Index,
        element: Index,
    ) -> RowsOfGroup:
        """See GroupedKernel.rows_of_group."""
        pair = self.given.plan.pair(plan)
        first, second = self.operands_of_each(pair, n_task)
        block = super().rows_of_group(second, plan, entry, n_task, element)
        assert isinstance(block, GatedRows)
        block.first = self.first.rows_of_group(first, pair.first, entry, n_task, element)
        return block

    def clear_rows(self, operands: GroupedOperands, entry: Entry, n_task: Index, element: Index) -> None:  # noqa: ARG002
        """See GroupedKernel.clear_rows."""
        first, second = self.operands_of_each(self.given.plan.pairs[0], n_task)
        self.first.clear_rows(first, entry, n_task, element)
        super().clear_rows(second, entry, n_task, element)


def write_phase(given: GatedOperands, phase: str) -> None:
    """Writes a phase of a gated product."""
    if isinstance(given.plan.second, GroupedPlan):
        kernel = GatedGroups(given)
        phases = {"group": kernel.group_phase, "compute": kernel.compute_phase}
        phases[phase](kernel.operands())
        return
    kernel = GatedProduct(given)
    if phase == "pack":
        kernel.pack_both_phase()
    else:
        kernel.compute_phase(kernel.arguments()[1])
