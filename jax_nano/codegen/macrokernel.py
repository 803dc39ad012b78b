"""Macrokernels: cache blocks, phases and tasks around the microkernels.

A task computes a block of C, `plan.mt` x `plan.nt`, of one element of the outer axes:

    for each k block (KC):                     in order: the sum over K is the same for any number of threads
        for each block of columns:             as many as a task packs at a time
            pack B's block                     where the plan packs per task; per round, in a phase before
            for each block of rows (MC):
                pack A's block                 where the plan packs it; before the columns, where one block is all rows
                for each panel of columns (NR):    B's panel stays in L1
                    for each panel of rows (MR):   A's block streams from L2
                        microkernel

Where A comes from beyond L2 and B stays in it, A is prefetched: by blocks of rows or, where its columns are contiguous
and K has several blocks, by k blocks.

Where packing overlaps with products, only the first panel of B's block is packed before; every other one is packed by
the microkernel of the first rows, step by step, beside the products of the panel before it. Two panels take turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jax_nano.codegen.dot_product_microkernel import DotProductMicrokernel
from jax_nano.codegen.epilogue import ProgramEpilogue
from jax_nano.codegen.index import Condition, Index, add, divmod_, equal, minimum, mul, subtract
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, Span, blocks, for_range, panels
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import KBlock, Microkernel, Result, StepHook
from jax_nano.codegen.nanokernel import Block, Nanokernel, PanelProduct, Place, TileNanokernel
from jax_nano.codegen.operands import Area, Arguments, Offsets, Operands, offsets
from jax_nano.codegen.panels import LhsPacking, LhsPanels, RhsPacking, RhsPanel, RhsPanels
from jax_nano.codegen.prefetch_targets import LhsPrefetch, RhsPrefetch, to_next_element
from jax_nano.codegen.tile_microkernel import TileMicrokernel
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.windows.channelwise import ChannelBlock
from jax_nano.codegen.windows.placewise import PlaceBlock
from jax_nano.codegen.windows.reference import WindowRef
from jax_nano.codegen.windows.rows import clear_zeros
from jax_nano.ir.dot import extent
from jax_nano.schedule.plan import Plan


class Macrokernel:
    """Writes the phases of one plan, each from what its entry point is given."""

    def __init__(self, plan: Plan):
        """Takes what the plan says."""
        self.plan = plan
        self.micro = microkernel(plan)

    def pack_phase(self, arguments: Arguments) -> None:
        """One task: a run of B's panels into shared scratch. Rounds advance along n."""
        plan, columns = self.plan, self.plan.pack_panels * self.plan.nr
        begin = add(mul(arguments.round, plan.nc), mul(arguments.task, columns))
        end = minimum(minimum(add(begin, columns), mul(add(arguments.round, 1), plan.nc)), plan.n.size)
        b = Operands(plan, arguments).rhs(offsets(plan, (), 0))
        RhsPacking(plan, self.micro.nano, arguments).pack_shared(b, Span(begin, end, plan.n.size))

    def compute_phase(self, arguments: Arguments) -> None:
        """One task: a block of C, of a run of the outer axes' elements, or of one split of the sum."""
        plan = self.plan
        rest, n_task = divide(arguments.task, plan.n_tasks)
        rest, m_task = divide(rest, plan.m_tasks)
        split, run = divide(rest, plan.outer_tasks) if plan.split_k > 1 else (0, rest if plan.outer_tasks > 1 else 0)
        area = self.area(arguments.round, m_task, n_task)
        operands = Operands(plan, arguments)
        first = mul(run, plan.outer_per_task)
        last = minimum(add(first, plan.outer_per_task), extent(plan.outer))
        with section("elements of the outer axes"), for_range(first, last) as outer:
            if plan.channelwise or plan.placewise:
                block = ChannelBlock if plan.channelwise else PlaceBlock
                block(plan, self.micro.nano, operands, area, offsets(plan, plan.outer, outer.i)).emit()
            else:
                self.task_block(operands, area, outer.i, split).emit()

    def task_block(self, operands: Operands, area: Area, outer: Index, split: Index) -> TaskBlock:
        """What computes a task's block of C, for one element of the outer axes and one split of the sum."""
        return TaskBlock(self, operands, area, outer, split)

    def area(self, round_: Index, m_task: Index, n_task: Index) -> Area:
        """The rows and columns of a task. Rounds advance along n."""
        plan = self.plan
        m0, round_begin = mul(m_task, plan.mt), mul(round_, plan.nc)
        n0 = add(round_begin, mul(n_task, plan.nt))
        m1 = minimum(add(m0, plan.mt), plan.m.size)
        n1 = minimum(minimum(add(n0, plan.nt), add(round_begin, plan.nc)), plan.n.size)
        return Area(Span(m0, m1, plan.m.size), Span(n0, n1, plan.n.size))

    def reduce_phase(self, arguments: Arguments) -> None:
        """One task: a run of C's rows, each element the sum of the splits' in their order."""
        plan, operands = self.plan, Operands(self.plan, arguments)
        begin = mul(arguments.task, plan.reduced_rows)
        end = minimum(add(begin, plan.reduced_rows), extent(plan.outer) * plan.m.size)
        with section("rows"), for_range(begin, end) as row:
            outer, i = divide(row.i, plan.m.size)
            at = offsets(plan, plan.outer, outer)
            sums, out, extras = operands.sums(at, 0), operands.out(at), operands.epilogue_extras(at)
            for j, count in panels(Span(0, plan.n.size, plan.n.size), self.micro.nano.lanes, "registers of columns"):
                self.reduce(sums.block(i, j), out.block(i, j), [extra.block(i, j) for extra in extras], count)

    def reduce(self, sums: MatrixRef, out: MatrixRef, extras: Sequence[MatrixRef], count: int) -> None:
        """Adds up the splits' sums of one register of C."""
        plan, nano = self.plan, self.micro.nano
        total = load(sums.base, sums.at, nano.lanes, count)
        for number in range(1, plan.split_k):
            total = nano.add(total, load(sums.base, add(sums.at, number * plan.results), nano.lanes, count))
        if epilogue := self.epilogue(extras):
            (value,) = epilogue([total], [Place(0, 0, count)])
        else:
            value = convert(total, plan.instruction.acc, plan.dot.out, native_bf16=nano.native_bf16)
        store(value, out.base, out.at, count)

    def epilogue(self, extras: Sequence[MatrixRef]) -> ProgramEpilogue | None:
        """The epilogue of a block of C, whose arrays begin with that."""
        epilogue = self.plan.dot.epilogue
        return ProgramEpilogue(epilogue.program, self.micro.nano, tuple(extras)) if epilogue else None


