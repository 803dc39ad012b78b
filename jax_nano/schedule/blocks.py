"""A register block -> a plan of a single task around it: unrolling, blocks of rows, blocks of the sum."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jax_nano.ir.dot import UnsupportedDot, extent
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4, bytes_of
from jax_nano.schedule.cost.microkernel import Unit
from jax_nano.schedule.loop_nest import LoopNest
from jax_nano.schedule.plan import LhsMode, Plan, RhsMode
from jax_nano.schedule.register_block import ROW_PANELS, RegisterBlock

# Sums over more steps than this are made in parts, where C alone would leave threads idle.
SPLIT_STEPS = 2048
SPLIT_RESULTS = 4096
SPLITS = 32
STREAMS = 2  # parts of the sum where B is streamed
UNROLLED_DOTS = 16  # multiply-accumulates in an iteration of the inner loop, at least


@dataclass(frozen=True, kw_only=True)
class Form:
    """How microkernels find the operands: the fields of a plan that do not follow from its blocks."""

    lhs: LhsMode
    rhs: RhsMode
    inner_product: bool = False
    prefetch_lhs: bool = False
    prefetch_rhs: bool = False
    streamed: bool = False
    prefetch_rows: int = 0


def plan_around(unit: Unit, nest: LoopNest, form: Form, block: RegisterBlock, depth: int) -> Plan:
    """A plan of one task around a register block, with blocks of the sum of at most `depth` steps, or what caches hold.

    Raises:
      UnsupportedDot: groups that are scaled do not consist of whole steps.
    """
    m, n, k = nest.m, nest.n, nest.k
    unroll = iterations_at_once(unit, nest, form, block)
    cols = -(-n.size // block.cols) * block.cols
    loops = {field.name: getattr(nest, field.name) for field in fields(nest)}
    plan = Plan(
        **loops, **vars(form), isa=unit.isa.name, instruction=unit.instruction, outer_per_task=extent(nest.outer),
        mr=block.rows, nr=block.cols, lhs_stationary=block.lhs_stationary, unroll=unroll,
        accumulator_chains=accumulator_chains(unit, nest, block, unroll),
        mc=m.size, kc=k.size, nc=cols, mt=m.size, nt=cols,
    )  # fmt: skip
    if plan.lhs != "unpacked":
        plan = in_row_blocks(plan, min(m.size, -(-ROW_PANELS * block.rows // plan.lhs_panel) * plan.lhs_panel))
    plan = plan.replace(kc=sum_block(unit, plan, depth))
    if plan.lhs == "unpacked" and plan.rows_in_blocks:
        once = plan.lhs_by_rows and not plan.window_runs.longest
        plan = in_row_blocks(plan, block.rows * (1 if once else ROW_PANELS))
    return split(plan)


def in_row_blocks(plan: Plan, mc: int) -> Plan:
    """The plan whose tasks go through A by blocks of so many rows."""
    return plan.replace(mc=mc, mt=-(-plan.m.size // mc) * mc)


def iterations_at_once(unit: Unit, nest: LoopNest, form: Form, block: RegisterBlock) -> int:
    """How many times the loop over k is unrolled: for enough multiply-accumulates, and within registers and k.

    An iteration takes whole groups of the rows that panels interleave, and goes through whole words of packed int4.
    """
    dot, instruction = nest.dot, unit.instruction
    step = instruction.shape[2] * (unit.lanes if form.inner_product else 1)
    if dot.rhs in PACKED_INT4 and form.rhs == "unpacked":
        return max(1, INT4_PER_WORD // step)
    registers = block.cols if form.inner_product else -(-block.cols // unit.lanes)
    dots = UNROLLED_DOTS if instruction.tiles else block.rows * registers
    converted = registers * (dot.rhs != instruction.rhs and form.rhs == "unpacked")
    free = unit.isa.register_count - dots  # for what several steps convert side by side
    unroll = max(1, min(4, UNROLLED_DOTS // dots, nest.k.size // step, free // (converted + 1)))
    if dot.panels:
        group = max(1, dot.panels.vnni // instruction.vnni)
        unroll = max(1, unroll // group) * group
    return unroll


def accumulator_chains(unit: Unit, nest: LoopNest, block: RegisterBlock, unroll: int) -> int:
    """Sums side by side for an element of C: panels are narrow, so with few rows one sum would wait for itself."""
    if not nest.dot.panels or unit.instruction.tiles:
        return 1
    per_cycle, latency = unit.core.rate(unit.instruction.name)
    dots = block.rows * -(-block.cols // unit.lanes)
    return max(1, min(unroll, int(per_cycle * latency) // dots))


def sum_block(unit: Unit, plan: Plan, depth: int) -> int:
    """Steps of k in a block of the sum: up to `depth`, and while a microkernel's panels stay in L2 together.

    Raises:
      UnsupportedDot: groups that are scaled do not consist of whole steps.
    """
    multiple, k = plan.k_multiple, plan.k.size
    lhs, rhs = plan.dot.bf16_splits
    per_step = bytes_of(plan.instruction.lhs, lhs * plan.mr) + bytes_of(plan.instruction.rhs, rhs * plan.nr)
    parts = -(-k // max(multiple, unit.machine.l2.bytes // per_step))
    most = k if parts == 1 else -(-k // parts // multiple) * multiple
    kc = min(k, -(-depth // multiple) * multiple, most)
    return in_group(kc, multiple, plan.dot.scaling.group_size, k) if plan.dot.scaling else kc


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


def split(plan: Plan) -> Plan:
    """The plan with its sum in parts, where that is long and C alone would leave threads idle, or B is streamed."""
    long = plan.k.size >= 2 * SPLIT_STEPS and plan.m.size * plan.n.size * extent(plan.outer) < SPLIT_RESULTS
    if plan.k_outer or not (long or plan.streamed):
        return plan
    parts = min(SPLITS, plan.k.size // SPLIT_STEPS) if long else STREAMS
    kc = min(plan.kc, -(-plan.k.size // parts // plan.k_multiple) * plan.k_multiple)
    blocks = -(-plan.k.size // kc)
    per_split = -(-blocks // parts)
    return plan.replace(kc=kc, split_k=-(-blocks // per_split))
