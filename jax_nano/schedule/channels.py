"""Plans with channels in the lanes: convolutions whose groups of channels are narrower than a register.

Depthwise, there is a group for every channel, and no sum over channels: each lane multiplies its own. Groups of a few
channels share a register: the channels of A are spread over the lanes that need them.

    A, loaded    a0 a1 | a2 a3 | ...        groups of 2 input channels
    input 0      a0 a0 a0 | a2 a2 a2 | ...  groups of 3 output channels
    input 1      a1 a1 a1 | a3 a3 a3 | ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jax_nano.ir.axes import Axis
from jax_nano.ir.dot import Dot, extent
from jax_nano.schedule.cost.microkernel import Unit
from jax_nano.schedule.loop_nest import LoopNest, others
from jax_nano.schedule.plan import Plan

MOST_TAPS = 8  # that are written one after the other; of longer runs, fewer are
TAPS_AT_ONCE = 4
REGISTERS = 2  # of channels side by side, which share what is known of the taps


@dataclass(frozen=True)
class Channels:
    """How the channels of a product stand in lanes.

    Attributes:
      inputs: channels of A in a group.
      outputs: channels of C in a group.
      axis: the loop over a group's input channels; one step, where there is one.
      is_summed: whether that is part of the sum; else it is the rows of C.
    """

    inputs: int
    outputs: int
    axis: Axis
    is_summed: bool

    def groups(self, lanes: int) -> int:
        """Groups that share a register."""
        return min(lanes // self.inputs, lanes // self.outputs)


def channels_of(dot: Dot) -> tuple[LoopNest, Channels] | None:
    """The loops of a product with its groups along the lanes; None where they cannot stand there."""
    if not dot.b or len(dot.n) > 1 or dot.panels or dot.scaling or dot.prologue or dot.algorithm or dot.acc == "s32":
        return None
    bounds = len(dot.window.bounds) if dot.window else 0
    once = Axis(size=1, extras=(0,) * len(dot.extras), window=(0,) * bounds)
    group = dot.b[-1]
    each = dot.n[0] if dot.n else replace(once, rhs=1, out=1, extras=group.extras)
    if not follows(group, each) or set(each.extras) - {0, 1}:
        return None
    inputs = group.lhs
    channels = [a for a in (*dot.k, *dot.m) if a.lhs == 1 and a.size == inputs] if inputs > 1 else [once]
    channels = [a for a in channels if stay_within_bounds(dot, group, a)]
    if not channels:
        return None
    axis = channels[0]
    is_summed = axis is once or any(axis is a for a in dot.k)
    m, k = (tuple(a for a in axes if a is not axis) for axes in (dot.m, dot.k))
    row = nearest(m, once) if is_summed else axis
    step = nearest(k, once)
    nest = LoopNest(
        dot=dot, swapped=False, m=row, n=replace(each, size=group.size * each.size, lhs=0), k=step,
        outer=(*dot.b[:-1], *others(m, row)), k_outer=others(k, step),
    )  # fmt: skip
    return nest, Channels(inputs, each.size, axis, is_summed)


def follows(group: Axis, each: Axis) -> bool:
    """Is true where the groups' output channels are one run in all arrays but A."""
    pairs = zip(group.strides()[1:], each.strides()[1:], strict=True)
    is_run = all(o == i * each.size for o, i in pairs) or (each.size == 1 and group.rhs == group.out == 1)
    return is_run and each.rhs == each.out == 1


def stay_within_bounds(dot: Dot, group: Axis, channel: Axis) -> bool:
    """Is true where no channel is beyond a bound that others are within: positions count whole places of channels."""
    others = [a for axes in (dot.b, dot.m, dot.n, dot.k) for a in axes if a is not group and a is not channel]
    count = group.size * group.lhs
    for d, bound in enumerate(dot.window.bounds if dot.window else ()):
        if not group.window[d] and not channel.window[d]:
            continue
        steps = [bound.begin, bound.size, *(a.window[d] for a in others)]
        if any(step % count for step in steps) or group.window[d] != group.lhs or channel.window[d] > 1:
            return False
    return True


def nearest(axes: tuple[Axis, ...], default: Axis) -> Axis:
    """The axis whose steps are the shortest in A."""
    return min(axes, key=lambda axis: axis.lhs or 1 << 60, default=default)


def channel_plans(unit: Unit, dot: Dot) -> Iterator[Plan]:
    """The plan of one task with channels in the lanes, if groups are that narrow and vectors have plain sums."""
    instruction = unit.instruction
    found = channels_of(dot)
    if not found or instruction.vnni > 1 or instruction.tiles or instruction.operations > 1:
        return
    nest, channels = found
    if channels.inputs > unit.lanes or channels.groups(unit.lanes) < 2:
        return
    used = channels.groups(unit.lanes) * channels.outputs  # lanes of a register
    registers = min(REGISTERS, -(-nest.n.size // used))
    most = max(1, unit.isa.register_count // 2 // registers)
    blocks = -(-nest.m.size // most)
    mr, nr = -(-nest.m.size // blocks), registers * used
    columns = -(-nest.n.size // nr) * nr
    rows = -(-nest.m.size // mr) * mr
    yield Plan(
        dot=dot, swapped=False, isa=unit.isa.name, instruction=instruction,
        m=nest.m, n=nest.n, k=nest.k, outer=nest.outer, k_outer=nest.k_outer, outer_per_task=extent(nest.outer),
        mr=mr, nr=nr, mc=rows, mt=rows, kc=nest.k.size, nc=columns, nt=columns, channelwise=True,
        unroll=nest.k.size if nest.k.size <= MOST_TAPS else TAPS_AT_ONCE,
    )  # fmt: skip
