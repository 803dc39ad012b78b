"""The candidates for a product: every way to compute a block of C that is worth weighing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jax_nano.ir.dot import Dot, UnsupportedDot, extent
from jax_nano.ir.dtypes import BITS, INT4_PER_WORD, PACKED_INT4, WIDENS, bytes_of
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.blocks import STREAMS as STREAMS
from jax_nano.schedule.blocks import Form, in_row_blocks, plan_around
from jax_nano.schedule.channels import channel_plans
from jax_nano.schedule.cost.memory import FEW_ROWS, PACKED, UnpackedRhs, conflict_miss_cycles, result_leaves
from jax_nano.schedule.cost.microkernel import Unit, extra_work
from jax_nano.schedule.loop_nest import LoopNest, window_runs
from jax_nano.schedule.places import place_plans
from jax_nano.schedule.plan import LhsMode, Plan, RhsMode
from jax_nano.schedule.register_block import RegisterBlock, inner_block, register_blocks, tile_blocks
from jax_nano.schedule.scratch import LINE_BYTES

# Of a C that goes to memory, the lines of a row that a register block writes, and its rows: blocks follow one another
# along rows. On Zen 5, 4 x 4 lines take 0.3 to 0.8 of the time of 2 x 13, and 0.8 to 1 of that of 6 x 4; these take 0.9
# of theirs where sums are long enough for loads of B to count. Of 20 steps and more, products hide the writes.
FAR_LINES = 4
FAR_ROWS, FAR_ROWS_OF_LONG_SUMS, LONG_SUM = 4, 6, 10
FAR_STEPS = 16
READ_ONCE_ROWS = 8  # with so few rows, B is as good as read once: packing it would only add to that
PACKED_STEPS = 512  # of k in a block of a large packed B, at most: its rows then are long enough for prefetchers
# Times the bytes of A. On Zen 5, prefetching A is worth 6 to 23 % where C has up to 4 times as many, and costs
# 5 to 13 % where it has 8 times as many or more.
FAR_LARGER = 6
PANEL_STEPS = (16, 128)  # of k, in a panel of a large unpacked B, or of an A that lies by columns
# With so few rows, products wait for nothing but the lines of B. Short numbers come the fastest in the order in which
# they lie in memory: so threads share out the sum and not the columns, and read whole rows, a few at a time. On Zen 5
# that brings 40 GB/s of integers, where 16 pieces of rows side by side bring 30 to 34; f32 gains nothing.
STREAMED_BITS = 16  # of an element, at most
ROWS_AT_ONCE = 4  # of B; of rows of words, which hold eight each, half as many
BYTES_AT_ONCE = 2 << 10  # at least: sums are loaded and stored again for as many


def instructions_for(isa: Isa, dot: Dot) -> list[tuple[Isa, DotInstruction]]:
    """The instructions that can serve the types of a product, of the instruction set and of the vectors beside it.

    Raises:
      UnsupportedDot: it has none.
    """
    lhs, rhs = dot.factors

    def serves(i: DotInstruction) -> bool:
        return i.lhs in WIDENS[lhs] and i.rhs in WIDENS[rhs] and i.acc == dot.acc and reads(i, dot)

    found = [(level, i) for level in (isa, isa.vectors) if level for i in level.dots if serves(i)]
    if not found:
        text = f"{isa.name} has no instruction that multiplies {lhs} by {rhs} into {dot.acc}"
        if dot.panels:
            text += f" where B lies in panels of {dot.panels.width} columns, rows by groups of {dot.panels.vnni}"
        raise UnsupportedDot(text)
    return found


def reads(instruction: DotInstruction, dot: Dot) -> bool:
    """B lies as the instruction can have it: by strides, in panels of its own, or of rows that stand alone."""
    if not dot.panels:
        return True
    if dot.panels.width % instruction.shape[1] or instruction.lhs_offset:
        return False
    if not instruction.tiles and (dot.panels.vnni == 1 or (instruction.vnni == 1 and dot.rhs == "bf16")):
        return True
    k = extent(dot.k)
    steps = instruction.fitted(1, k).shape[2] if instruction.tiles else instruction.shape[2]
    whole = dot.panels.rows >= -(-k // steps) * steps
    own = instruction.rhs == dot.rhs and instruction.vnni == dot.panels.vnni
    return own and whole


def kernel_plans(dot: Dot, machine: Machine, isa: Isa) -> Iterator[Plan]:
    """Plans of a single task, one for each way to compute a block of C.

    Raises:
      UnsupportedDot: the target has no instruction for these types, or none that reads B as it lies.
    """
    nest = LoopNest.of(dot)
    for level, instruction in instructions_for(isa, nest.dot):
        unit = Unit(machine, level, instruction)
        if dot.panels:
            yield from packed_weight_plans(unit, nest)
        elif instruction.tiles:
            yield from tile_plans(unit, nest)
        else:
            yield from channel_plans(unit, dot)
            yield from place_plans(unit, dot)
            yield from vector_plans(unit, nest)
            yield from inner_product_plans(unit, nest)


def vector_plans(unit: Unit, nest: LoopNest) -> Iterator[Plan]:
    """Plans by vectors, with columns of C in the lanes: for each form of the operands the best register blocks.

    A large unpacked B is also read by blocks of another width: it decides how long the runs of memory are.
    """
    found: dict[tuple, list[RegisterBlock]] = {}
    for form in vector_forms(unit, nest):
        lhs_unpacked, rhs_unpacked = form.lhs == "unpacked", form.rhs == "unpacked"
        extra = extra_work(unit, nest, lhs_unpacked=lhs_unpacked, rhs_unpacked=rhs_unpacked)
        rhs = UnpackedRhs.of(nest, prefetched=form.prefetch_rhs) if rhs_unpacked else PACKED
        stride = conflicting_stride(unit, nest) if lhs_unpacked else 0
        for depth in depths(unit, nest, form):
            key = extra, rhs, stride, depth
            if key not in found:
                found[key] = register_blocks(unit.having(extra), (nest.m.size, nest.n.size, depth), rhs, stride)
            blocks = found[key]
            for block in blocks if form.prefetch_rhs else blocks[:1]:
                yield plan_around(unit, nest, form, block, depth)
            if can_go_row_by_row(unit, nest, form):
                yield row_by_row_plan(unit.having(extra), nest, form, rhs, depth)


def row_by_row_plan(unit: Unit, nest: LoopNest, form: Form, rhs: UnpackedRhs, depth: int) -> Plan:
    """The plan whose register blocks follow one another along the rows of C."""
    writer = unit.having(unit.extra.row_by_row(unit.machine.fitted))
    sizes, stride = (nest.m.size, nest.n.size, depth), conflicting_stride(unit, nest)
    rows = FAR_ROWS if unit.steps(depth) < LONG_SUM else FAR_ROWS_OF_LONG_SUMS
    block, *_ = register_blocks(writer, sizes, rhs, stride, (rows, far_registers(unit, nest.dot)))
    return in_row_blocks(plan_around(unit, nest, form, block, depth), block.rows)


def far_registers(unit: Unit, dot: Dot) -> int:
    """Registers of columns in a block of a C that goes to memory."""
    return max(1, FAR_LINES * LINE_BYTES // bytes_of(dot.out, unit.lanes))


def can_go_row_by_row(unit: Unit, nest: LoopNest, form: Form) -> bool:
    """C leaves the caches, sums are short, and B, all of which few rows of A read, is in L1, or packed and in L2."""
    dot, m, n, k = nest.dot, nest.m, nest.n, nest.k
    cache = unit.machine.l1 if form.rhs == "unpacked" else unit.machine.l2
    near = bytes_of(dot.rhs, k.size * n.size) <= cache.bytes
    several = m.size > 1 and n.size > far_registers(unit, dot) * unit.lanes and unit.steps(k.size) <= FAR_STEPS
    plain = form.lhs == "unpacked" and not form.prefetch_lhs and not form.streamed
    return plain and several and near and result_leaves(dot, unit.machine)


def conflicting_stride(unit: Unit, nest: LoopNest) -> int:
    """Bytes between rows of an unpacked A; 0 where those of no register block push each other out of L1."""
    stride, rows = bytes_of(nest.dot.lhs, nest.m.lhs), min(nest.m.size, unit.isa.register_count)
    return stride if conflict_miss_cycles(unit.machine, rows, stride) else 0


def vector_forms(unit: Unit, nest: LoopNest) -> Iterator[Form]:
    """The forms of operands worth weighing for vectors: A unpacked and packed, B unpacked and packed."""
    machine, dot, k = unit.machine, nest.dot, nest.k
    large = bytes_of(dot.rhs, k.size * nest.n.size) > machine.l2.bytes
    streamed = lhs_can_stay(unit, nest) and rhs_can_stay(unit, nest) and streams(machine, nest)
    far = comes_from_afar(machine, nest)
    for lhs in lhs_modes(unit, nest, streamed=streamed):
        for rhs in rhs_modes(unit, nest):
            yield Form(
                lhs=lhs,
                rhs=rhs,
                prefetch_lhs=(lhs == "unpacked" or k.lhs != 1) and far and not dot.window,
                prefetch_rhs=rhs == "unpacked" and large,
                streamed=streamed,
            )


def lhs_can_stay(unit: Unit, nest: LoopNest) -> bool:
    """Vectors can read A unpacked where there is nothing to do to it, and groups of steps are contiguous."""
    vnni, dot = unit.instruction.vnni, nest.dot
    if dot.terms > 1 or dot.prologue:
        return False
    if dot.has_window("lhs"):
        runs = window_runs(dot)
        group = min(dot.scaling.group_size, nest.k.size) if dot.scaling else nest.k.size
        return runs.shortest > 0 and runs.shortest % vnni == 0 and group % runs.longest == 0
    return vnni == 1 or nest.k.lhs == 1


def must_pack_lhs(nest: LoopNest) -> bool:
    """Only packing does a prologue's work, and puts windows where tiles and lanes of a sum read them."""
    return nest.dot.prologue is not None or nest.dot.has_window("lhs")


