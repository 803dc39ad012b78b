"""Packing of windows: A, or B, out of an image that its places and steps go over more than once, and beyond.

Along the innermost loop of K (or, in panels, of places) a window is a run of neighbours in memory. Other loops
say where a run begins, and at which positions:

    row (image, row, column), steps (kernel row | kernel column, channel):

    | 0 0 0 x x x x x x x x x | x x x x x x x x x x x x | x x x x x x x x x 0 0 0 |      runs of a packed row
      beyond the image                                                  beyond it

What is at positions beyond a bound is not read: zeros stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import (
    Index,
    Values,
    add,
    both,
    equal,
    less,
    maximum,
    minimum,
    mul,
    negation,
    subtract,
    unequal,
)
from jax_nano.codegen.load_store import first_lanes, load, load_where, store, store_where
from jax_nano.codegen.loops import Depth, for_range, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.pack import Destination, Packer
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.shuffles import interleave, transpose
from jax_nano.codegen.types import element_type
from jax_nano.codegen.windows.reference import (
    Cursor,
    Piece,
    Steps,
    WindowRef,
    at_most,
    lanes_within,
    load_lanes,
    outer_and_run,
    pieces_of_runs,
    registers_of,
    registers_or_part,
    unrolled_or_registers,
)
from jax_nano.ir.axes import Axis
from jax_nano.ir.convolution import LONGEST_STEP
from jax_nano.ir.dtypes import BITS

Inside = Sequence[tuple[Index, Index]]  # elements of runs that are within bounds
CopyGroup = Callable[[Sequence[Cursor], MatrixRef], None]  # copies a VNNI group of steps to a panel
WIDE_BITS = 512  # of a register


@dataclass(frozen=True)
class GatherPacker:
    """Copies windows into packed rows or panels."""

    packer: Packer
    source: WindowRef

    def pack_rows(self, to: Destination, depth: Depth) -> None:
        """Copies rows, of `depth` steps from the source's first one on."""
        source, register = self.source, self.packer.register
        outer, run = outer_and_run(source.steps, source.window)
        are_columns = run.size == 1 and bool(source.places) and source.places[-1].lhs == 1
        if are_columns and to.width == self.packer.lanes and self.has_masks:
            self.pack_columns_as_rows(to, depth)
            return
        with for_range(to.span.begin, to.span.end) as row:
            target, cursor = to.panel(row.i), source.cursor.within(source.places, row.i)
            if depth.size % register:
                whole = depth.whole(register)
                with when(unequal(whole, depth.steps)):
                    store(self.packer.zeros(), target.base, target.offset(0, whole))
            for piece in pieces_of_runs(run.size, source.first, depth.steps):
                self.copy_run(cursor.within(outer, piece.run), run, piece, target)

    def pack_columns_as_rows(self, to: Destination, depth: Depth) -> None:
        """Copies rows whose neighbours in memory are those of other rows: squares are transposed in registers."""
        source = self.source
        outer, run = outer_and_run(source.places, source.window)
        for i, count, panel in to:
            for piece in pieces_of_runs(run.size, i, count):
                cursor = source.cursor.within(outer, piece.run)
                length = subtract(piece.end, piece.begin)
                for k, live in depth.pieces(self.packer.register):
                    for r, row in enumerate(self.square(cursor, run, piece, k, live)[:count]):
                        if (is_there := less(r, length)) is not False:
                            with when(is_there):
                                store(row, panel.base, panel.offset(add(piece.to, r), k))

    def square(self, cursor: Cursor, run: Axis, piece: Piece, k: Index, live: int) -> Values:
        """A register of steps, from step k on, of as many rows as a register has lanes; zeros behind `live` steps."""
        lanes, vnni, groups = self.packer.lanes, self.packer.vnni, []
        there = first_lanes(subtract(piece.end, piece.begin), lanes)
        for first in range(0, self.packer.register, vnni):
            columns = []
            for step in range(first, first + vnni):
                if step >= live:
                    columns.append(zeros(lanes, self.packer.load.element_type))
                    continue
                at = cursor.within(self.source.steps, add(self.source.first, k, step))
                mask = arith.andi(there, lanes_within(piece.begin, *self.source.inside(at, run), lanes))
                columns.append(self.value(load_where(self.source.base, add(at.at, piece.begin), lanes, mask)))
            groups.append(self.packer.as_groups(interleave(columns)))
        return [self.packer.as_elements(row) for row in transpose(groups)]

    def copy_run(self, cursor: Cursor, run: Axis, piece: Piece, target: MatrixRef) -> None:
        """Copies a piece of a run to a packed row: whole, or what is within bounds, with zeros around it."""
        begin, end = self.source.inside(cursor, run)
        target = target.block(0, subtract(piece.to, piece.begin))
        is_whole = both(at_most(begin, piece.begin), at_most(piece.end, end))
        if is_whole is not False:
            with when(is_whole):
                self.copy_elements(cursor, piece.begin, piece.end, target)
        if is_whole is not True:
            with when(negation(is_whole)):
                for k, count in registers_of(piece.begin, piece.end, self.packer.register):
                    nothing = self.zeros(1 if count == 1 else self.packer.register)
                    store(nothing, target.base, target.offset(0, k), count)
                begin, end = maximum(begin, piece.begin), minimum(end, piece.end)
                if (is_there := less(begin, end)) is not False:
                    with when(is_there):
                        self.copy_elements(cursor, begin, end, target)

    def copy_elements(self, cursor: Cursor, begin: Index, end: Index, target: MatrixRef) -> None:
        """Copies elements [begin, end) of a run."""
        for k, count in unrolled_or_registers(begin, end, self.packer.register):
            lanes = 1 if count == 1 else self.packer.register
            value = self.value(load(self.source.base, add(cursor.at, k), lanes, count))
            store(value, target.base, target.offset(0, k), count)

    def value(self, loaded: ir.Value) -> ir.Value:
        """Elements in the instruction's type."""
        return self.packer.load.convert(loaded, self.source.dtype, self.source.bf16_split)

    def zeros(self, lanes: int) -> ir.Value:
        """What stands for zeros of A: they are moved where A is."""
        return self.value(zeros(lanes, element_type(self.source.dtype)))

    def pack_panels(self, to: Destination, depth: Depth) -> None:
        """Copies panels of rows in which steps follow one another."""
        source = self.source
        outer, run = outer_and_run(source.places, source.window, LONGEST_STEP)
        for i, count, panel in to:
            if count < self.packer.width:  # beyond the last place, registers are read as far as they go
                self.clear(panel, depth)
            for piece in pieces_of_runs(run.size, i, count):
                cursor = source.cursor.within(outer, piece.run)
                self.copy_panel(cursor, run, piece, panel, depth)
        self.packer.clear_rest(to, depth)

    def clear(self, panel: MatrixRef, depth: Depth) -> None:
        """Zeros in a panel."""
        for k, _ in depth.pieces(self.packer.vnni):
            for j in range(0, self.packer.width, self.packer.lanes):
                self.packer.put(self.packer.zeros(), panel, k, j)

    def copy_panel(self, cursor: Cursor, run: Axis, piece: Piece, panel: MatrixRef, depth: Depth) -> None:
        """Copies a piece of a run to a panel, step by step.

        Where the sum's innermost axis moves along no bound, what is within them is asked once for all of its steps.
        """
        source, vnni = self.source, self.packer.vnni
        inner = source.steps[-1] if source.steps else None
        if inner is None or any(inner.window) or inner.size % vnni:
            for k, live in depth.pieces(vnni):
                cursors = [cursor.within(source.steps, add(source.first, k, step)) for step in range(live)]
                self.copy_steps(cursors, run, piece, panel.block(k, 0))
            return
        for steps in pieces_of_runs(inner.size, source.first, depth.steps):
            first = cursor.within(source.steps[:-1], steps.run)
            inside = source.inside(first, run)
            if self.has_masks:
                self.copy_by_registers(Steps(first, inner, steps), run, piece, inside, panel)
                continue

            def copy(copy_group: CopyGroup, steps: Piece = steps, first: Cursor = first) -> None:
                with for_range(steps.begin, steps.end, vnni) as loop:
                    cursors = [first.moved(inner, add(loop.i, step)) for step in range(vnni)]
                    copy_group(cursors, panel.block(add(steps.to, subtract(loop.i, steps.begin)), 0))

            self.by_cases([inside], run, piece, copy)

    @property
    def has_masks(self) -> bool:
        """Whether vectors of the source's type are loaded and stored under masks, not element by element.

        Those of 512 bits are, whatever their elements have, but bf16, whose masks come with its own instructions.
        """
        dtype, instruction = self.source.dtype, self.packer.load.instruction
        if BITS[dtype] >= 32 and self.packer.vnni == 1:
            return True
        is_wide = self.packer.lanes * BITS[instruction.acc] == WIDE_BITS
        return is_wide and (dtype in ("f16", "s8", "u8") or (dtype == "bf16" and rounds_to_bf16(instruction)))

    def copy_by_registers(
        self, steps: Steps, run: Axis, piece: Piece, within: tuple[Index, Index], panel: MatrixRef
    ) -> None:
        """Copies a run of steps of a piece, register by register, under masks that serve for all of the steps."""
        lanes, vnni, base = self.packer.lanes, self.packer.vnni, self.source.base
        for first, is_whole in registers_or_part(piece.begin, piece.end, lanes):
            live = self.lanes_of(piece, within, first)
            stored = None if is_whole else first_lanes(mul(subtract(piece.end, first), vnni), lanes * vnni)
            with for_range(steps.piece.begin, steps.piece.end, vnni) as k:
                places = [add(steps.at(add(k.i, step)), mul(first, run.lhs)) for step in range(vnni)]
                rows = [load_lanes(base, at, run.lhs, lanes, live) for at in places]
                target = panel.block(add(steps.piece.to, subtract(k.i, steps.piece.begin)), 0)
                value = interleave([self.value(row) for row in rows])
                store_where(value, target.base, self.place(piece, first, target), stored)

    def lanes_of(self, piece: Piece, within: tuple[Index, Index], first: Index) -> tuple[Index, Index]:
        """The lanes [begin, end) of a register, from element `first` on, that are of a piece and within bounds."""
        begin, end = within
        return subtract(begin, first), minimum(subtract(end, first), subtract(piece.end, first))

    def copy_steps(self, cursors: Sequence[Cursor], run: Axis, piece: Piece, panel: MatrixRef) -> None:
        """Copies a VNNI group of steps of a piece of a run to a panel."""
        inside = [self.source.inside(cursor, run) for cursor in cursors]
        self.by_cases(inside, run, piece, lambda copy_group: copy_group(cursors, panel))

    def by_cases(self, inside: Inside, run: Axis, piece: Piece, copy: Callable[[CopyGroup], None]) -> None:
        """Copies steps whose elements `inside` are within bounds, by what copies a VNNI group of them.

        A whole panel goes by registers. Of a part, numbers are masked; where vectors have no masks, or steps have to be
        interleaved, each element is copied by itself.
        """
        vnni, count = self.packer.vnni, piece.whole
        is_whole = equal(subtract(piece.end, piece.begin), count)
        for begin, end in inside:
            is_whole = both(is_whole, both(at_most(begin, piece.begin), at_most(piece.end, end)))

        def whole_group(cursors: Sequence[Cursor], panel: MatrixRef) -> None:
            self.copy_whole_steps(cursors, run, piece, panel, count)

        def part_of_group(cursors: Sequence[Cursor], panel: MatrixRef) -> None:
            copy_part = self.copy_masked if self.has_masks and vnni == 1 else self.copy_each
            bounds = inside if len(inside) == len(cursors) else [*inside] * len(cursors)
            for step, (cursor, within) in enumerate(zip(cursors, bounds, strict=True)):
                copy_part(cursor, run, piece, within, panel.advance(step))
            for step in range(len(cursors), vnni):
                self.copy_each(cursors[0], run, piece, (0, 0), panel.advance(step))

        if is_whole is not False:
            with when(is_whole):
                copy(whole_group)
        if is_whole is not True:
            with when(negation(is_whole)):
                copy(part_of_group)

    def copy_whole_steps(
        self, cursors: Sequence[Cursor], run: Axis, piece: Piece, panel: MatrixRef, count: Index
    ) -> None:
        """Copies steps of `count` rows."""
        assert isinstance(count, int)
        lanes, vnni = self.packer.lanes, self.packer.vnni
        for first in range(0, count, lanes):
            live = min(lanes, count - first)
            begin = mul(add(piece.begin, first), run.lhs)
            rows = [
                self.value(load_lanes(self.source.base, add(cursor.at, begin), run.lhs, lanes, (0, live)))
                for cursor in cursors
            ]
            rows += [zeros(lanes, self.packer.load.element_type)] * (vnni - len(rows))
            store(interleave(rows), panel.base, panel.offset(0, add(piece.to, first)), live * vnni)

    def copy_masked(
        self, cursor: Cursor, run: Axis, piece: Piece, within: tuple[Index, Index], panel: MatrixRef
    ) -> None:
        """Copies a piece of a step by registers, under masks of what is within bounds; zeros elsewhere."""
        lanes = self.packer.lanes
        for first, is_whole in registers_or_part(piece.begin, piece.end, lanes):
            live, at = self.lanes_of(piece, within, first), add(cursor.at, mul(first, run.lhs))
            value = self.value(load_lanes(self.source.base, at, run.lhs, lanes, live))
            stored = None if is_whole else first_lanes(subtract(piece.end, first), lanes)
            store_where(value, panel.base, self.place(piece, first, panel), stored)

    def copy_each(self, cursor: Cursor, run: Axis, piece: Piece, within: tuple[Index, Index], panel: MatrixRef) -> None:
        """Copies a piece of a step element by element; zeros where it is not within bounds."""
        with for_range(piece.begin, piece.end) as loop:
            store(self.zeros(1), panel.base, self.place(piece, loop.i, panel))
        begin, end = maximum(within[0], piece.begin), minimum(within[1], piece.end)
        with for_range(begin, end) as loop:
            value = self.value(load(self.source.base, add(cursor.at, mul(loop.i, run.lhs)), 1))
            store(value, panel.base, self.place(piece, loop.i, panel))

    def place(self, piece: Piece, i: Index, panel: MatrixRef) -> Index:
        """Where element i of a run goes."""
        return panel.offset(0, add(piece.to, subtract(i, piece.begin)))
