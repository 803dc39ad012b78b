"""Who packs which panels, and where microkernels find them.

              unpacked         "per_task"                          "per_round"                   "panels"
    B         where it lies    local scratch, packed by the task   shared, in a phase before     as pack() laid it out

              unpacked         "rows", "columns"
    A         where it lies    local scratch, packed by the task

Where A is a window that is not packed, zeros in local scratch stand for runs beyond its bounds.

A packed panel of B, `width` columns (NR), of so many steps (rows of the panel):

    | steps of split 0 | steps of split 1 | ... | compensation |      the last one only where A is moved by an offset
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from jax.extend.mlir import ir

from jax_nano.codegen.index import Index, add, divmod_, minimum, mul, subtract
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, Span
from jax_nano.codegen.matrix_ref import MatrixRef, scratch
from jax_nano.codegen.microkernel import KBlock, StepHook
from jax_nano.codegen.nanokernel import Nanokernel
from jax_nano.codegen.operands import Arguments, bf16_split
from jax_nano.codegen.pack import Destination, Packer, pack_compensation
from jax_nano.codegen.windows.gather import GatherPacker
from jax_nano.codegen.windows.reference import WindowRef
from jax_nano.codegen.windows.rows import WindowRows, zeros_of_runs
from jax_nano.schedule.plan import Plan


@dataclass(frozen=True)
class RhsPanel:
    """A panel of B, and the row that accumulators begin with where A is moved by an offset."""

    matrix: MatrixRef
    compensation: MatrixRef


RhsPanels = Callable[[Index], RhsPanel]  # by a panel's first column
LhsPanels = Callable[[Index], MatrixRef]  # by a panel's first row


@dataclass(frozen=True)
class RhsPacking:
    """Panels of B."""

    plan: Plan
    nano: Nanokernel
    arguments: Arguments

    def panels(self, b: MatrixRef | WindowRef, columns: Span, k: KBlock) -> RhsPanels:
        """Packs a block of B where the plan has the task do so; gives its panels, wherever they are."""
        if self.plan.rhs == "per_round":
            return self._shared_panels(k.begin)
        if isinstance(b, WindowRef):
            with section("pack B"):
                return self._pack_panels(b.from_step(k.begin), columns, k.depth)
        match self.plan.rhs:
            case "unpacked":
                return lambda j: RhsPanel(b.block(k.begin, j), b)
            case "panels":
                return lambda j: RhsPanel(self._stored_panel(b, j, k.begin), b)
            case _:
                with section("pack B"):
                    pack = self._pack_columns if self.plan.inner_product else self._pack_panels
                    return pack(b.block(k.begin, 0), columns, k.depth)

    def pack_shared(self, b: MatrixRef | WindowRef, columns: Span) -> None:
        """Packs columns of B, all steps of k, for the tasks of this round."""
        with section("pack B"):
            self._pack(b, columns, Depth(self.plan.k.size, self.plan.k.size), self._shared_panels(0))

    def overlap_hooks(self, b: MatrixRef, panels: RhsPanels, j: Index, end: Index) -> list[StepHook]:
        """Packs the panel at column j in steps, one with each of a microkernel's; zeros where j is beyond the end."""
        source, cols = b.block(0, minimum(j, subtract(end, 1))), subtract(end, j)

        def copy(k: Index, steps: int, number: int) -> None:
            split = replace(source, bf16_split=bf16_split(self.plan, number))
            panel = panels(j).matrix.block(number * self.plan.scratch.rhs_split_stride, 0)
            with section("pack B beside the products"):
                self._packer.copy_steps(split, panel, k, steps, cols)

        return [functools.partial(copy, number=number) for number in range(self.plan.dot.bf16_splits[1])]

    @property
    def _packer(self) -> Packer:
        return Packer(self.nano.rhs, self.plan.nr)

    def _pack(self, b: MatrixRef | WindowRef, columns: Span, depth: Depth, panels: RhsPanels) -> None:
        """Packs columns of B, split by split, and the compensation of their panels."""
        plan = self.plan
        for number in range(plan.dot.bf16_splits[1]):
            first = number * plan.scratch.rhs_split_stride
            to = Destination(columns, plan.nr, lambda j, first=first: panels(j).matrix.block(first, 0))
            split = replace(b, bf16_split=bf16_split(plan, number))
            if isinstance(split, WindowRef):
                GatherPacker(self._packer, split).pack_panels(to, depth)
            else:
                self._packer.pack_panels(to, split, depth)
        if plan.instruction.lhs_offset:
            for j, _, panel in Destination(columns, plan.nr, lambda j: panels(j).matrix):
                with section("compensation"):
                    pack_compensation(self.nano, panel, panels(j).compensation, depth.steps, plan.nr)

    def _pack_panels(self, b: MatrixRef | WindowRef, columns: Span, depth: Depth) -> RhsPanels:
        """Packs a block of B: all of it or, where packing overlaps, the first of two panels that take turns."""
        plan = self.plan
        base = self._local_scratch()

        def panel(j: Index) -> RhsPanel:
            column = subtract(j, columns.begin)
            if plan.overlap_packing:
                column = divmod_(column, 2 * plan.nr)[1]
            return self._packed_panel(base, mul(column, plan.scratch.panel_rows(plan.kc)), plan.kc)

        end = minimum(add(columns.begin, plan.nr), columns.end) if plan.overlap_packing else columns.end
        self._pack(b, replace(columns, end=end), depth, panel)
        return panel

    def _pack_columns(self, b: MatrixRef, columns: Span, depth: Depth) -> RhsPanels:
        """Packs a block of B for inner products: columns that are contiguous."""
        plan = self.plan
        packed = MatrixRef(self._local_scratch(), 0, (1, plan.scratch.panel_rows(plan.kc)), plan.instruction.rhs)

        def column(j: Index) -> MatrixRef:
            return packed.block(0, subtract(j, columns.begin))

        to = Destination(columns, plan.nr, lambda j: column(j).transposed)
        self._packer.pack_rows(to, b.transposed, depth)
        return lambda j: RhsPanel(column(j), b)

    def _local_scratch(self) -> ir.Value:
        plan = self.plan
        elements = plan.scratch.rhs_columns * plan.scratch.panel_rows(plan.kc)
        return scratch(self.arguments.local, plan.scratch.rhs_at, elements, plan.instruction.rhs)

    def _shared_panels(self, k0: Index) -> RhsPanels:
        """The panels that all tasks of a round share, from step k0 on."""
        plan = self.plan
        rows = plan.scratch.panel_rows(plan.k.size)
        base = scratch(self.arguments.shared, 0, plan.nc * rows, plan.instruction.rhs)
        begin = mul(self.arguments.round, plan.nc)
        return lambda j: self._packed_panel(base, mul(subtract(j, begin), rows), plan.k.size, k0)

    def _packed_panel(self, base: ir.Value, at: Index, depth: int, k0: Index = 0) -> RhsPanel:
        """A panel of `depth` steps, from its step k0 on; its compensation stands behind it."""
        plan, vnni = self.plan, self.nano.vnni
        panel = MatrixRef(base, at, (plan.nr, vnni), plan.instruction.rhs, vnni=vnni)
        compensation = panel.block(plan.dot.bf16_splits[1] * plan.rounded_up(depth), 0)
        return RhsPanel(panel.block(k0, 0), compensation)

    def _stored_panel(self, b: MatrixRef, j: Index, k0: Index) -> MatrixRef:
        """The part of a panel of packed weights that begins at column j, from its step k0 on."""
        plan, panels = self.plan, self.plan.dot.panels
        assert panels
        panel, column = divmod_(j, panels.width) if plan.nr < panels.width else (j, 0)
        at = add(mul(panel, panels.rows * (panels.width if plan.nr < panels.width else 1)), mul(column, panels.vnni))
        whole = MatrixRef(b.base, add(b.at, at), (panels.width, panels.vnni), b.dtype, vnni=panels.vnni)
        return whole.block(k0, 0)