def rhs_can_stay(unit: Unit, nest: LoopNest) -> bool:
    """Vectors can read B unpacked where its rows are contiguous, and neither compensated nor split."""
    return nest.n.rhs == 1 and not must_pack(unit, nest) and not nest.dot.has_window("rhs")


def must_pack(unit: Unit, nest: LoopNest) -> bool:
    """Only packing makes what the instruction takes: compensation or bf16 splits."""
    return unit.instruction.lhs_offset != 0 or nest.dot.terms > 1


def lhs_modes(unit: Unit, nest: LoopNest, *, streamed: bool) -> tuple[LhsMode, ...]:
    """How vectors may find A."""
    packed = packed_lhs_mode(nest)
    if not lhs_can_stay(unit, nest):
        return (packed,)
    return ("unpacked",) if streamed else ("unpacked", packed)


def packed_lhs_mode(nest: LoopNest) -> LhsMode:
    """By rows, if those are contiguous, else by columns; windows whose columns are not, either, have short runs."""
    by_rows = nest.k.lhs == 1 or (nest.dot.has_window("lhs") and nest.m.lhs != 1)
    return "rows" if by_rows else "columns"


def rhs_modes(unit: Unit, nest: LoopNest) -> tuple[RhsMode, ...]:
    """How vectors may find B."""
    if not rhs_can_stay(unit, nest):
        return ("per_task",)
    return ("unpacked",) if nest.m.size <= READ_ONCE_ROWS else ("unpacked", "per_task")


