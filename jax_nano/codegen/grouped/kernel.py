"""The kernel of grouped products: the products' own macrokernel on one group's rows, wherever those are.

    group:    one task, a walk through the groups' sizes, which writes the table that schedule.grouped describes
    compute:  a task, one block of rows of a group and of columns of C, with the operands from that group's place on

Where rows are added up, C is in scratch, and row_sums has a task more of the first phase and one phase more.

Rows of groups of many rows come first in the table, so that short tasks even out what threads have at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from jax.extend.mlir import ir

from jax_nano.codegen.grouped.gathered_rows import GatheredRows, start_of_row
from jax_nano.codegen.grouped.operands import GroupedOperands
from jax_nano.codegen.grouped.prefetch import GroupRhsPrefetch
from jax_nano.codegen.index import (
    Condition,
    Index,
    add,
    both,
    divmod_,
    equal,
    index,
    less,
    maximum,
    minimum,
    mul,
    negation,
    select,
    subtract,
)
from jax_nano.codegen.load_store import store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, Span, for_range, panels, panels_of_any_number, when
from jax_nano.codegen.macrokernel import CacheBlock, Macrokernel, TaskBlock
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import KBlock, StepHook
from jax_nano.codegen.nanokernel import Block, Place
from jax_nano.codegen.operands import Area, Offsets, Operands, offsets
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.codegen.windows.reference import WindowRef
from jax_nano.ir.axes import Axis
from jax_nano.schedule.grouped.plan import ENTRY_FIELDS, NO_GROUP, GroupedPlan
from jax_nano.schedule.plan import Plan


class Kind(NamedTuple):
    """Groups that one plan computes: of more than `above` and of up to `most` rows; is it the last to be written?"""

    number: int
    above: int
    most: int
    last: bool


class Entry(NamedTuple):
    """Rows of a group: where they are, how many, and by which plan they are computed."""

    batch: Index
    group: Index
    first: Index
    rows: Index
    kind: Index


class GroupedKernel:
    """Writes the phases of one plan, each from what its entry point is given."""

    @property
    def block_of_rows(self) -> type[RowsOfGroup]:
        """What computes a block of rows of a group."""
        return RowsOfGroup

    def __init__(self, plan: GroupedPlan):
        """Takes what the plan says."""
        self.plan = plan

    def group_phase(self, operands: GroupedOperands) -> None:
        """The first task: the table of blocks of rows, or of where groups begin. The second one sorts rows."""
        added = operands.added_rows if self.plan.tasks["group"] > 1 else None
        with when(equal(operands.task, 0) if added else True):
            if self.plan.problem.ragged == "k":
                self.write_starts(operands)
            else:
                self.write_blocks(operands)
        if added:
            with when(equal(operands.task, 1)), section("sort"):
                added.sort()

    def combine_phase(self, operands: GroupedOperands) -> None:
        """One task: a block of rows of the result, each the sum of rows of C."""
        assert operands.added_rows
        operands.added_rows.combine(operands.task)

    def write_starts(self, operands: GroupedOperands) -> None:
        """Writes where each group begins, and how many rows it has."""
        problem = self.plan.problem
        with (
            section("batch"),
            for_range(0, problem.batch.size) as batch,
            for_range(0, problem.groups, carry=[index(0)]) as group,
        ):
            (first,) = group.carry
            rows = minimum(operands.size(batch.i, group.i), subtract(problem.rows, first))
            operands.write(mul(add(mul(batch.i, problem.groups), group.i), 2), first, rows)
            group.next = [index(add(first, rows))]

    def write_blocks(self, operands: GroupedOperands) -> None:
        """Writes the blocks of rows of groups of many rows, then those of few, and the rows of no group."""
        count: ir.Value = index(0)
        kinds, most = self.plan.kinds, self.plan.problem.rows
        for number, (kind, above, _) in enumerate(kinds):
            of_kind = Kind(kind, above, most, last=number + 1 == len(kinds))
            most = above
            with section("batch"), for_range(0, self.plan.problem.batch.size, carry=[count]) as batch:
                batch.next = [self.write_blocks_of(operands, batch.i, of_kind, batch.carry[0])]
            (count,) = batch.results
        operands.write(0, count)

    def write_blocks_of(self, operands: GroupedOperands, batch: Index, kind: Kind, count: ir.Value) -> ir.Value:
        """Writes blocks of groups of one kind, and with the last kind the rows of no group; gives their number."""
        problem = self.plan.problem
        with section("groups"), for_range(0, problem.groups, carry=[index(0), count]) as group:
            first, number = group.carry
            rows = minimum(operands.size(batch, group.i), subtract(problem.rows, first))
            wanted = select(both(less(kind.above, rows), negation(less(kind.most, rows))), rows, 0)
            number = self.write_rows(operands, Entry(batch, group.i, first, wanted, kind.number), number)
            group.next = [index(add(first, rows)), number]
        first, number = group.results
        if kind.last:
            rest = Entry(batch, problem.groups, first, subtract(problem.rows, first), NO_GROUP)
            number = self.write_rows(operands, rest, number)
        return number

    def write_rows(self, operands: GroupedOperands, entry: Entry, count: ir.Value) -> ir.Value:
        """Writes an entry in blocks; gives the number of entries then."""
        step = self.plan.block_rows
        with for_range(0, entry.rows, step, carry=[count]) as block:
            (number,) = block.carry
            rows = minimum(step, subtract(entry.rows, block.i))
            values = (entry.batch, entry.group, add(entry.first, block.i), rows, entry.kind)
            operands.write(add(mul(number, ENTRY_FIELDS), 1), *values)
            block.next = [index(add(number, 1))]
        return block.results[0]

    def compute_phase(self, operands: GroupedOperands) -> None:
        """One task: a block of rows of a group, or a block of a group's result, and a block of columns."""
        plan = self.plan
        number, n_task = divmod_(operands.task, plan.n_tasks)
        number, element = divmod_(number, plan.outer_elements)
        if plan.problem.ragged == "k":
            self.sum_rows(operands, number, n_task, element)
            return
        with when(less(number, operands.read(0))):
            at = add(mul(number, ENTRY_FIELDS), 1)
            entry = Entry(*(operands.read(add(at, i)) for i in range(ENTRY_FIELDS)))
            for kind, _, group_plan in plan.kinds:
                with when(both(equal(entry.kind, kind), n_task_is_there(group_plan, n_task))):
                    self.rows_of_group(operands, group_plan, entry, n_task, element).emit()
            with when(both(equal(entry.kind, NO_GROUP), n_task_is_there(plan.plans[0], n_task))):
                self.clear_rows(operands, entry, n_task, element)

    def rows_of_group(
        self, operands: GroupedOperands, plan: Plan, entry: Entry, n_task: Index, element: Index
    ) -> RowsOfGroup:
        """What computes a block of rows of a group, by one of the plans."""
        problem, gather, is_single = self.plan.problem, self.plan.problem.gather, plan is self.plan.one
        of_a, *of_others = place(problem.row, entry.first)
        gathered = None
        if gather:  # a single row is found here, those of blocks by whoever reads them
            places = operands.arrays[3]
            of_a = start_of_row(places, entry.first, gather) if is_single else 0
            gathered = partial(GatheredRows.of, places=places, first=entry.first, gather=gather)
        outer = offsets(plan, plan.outer, element)
        at = place(problem.batch, entry.batch), place(problem.group, entry.group), (of_a, *of_others)
        area = Area(Span(0, 1, 1) if is_single else Span(0, entry.rows, None), columns_of(plan, n_task))
        block = self.block_of_rows(Macrokernel(plan), operands.of_plan(plan), area, together(outer, *at))
        block.gathered = None if is_single else gathered
        block.rhs_prefetch = GroupRhsPrefetch(plan, area, expected_rows=problem.expected_rows)
        return block

    def clear_rows(self, operands: GroupedOperands, entry: Entry, n_task: Index, element: Index) -> None:
        """Zeros in rows of no group, or what the epilogue makes of them with the arrays of the last group."""
        problem, plan = self.plan.problem, self.plan.plans[0]
        outer, last = offsets(plan, plan.outer, element), place(problem.group, problem.groups - 1)
        at = together(outer, place(problem.batch, entry.batch), last, place(problem.row, entry.first))
        of_plan, kernel = operands.of_plan(plan), Macrokernel(plan)
        out, extras, lanes = of_plan.out(at), of_plan.epilogue_extras(at), plan.instruction.shape[1]
        with section("rows of no group"), for_range(0, entry.rows) as row:
            for j, count in panels(columns_of(plan, n_task), lanes, "registers of columns"):
                epilogue = kernel.epilogue([extra.block(row.i, j) for extra in extras])
                value = zeros(lanes, element_type(plan.instruction.acc if epilogue else out.dtype))
                if epilogue:
                    (value,) = epilogue([value], [Place(0, 0, count)])
                store(value, out.base, out.offset(row.i, j), count)

    def sum_rows(self, operands: GroupedOperands, number: Index, n_task: Index, element: Index) -> None:
        """A block of a group's result: its sum over the group's rows."""
        problem, plan = self.plan.problem, self.plan.plans[0]
        number, m_task = divmod_(number, plan.m_tasks)
        batch, group = divmod_(number, problem.groups)
        first, rows = (operands.read(add(mul(number, 2), i)) for i in range(2))
        outer = offsets(plan, plan.outer, element)
        at = place(problem.batch, batch), place(problem.group, group), place(problem.row, first)
        area = Macrokernel(plan).area(0, m_task, n_task)
        SumOverGroup(Macrokernel(plan), operands.of_plan(plan), area, together(outer, *at), rows).emit()


