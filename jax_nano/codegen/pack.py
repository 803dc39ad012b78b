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

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, Values, add, divmod_, mul, unequal
from jax_nano.codegen.load_store import load, prefetch, store
from jax_nano.codegen.loops import Depth, Span, for_range, panels, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.nanokernel import Nanokernel
from jax_nano.codegen.operand_loader import OperandLoader, count_of
from jax_nano.codegen.registers import bitcast, splat, zeros
from jax_nano.codegen.shuffles import interleave, transpose
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import bytes_of
from jax_nano.schedule.plan import LINE_BYTES

ROWS_AHEAD = 32  # how much further on rows are prefetched while they are copied: many lie on a page of their own


@dataclass(frozen=True)
class Destination:
    """The panels, each `width` wide, that hold a span of columns (or rows of A): `panel(j)` begins at j."""

    span: Span
    width: int
    panel: Callable[[Index], MatrixRef]

    def __iter__(self) -> Iterator[tuple[Index, int, MatrixRef]]:
        """Emits a loop over them: (first column, columns, panel)."""
        for j, cols in panels(self.span, self.width, "panels"):
            yield j, cols, self.panel(j)


@dataclass(frozen=True)
class Packer:
    """Copies one operand in the layout of its panels, `width` columns each (or rows of A)."""

    load: OperandLoader
    width: int
    rows_ahead: int = ROWS_AHEAD  # 0 where who packs prefetches otherwise

    @property
    def lanes(self) -> int:
        """VNNI groups in a register."""
        return self.load.lanes

    @property
    def vnni(self) -> int:
        """Steps of k in a VNNI group."""
        return self.load.vnni

    @property
    def register(self) -> int:
        """Elements in a register."""
        return self.lanes * self.vnni

    def zeros(self) -> ir.Value:
        """A register of zeros."""
        return zeros(self.register, self.load.element_type)

    def as_groups(self, register: ir.Value) -> ir.Value:
        """A register whose VNNI groups are one number each."""
        return bitcast(register, self.lanes, self.load.vnni_type)

    def as_elements(self, groups: ir.Value) -> ir.Value:
        """A register of elements again."""
        return bitcast(groups, self.register, self.load.element_type)

    def read(self, source: MatrixRef, i: Index, j: Index, lanes: int, count: Index) -> ir.Value:
        """`count` columns of row i from j on, which are contiguous, as the instruction wants them; zeros beyond."""
        if isinstance(count, int) and count <= 0:
            return zeros(lanes, self.load.element_type)
        return self.load.load_row(source, i, j, lanes, count)

    def pack_panels(self, to: Destination, source: MatrixRef, depth: Depth) -> None:
        """Copies rows of `source`, element (k, j) of B or of A transposed, to panels in which rows follow one another.

        Args:
          to: which columns, and where their panels stand.
          source: B, or A transposed.
          depth: how many rows.
        """
        if source.strides[1] == 1:
            self.copy_rows(to, source, depth)
        elif source.strides[0] == 1:
            for j, cols, panel in to:
                self.copy_transposed(source.block(0, j), panel, depth, cols)
        else:
            for j, cols, panel in to:
                self.copy_elements(source.block(0, j), panel, depth, cols)
        self.clear_rest(to, depth)

    def clear_rest(self, to: Destination, depth: Depth) -> None:
        """Zeros from the last VNNI group to the end of the last instruction's steps."""
        steps = self.load.instruction.shape[2]
        if steps == self.vnni or not depth.rest(steps):
            return
        nothing = self.zeros()
        for _, _, panel in to:
            with for_range(depth.rounded_up(self.vnni), depth.rounded_up(steps), self.vnni) as row:
                for j in range(0, self.width, self.lanes):
                    self.put(nothing, panel, row.i, j)

    def copy_rows(self, to: Destination, source: MatrixRef, depth: Depth) -> None:
        """Rows that are contiguous already: VNNI groups of them, read along the rows from panel to panel."""
        for k, live in depth.pieces(self.vnni):
            for first, cols, panel in to:
                for step in range(self.vnni if self.rows_ahead else 0):
                    for j in range(0, cols, LINE_BYTES // bytes_of(source.dtype)):
                        prefetch(source.base, source.offset(add(k, self.rows_ahead + step), add(first, j)))
                self.copy_group(source.block(0, first), panel, k, cols, live)

    def copy_group(self, source: MatrixRef, panel: MatrixRef, k: Index, cols: Index, live: Index) -> None:
        """Rows k to k + live - 1 of a panel, interleaved."""
        padded = -(-self.width // self.lanes) * self.lanes
        for i, register in enumerate(self.load.load_vnni(source, k, padded, cols, live)):
            self.put(register, panel, k, i * self.lanes)

    def copy_steps(self, source: MatrixRef, panel: MatrixRef, k: Index, steps: int, cols: Index) -> None:
        """Rows k to k + steps - 1, which are contiguous, in whole VNNI groups. There may be no column of them."""
        for first in range(0, steps, self.vnni):
            self.copy_group(source, panel, add(k, first), cols, self.vnni)

    def copy_transposed(self, source: MatrixRef, panel: MatrixRef, depth: Depth, cols: int) -> None:
        """Columns that are contiguous: squares of `lanes` x `lanes` VNNI groups transposed in registers.

        How many steps are left behind whole squares has to be known here.
        """

        def square(k: Index, j: Index, live: int, count: int) -> Values:
            first = source.block(k, j).transposed
            columns = [
                self.as_groups(self.read(first, c, 0, self.register, live if c < count else 0))
                for c in range(self.lanes)
            ]
            return [self.as_elements(row) for row in transpose(columns)[: -(-live // self.vnni)]]

        whole = cols // self.lanes * self.lanes
        for k, live in depth.known_pieces(self.register):
            if whole:
                with for_range(0, whole, self.lanes) as loop:
                    for i, row in enumerate(square(k, loop.i, live, self.lanes)):
                        store(row, panel.base, panel.offset(add(k, i * self.vnni), loop.i))
            for j in range(whole, self.width, self.lanes):
                nothing = [self.zeros()] * -(-live // self.vnni)
                for i, row in enumerate(square(k, j, live, cols - j) if j < cols else nothing):
                    self.put(row, panel, add(k, i * self.vnni), j)

    def copy_elements(self, source: MatrixRef, panel: MatrixRef, depth: Depth, cols: int) -> None:
        """Strided both ways: element by element, into a panel cleared before."""
        with for_range(0, depth.rounded_up(self.vnni), self.vnni) as row:
            for j in range(0, self.width, self.lanes):
                self.put(self.zeros(), panel, row.i, j)
        with for_range(0, depth.steps) as row:
            group, within = divmod_(row.i, self.vnni)
            k = mul(group, self.vnni)
            with for_range(0, cols) as column:
                value = self.read(source, row.i, column.i, 1, 1)
                store(value, panel.base, add(panel.offset(k, column.i), within))

    def put(self, register: ir.Value, panel: MatrixRef, k: Index, j: int) -> None:
        """Stores a register of a panel; the last may be cut short by the panel's end."""
        store(register, panel.base, panel.offset(k, j), (self.width - j) * self.vnni)

    def pack_rows(self, to: Destination, source: MatrixRef, depth: Depth) -> None:
        """Copies rows of A, element (i, k), so that each is contiguous; up to a register is written behind each."""
        if source.strides[1] == 1:
            with for_range(to.span.begin, to.span.end) as row:
                self.copy_row(source.from_row(row.i), to.panel(row.i), depth)
        elif source.strides[0] == 1:
            for i, count, panel in to:
                self.copy_columns(source.block(i, 0), panel, count, depth)
        else:
            with for_range(to.span.begin, to.span.end) as row:
                self.copy_row_elements(source.from_row(row.i), to.panel(row.i), depth)

    def copy_row(self, source: MatrixRef, target: MatrixRef, depth: Depth) -> None:
        """A row that is contiguous already."""
        for k, live in depth.pieces(self.register):
            value = self.read(source, 0, k, self.register, live)
            store(value, target.base, target.offset(0, k))

    def copy_columns(self, source: MatrixRef, target: MatrixRef, count: int, depth: Depth) -> None:
        """Columns that are contiguous: VNNI groups are interleaved, and squares of these transposed in registers."""
        for k, live in depth.pieces(self.register):
            along, groups = source.block(0, k).transposed, []
            for first in range(0, self.register, self.vnni):
                counts = [count_of(step, live, count) for step in range(first, first + self.vnni)]
                columns = [self.read(along, first + i, 0, self.lanes, each) for i, each in enumerate(counts)]
                groups.append(self.as_groups(interleave(columns)))
            for i, row in enumerate(transpose(groups)[:count]):
                store(self.as_elements(row), target.base, target.offset(i, k))

    def copy_row_elements(self, source: MatrixRef, target: MatrixRef, depth: Depth) -> None:
        """A row that is neither, element by element."""
        if depth.rest(self.register):
            whole = depth.whole(self.register)
            with when(unequal(whole, depth.steps)):
                store(self.zeros(), target.base, target.offset(0, whole))
        with for_range(0, depth.steps) as k:
            store(self.read(source, 0, k.i, 1, 1), target.base, target.offset(0, k.i))


def pack_compensation(nano: Nanokernel, panel: MatrixRef, row: MatrixRef, depth: Index, width: int) -> None:
    """Writes a row of what accumulators begin with where A is moved by an offset: -offset * sum of B over k.

    The sums are made by the instruction itself, of packed rows by ones.
    """
    instruction, register = nano.instruction, nano.lanes * nano.vnni
    ones = splat(1, register, element_type(instruction.lhs))
    columns = range(0, width, nano.lanes)
    with for_range(0, depth, nano.vnni, carry=[nano.zero()] * len(columns)) as loop:
        loop.next = [
            nano.multiply_add(acc, ones, load(panel.base, panel.offset(loop.i, j), register))
            for acc, j in zip(loop.carry, columns, strict=True)
        ]
    minus = splat(-instruction.lhs_offset, nano.lanes, element_type(instruction.acc))
    for total, j in zip(loop.results, columns, strict=True):
        value = bitcast(arith.muli(total, minus), register, element_type(instruction.rhs))
        store(value, row.base, row.offset(0, j))
