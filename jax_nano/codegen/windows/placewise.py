"""Macrokernels and microkernels with places in the lanes: see schedule.places.

A task computes a block of C, `plan.mt` rows by `plan.nt` places, of one element of the outer axes:

    for each panel of places (NR):
        for each panel of rows (MR):               their sums stay in registers
            for each element of K's outer axes:    kernel rows
                for each tap:                      its weight in every lane
                    a register of A for each row and each register of places

Lanes beyond a bound are masked. Rows beyond one add nothing: they are asked for one by one where any is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.epilogue import ProgramEpilogue
from jax_nano.codegen.index import Condition, Index, Values, add, both, less
from jax_nano.codegen.load_store import first_lanes, load_scalar, load_where
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import either, for_range, panels
from jax_nano.codegen.microkernel import store_registers
from jax_nano.codegen.nanokernel import Block, Nanokernel
from jax_nano.codegen.operands import Area, Offsets, Operands, offsets
from jax_nano.codegen.registers import bitcast, broadcast
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.windows.reference import Cursor, at_most, lanes_within
from jax_nano.codegen.windows.taps import TapLoops, Taps
from jax_nano.ir.dot import extent
from jax_nano.schedule.plan import Plan


@dataclass(frozen=True)
class PlaceTaps(Taps):
    """A run of taps, with the block of C."""

    block: Block

    @property
    def rows(self) -> range:
        """The rows of the block."""
        return range(self.block.rows)


class PlaceBlock(TapLoops[PlaceTaps]):
    """Writes a task's block of C, for one element of the outer axes."""

    def __init__(self, plan: Plan, nano: Nanokernel, operands: Operands, area: Area, at: Offsets):
        """Takes what the element's offsets are in each array, and its positions in A's bounds."""
        assert plan.dot.window
        self.plan, self.nano, self.operands, self.area, self.at = plan, nano, operands, area, at
        self.window = plan.dot.window
        self.out, self.extras = operands.out(at), operands.epilogue_extras(at)

    def emit(self) -> None:
        """Emits the loops over panels."""
        plan, area = self.plan, self.area
        for j, cols in panels(area.columns, plan.nr, "panels of places (NR)"):
            for i, rows in panels(area.rows, plan.mr, "panels of rows (MR)"):
                self.block(i, j, Block(rows, cols, self.nano.lanes))

    def block(self, i: Index, j: Index, block: Block) -> None:
        """Emits the sums of a block of C, and what happens to them."""
        plan, bounds = self.plan, self.window.bounds
        arrays = len(plan.dot.arrays)
        positions = (add(bound.begin, here) for bound, here in zip(bounds, self.at[arrays:], strict=True))
        cursor = Cursor(add(self.window.begin, self.at[0]), tuple(positions)).moved(plan.n, j).moved(plan.m, i)
        acc: Values = [self.nano.zero()] * len(block.places)
        with section("kernel rows"), for_range(0, extent(plan.k_outer), carry=acc) as outer:
            at = offsets(plan, plan.k_outer, outer.i)
            moved = (add(*pair) for pair in zip(cursor.positions, at[arrays:], strict=True))
            there = Cursor(add(cursor.at, at[0]), tuple(moved))
            outer.next = self.steps(outer.carry, PlaceTaps(there, add(self.at[1], at[1]), plan.k.size, block))
        with section("epilogue"):
            self.finish(outer.results, block, i, j)

    def some_taps(self, acc: Values, taps: PlaceTaps) -> Values:
        """The sums with a few taps: by all rows together where all are within bounds, else row by row."""
        types = [x.type for x in acc]

        def together() -> Values:
            inside = self.are_inside(taps)
            return either(
                inside, types,
                lambda: self.multiply(acc, taps, taps.rows, masked=False), lambda: self.multiply(acc, taps, taps.rows),
            )  # fmt: skip

        def one_by_one() -> Values:
            width, result = len(taps.block.counts), list(acc)
            for row in taps.rows:
                own = slice(row * width, (row + 1) * width)
                result[own] = either(
                    self.is_inside(taps, row), types[own],
                    lambda row=row, own=own: self.multiply(result, taps, [row])[own], lambda own=own: result[own],
                )  # fmt: skip
            return result

        whole = both(self.is_inside(taps, 0), self.is_inside(taps, taps.rows[-1]))
        return either(whole, types, together, one_by_one)

    def is_inside(self, taps: PlaceTaps, row: int) -> Condition:
        """Whether a row is within the bounds that lanes do not move along."""
        condition: Condition = True
        for d, bound in enumerate(self.window.bounds):
            if not self.plan.n.window[d]:
                here = add(taps.cursor.positions[d], row * self.plan.m.window[d])
                condition = both(condition, both(at_most(0, here), less(here, bound.size)))
        return condition

    def are_inside(self, taps: PlaceTaps) -> Condition:
        """Whether all lanes are within the bounds that they move along; not asked where places are in one panel."""
        plan, condition = self.plan, True
        for d, bound in enumerate(self.window.bounds):
            if not plan.n.window[d]:
                continue
            if plan.n.size <= plan.nr:
                return False
            here = taps.cursor.positions[d]
            reach = (taps.block.rows - 1) * plan.m.window[d] + (taps.count - 1) * plan.k.window[d]
            last = add(here, reach + (len(taps.block.counts) * self.nano.lanes - 1) * plan.n.window[d])
            condition = both(condition, both(at_most(0, here), less(last, bound.size)))
        return condition

    def multiply(self, acc: Values, taps: PlaceTaps, rows: Sequence[int], *, masked: bool = True) -> Values:
        """Multiplies and adds, tap by tap."""
        plan, result = self.plan, list(acc)
        width = len(taps.block.counts)
        masks: dict[tuple[int, int, int], ir.Value | None] = {}
        for step in range(taps.count):
            weight = self.weight(add(taps.rhs, step * plan.k.rhs))
            for row in rows:
                for register in range(width):
                    place = (row if any(plan.m.window) else 0, step, register)
                    if place not in masks:
                        masks[place] = self.mask(taps, *place, masked=masked)
                    x = self.load(taps, row, step, register, masks[place])
                    at = row * width + register
                    result[at] = self.nano.multiply_add(result[at], x, weight)
        return result

    def weight(self, at: Index) -> ir.Value:
        """An element of B in every lane."""
        value = broadcast(load_scalar(self.operands.arguments.rhs, at), self.nano.lanes)
        value = self.nano.rhs.convert(value, self.plan.dot.rhs)
        if self.nano.vnni == 1:
            return value
        return self.in_pairs(arith.extui(self.nano.accumulator(), value))  # each before a zero

    def mask(self, taps: PlaceTaps, row: int, step: int, register: int, *, masked: bool) -> ir.Value | None:
        """The lanes that are within bounds and of C; None where all are."""
        plan, lanes, count = self.plan, self.nano.lanes, taps.block.counts[register]
        mask = first_lanes(count, lanes) if count < lanes else None
        for d, bound in enumerate(self.window.bounds):
            if masked and plan.n.window[d]:
                offset = row * plan.m.window[d] + step * plan.k.window[d] + register * lanes
                within = lanes_within(add(taps.cursor.positions[d], offset), 0, bound.size, lanes)
                mask = arith.andi(mask, within) if mask else within
        return mask

    def load(self, taps: PlaceTaps, row: int, step: int, register: int, mask: ir.Value | None) -> ir.Value:
        """A register of A; zeros in lanes outside of a mask."""
        plan = self.plan
        offset = row * plan.m.lhs + step * plan.k.lhs + register * self.nano.lanes
        value = load_where(self.operands.arguments.lhs, add(taps.cursor.at, offset), self.nano.lanes, mask)
        value = self.nano.lhs.convert(value, plan.dot.lhs)
        if self.nano.vnni == 1:
            return value
        return self.in_pairs(arith.extsi(self.nano.accumulator(), value))  # each before its sign, which meets the zero

    def in_pairs(self, value: ir.Value) -> ir.Value:
        """Words of 32 bits as pairs of 16, of which an instruction adds up both products."""
        return bitcast(value, self.nano.lanes * self.nano.vnni, self.nano.lhs.element_type)

    def finish(self, acc: Values, block: Block, i: Index, j: Index) -> None:
        """Stores the sums in C, through the epilogue."""
        plan, out = self.plan, self.out.block(i, j)
        if plan.dot.epilogue:
            extras = tuple(extra.block(i, j) for extra in self.extras)
            acc = ProgramEpilogue(plan.dot.epilogue.program, self.nano, extras)(acc, block.places)
        else:
            source = plan.instruction.acc
            acc = [convert(x, source, out.dtype, native_bf16=self.nano.native_bf16) for x in acc]
        store_registers(acc, out, block.places)