class PlacedBlock(TaskBlock):
    """A task's block of C whose operands begin at a place that is known at run time."""

    def __init__(self, kernel: Macrokernel, operands: Operands, area: Area, at: Offsets):
        """Takes where each array begins."""
        self.at = at
        super().__init__(kernel, operands, area, 0, 0)

    def place(self, outer: Index) -> Offsets:  # noqa: ARG002
        """See TaskBlock.place."""
        return self.at


class RowsOfGroup(PlacedBlock):
    """Rows of a group: of any number."""

    gathered: Callable[[MatrixRef], GatheredRows] | None = None  # makes of A its rows, if these are found by places

    def k_blocks(self) -> Iterator[tuple[KBlock, MatrixRef | WindowRef, MatrixRef | WindowRef]]:
        """See TaskBlock.k_blocks."""
        for k, a, b in super().k_blocks():
            assert isinstance(a, MatrixRef)
            yield k, self.gathered(a) if self.gathered else a, b

    def a_panel(self, block: CacheBlock, i: Index, count: int) -> MatrixRef:
        """See TaskBlock.a_panel."""
        panel = super().a_panel(block, i, count)
        return panel.scattered(count) if isinstance(panel, GatheredRows) else panel

    def row_panels(self, block: CacheBlock, j: Index) -> Iterator[tuple[Index, int, list[StepHook]]]:
        """See TaskBlock.row_panels. Tiles that are not whole are computed whole, and their first rows are stored."""
        instruction = self.plan.instruction
        if not instruction.tiles:
            yield from super().row_panels(block, j)
            return
        for i, count in panels_of_any_number(block.rows, self.plan.mr, "panels of rows (MR)", instruction.shape[0]):
            yield i, count, []

    def block(self, rows: Span, i: Index, count: int, cols: int) -> Block:
        """See TaskBlock.block."""
        block = super().block(rows, i, count, cols)
        instruction = self.plan.instruction
        may_be_short = instruction.tiles and count == instruction.shape[0]
        return replace(block, live_rows=minimum(count, subtract(rows.end, i))) if may_be_short else block