@dataclass(frozen=True)
class LhsPacking:
    """Panels of A."""

    plan: Plan
    nano: Nanokernel
    arguments: Arguments

    def panels(self, a: MatrixRef | WindowRef, rows: Span, k: KBlock) -> LhsPanels:
        """Packs a block of A where the plan says so; gives its panels."""
        if self.plan.lhs == "unpacked":
            return self._window_rows(a) if isinstance(a, WindowRef) else lambda i: a.block(i, 0)
        with section("pack A"):
            pack = self._pack_rows if self.plan.lhs == "rows" else self._pack_panels
            return pack(a, rows, k.depth)

    @property
    def _packer(self) -> Packer:
        return Packer(self.nano.lhs, self.plan.lhs_panel)

    def _window_rows(self, a: WindowRef) -> LhsPanels:
        plan, nothing = self.plan, zeros_of_runs(self.plan, self.arguments.local)
        return lambda i: WindowRows.of(a, i, plan.window_runs, nothing)

    def _pack_rows(self, a: MatrixRef | WindowRef, rows: Span, depth: Depth) -> LhsPanels:
        plan = self.plan
        packed = MatrixRef(self._local_scratch(), 0, (plan.scratch.lhs_stride, 1), plan.instruction.lhs)

        def row(i: Index) -> MatrixRef:
            return packed.block(subtract(i, rows.begin), 0)

        for number in range(plan.dot.bf16_splits[0]):
            first = number * plan.scratch.lhs_split_stride
            to = Destination(rows, plan.instruction.shape[0], lambda i, first=first: row(i).block(0, first))
            split = replace(a, bf16_split=bf16_split(plan, number))
            if isinstance(split, WindowRef):
                GatherPacker(self._packer, split).pack_rows(to, depth)
            else:
                self._packer.pack_rows(to, split, depth)
        return row

    def _pack_panels(self, a: MatrixRef | WindowRef, rows: Span, depth: Depth) -> LhsPanels:
        plan, base = self.plan, self._local_scratch()

        def panel(i: Index) -> MatrixRef:
            number, row = divmod_(subtract(i, rows.begin), plan.lhs_panel)
            at = add(mul(number, plan.lhs_panel * plan.scratch.lhs_stride), mul(row, self.nano.vnni))
            return MatrixRef(base, at, (self.nano.vnni, plan.lhs_panel), plan.instruction.lhs)

        for number in range(plan.dot.bf16_splits[0]):
            first = number * plan.scratch.lhs_split_stride
            to = Destination(rows, plan.lhs_panel, lambda i, first=first: panel(i).transposed.block(first, 0))
            split = replace(a, bf16_split=bf16_split(plan, number))
            if isinstance(split, WindowRef):
                GatherPacker(self._packer, split).pack_panels(to, depth)
            else:
                self._packer.pack_panels(to, split.transposed, depth)
        return panel

    def _local_scratch(self) -> ir.Value:
        plan = self.plan
        return scratch(self.arguments.local, 0, plan.scratch.lhs_rows * plan.scratch.lhs_stride, plan.instruction.lhs)