def inner_product_plans(unit: Unit, nest: LoopNest) -> Iterator[Plan]:
    """The plans by vectors with K in the lanes, for each way to find A.

    They are weighed where both operands are contiguous along it, or the other one is small: packing turns that.
    """
    dot, lanes = nest.dot, unit.lanes
    if must_pack(unit, nest) or dot.scaling is not None or dot.rhs in PACKED_INT4 or dot.has_window("rhs"):
        return
    lhs_along_k, rhs_along_k = nest.k.lhs == 1, nest.k.rhs == 1
    few_rows, few_columns = nest.m.size <= lanes, nest.n.size <= lanes
    both = lhs_along_k and rhs_along_k
    if not (both or (lhs_along_k and few_columns) or (rhs_along_k and few_rows)):
        return
    modes: tuple[LhsMode, ...] = ("unpacked",) if lhs_along_k and lhs_can_stay(unit, nest) else ("rows",)
    if dot.has_window("lhs") and lhs_along_k:
        modes = (*modes, "rows") if modes != ("rows",) else modes
    for lhs in modes:
        form = Form(lhs=lhs, rhs="unpacked" if rhs_along_k else "per_task", inner_product=True)
        yield plan_around(unit, nest, form, inner_block(unit, nest), nest.k.size)


def tile_plans(unit: Unit, nest: LoopNest) -> Iterator[Plan]:
    """Plans by tiles. B is packed; A is where tiles would reach beyond it, or not find whole rows.

    The sum is in one part, or in parts short enough for a panel of B to stay in L1. Sums of groups that are scaled are
    made of whole tiles. Panels of B are packed first, or beside products where rows are contiguous.
    """
    dot, k = nest.dot, nest.k
    group = min(k.size, dot.scaling.group_size) if dot.scaling else k.size
    unit = replace(unit, instruction=unit.instruction.fitted(nest.m.size, group))
    instruction = unit.instruction
    steps = instruction.shape[2]
    whole_elements = BITS[dot.rhs] >= 8 and not dot.scaling
    can_overlap = nest.n.rhs == 1 and not dot.has_window("rhs") and whole_elements and k.size % steps == 0
    modes: tuple[LhsMode, ...] = ("unpacked", "rows") if tiles_can_read(unit, nest) else ("rows",)
    for lhs in modes:
        form = Form(lhs=lhs, rhs="per_task")
        for block in tile_blocks(unit.isa, instruction, nest.m.size, nest.n.size):
            in_l1 = unit.machine.l1.bytes // 2 // bytes_of(instruction.rhs, dot.bf16_splits[1] * block.cols)
            for depth in {k.size, min(k.size, in_l1)}:
                plan = plan_around(unit, nest, form, block, depth)
                yield plan
                if can_overlap and block.cols < nest.n.size:
                    yield plan.replace(overlap_packing=True, mc=plan.mt)


