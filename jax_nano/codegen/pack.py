"""Packing: operands copied into panels that microkernels read from end to end.

B, a panel of `width` columns (NR):         A by rows:                    A by columns, a panel of a few times MR rows:

    k=0   b00 b01 ... b0w                     i=0  a00 a01 ... a0k | pad     k=0   a00 a10 ... am0
    k=1   b10 b11 ... b1w                     i=1  a10 a11 ... a1k | pad     k=1   a01 a11 ... am1

With K along the lanes of accumulators, B stands by columns, as A does by rows.

Where an instruction takes `vnni` steps of k at once, that many rows of a panel are interleaved (the VNNI layout).
Elements are converted on the way to the type that the instruction multiplies. What a panel holds beyond the matrix is
zero, so that microkernels read whole registers. Rows of A are padded apart, so that the rows of a block do not compete
for the same cache lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, Values, add, divmod_, element_type, index, mul
from jax_nano.codegen.load_store import load, prefetch, store
from jax_nano.codegen.loops import along, for_range, when
from jax_nano.codegen.matrix_ref import View
from jax_nano.codegen.microkernel import rounded_down
from jax_nano.codegen.nanokernel import Nanokernel
from jax_nano.codegen.registers import bitcast, splat, zeros
from jax_nano.codegen.shuffles import interleave, transpose
from jax_nano.ir.dtypes import BITS, bytes_of
from jax_nano.schedule.plan import LINE_BYTES

ROWS_AHEAD = 32  # how much further on rows are asked for while they are copied: many lie on a page of their own


@dataclass(frozen=True)
class Panels:
    """The panels that hold columns [begin, end) of `size`, each `step` wide: `target(j)` begins at j."""

    begin: Index
    end: Index
    size: int
    step: int
    target: Callable[[Index], View]

    def each(self, body: Callable[[Index, int, View], None]) -> None:
        """Runs `body(j, columns, panel)` for every panel."""
        along(self.begin, self.end, self.size, self.step, lambda j, cols: body(j, cols, self.target(j)))


@dataclass(frozen=True)
class Packer:
    """Copies one operand in the layout of its panels."""

    nano: Nanokernel
    operand: Literal["lhs", "rhs"]

    @property
    def lanes(self) -> int:
        """Groups in a register."""
        return self.nano.lanes

    @property
    def vnni(self) -> int:
        """Steps of k in a group."""
        return self.nano.vnni

    @property
    def kind(self) -> ir.Type:
        """The type of packed elements."""
        return element_type(getattr(self.nano.instruction, self.operand))

    @property
    def unit(self) -> ir.Type:
        """A group as one number."""
        return ir.IntegerType.get_signless(self.vnni * BITS[getattr(self.nano.instruction, self.operand)])

    def read(self, source: View, i: Index, j: Index, lanes: int, count: int) -> ir.Value:
        """`count` columns of row i from j on, which are contiguous, as the instruction wants them; zeros beyond."""
        if count <= 0:
            return zeros(lanes, self.kind)
        return self.nano.read_row(source, i, j, lanes, count, self.operand)

    def panels(self, panels: Panels, source: View, depth: Index, size: int, width: int) -> None:
        """Copies `depth` rows of `source`, element (k, j), to panels of `width` columns.

        Args:
          panels: which columns there are, and where their panels stand.
          source: B, or A transposed.
          depth: rows to copy.
          size: the whole extent of k, which leaves the same rest as `depth` where that leaves any.
          width: columns of a panel.
        """
        if source.strides[1] == 1:
            self.copy_rows(panels, source, depth, size, width)
        elif source.strides[0] == 1:
            panels.each(lambda j, cols, to: self.copy_transposed(source.block(0, j), to, depth, size, cols, width))
        else:
            panels.each(lambda j, cols, to: self.copy_elements(source.block(0, j), to, depth, size, cols, width))
        self.clear_rest(panels, depth, size, width)

    def clear_rest(self, panels: Panels, depth: Index, size: int, width: int) -> None:
        """Zeros from the last group of steps to the end of the last instruction's."""
        steps = self.nano.instruction.shape[2]
        rest = size % steps
        missing = range(-(-rest // self.vnni) * self.vnni, steps, self.vnni)
        if not rest or not missing:
            return
        whole = rounded_down(depth, size, steps)
        nothing = zeros(self.lanes * self.vnni, self.kind)

        def clear(_first: Index, _cols: int, target: View) -> None:
            for k in missing:
                for j in range(0, width, self.lanes):
                    self.put(nothing, target, add(whole, k), j, width)

        with when(differ(whole, depth)):
            panels.each(clear)

    def copy_rows(self, panels: Panels, source: View, depth: Index, size: int, width: int) -> None:
        """Rows that are contiguous already: `group` of them interleaved, read along the rows from panel to panel."""

        def rows(k: Index, live: int) -> None:
            def panel(first: Index, cols: int, target: View) -> None:
                for step in range(self.vnni):
                    for j in range(0, cols, LINE_BYTES // bytes_of(source.dtype)):
                        prefetch(source.base, source.offset(add(k, ROWS_AHEAD + step), add(first, j)))
                self.copy_group(source.block(0, first), target, k, cols, live, width)

            panels.each(panel)

        whole = rounded_down(depth, size, self.vnni)
        if whole != 0:
            with for_range(0, whole, self.vnni) as loop:
                rows(loop.i, self.vnni)
        if rest := size % self.vnni:
            with when(differ(whole, depth)):
                rows(whole, rest)

    def copy_group(self, source: View, target: View, k: Index, cols: Index, live: int, width: int) -> None:
        """Rows k to k + live - 1 of a panel, interleaved."""
        padded = -(-width // self.lanes) * self.lanes
        for i, register in enumerate(self.nano.interleaved(source, k, padded, cols, live, self.operand)):
            self.put(register, target, k, i * self.lanes, width)

    def copy_steps(self, source: View, target: View, k: Index, steps: int, cols: Index, width: int) -> None:
        """Rows k to k + steps - 1, which are contiguous, in whole groups. There may be no column of them."""
        for first in range(0, steps, self.vnni):
            self.copy_group(source, target, add(k, first), cols, self.vnni, width)

    def copy_transposed(self, source: View, target: View, depth: Index, size: int, cols: int, width: int) -> None:
        """Columns that are contiguous: squares of `lanes` x `lanes` groups transposed in registers."""
        step = self.lanes * self.vnni

        def square(k: Index, j: Index, live: int, count: int) -> Values:
            first = source.block(k, j).transposed
            columns: Values = [
                bitcast(self.read(first, c, 0, step, live if c < count else 0), self.lanes, self.unit)
                for c in range(self.lanes)
            ]
            return [bitcast(row, step, self.kind) for row in transpose(columns)[: -(-live // self.vnni)]]

        def squares(k: Index, live: int) -> None:
            whole = cols // self.lanes * self.lanes
            if whole:
                with for_range(0, whole, self.lanes) as loop:
                    for i, row in enumerate(square(k, loop.i, live, self.lanes)):
                        store(row, target.base, target.offset(add(k, i * self.vnni), loop.i))
            for j in range(whole, width, self.lanes):
                nothing = [zeros(step, self.kind)] * -(-live // self.vnni)
                for i, row in enumerate(square(k, j, live, cols - j) if j < cols else nothing):
                    self.put(row, target, add(k, i * self.vnni), j, width)

        self.along_k(depth, size, squares)

    def copy_elements(self, source: View, target: View, depth: Index, size: int, cols: int, width: int) -> None:
        """Strided both ways: element by element, into a panel cleared before."""
        groups = rounded_down(add(depth, self.vnni - 1), size, self.vnni) if size % self.vnni else depth
        with for_range(0, groups, self.vnni) as row:
            for j in range(0, width, self.lanes):
                self.put(zeros(self.lanes * self.vnni, self.kind), target, row.i, j, width)
        with for_range(0, depth) as row:
            group, within = divmod_(row.i, self.vnni)
            k = mul(group, self.vnni)
            with for_range(0, cols) as column:
                value = self.read(source, row.i, column.i, 1, 1)
                store(value, target.base, add(target.offset(k, column.i), within))

    def put(self, register: ir.Value, target: View, k: Index, j: int, width: int) -> None:
        """Stores a register of a panel; the last may be cut short by the panel's end."""
        store(register, target.base, target.offset(k, j), (width - j) * self.vnni)

    def rows(self, panels: Panels, source: View, depth: Index, size: int) -> None:
        """Copies rows of A, element (i, k), so that each is contiguous; up to a register is written behind each."""
        if source.strides[1] == 1:
            with for_range(panels.begin, panels.end) as row:
                self.copy_row(source.block(row.i, 0), panels.target(row.i), depth, size)
        elif source.strides[0] == 1:
            panels.each(lambda i, count, to: self.copy_columns(source.block(i, 0), to, count, depth, size))
        else:
            with for_range(panels.begin, panels.end) as row:
                self.copy_row_elements(source.block(row.i, 0), panels.target(row.i), depth, size)

    def copy_row(self, source: View, target: View, depth: Index, size: int) -> None:
        """A row that is contiguous already."""

        def piece(k: Index, live: int) -> None:
            value = self.read(source, 0, k, self.lanes * self.vnni, live)
            store(value, target.base, target.offset(0, k))

        self.along_k(depth, size, piece)

    def copy_columns(self, source: View, target: View, count: int, depth: Index, size: int) -> None:
        """Columns that are contiguous: groups of them interleaved, and squares of groups transposed in registers."""

        def square(k: Index, live: int) -> None:
            along, groups = source.block(0, k).transposed, []
            for first in range(0, self.lanes * self.vnni, self.vnni):
                steps = range(first, first + self.vnni)
                columns = [self.read(along, v, 0, self.lanes, count if v < live else 0) for v in steps]
                groups.append(bitcast(interleave(columns), self.lanes, self.unit))
            for i, row in enumerate(transpose(groups)[:count]):
                store(bitcast(row, self.lanes * self.vnni, self.kind), target.base, target.offset(i, k))

        self.along_k(depth, size, square)

    def copy_row_elements(self, source: View, target: View, depth: Index, size: int) -> None:
        """A row that is neither, element by element."""
        step = self.lanes * self.vnni
        if size % step:
            whole = rounded_down(depth, size, step)
            with when(differ(whole, depth)):
                store(zeros(step, self.kind), target.base, target.offset(0, whole))
        with for_range(0, depth) as k:
            store(self.read(source, 0, k.i, 1, 1), target.base, target.offset(0, k.i))

    def along_k(self, depth: Index, size: int, body: Callable[[Index, int], None]) -> None:
        """Runs `body(k, live)` for whole registers of steps, and for the rest, where it is live."""
        step = self.lanes * self.vnni
        whole = rounded_down(depth, size, step)
        if whole != 0:
            with for_range(0, whole, step) as loop:
                body(loop.i, step)
        if rest := size % step:
            with when(differ(whole, depth)):
                body(whole, rest)

    def compensation(self, target: View, at: View, depth: Index, width: int) -> None:
        """Writes what accumulators must start from where A is moved by an offset: -offset * sum of B over k.

        The sums are made by the instruction itself, of packed rows by ones.
        """
        instruction = self.nano.instruction
        ones = splat(1, self.lanes * self.vnni, element_type(instruction.lhs))
        columns = range(0, width, self.lanes)
        with for_range(0, depth, self.vnni, carry=[self.nano.zero()] * len(columns)) as loop:
            loop.next = [
                self.nano.multiply_add(acc, ones, load(target.base, target.offset(loop.i, j), self.lanes * self.vnni))
                for acc, j in zip(loop.carry, columns, strict=True)
            ]
        minus = splat(-instruction.lhs_offset, self.lanes, element_type(instruction.acc))
        for total, j in zip(loop.results, columns, strict=True):
            value = bitcast(arith.muli(total, minus), self.lanes * self.vnni, self.kind)
            store(value, at.base, at.offset(0, j))


def differ(whole: Index, depth: Index) -> bool | ir.Value:
    """Whether something is left beyond the whole steps."""
    if isinstance(whole, int) and isinstance(depth, int):
        return whole != depth
    return arith.cmpi(arith.CmpIPredicate.ne, index(whole), index(depth))
