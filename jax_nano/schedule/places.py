"""Plans with places in the lanes: convolutions of one channel into one, whose result ends with places.

Depthwise convolutions with channels first, and filters of images of one channel. Nothing is packed: a register of the
image is loaded for each tap, and multiplied by the tap's weight in every lane. Places that no tap moves along are rows
of a block, which share the weight.
"""

from __future__ import annotations

from collections.abc import Iterator

from jax_nano.ir.axes import Axis
from jax_nano.ir.dot import Dot, extent
from jax_nano.ir.dtypes import BITS
from jax_nano.schedule.cost.microkernel import Unit, panels
from jax_nano.schedule.loop_nest import LoopNest, others
from jax_nano.schedule.plan import Plan

MOST_TAPS = 8  # that are written one after the other; of longer runs, fewer are
TAPS_AT_ONCE = 4
MOST_SUMS = 8  # registers of a block: enough for two units to wait for none, and masks beside them
WIDEST_BITS = 512  # of the registers whose instruction sets have masks for elements of any size
BRANCH_CYCLES = 4  # to ask whether a run of taps is within an image


def nest_of_places(dot: Dot) -> LoopNest | None:
    """The loops of a product with neighbouring places along the lanes; None where they cannot stand there.

    Rows of its plan are places along another dimension, columns the neighbours; neither moves in B.
    """
    if not dot.has_window("lhs") or dot.n or not dot.m:
        return None
    if dot.panels or dot.scaling or dot.prologue or dot.algorithm:
        return None
    along = dot.m[-1]
    if along.out != 1 or along.lhs != 1 or set(along.extras) - {0, 1} or set(along.window) - {0, 1}:
        return None
    assert dot.window
    once = Axis(size=1, extras=(0,) * len(dot.extras), window=(0,) * len(dot.window.bounds))
    rows = dot.m[-2] if len(dot.m) > 1 and dot.m[-2].lhs else once
    step = min(dot.k, key=lambda axis: axis.lhs, default=once)
    if any(k and not n for k, n in zip(step.window, along.window, strict=True)):  # runs of taps are within or beyond
        step = once
    return LoopNest(
        dot=dot, swapped=False, m=rows, n=along, k=step,
        outer=(*dot.b, *others(dot.m[:-1], rows)), k_outer=others(dot.k, step),
    )  # fmt: skip


def place_plans(unit: Unit, dot: Dot) -> Iterator[Plan]:
    """The plan of one task with places in the lanes, if vectors load parts of registers of their type."""
    instruction = unit.instruction
    nest = nest_of_places(dot)
    is_words = instruction.vnni == 2 and instruction.lhs == instruction.rhs == "s16"  # which serves single ones, too
    if not nest or instruction.tiles or not (is_words or instruction.vnni == instruction.operations == 1):
        return
    if BITS[dot.lhs] < BITS["f32"] and unit.isa.register_bytes * 8 < WIDEST_BITS:  # masks are of 32 bits or more there
        return
    registers = min(2, -(-nest.n.size // unit.lanes))
    most = MOST_SUMS // registers
    blocks = -(-nest.m.size // most)
    mr, nr = -(-nest.m.size // blocks), registers * unit.lanes
    columns = -(-nest.n.size // nr) * nr
    rows = -(-nest.m.size // mr) * mr
    yield Plan(
        dot=dot, swapped=False, isa=unit.isa.name, instruction=instruction,
        m=nest.m, n=nest.n, k=nest.k, outer=nest.outer, k_outer=nest.k_outer, outer_per_task=extent(nest.outer),
        mr=mr, nr=nr, mc=rows, mt=rows, kc=nest.k.size, nc=columns, nt=columns, placewise=True,
        unroll=nest.k.size if nest.k.size <= MOST_TAPS else TAPS_AT_ONCE,
    )  # fmt: skip


def placewise_cycles(plan: Plan, unit: Unit) -> float:
    """Cycles of all microkernels with places in the lanes: loads, conversions and products of each tap."""
    core = unit.core
    per_cycle, latency = core.rate(unit.instruction.name)
    is_converted = plan.dot.lhs != unit.instruction.lhs
    runs = plan.outer_elements * extent(plan.k_outer)
    total = 0.0
    for cols, col_count in panels(plan.n.size, plan.nr):
        registers = -(-cols // unit.lanes)
        for rows, row_count in panels(plan.m.size, plan.mr):
            sums = registers * rows
            loads = plan.k.size * (sums + 1) / core.loads_per_cycle
            busy = plan.k.size * sums * (1 + 2 * is_converted) / per_cycle
            total += row_count * col_count * (max(loads, busy, plan.k.size * latency) + BRANCH_CYCLES)
    return runs * total + plan.rounds * plan.tasks["compute"] * core.setup_cycles