@dataclass(frozen=True)
class CacheBlock:
    """A block of A and one of B whose product is added to C: MC x KC by KC x `plan.block_columns`."""

    k: KBlock
    a: MatrixRef | WindowRef  # as it lies in memory, from step 0 of this element of plan.k_outer on
    b: MatrixRef | WindowRef
    rows: Span
    columns: Span
    a_panels: LhsPanels
    b_panels: RhsPanels


@dataclass(frozen=True)
class BlockColumns:
    """A block of B, and a task's rows of A before it: MT x KC by KC x `plan.block_columns`."""

    k: KBlock
    a: MatrixRef | WindowRef
    a_block: MatrixRef | WindowRef  # from the first step of the k block on
    b: MatrixRef | WindowRef
    columns: Span
    all_rows: LhsPanels | None  # where A's rows are packed all at once

    def rows(self, rows: Span, packing: LhsPacking, b_panels: RhsPanels) -> CacheBlock:
        """The block with some of the rows, which are packed now unless they are."""
        a_panels = self.all_rows or packing.panels(self.a_block, rows, self.k)
        return CacheBlock(self.k, self.a, self.b, rows, self.columns, a_panels, b_panels)


class TaskBlock:
    """Writes a task's block of C, for one element of the outer axes and one split of the sum: the loops above."""

    def __init__(self, kernel: Macrokernel, operands: Operands, area: Area, outer: Index, split: Index):
        """Finds the matrices of the element."""
        self.kernel, self.plan, self.nano = kernel, kernel.plan, kernel.micro.nano
        self.operands, self.area, self.split = operands, area, split
        self.at = at = self.place(outer)
        self.b = operands.rhs(at)
        self.sums = operands.sums(at, split)
        self.extras, self.scales = operands.epilogue_extras(at), operands.scales(at)
        self.partial, self.tiles = operands.partial_sums(), operands.tiles()
        self.lhs_packing = LhsPacking(self.plan, self.nano, operands.arguments)
        self.rhs_packing = RhsPacking(self.plan, self.nano, operands.arguments)
        self.lhs_prefetch = LhsPrefetch(self.plan, area, to_next_element(self.plan, outer))
        self.rhs_prefetch = RhsPrefetch(self.plan, area)

    def place(self, outer: Index) -> Offsets:
        """Where an element of the outer axes begins in each array."""
        return offsets(self.plan, self.plan.outer, outer)

    def block(self, rows: Span, i: Index, count: int, cols: int) -> Block:  # noqa: ARG002
        """The register block of `count` of those rows, from i on."""
        return Block(count, cols, self.nano.lanes)

    def a_panel(self, block: CacheBlock, i: Index, count: int) -> MatrixRef:  # noqa: ARG002
        """`count` rows of A from i on, packed or where they lie."""
        return block.a_panels(i)

    def emit(self) -> None:
        """Emits the loops over cache blocks, and packs them."""
        plan, area = self.plan, self.area
        if plan.scratch.zeros:
            clear_zeros(plan, self.operands.arguments.local)
        for k, a, b in self.k_blocks():
            a_block = a.from_step(k.begin) if isinstance(a, WindowRef) else a.block(0, k.begin)
            all_rows = self.lhs_packing.panels(a_block, area.rows, k) if plan.mc >= plan.mt else None
            for columns in blocks(area.columns, plan.block_columns, "blocks of columns"):
                self.multiply_columns(BlockColumns(k, a, a_block, b, columns, all_rows))

    def multiply_columns(self, block: BlockColumns) -> None:
        """Emits the loop over blocks of rows, behind the packing of B's block, where the plan has the task do so."""
        b_panels = self.rhs_packing.panels(block.b, block.columns, block.k)
        for rows in blocks(self.area.rows, self.plan.mc, "blocks of rows (MC)"):
            self.multiply(block.rows(rows, self.lhs_packing, b_panels))

    def multiply(self, block: CacheBlock) -> None:
        """Emits the loops over panels, and microkernels with what goes on beside them."""
        plan, k = self.plan, block.k
        for j, cols in panels(block.columns, plan.nr, "panels of columns (NR)"):
            b_panel = block.b_panels(j)
            next_b = self.rhs_prefetch.next_panel(b_panel.matrix, block.b, k.begin, j)
            next_a = self.lhs_prefetch.next_block(block.a, block.rows.begin, k.begin)
            for i, rows, packing in self.row_panels(block, j):
                result = self.result(b_panel, k, i, j)
                hooks = [
                    *self.rhs_prefetch.hooks(next_b, i, j, cols),
                    *packing,
                    *self.lhs_prefetch.hooks(next_a, block.rows.begin, i, j),
                ]
                a_panel = self.a_panel(block, i, rows)
                product = PanelProduct(a_panel, b_panel.matrix, self.block(block.rows, i, rows, cols))
                with section("microkernel"):
                    self.kernel.micro.emit(product, k, result, hooks)

    def k_blocks(self) -> Iterator[tuple[KBlock, MatrixRef | WindowRef, MatrixRef | WindowRef]]:
        """Emits the loop over the k blocks of the split: each with A and B of its element of `plan.k_outer`."""
        plan = self.plan
        begin = mul(self.split, plan.blocks_per_split)
        end = minimum(add(begin, plan.blocks_per_split), plan.k_blocks)
        with section("k blocks (KC)"), for_range(begin, end) as number:
            outer, inner = divide(number.i, plan.inner_k_blocks)
            at = offsets(plan, plan.k_outer, outer)
            k0 = mul(inner, plan.kc)
            steps = minimum(plan.kc, subtract(plan.k.size, k0)) if plan.k.size % plan.kc else plan.kc
            first = equal(number.i, begin) if plan.blocks_per_split > 1 else True
            k = KBlock(k0, Depth(steps, plan.k.size), first, last=equal(number.i, plan.k_blocks - 1))
            here = tuple(add(*both) for both in zip(self.at, at, strict=True))
            b = self.operands.rhs(here) if isinstance(self.b, WindowRef) else self.b.advance(at[1])
            yield k, self.operands.lhs(here), b

    def row_panels(self, block: CacheBlock, j: Index) -> Iterator[tuple[Index, int, list[StepHook]]]:
        """Emits the loop over panels of rows, the first of which packs the next panel of B where packing overlaps."""
        plan, rows = self.plan, block.rows
        if plan.overlap_packing:
            first = replace(rows, end=minimum(add(rows.begin, plan.mr), rows.end))
            assert isinstance(block.b, MatrixRef)
            b = block.b.block(block.k.begin, 0)
            packing = self.rhs_packing.overlap_hooks(b, block.b_panels, add(j, plan.nr), block.columns.end)
            for i, count in panels(first, plan.mr, "first panel of rows"):
                yield i, count, packing
            rows = replace(rows, begin=first.end)
        for i, count in panels(rows, plan.mr, "panels of rows (MR)"):
            yield i, count, []

    def result(self, b_panel: RhsPanel, k: KBlock, i: Index, j: Index) -> Result:
        """Where the block of C at (i, j) goes."""
        plan, area = self.plan, self.area
        out = self.sums.block(i, j)
        partial = self.partial and self.partial.block(subtract(i, area.rows.begin), subtract(j, area.columns.begin))
        epilogue = self.kernel.epilogue([extra.block(i, j) for extra in self.extras]) if plan.split_k == 1 else None
        return Result(
            out=out,
            partial=partial or out,
            compensation=b_panel.compensation,
            compensated=self.is_compensated(k),
            epilogue=epilogue,
            scales=self.scales and self.scales.block(self.scale_group(k), j),
            padded=plan.has_partial,
            tiles=self.tiles,
        )

    def is_compensated(self, k: KBlock) -> Condition:
        """Whether a k block's accumulators begin with the compensation: of panels of all of K, the first one's do."""
        if self.plan.instruction.lhs_offset == 0:
            return False
        return k.first if self.plan.rhs == "per_round" else True

    def scale_group(self, k: KBlock) -> Index:
        """Which of its columns' scales a k block has."""
        scaling = self.plan.dot.scaling
        return divmod_(k.begin, scaling.group_size)[0] if scaling else 0


def microkernel(plan: Plan) -> Microkernel:
    """The microkernel that a plan chooses."""
    parameters = {
        "instruction": plan.instruction,
        "lhs_is_packed": plan.lhs != "unpacked",
        "rhs_is_packed": plan.reads_panels,
        "lhs_stationary": plan.lhs_stationary,
    }
    if plan.instruction.tiles:
        return TileMicrokernel(nano=TileNanokernel(**parameters), unroll=plan.unroll, terms=plan.terms)
    kind = DotProductMicrokernel if plan.inner_product else Microkernel
    chains = plan.accumulator_chains
    return kind(nano=Nanokernel(**parameters), unroll=plan.unroll, terms=plan.terms, accumulator_chains=chains)


def divide(number: Index, count: int) -> tuple[Index, Index]:
    """(number // count, number % count), where a count of 1 says that there is nothing to divide."""
    return divmod_(number, count) if count > 1 else (number, 0)