class SumOverGroup(PlacedBlock):
    """A block of a group's result, whose sum has any number of steps."""

    def __init__(self, kernel: Macrokernel, operands: Operands, area: Area, at: Offsets, steps: Index):
        """Takes where each array begins, and how many steps there are."""
        self.steps = steps
        super().__init__(kernel, operands, area, at)

    def k_blocks(self) -> Iterator[tuple[KBlock, MatrixRef, MatrixRef]]:
        """See TaskBlock.k_blocks. Without any step there is one block, of no step, whose sums are zeros."""
        plan, operands = self.plan, self.operands
        any_rest = 2 * plan.step - 1  # no multiple of anything: loops over steps and their rests are all written
        a, b = operands.lhs(self.at), operands.rhs(self.at)
        assert isinstance(a, MatrixRef)
        assert isinstance(b, MatrixRef)
        if plan.k_blocks == 1:
            yield KBlock(0, Depth(self.steps, any_rest), True, True), a, b  # noqa: FBT003
            return
        with section("k blocks (KC)"), for_range(0, maximum(self.steps, 1), plan.kc) as block:
            left = subtract(self.steps, block.i)
            depth = Depth(minimum(plan.kc, left), any_rest)
            yield KBlock(block.i, depth, equal(block.i, 0), negation(less(plan.kc, left))), a, b


def columns_of(plan: Plan, n_task: Index) -> Span:
    """The columns of a task."""
    begin = mul(n_task, plan.nt)
    return Span(begin, minimum(add(begin, plan.nt), plan.n.size), plan.n.size)


def n_task_is_there(plan: Plan, n_task: Index) -> Condition:
    """Whether a plan has so many tasks along n."""
    return less(n_task, plan.n_tasks)


def place(axis: Axis, number: Index) -> Offsets:
    """How far an element of an axis is from the first one, in each array."""
    return tuple(mul(number, stride) for stride in axis.strides())


def together(*places: Offsets) -> Offsets:
    """The sum of distances, array by array."""
    return tuple(add(*distances) for distances in zip(*places, strict=True))