def tiles_can_read(unit: Unit, nest: LoopNest) -> bool:
    """Tiles can read A unpacked where there is nothing to do to it, and it is cut evenly into their rows."""
    rows, _, steps = unit.instruction.shape
    whole = nest.m.size % rows == 0 and nest.k.size % steps == 0
    return nest.k.lhs == 1 and nest.dot.lhs == unit.instruction.lhs and whole and not must_pack_lhs(nest)


def packed_weight_plans(unit: Unit, nest: LoopNest) -> Iterator[Plan]:
    """Plans where B lies in panels: their width is a multiple of the register block's."""
    dot, k = nest.dot, nest.k
    tiles = unit.instruction.tiles
    if tiles:
        unit = replace(unit, instruction=unit.instruction.fitted(nest.m.size, k.size))
        can_stay = tiles_can_read(unit, nest)
    else:
        can_stay = lhs_can_stay(unit, nest)
    packed: LhsMode = "rows" if tiles else packed_lhs_mode(nest)
    modes: tuple[LhsMode, ...] = ("unpacked", packed) if can_stay else (packed,)
    assert dot.panels
    prefetch_rows = unit.machine.fitted.prefetch_bytes // bytes_of(dot.rhs, dot.panels.width)
    for lhs in modes:
        form = Form(lhs=lhs, rhs="panels", prefetch_rows=prefetch_rows)
        for block in blocks_for_panels(unit, nest, lhs):
            yield plan_around(unit, nest, form, block, k.size)


