"""Macrokernels and microkernels with channels in the lanes: see schedule.channels.

A task computes a block of C, `plan.mt` places by `plan.nt` channels, of one element of the outer axes:

    for each panel of channels (NR):
        for each panel of places (MR):         their sums stay in registers
            for each element of K's outer axes:    kernel rows; of those beyond the image, nothing
                for each run of taps:              as many as are unrolled
                    every element of A loaded once, for all taps and places that it belongs to
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import vector

from jax_nano.codegen.epilogue import ProgramEpilogue
from jax_nano.codegen.index import Condition, Index, Values, add, both, divmod_, less, mul
from jax_nano.codegen.load_store import load
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import either, for_range, panels
from jax_nano.codegen.microkernel import store_registers
from jax_nano.codegen.nanokernel import Block, Nanokernel
from jax_nano.codegen.operands import Area, Offsets, Operands, offsets
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.windows.reference import Cursor, at_most
from jax_nano.codegen.windows.taps import TapLoops, Taps
from jax_nano.ir.dot import extent
from jax_nano.schedule.channels import Channels, channels_of
from jax_nano.schedule.plan import Plan


@dataclass(frozen=True)
class ChannelTaps(Taps):
    """A run of taps, with the block of C."""

    rows: int
    columns: list[int]  # live lanes of each register


@dataclass
class Loads:
    """Elements of A in registers, by how far they are from the first one, each loaded once."""

    load: Callable[[int, int, int], ir.Value]  # by row, step and register of channels
    strides: tuple[tuple[int, ...], tuple[int, ...]]  # of rows and steps, in memory and in positions
    spread: Callable[[ir.Value, int], ir.Value]  # over the lanes, by input channel
    loaded: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)
    spreads: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)

    def __call__(self, row: int, step: int, register: int, channel: int) -> ir.Value:
        """The element of a row and a step."""
        key = (*(row * m + step * k for m, k in zip(*self.strides, strict=True)), register)
        if key not in self.loaded:
            self.loaded[key] = self.load(row, step, register)
        if (*key, channel) not in self.spreads:
            self.spreads[*key, channel] = self.spread(self.loaded[key], channel)
        return self.spreads[*key, channel]


class ChannelBlock(TapLoops[ChannelTaps]):
    """Writes a task's block of C, for one element of the outer axes."""

    def __init__(self, plan: Plan, nano: Nanokernel, operands: Operands, area: Area, at: Offsets):
        """Takes what the element's offsets are in each array, and its positions in A's bounds."""
        found = channels_of(plan.dot)
        assert found
        self.channels: Channels = found[1]
        self.plan, self.nano, self.operands, self.area, self.at = plan, nano, operands, area, at
        self.bounds = plan.dot.window.bounds if plan.dot.window else ()
        self.groups = self.channels.groups(nano.lanes)
        self.used = self.groups * self.channels.outputs
        self.out, self.extras = operands.out(at), operands.epilogue_extras(at)

    def emit(self) -> None:
        """Emits the loops over panels."""
        plan, area = self.plan, self.area
        for j, cols in panels(area.columns, plan.nr, "panels of channels (NR)"):
            for i, rows in panels(area.rows, plan.mr, "panels of places (MR)"):
                self.block(i, rows, j, cols)

    def block(self, i: Index, rows: int, j: Index, cols: int) -> None:
        """Emits the sums of a block of C, and what happens to them."""
        plan = self.plan
        block = Block(rows, cols, self.used)
        arrays = len(plan.dot.arrays)
        begin = plan.dot.window.begin if plan.dot.window else 0
        channel = mul(divmod_(j, self.channels.outputs)[0], self.channels.inputs)
        cursor = Cursor(
            add(begin, self.at[0], channel),
            tuple(add(bound.begin, here) for bound, here in zip(self.bounds, self.at[arrays:], strict=True)),
        ).moved(plan.m, i)
        acc: Values = [self.nano.zero()] * len(block.places)
        with section("kernel rows"), for_range(0, extent(plan.k_outer), carry=acc) as outer:
            at = offsets(plan, plan.k_outer, outer.i)
            there = Cursor(
                add(cursor.at, at[0]), tuple(add(*pair) for pair in zip(cursor.positions, at[arrays:], strict=True))
            )
            taps = ChannelTaps(there, add(self.at[1], at[1], j), plan.k.size, rows, block.counts)
            sums: Values = outer.carry
            outer.next = either(
                self.is_there(there), [x.type for x in sums], lambda: self.steps(sums, taps), lambda: sums
            )
        with section("epilogue"):
            self.finish(outer.results, block, i, j)

    def is_there(self, cursor: Cursor) -> Condition:
        """Whether A is within the bounds that neither places nor taps move along."""
        condition: Condition = True
        for d, bound in enumerate(self.bounds):
            if not self.moves(d):
                here = cursor.positions[d]
                condition = both(condition, both(at_most(0, here), less(here, bound.size)))
        return condition

    def moves(self, d: int) -> bool:
        """Whether places or taps move along a bound. Channels stay within it."""
        return bool(self.row_steps[1 + d] or self.plan.k.window[d])

    def some_taps(self, acc: Values, taps: ChannelTaps) -> Values:
        """The sums with a few taps: where all that they see is within bounds, nothing is asked for each."""
        is_inside: Condition = True
        for d, bound in enumerate(self.bounds):
            if self.moves(d):
                here = taps.cursor.positions[d]
                last = add(here, self.position(d, taps.rows - 1, taps.count - 1))
                is_inside = both(is_inside, both(at_most(0, here), less(last, bound.size)))
        types = [x.type for x in acc]
        return either(
            is_inside, types,
            lambda: self.multiply(acc, taps, bounded=False), lambda: self.multiply(acc, taps, bounded=True),
        )  # fmt: skip

    def position(self, d: int, row: int, step: int) -> int:
        """How far a row and a step are from the first along a bound."""
        return row * self.row_steps[1 + d] + step * self.plan.k.window[d]

    @property
    def row_steps(self) -> tuple[int, ...]:
        """How far a row moves in A's memory and along its bounds: not at all, where rows are input channels."""
        m = self.plan.m
        return (m.lhs, *m.window) if self.channels.is_summed else (0,) * (1 + len(self.bounds))

    def multiply(self, acc: Values, taps: ChannelTaps, *, bounded: bool) -> Values:
        """Multiplies and adds, tap by tap."""
        plan, channels, result = self.plan, self.channels, list(acc)
        rows_move = channels.is_summed
        loads = Loads(
            lambda row, step, register: self.load(taps, row, step, register, bounded=bounded),
            (self.row_steps, (plan.k.lhs, *plan.k.window)),
            self.spread,
        )
        width = len(taps.columns)
        for step in range(taps.count):
            for s in range(channels.inputs if rows_move else 1):
                weights = [
                    self.weights(add(taps.rhs, step * plan.k.rhs + s * channels.axis.rhs + v * self.used), count)
                    for v, count in enumerate(taps.columns)
                ]
                for i in range(taps.rows):
                    for v, weight in enumerate(weights):
                        x = loads(i, step, v, s if rows_move else i)
                        result[i * width + v] = self.nano.multiply_add(result[i * width + v], x, weight)
        return result

    def weights(self, at: Index, count: int) -> ir.Value:
        """A register of B."""
        base = self.operands.arguments.rhs
        value = load(base, at, self.nano.lanes, count)
        return self.nano.rhs.convert(value, self.plan.dot.rhs)

    def load(self, taps: ChannelTaps, row: int, step: int, register: int, *, bounded: bool) -> ir.Value:
        """A register of A; zeros where that is not within bounds."""
        plan, dtype, lanes = self.plan, self.plan.dot.lhs, self.nano.lanes
        rows = row * self.row_steps[0]
        first = register * self.groups * self.channels.inputs
        live = -(-taps.columns[register] // self.channels.outputs) * self.channels.inputs
        at = add(taps.cursor.at, rows + step * plan.k.lhs + first)

        def read() -> Values:
            return [self.nano.lhs.convert(load(self.operands.arguments.lhs, at, lanes, live), dtype)]

        if not bounded:
            return read()[0]
        is_inside: Condition = True
        for d, bound in enumerate(self.bounds):
            if self.moves(d):
                here = add(taps.cursor.positions[d], self.position(d, row, step))
                is_inside = both(is_inside, both(at_most(0, here), less(here, bound.size)))
        kind = element_type(plan.instruction.lhs)
        (value,) = either(
            is_inside, [ir.VectorType.get([lanes], kind)], read, lambda: [zeros(lanes, kind)]
        )  # fmt: skip
        return value

    def spread(self, value: ir.Value, channel: int) -> ir.Value:
        """An input channel of each group, in the lanes of the group's output channels."""
        inputs, outputs, lanes = self.channels.inputs, self.channels.outputs, self.nano.lanes
        if inputs == outputs == 1:
            return value
        order = [lane // outputs * inputs + channel if lane < self.used else 0 for lane in range(lanes)]
        return vector.shuffle(value, value, order)

    def finish(self, acc: Values, block: Block, i: Index, j: Index) -> None:
        """Stores the sums in C, through the epilogue."""
        plan, places, out = self.plan, block.places, self.out.block(i, j)
        if plan.dot.epilogue:
            extras = tuple(extra.block(i, j) for extra in self.extras)
            acc = ProgramEpilogue(plan.dot.epilogue.program, self.nano, extras)(acc, places)
        else:
            source = plan.instruction.acc
            acc = [convert(x, source, out.dtype, native_bf16=self.nano.native_bf16) for x in acc]
        store_registers(acc, out, places)
