"""The candidates for a product: every way to compute a block of C that is worth weighing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jax_nano.ir.dot import Axis, Dot, UnsupportedDot, extent
from jax_nano.ir.dtypes import BITS, INT4_PER_WORD, PACKED_INT4, WIDENS, bytes_of
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.cost.memory import FEW_ROWS, PACKED, InPlace
from jax_nano.schedule.cost.microkernel import extra_work
from jax_nano.schedule.plan import LINE_BYTES, Plan
from jax_nano.schedule.register_block import RegisterBlock, inner_block, register_blocks, tile_blocks

# Sums over more steps than this are made in parts, where C alone would leave threads idle.
SPLIT_STEPS = 2048
SPLIT_RESULTS = 4096
SPLITS = 32
READ_ONCE_ROWS = 8  # with so few rows, B is as good as read once: packing it would only add to that
PACKED_STEPS = 512  # steps of k in a block of a large packed B, at most: its rows then are long enough for prefetchers
# Times the bytes of A. On Zen 5, asking for A is worth 6 to 23 % where C has up to 4 times as many, and costs 5 to 13 %
# where it has 8 times as many or more.
FAR_LARGER = 6
ROW_PANELS = 8  # in a block of A that is packed, or asked for by pieces of its columns
PANEL_STEPS = (16, 128)  # of k, in a panel of a large B that is read in place, or of an A that lies by columns
# With so few rows, products wait for nothing but the lines of B. Short numbers come the fastest in the order in which
# they lie in memory: so threads share out the sum and not the columns, and read whole rows, a few at a time. On Zen 5
# that brings 40 GB/s of integers, where 16 pieces of rows side by side bring 30 to 34; f32 gains nothing.
STREAMED_BITS = 16  # of an element, at most
STREAMS = 2  # parts of the sum
ROWS_AT_ONCE = 4  # of B; of rows of words, which hold eight each, half as many
BYTES_AT_ONCE = 2 << 10  # at least: sums are loaded and stored again for as many
UNROLLED_DOTS = 16  # multiply-accumulates in an iteration of the inner loop, at least


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
    """Whether B lies as the instruction can have it: by strides, in panels of its own, or of rows that stand alone."""
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
    """Plans of a single task, one for each way to compute a block of C."""
    swapped = not dot.n and bool(dot.m) and not dot.prologue
    if dot.panels and (swapped or dot.algorithm):
        raise UnsupportedDot("panels hold numbers as they are, of a matrix of several columns")
    work = dot.swapped() if swapped else dot
    nothing = (0,) * len(work.extras)
    m = max(work.m, key=lambda axis: axis.size, default=Axis(size=1, extras=nothing))
    n = work.n[-1] if work.n else Axis(size=1, rhs=1, out=1, extras=nothing)
    k = max(work.k, key=lambda axis: axis.size, default=Axis(size=1, lhs=1, rhs=1, extras=nothing))
    if any(stride not in (0, 1) for stride in n.extras):
        raise UnsupportedDot("an array of the epilogue is neither contiguous along n nor the same for all of n")
    outer = work.b + tuple(a for a in work.m if a is not m) + tuple(a for a in work.n if a is not n)
    k_outer = tuple(a for a in work.k if a is not k)
    common = {"dot": work, "swapped": swapped, "m": m, "n": n, "k": k, "outer": outer, "k_outer": k_outer}

    for level, instruction in instructions_for(isa, work):
        plans = panel_plans if dot.panels else tile_plans if instruction.tiles else vector_plans
        yield from plans(machine, level, instruction, common | {"isa": level.name})


def vector_plans(machine: Machine, isa: Isa, instruction: DotInstruction, common: dict) -> Iterator[Plan]:
    """Plans of a single task by vectors.

    K is along the lanes where both operands are contiguous along it, or the other one is small: packing turns that.
    """
    work, m, n, k = (common[name] for name in ("dot", "m", "n", "k"))
    core = machine.cores[isa.name]
    packed = instruction.lhs_offset != 0 or work.terms > 1
    lhs_unpacked = work.terms == 1 and (instruction.vnni == 1 or k.lhs == 1) and not work.prologue
    rhs_unpacked = n.rhs == 1 and not packed
    streamed = lhs_unpacked and rhs_unpacked and streams(machine, work, m, n, k)
    packed_lhs = "rows" if k.lhs == 1 else "columns"
    for lhs in (packed_lhs,) if not lhs_unpacked else ("unpacked",) if streamed else ("unpacked", packed_lhs):
        once = rhs_unpacked and m.size <= READ_ONCE_ROWS
        for rhs in ("unpacked",) if once else ("unpacked", "per_task") if rhs_unpacked else ("per_task",):
            extra = extra_work(machine, core, work, m, instruction, lhs == "unpacked", rhs == "unpacked")
            large = bytes_of(work.rhs, k.size * n.size) > machine.l2.bytes
            far = rhs == "unpacked" and large
            in_place = InPlace.of(work, n, k, far) if rhs == "unpacked" else PACKED
            prefetch_lhs = (lhs == "unpacked" or k.lhs != 1) and comes_from_afar(machine, common)
            steps = depths(machine, instruction, rhs, work, m, n, k)
            if prefetch_lhs and k.lhs != 1:
                steps = tuple(sorted({min(k.size, count) for count in PANEL_STEPS}))
            for depth in (steps_at_once(work, n),) if streamed else steps:
                stride = bytes_of(work.lhs, m.lhs) if lhs == "unpacked" else 0
                choices = register_blocks(isa, machine, instruction, m.size, n.size, depth, extra, in_place, stride)
                for block in choices if far else choices[:1]:
                    yield blocked(
                        machine,
                        block,
                        depth,
                        instruction=instruction,
                        lhs=lhs,
                        rhs=rhs,
                        prefetch_rhs=far,
                        prefetch_lhs=prefetch_lhs,
                        streamed=streamed,
                        lhs_stationary=block.lhs_stationary,
                        **common,
                    )
    in_rows = work.scaling is not None or work.rhs in PACKED_INT4
    along_k, few = (k.lhs == 1, k.rhs == 1), (m.size <= instruction.shape[1], n.size <= instruction.shape[1])
    one_turned = (along_k[0] and few[1]) or (along_k[1] and few[0])
    if not packed and not in_rows and (all(along_k) or one_turned):
        block = inner_block(isa, machine, instruction, work, m, n, k)
        lhs, rhs = "unpacked" if along_k[0] and not work.prologue else "rows", "unpacked" if along_k[1] else "per_task"
        yield blocked(machine, block, k.size, instruction=instruction, inner_product=True, lhs=lhs, rhs=rhs, **common)


def tile_plans(machine: Machine, isa: Isa, instruction: DotInstruction, common: dict) -> Iterator[Plan]:
    """Plans of a single task by tiles. B is packed; A is where tiles would reach beyond it, or not find whole rows.

    The sum is in one part, or in parts short enough for a panel of B to stay in the nearest cache. Sums of groups that
    are scaled are made of whole tiles. Panels of B are packed first, or beside products where rows are contiguous.
    """
    work, m, n, k = (common[name] for name in ("dot", "m", "n", "k"))
    instruction = instruction.fitted(m.size, min(k.size, work.scaling.group_size) if work.scaling else k.size)
    rows, _, steps = instruction.shape
    in_place = k.lhs == 1 and work.lhs == instruction.lhs and m.size % rows == 0 and k.size % steps == 0
    in_place &= not work.prologue
    whole_elements = BITS[work.rhs] >= 8 and not work.scaling
    beside = n.rhs == 1 and whole_elements and k.size % steps == 0
    for lhs in ("unpacked", "rows") if in_place else ("rows",):
        for block in tile_blocks(isa, instruction, m.size, n.size):
            near = machine.l1.bytes // 2 // bytes_of(instruction.rhs, work.bf16_splits[1] * block.cols)
            for depth in {k.size, min(k.size, near)}:
                plan = blocked(
                    machine,
                    block,
                    depth,
                    instruction=instruction,
                    lhs=lhs,
                    rhs="per_task",
                    lhs_stationary=block.lhs_stationary,
                    **common,
                )
                yield plan
                if beside and block.cols < n.size:
                    yield replace(plan, overlap_packing=True, mc=plan.mt)


def panel_plans(machine: Machine, isa: Isa, instruction: DotInstruction, common: dict) -> Iterator[Plan]:
    """Plans of a single task where B lies in panels: their width is a multiple of the register block's."""
    work, m, k = (common[name] for name in ("dot", "m", "k"))
    core = machine.cores[isa.name]
    width, as_it_is = work.panels.width, instruction.rhs == work.rhs
    packed_lhs = "rows" if k.lhs == 1 or instruction.tiles else "columns"
    if instruction.tiles:
        instruction = instruction.fitted(m.size, k.size)
        rows, _, steps = instruction.shape
        lhs_unpacked = k.lhs == 1 and work.lhs == instruction.lhs and m.size % rows == 0 and k.size % steps == 0
    else:
        lhs_unpacked = instruction.vnni == 1 or k.lhs == 1
    lhs_unpacked &= not work.prologue
    prefetch_rows = machine.ahead_bytes // bytes_of(work.rhs, width)
    for lhs in ("unpacked", packed_lhs) if lhs_unpacked else (packed_lhs,):
        if instruction.tiles:
            choices = tile_blocks(isa, instruction, m.size, width)
        else:
            extra = extra_work(machine, core, work, m, instruction, lhs == "unpacked", not as_it_is)
            choices = [
                register_blocks(isa, machine, instruction, m.size, cols, k.size, extra)[0]
                for cols in range(instruction.shape[1], width + 1, instruction.shape[1])
            ]
        for block in dict.fromkeys(block for block in choices if width % block.cols == 0):
            yield blocked(
                machine,
                block,
                k.size,
                instruction=instruction,
                lhs=lhs,
                rhs="panels",
                prefetch_rows=prefetch_rows,
                lhs_stationary=block.lhs_stationary,
                **common,
            )