def blocks_for_panels(unit: Unit, nest: LoopNest, lhs: LhsMode) -> list[RegisterBlock]:
    """Register blocks whose columns divide the width of B's panels, each once."""
    assert nest.dot.panels
    width, instruction = nest.dot.panels.width, unit.instruction
    if instruction.tiles:
        blocks = tile_blocks(unit.isa, instruction, nest.m.size, width)
    else:
        converted = instruction.rhs != nest.dot.rhs
        unit = unit.having(extra_work(unit, nest, lhs_unpacked=lhs == "unpacked", rhs_unpacked=converted))
        widths = range(unit.lanes, width + 1, unit.lanes)
        blocks = [register_blocks(unit, (nest.m.size, cols, nest.k.size))[0] for cols in widths]
    return list(dict.fromkeys(block for block in blocks if width % block.cols == 0))


def comes_from_afar(machine: Machine, nest: LoopNest) -> bool:
    """A comes by whole lines from beyond a core's own caches, and all of B stays there meanwhile.

    Where C is far larger, products wait for that.
    """
    dot, m, n, k = nest.dot, nest.m, nest.n, nest.k
    axes = (m, k, *nest.outer, *nest.k_outer)
    size = bytes_of(dot.lhs, math.prod(axis.size for axis in axes if axis.lhs))
    large = size > max(machine.l2.bytes, bytes_of(dot.out, math.prod(dot.sizes[:3])) // FAR_LARGER)
    run, steps, cache = (k, k.size, machine.l2) if k.lhs == 1 else (m, PANEL_STEPS[0], machine.l1)
    stays = 2 * bytes_of(dot.rhs, steps * n.size) <= cache.bytes
    return large and stays and run.lhs == 1 and bytes_of(dot.lhs, run.size) >= LINE_BYTES


def depths(unit: Unit, nest: LoopNest, form: Form) -> tuple[int, ...]:
    """Steps of k in a block worth weighing: all of them, unless B is large or streamed, or A comes by columns.

    A large unpacked B is read by panels that stay in L1 or L2 while rows of A go through them.
    """
    dot, k = nest.dot, nest.k.size
    if form.streamed:
        return (steps_at_once(nest),)
    if form.prefetch_lhs and nest.k.lhs != 1:
        return tuple(sorted({min(k, count) for count in PANEL_STEPS}))
    if bytes_of(dot.rhs, k * nest.n.size) <= unit.machine.l2.bytes:
        return (k,)
    if form.rhs == "unpacked":
        steps = max(unit.instruction.shape[2], INT4_PER_WORD if dot.rhs in PACKED_INT4 else 1)  # in a row of memory
        worth = PANEL_STEPS[:1] if nest.m.size <= FEW_ROWS else PANEL_STEPS
        return tuple(sorted({min(k, steps * count) for count in worth}))
    parts = -(-k // PACKED_STEPS)
    return (k, -(-k // parts)) if parts > 1 else (k,)


def streams(machine: Machine, nest: LoopNest) -> bool:
    """An unpacked B is best streamed where it is too large to stay near a core, for sums that do so."""
    dot, m, n, k = nest.dot, nest.m, nest.n, nest.k
    large = 2 * bytes_of(dot.rhs, k.size * n.size) > machine.l2.bytes
    few = m.size <= FEW_ROWS and 2 * bytes_of(dot.acc, m.size * n.size) <= machine.l1.bytes
    return large and few and nest.is_one_matrix and BITS[dot.rhs] <= STREAMED_BITS


def steps_at_once(nest: LoopNest) -> int:
    """Steps of k in a block of a B that is streamed."""
    rhs = nest.dot.rhs
    steps = ROWS_AT_ONCE // 2 * INT4_PER_WORD if rhs in PACKED_INT4 else ROWS_AT_ONCE
    return steps * -(-BYTES_AT_ONCE // bytes_of(rhs, steps * nest.n.size))
