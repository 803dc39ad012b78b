"""Macrokernels: cache blocks, phases and tasks around the microkernels.

A task computes a block of C, `plan.mt` x `plan.nt`, of one element of the outer axes:

    for each k block (KC):                     in order: the sum over K is the same for any number of threads
        for each block of columns:             as many as a task packs at a time
            pack B's block                     where the plan packs per task; in a phase before, where it shares
            for each block of rows (MC):
                pack A's block                 where the plan packs it; before the columns, where one block is all rows
                for each panel of columns (NR):    B's panel stays in the nearest cache
                    for each panel of rows (MR):   A's block streams from the next
                        microkernel

Where A comes from beyond a core's own caches and B stays in them, A is asked for ahead: by blocks of rows, or,
where it lies by columns and K has several blocks, by those.

Where packing is interleaved, only the first panel of B's block is packed before; every other one is packed by the
microkernel of the first rows, step by step, beside the products of the panel before it. Two panels take turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jax.extend.mlir import ir

from jax_nano.codegen.dot_product_microkernel import InnerMicrokernel
from jax_nano.codegen.epilogue import Finish
from jax_nano.codegen.index import Index, add, divmod_, equal, less, minimum, mul, select, subtract
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import along, for_range
from jax_nano.codegen.matrix_ref import Integers, PrologueView, View, scratch
from jax_nano.codegen.microkernel import Beside, Epilogue, Microkernel, Part, Result
from jax_nano.codegen.nanokernel import Block, Nanokernel, TileNanokernel
from jax_nano.codegen.pack import Packer, Panels
from jax_nano.codegen.prefetch import Ahead
from jax_nano.codegen.tile_microkernel import TileMicrokernel
from jax_nano.codegen.vector.convert import convert
from jax_nano.ir.dot import Axis, extent
from jax_nano.ir.dtypes import PACKED_INT4
from jax_nano.schedule.plan import Plan

RhsPanels = Callable[[Index], tuple[View, View]]  # of a column: its panel, and the starting values behind that


@dataclass(frozen=True)
class Frame:
    """What an entry point is given: the number of its round and task, and memory."""

    round: Index
    task: Index
    shared: ir.Value
    local: ir.Value
    lhs: ir.Value
    rhs: ir.Value
    out: ir.Value
    extras: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class Area:
    """The rows and columns of C that a task computes: [m0, m1) x [n0, n1)."""

    m0: Index
    m1: Index
    n0: Index
    n1: Index


class Macrokernel:
    """Writes the phases of one plan."""

    def __init__(self, plan: Plan):
        """Takes what the plan says."""
        self.plan, self.dot = plan, plan.dot
        self.arrays = 3 + len(plan.dot.extras)
        self.micro = microkernel(plan)
        self.nano = nano = self.micro.nano
        self.lhs_packer, self.rhs_packer = Packer(nano, "lhs"), Packer(nano, "rhs")

    def pack_phase(self, frame: Frame) -> None:
        """One task: a run of B's panels into shared scratch. Rounds advance along n."""
        plan, n, width = self.plan, self.plan.n, self.plan.nr
        begin = add(mul(frame.round, plan.nc), mul(frame.task, plan.pack_panels * width))
        end = minimum(minimum(add(begin, plan.pack_panels * width), mul(add(frame.round, 1), plan.nc)), n.size)
        source = self.rhs(frame, (0,) * self.arrays)
        self.pack_rhs(source, self.shared_panels(frame), begin, end, plan.k.size)

    def compute_phase(self, frame: Frame) -> None:
        """One task: a block of C, of a run of the outer axes' elements, or of a part of the sum."""
        plan = self.plan
        rest, ni = split(frame.task, plan.n_tasks)
        rest, mi = split(rest, plan.m_tasks)
        part, run = split(rest, plan.outer_tasks) if plan.split_k > 1 else (0, rest if plan.outer_tasks > 1 else 0)
        m0, round_begin = mul(mi, plan.mt), mul(frame.round, plan.nc)
        n0 = add(round_begin, mul(ni, plan.nt))
        m1 = minimum(add(m0, plan.mt), plan.m.size)
        n1 = minimum(minimum(add(n0, plan.nt), add(round_begin, plan.nc)), plan.n.size)
        first = mul(run, plan.outer_per_task)
        with for_range(first, minimum(add(first, plan.outer_per_task), extent(plan.outer))) as outer:
            self.block(frame, Area(m0, m1, n0, n1), outer.i, part)

    def block(self, frame: Frame, area: Area, outer: Index, split_number: Index) -> None:
        """One block of C, for one element of the outer axes: all of the sum, or one split of it."""
        plan, dot = self.plan, self.dot
        at = offsets(plan.outer, outer, self.arrays)
        rhs = self.rhs(frame, at)
        out = self.out(frame, split_number).moved(at[2])
        extras, scaling = self.extras(frame, at), self.scaling(frame, at)
        partial, tiles = self.partial(frame, out), self.tiles(frame)
        after = self.to_next_element(outer)
        begin_k = mul(split_number, plan.blocks_per_split)
        end_k = minimum(add(begin_k, plan.blocks_per_split), plan.k_blocks)

        with for_range(begin_k, end_k) as number:
            outer_k, kb = split(number.i, plan.inner_k_blocks)
            at_k = offsets(plan.k_outer, outer_k, self.arrays)
            k0 = mul(kb, plan.kc)
            part = Part(
                depth=minimum(plan.kc, subtract(plan.k.size, k0)) if plan.k.size % plan.kc else plan.kc,
                size=plan.k.size,
                first=equal(number.i, begin_k) if plan.blocks_per_split > 1 else True,
                last=equal(number.i, plan.k_blocks - 1),
            )
            compensated = plan.instruction.lhs_offset != 0 and (part.first if plan.rhs == "per_round" else True)
            group = divmod_(k0, dot.scaling.group_size)[0] if dot.scaling else 0
            b_matrix = rhs.moved(at_k[1])
            whole_a = self.lhs(frame, [add(*both) for both in zip(at, at_k, strict=True)])
            a_matrix = whole_a.block(0, k0)
            all_rows = self.lhs_panels(frame, a_matrix, area.m0, area.m1, part) if plan.mc >= plan.mt else None
            with for_range(area.n0, area.n1, plan.block_columns) as columns:
                n1 = minimum(add(columns.i, plan.block_columns), area.n1)
                b_panel = self.rhs_panels(frame, b_matrix, columns.i, n1, k0, part)
                with for_range(area.m0, area.m1, plan.mc) as rows:
                    begin, end = rows.i, minimum(add(rows.i, plan.mc), area.m1)
                    a_panel = all_rows or self.lhs_panels(frame, a_matrix, begin, end, part)

                    def column_panel(j: Index, cols: int, begin=begin, end=end, a_panel=a_panel) -> None:
                        b, compensation = b_panel(j)
                        following = self.following(b, b_matrix, k0, j, area) if plan.prefetches_rhs else None
                        next_a = self.following_lhs(whole_a, after, begin, k0, area) if plan.prefetch_lhs else None

                        def row_panel(i: Index, count: int, packing: Sequence[Beside] = ()) -> None:
                            c = out.block(i, j)
                            where = partial.block(subtract(i, area.m0), subtract(j, area.n0)) if plan.has_partial else c
                            block = Block(count, cols, self.nano.lanes)
                            epilogue = self.epilogue(extras, i, j) if plan.split_k == 1 else None
                            scales = scaling[0].block(group, j) if scaling else None
                            result = Result(
                                c, where, compensation, compensated, epilogue, scales, plan.has_partial, tiles
                            )
                            beside = (*self.ahead(following, area, i, j, cols), *packing)
                            beside += self.lhs_ahead(next_a, area, begin, i, j)
                            self.micro.emit(a_panel(i), b, result, block, part, beside)

                        others = begin
                        if plan.overlap_packing:
                            others = minimum(add(begin, plan.mr), end)
                            packing = self.packing(b_matrix.block(k0, 0), b_panel, add(j, plan.nr), n1)
                            along(begin, others, plan.m.size, plan.mr, functools.partial(row_panel, packing=packing))
                        along(others, end, plan.m.size, plan.mr, row_panel)

                    along(columns.i, n1, plan.n.size, plan.nr, column_panel)

    def following(self, panel: View, b: View, k0: Index, j: Index, area: Area) -> View:
        """The piece of B that comes after the panel at (k0, j), or in its place.

        Of packed weights it is further rows. Of columns that the task packs, it is those that are packed next; of the
        panel that is packed meanwhile, the one after that. In place, it is the next panel, which after a task's last
        one is the first one of the next steps; where it is streamed, those steps of all the task's columns.
        """
        plan = self.plan
        if plan.rhs == "panels":
            return panel.block(plan.prefetch_distance)
        if plan.rhs == "per_task":
            return b.block(k0, add(j, 2 * plan.nr if plan.overlap_packing else plan.block_columns))
        more = False if plan.streamed else less(add(j, plan.nr), area.n1)
        steps = minimum(add(k0, plan.kc), plan.k.size - plan.kc)  # after the last ones, nothing that is not at hand
        return b.block(select(more, k0, steps), select(more, add(j, plan.nr), area.n0))

    def ahead(self, following: View | None, area: Area, i: Index, j: Index, cols: int) -> list[Beside]:
        """What asks for the piece of B that follows, if any, while the block of C at (i, j) goes through this one."""
        plan = self.plan
        if following is None:
            return []
        blocks = -(-min(plan.mt, plan.m.size) // plan.mr)
        number = divmod_(subtract(i, area.m0), plan.mr)[0]
        if plan.streamed:
            number = add(mul(divmod_(subtract(j, area.n0), plan.nr)[0], blocks), number)
            cols = min(plan.nt, plan.n.size)
            blocks *= -(-cols // plan.nr)
        return [Ahead(following, number, blocks, plan.kc, cols, in_order=plan.streamed).ask]

    def following_lhs(self, a: View, after: Index, begin: Index, k0: Index, area: Area) -> View:
        """The block of A that comes after the one at (begin, k0), as a matrix over k and m.

        That is the task's next rows, unless it is all of them by further steps. After its last rows it is the first
        ones of the next steps, and after the last steps of the next element of the outer axes, `after` elements away.
        """
        plan = self.plan
        more_steps = less(add(k0, plan.kc), plan.k.size)
        steps = a.block(area.m0, minimum(add(k0, plan.kc), plan.k.size - plan.kc))
        first = replace(a, at=select(more_steps, steps.at, a.moved(after).block(area.m0, 0).at))
        if plan.lhs_by_steps:
            return first.transposed
        rows = a.block(minimum(add(begin, plan.mc), max(0, plan.m.size - plan.mc)), k0)
        return replace(a, at=select(less(add(begin, plan.mc), area.m1), rows.at, first.at)).transposed

    def to_next_element(self, outer: Index) -> Index:
        """Elements of A from one element of the outer axes to a task's next one; none where it has no other."""
        plan = self.plan
        if not plan.prefetch_lhs or plan.outer_per_task == 1:
            return 0
        other = minimum(add(outer, 1), extent(plan.outer) - 1)
        here, there = (offsets(plan.outer, number, self.arrays)[0] for number in (outer, other))
        return subtract(there, here)

    def lhs_ahead(self, following: View | None, area: Area, begin: Index, i: Index, j: Index) -> tuple[Beside, ...]:
        """What asks for the block of A that follows, if any, while the rows at i, of the block at `begin`, go through
        B's panel at j.
        """
        plan = self.plan
        if following is None:
            return ()
        rows, columns = min(plan.mc, plan.m.size), -(-min(plan.nt, plan.n.size) // plan.nr)
        panels = -(-rows // plan.mr)
        number = add(mul(divmod_(subtract(j, area.n0), plan.nr)[0], panels), divmod_(subtract(i, begin), plan.mr)[0])
        blocks = panels * columns
        if plan.lhs_by_steps:
            number = add(mul(divmod_(subtract(begin, area.m0), plan.mc)[0], blocks), number)
            rows = min(plan.mt, plan.m.size)
            blocks *= -(-rows // plan.mc)
        return (Ahead(following, number, blocks, plan.kc, rows).ask,)

    def packing(self, b: View, panel: RhsPanels, j: Index, end: Index) -> list[Beside]:
        """What packs the panel of B that begins at column j, if that is before the end; else it packs zeros."""
        plan = self.plan
        source, cols = b.block(0, minimum(j, subtract(end, 1))), subtract(end, j)

        def copy(k: Index, steps: int, number: int) -> None:
            target = panel(j)[0].block(number * plan.rhs_component_stride, 0)
            of_component = replace(source, component=self.component(number))
            self.rhs_packer.copy_steps(of_component, target, k, steps, cols, plan.nr)

        return [functools.partial(copy, number=number) for number in range(self.dot.bf16_splits[1])]

    def reduce_phase(self, frame: Frame) -> None:
        """One task: a run of C's rows, each element the sum of the splits' in their order."""
        plan, nano = self.plan, self.nano
        rows = extent(plan.outer) * plan.m.size
        begin = mul(frame.task, plan.reduced_rows)
        with for_range(begin, minimum(add(begin, plan.reduced_rows), rows)) as row:
            outer, i = split(row.i, plan.m.size)
            at = offsets(plan.outer, outer, self.arrays)
            parts = self.out(frame, 0).moved(at[2])
            out = View(frame.out, at[2], parts.strides, self.dot.out)
            extras = self.extras(frame, at)

            def elements(j: Index, count: int, i=i, parts=parts, out=out, extras=extras) -> None:
                at = parts.offset(i, j)
                total = load(parts.base, at, nano.lanes, count)
                for number in range(1, plan.split_k):
                    total = nano.plus(total, load(parts.base, add(at, number * plan.results), nano.lanes, count))
                if epilogue := self.epilogue(extras, i, j):
                    (value,) = epilogue([total], [(0, 0, count)])
                else:
                    value = convert(total, plan.instruction.acc, self.dot.out, nano.native_bf16)
                store(value, out.base, out.offset(i, j), count)

            along(0, plan.n.size, plan.n.size, nano.lanes, elements)

    def extras(self, frame: Frame, at: Sequence[Index]) -> list[View]:
        """The epilogue's arrays, as matrices over C's rows and columns."""
        arrays = self.dot.epilogue.extras if self.dot.epilogue else ()
        each = zip(arrays, frame.extras, at[3:], self.plan.m.extras, self.plan.n.extras, strict=False)
        return [View(base, begin, (rows, cols), dtype) for (dtype, _), base, begin, rows, cols in each]

    def lhs(self, frame: Frame, at: Sequence[Index]) -> View:
        """A, beginning where the offsets in all arrays say, as a matrix over m and k."""
        m, k, dot = self.plan.m, self.plan.k, self.dot
        if not dot.prologue:
            return View(frame.lhs, at[0], (m.lhs, k.lhs), dot.lhs, self.component(0))
        first = len(dot.epilogue.extras) if dot.epilogue else 0
        beside = tuple(
            View(frame.extras[i], at[3 + i], (m.extras[i], k.extras[i]), dtype)
            for i, (dtype, _) in enumerate(dot.prologue.extras, first)
        )
        strides, program = (m.lhs, k.lhs), dot.prologue.program
        return PrologueView(frame.lhs, at[0], strides, dot.lhs, self.component(0), program=program, beside=beside)

    def rhs(self, frame: Frame, at: Sequence[Index]) -> View:
        """B, beginning where the offsets in all arrays say, as a matrix over k and n."""
        plan, scaling = self.plan, self.dot.scaling
        strides = plan.k.rhs, plan.n.rhs
        zeros = self.scaling(frame, at)[1:]
        if not zeros and self.dot.rhs not in PACKED_INT4:
            return View(frame.rhs, at[1], strides, self.dot.rhs, self.component(0))
        group = scaling.group_size if scaling else 1
        return Integers(frame.rhs, at[1], strides, self.dot.rhs, group_size=group, zeros=zeros[0] if zeros else None)

    def scaling(self, frame: Frame, at: Sequence[Index]) -> list[View]:
        """The scales of B's integers, and the zero points if any, as matrices over groups of k and columns."""
        if not self.dot.scaling:
            return []
        arrays, stride = self.dot.scaling.arrays, self.dot.scaling.stride
        first = len(self.dot.extras) - len(arrays)
        each = zip(arrays, frame.extras[first:], at[3 + first :], self.plan.n.extras[first:], strict=True)
        return [View(base, begin, (stride, columns), dtype) for (dtype, _), base, begin, columns in each]

    def epilogue(self, extras: Sequence[View], i: Index, j: Index) -> Epilogue | None:
        """The epilogue of the block that begins at (i, j)."""
        if not self.dot.epilogue:
            return None
        views = [view.block(i, j) for view in extras]
        return Finish(self.dot.epilogue.program, self.nano, tuple(views))

    def out(self, frame: Frame, split_number: Index) -> View:
        """Where tasks put their sums: C, or the split's own copy of it."""
        plan = self.plan
        strides = plan.m.out, plan.n.out
        if plan.split_k == 1:
            return View(frame.out, 0, strides, self.dot.out)
        base = scratch(frame.shared, 0, plan.split_k * plan.results, plan.instruction.acc)
        return View(base, mul(split_number, plan.results), strides, plan.instruction.acc)

    def partial(self, frame: Frame, out: View) -> View:
        """Where sums stand between parts: C itself, unless its type is too narrow."""
        plan = self.plan
        if not plan.has_partial:
            return out
        base = scratch(frame.local, plan.local_partial_at, plan.mt * plan.nt, plan.instruction.acc)
        return View(base, 0, (plan.nt, 1), plan.instruction.acc)

    def tiles(self, frame: Frame) -> View | None:
        """Where tiles stand that neither C nor partial sums take."""
        plan = self.plan
        if not plan.instruction.tiles:
            return None
        base = scratch(frame.local, plan.local_tiles_at, plan.mr * plan.nr, plan.instruction.acc)
        return View(base, 0, (plan.nr, 1), plan.instruction.acc)

    def pack_rhs(self, source: View, panel: RhsPanels, begin: Index, end: Index, depth: Index) -> None:
        """Packs columns [begin, end) of B, and the starting values that belong to their panels."""
        n, width, k = self.plan.n, self.plan.nr, self.plan.k
        for number in range(self.dot.bf16_splits[1]):
            first = number * self.plan.rhs_component_stride
            panels = Panels(begin, end, n.size, width, lambda j, first=first: panel(j)[0].block(first, 0))
            self.rhs_packer.panels(panels, replace(source, component=self.component(number)), depth, k.size, width)
        if self.plan.instruction.lhs_offset:
            panels = Panels(begin, end, n.size, width, lambda j: panel(j)[0])
            panels.each(lambda j, _, target: self.rhs_packer.compensation(target, panel(j)[1], depth, width))

    def component(self, number: int) -> tuple[str, int] | None:
        """What is meant by an operand's elements: a component of them, where the product's algorithm has such."""
        return (self.dot.algorithm.dtype, number) if self.dot.algorithm else None

    def panel(self, base: ir.Value, at: Index, depth: int, k0: Index = 0) -> tuple[View, View]:
        """A panel of B of `depth` steps, from its step k0 on; its compensation stands behind it."""
        plan = self.plan
        panel = View(base, at, (plan.nr, self.nano.vnni), plan.instruction.rhs)
        return panel.block(k0, 0), panel.block(plan.dot.bf16_splits[1] * plan.rounded_up(depth), 0)

    def stored_panel(self, rhs: View, j: Index, k0: Index) -> View:
        """The part of a panel of B, as the caller has them, that begins at column j, from its step k0 on."""
        plan, panels = self.plan, self.dot.panels
        assert panels
        panel, column = divmod_(j, panels.width) if plan.nr < panels.width else (j, 0)
        at = add(mul(panel, panels.rows * (panels.width if plan.nr < panels.width else 1)), mul(column, panels.vnni))
        whole = View(rhs.base, add(rhs.at, at), (panels.width, panels.vnni), rhs.dtype, interleaved=panels.vnni)
        return whole.block(k0, 0)

    def shared_panels(self, frame: Frame, k0: Index = 0) -> RhsPanels:
        """The panels that all tasks of a round share."""
        plan = self.plan
        base = scratch(frame.shared, 0, plan.nc * plan.panel_rows(plan.k.size), plan.instruction.rhs)
        begin = mul(frame.round, plan.nc)
        return lambda j: self.panel(base, mul(subtract(j, begin), plan.panel_rows(plan.k.size)), plan.k.size, k0)

    def rhs_panels(self, frame: Frame, rhs: View, begin: Index, end: Index, k0: Index, part: Part) -> RhsPanels:
        """Sees to it that B's block is where microkernels read it; gives the panel that begins at column j."""
        plan = self.plan
        if plan.rhs == "unpacked":
            return lambda j: (rhs.block(k0, j), rhs)
        if plan.rhs == "per_round":
            return self.shared_panels(frame, k0)
        if plan.rhs == "panels":
            return lambda j: (self.stored_panel(rhs, j, k0), rhs)
        elements = plan.local_rhs_columns * plan.panel_rows(plan.kc)
        base = scratch(frame.local, plan.local_rhs_at, elements, plan.instruction.rhs)

        if plan.inner_product:
            columns = View(base, 0, (1, plan.panel_rows(plan.kc)), plan.instruction.rhs)

            def column(j: Index) -> View:
                return columns.block(0, subtract(j, begin))

            panels = Panels(begin, end, plan.n.size, plan.nr, lambda j: column(j).transposed)
            self.rhs_packer.rows(panels, rhs.block(k0, 0).transposed, part.depth, plan.k.size)
            return lambda j: (column(j), rhs)

        def panel(j: Index) -> tuple[View, View]:
            column = subtract(j, begin)
            if plan.overlap_packing:
                column = divmod_(column, 2 * plan.nr)[1]
            return self.panel(base, mul(column, plan.panel_rows(plan.kc)), plan.kc)

        first = minimum(add(begin, plan.nr), end) if plan.overlap_packing else end
        self.pack_rhs(rhs.block(k0, 0), panel, begin, first, part.depth)
        return panel

    def lhs_panels(self, frame: Frame, lhs: View, begin: Index, end: Index, part: Part) -> Callable[[Index], View]:
        """The same for A: gives the panel that begins at row i."""
        plan = self.plan
        if plan.lhs == "unpacked":
            return lambda i: lhs.block(i, 0)
        base = scratch(frame.local, 0, plan.local_lhs_rows * plan.lhs_stride, plan.instruction.lhs)
        if plan.lhs == "rows":
            target = View(base, 0, (plan.lhs_stride, 1), plan.instruction.lhs)

            def row(i: Index) -> View:
                return target.block(subtract(i, begin), 0)

            for number in range(self.dot.bf16_splits[0]):
                source = replace(lhs, component=self.component(number))
                first = number * plan.lhs_component_stride
                step = plan.instruction.shape[0]
                panels = Panels(begin, end, plan.m.size, step, lambda i, first=first: row(i).block(0, first))
                self.lhs_packer.rows(panels, source, part.depth, plan.k.size)
            return row

        def panel(i: Index) -> View:
            number, row = divmod_(subtract(i, begin), plan.lhs_panel)
            at = add(mul(number, plan.lhs_panel * plan.lhs_stride), mul(row, self.nano.vnni))
            return View(base, at, (self.nano.vnni, plan.lhs_panel), plan.instruction.lhs)

        for number in range(self.dot.bf16_splits[0]):
            source = replace(lhs.transposed, component=self.component(number))
            first = number * plan.lhs_component_stride
            step = plan.lhs_panel
            panels = Panels(begin, end, plan.m.size, step, lambda i, first=first: panel(i).transposed.block(first, 0))
            self.lhs_packer.panels(panels, source, part.depth, plan.k.size, step)
        return panel


def microkernel(plan: Plan) -> Microkernel:
    """The kind of microkernel that a plan is made of."""
    packed = plan.lhs != "unpacked", plan.reads_panels
    if plan.instruction.tiles:
        return TileMicrokernel(
            TileNanokernel(plan.instruction, lhs_stationary=plan.lhs_stationary), plan.unroll, packed, plan.terms
        )
    kind = InnerMicrokernel if plan.inner_product else Microkernel
    return kind(
        Nanokernel(plan.instruction, lhs_stationary=plan.lhs_stationary),
        plan.unroll,
        packed,
        plan.terms,
        plan.accumulator_chains,
    )


def split(number: Index, count: int) -> tuple[Index, Index]:
    """(number // count, number % count), where a count of 1 says that there is nothing to split."""
    return divmod_(number, count) if count > 1 else (number, 0)


def offsets(axes: Sequence[Axis], number: Index, arrays: int) -> tuple[Index, ...]:
    """Where the element `number` of a row-major grid of axes begins in A, B, C and Dot.extras."""
    at: list[Index] = [0] * arrays
    for position, axis in reversed(list(enumerate(axes))):
        number, i = divmod_(number, axis.size) if position else (0, number)
        at = [add(begin, mul(i, stride)) for begin, stride in zip(at, axis.strides(), strict=True)]
    return tuple(at)