def comes_from_afar(machine: Machine, common: dict) -> bool:
    """Whether A comes by whole lines from beyond a core's own caches, and all of B stays there meanwhile.

    Where C is far larger, products wait for that.
    """
    work, m, n, k = (common[name] for name in ("dot", "m", "n", "k"))
    axes = (m, k, *common["outer"], *common["k_outer"])
    size = bytes_of(work.lhs, math.prod(axis.size for axis in axes if axis.lhs))
    large = size > max(machine.l2.bytes, bytes_of(work.out, math.prod(work.sizes[:3])) // FAR_LARGER)
    run, steps, cache = (k, k.size, machine.l2) if k.lhs == 1 else (m, PANEL_STEPS[0], machine.l1)
    near = 2 * bytes_of(work.rhs, steps * n.size) <= cache.bytes
    return large and near and run.lhs == 1 and bytes_of(work.lhs, run.size) >= LINE_BYTES


def depths(
    machine: Machine, instruction: DotInstruction, rhs: str, dot: Dot, m: Axis, n: Axis, k: Axis
) -> tuple[int, ...]:
    """Steps of k in a block worth weighing: all of them, unless B is large.

    A large B is read in place by panels that stay in the nearest caches while rows of A go through them.
    """
    inner = machine.l2.bytes
    if bytes_of(dot.rhs, k.size * n.size) <= inner:
        return (k.size,)
    if rhs == "unpacked":
        steps = max(instruction.shape[2], INT4_PER_WORD if dot.rhs in PACKED_INT4 else 1)  # in a row of memory
        worth = PANEL_STEPS[:1] if m.size <= FEW_ROWS else PANEL_STEPS
        return tuple(sorted({min(k.size, steps * count) for count in worth}))
    parts = -(-k.size // PACKED_STEPS)
    return (k.size, -(-k.size // parts)) if parts > 1 else (k.size,)


def streams(machine: Machine, dot: Dot, m: Axis, n: Axis, k: Axis) -> bool:
    """Whether B is best streamed where it is read in place: too large to stay near a core, for sums that do so."""
    large = 2 * bytes_of(dot.rhs, k.size * n.size) > machine.l2.bytes
    few = m.size <= FEW_ROWS and 2 * bytes_of(dot.acc, m.size * n.size) <= machine.l1.bytes
    alone = math.prod(dot.sizes) == m.size * n.size * k.size
    return large and few and alone and BITS[dot.rhs] <= STREAMED_BITS


def steps_at_once(dot: Dot, n: Axis) -> int:
    """Steps of k in a block of a B that is streamed."""
    steps = ROWS_AT_ONCE // 2 * INT4_PER_WORD if dot.rhs in PACKED_INT4 else ROWS_AT_ONCE
    return steps * -(-BYTES_AT_ONCE // bytes_of(dot.rhs, steps * n.size))


def blocked(machine: Machine, block: RegisterBlock, depth: int, **plan) -> Plan:
    """A plan of one task around a register block: the sum in as few parts as caches and scratch allow."""
    m, n, k, instruction = plan["m"], plan["n"], plan["k"], plan["instruction"]
    along_k = plan.get("inner_product", False)
    registers = block.cols if along_k else -(-block.cols // instruction.shape[1])
    step = instruction.shape[2] * (instruction.shape[1] if along_k else 1)
    dots = UNROLLED_DOTS if instruction.tiles else block.rows * registers
    converted = registers * (plan["dot"].rhs != instruction.rhs and plan.get("rhs", "unpacked") == "unpacked")
    free = machine.isa(plan["isa"]).register_count - dots  # for what several steps convert side by side
    unroll = max(1, min(4, UNROLLED_DOTS // dots, k.size // step, free // (converted + 1)))
    if panels := plan["dot"].panels:  # an iteration takes whole groups of the rows that stand together
        group = max(1, panels.vnni // instruction.vnni)
        unroll = max(1, unroll // group) * group
    if plan["dot"].rhs in PACKED_INT4 and plan.get("rhs") == "unpacked":  # an iteration goes through whole words
        unroll = max(1, INT4_PER_WORD // step)
    if panels and not instruction.tiles:  # they are narrow: with few rows, one sum would wait for itself
        per_cycle, latency = machine.cores[plan["isa"]].rate(instruction.name)
        plan["accumulator_chains"] = max(1, min(unroll, int(per_cycle * latency) // dots))
    cols = -(-n.size // block.cols) * block.cols
    result = Plan(mr=block.rows, nr=block.cols, unroll=unroll, mc=m.size, kc=k.size, nc=cols, mt=m.size, nt=cols,
                  outer_per_task=extent(plan["outer"]), **plan)  # fmt: skip
    if result.lhs != "unpacked":
        mc = min(m.size, -(-ROW_PANELS * block.rows // result.lhs_panel) * result.lhs_panel)
        result = replace(result, mc=mc, mt=-(-m.size // mc) * mc)
    multiple = result.k_multiple
    most = k_block(machine, block, instruction, k.size, multiple, result.dot.bf16_splits)
    kc = min(k.size, -(-depth // multiple) * multiple, most)
    if scaling := result.dot.scaling:
        kc = in_group(kc, multiple, scaling.group_size, k.size)
    result = replace(result, kc=kc)
    if result.lhs == "unpacked" and result.rows_in_blocks:
        mc = block.rows * (1 if result.lhs_by_rows else ROW_PANELS)
        result = replace(result, mc=mc, mt=-(-m.size // mc) * mc)
    return split(result)


def in_group(kc: int, step: int, group: int, k: int) -> int:
    """The longest block of k, up to kc, that lies in one group everywhere.

    Raises:
      UnsupportedDot: groups do not consist of whole steps.
    """
    if group >= k:
        return kc
    if group % step:
        raise UnsupportedDot(f"groups of {group} rows are not multiples of {step} steps")
    return max(size for size in range(step, group + 1, step) if group % size == 0 and size <= max(kc, step))


def k_block(
    machine: Machine, block: RegisterBlock, instruction: DotInstruction, k: int, step: int,
    components: tuple[int, int],
) -> int:  # fmt: skip
    """Steps of k in a block: all of them while the panels of a microkernel stay in the second cache together."""
    l2 = machine.l2.bytes
    lhs, rhs = components
    per_step = bytes_of(instruction.lhs, lhs * block.rows) + bytes_of(instruction.rhs, rhs * block.cols)
    most = max(step, l2 // per_step)
    parts = -(-k // most)
    return k if parts == 1 else -(-k // parts // step) * step


def split(plan: Plan) -> Plan:
    """The plan with its sum in parts, where that is long and C alone would leave threads idle, or B is streamed."""
    long = plan.k.size >= 2 * SPLIT_STEPS and plan.m.size * plan.n.size * extent(plan.outer) < SPLIT_RESULTS
    if plan.k_outer or not (long or plan.streamed):
        return plan
    parts = min(SPLITS, plan.k.size // SPLIT_STEPS) if long else STREAMS
    kc = min(plan.kc, -(-plan.k.size // parts // plan.k_multiple) * plan.k_multiple)
    blocks = -(-plan.k.size // kc)
    per_split = -(-blocks // parts)
    return replace(plan, kc=kc, split_k=-(-blocks // per_split))
