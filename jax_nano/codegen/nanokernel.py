"""Nanokernels: the smallest update of a block of accumulators that an instruction set offers.

This file owns every operation name that belongs to one target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.codegen.index import Index, Values, index
from jax_nano.codegen.intrinsics import intrinsic, segments
from jax_nano.codegen.load_store import load, load_scalar
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import OperandLoader, rounds_to_bf16
from jax_nano.codegen.registers import bitcast, broadcast, zeros
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.machine.isa import DotInstruction


class Place(NamedTuple):
    """Elements of C that a register stands for: `columns` of them from (row, column) of the block on."""

    row: int
    column: int
    columns: int


@dataclass(frozen=True)
class Block:
    """A register block of C: `rows` by `cols` elements, `lanes` of them in a register; the last may be partly used.

    Where there are `live_rows`, found at run time, tiles compute all rows and store so many.
    """

    rows: int
    cols: int
    lanes: int
    live_rows: Index | None = None

    @property
    def stored_rows(self) -> Index:
        """Rows that belong to C."""
        return self.rows if self.live_rows is None else self.live_rows

    @property
    def counts(self) -> list[int]:
        """How many columns each register of a row holds."""
        return [min(self.lanes, self.cols - j) for j in range(0, self.cols, self.lanes)]

    @property
    def places(self) -> list[Place]:
        """What the accumulators stand for, in their order: row by row."""
        return [Place(i, j * self.lanes, count) for i in range(self.rows) for j, count in enumerate(self.counts)]


@dataclass(frozen=True)
class PanelProduct:
    """What goes through a register block: A[block.rows, k] @ B[k, block.cols]."""

    a: MatrixRef
    b: MatrixRef
    block: Block

    def from_step(self, k: Index) -> PanelProduct:
        """The product of the panels from step k on."""
        return replace(self, a=self.a.block(0, k), b=self.b.block(k, 0))


def fma(acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc + a * b in every lane, rounded once."""
    return vector.fma(a, b, acc)


def dot_bf16(acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus two products of bf16 in every lane."""
    return ir.Operation.create("x86vector.avx512.dot", [acc.type], [acc, a, b]).result


def dot_bytes(name: str, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus four products of bytes in every lane."""
    return intrinsic(name, acc.type, acc, a, b)


def dot_unsigned_rhs(name: str, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus four products of bytes in every lane, where the instruction wants the unsigned ones, B's, first."""
    return intrinsic(name, acc.type, acc, b, a)


def dot_words(name: str, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus two products of signed 16-bit numbers in every lane."""
    return arith.addi(acc, intrinsic(name, acc.type, a, b))


MULTIPLY_ADD: dict[str, Callable[[ir.Value, ir.Value, ir.Value], ir.Value]] = {
    "fma_f32": fma,
    "fma_f64": fma,
    "vdpbf16ps": dot_bf16,
    "vpdpbusd_512": functools.partial(dot_bytes, "llvm.x86.avx512.vpdpbusd.512"),
    "vpdpbusd_512_swapped": functools.partial(dot_unsigned_rhs, "llvm.x86.avx512.vpdpbusd.512"),
    "vpdpbusd_256": functools.partial(dot_bytes, "llvm.x86.avx512.vpdpbusd.256"),
    "vpdpbusd_256_swapped": functools.partial(dot_unsigned_rhs, "llvm.x86.avx512.vpdpbusd.256"),
    "vpdpbssd_256": functools.partial(dot_bytes, "llvm.x86.avx2.vpdpbssd.256"),
    "vpdpbuud_256": functools.partial(dot_bytes, "llvm.x86.avx2.vpdpbuud.256"),
    "vpmaddwd_512": functools.partial(dot_words, "llvm.x86.avx512.pmaddw.d.512"),
    "vpmaddwd_256": functools.partial(dot_words, "llvm.x86.avx2.pmadd.wd"),
}


@dataclass(frozen=True, kw_only=True)
class Nanokernel:
    """acc[i, j] += a[i, k] * b[k, j] on one block, by one instruction: a broadcast, b along the lanes.

    An instruction takes `vnni` steps of k at once: that many neighbours of A in every lane, and B interleaved, as the
    VNNI layout has it.
    """

    instruction: DotInstruction
    lhs_is_packed: bool  # A stands in panels, in the instruction's type and layout
    rhs_is_packed: bool  # and so does B
    lhs_stationary: bool = False  # all rows of A are broadcast first, and B is streamed; else B is held, A streamed

    @functools.cached_property
    def lhs(self) -> OperandLoader:
        """Loads A where it is not packed."""
        return OperandLoader(self.instruction, "lhs")

    @functools.cached_property
    def rhs(self) -> OperandLoader:
        """Loads B where it is not packed."""
        return OperandLoader(self.instruction, "rhs")

    @property
    def vnni(self) -> int:
        """Steps of k that an instruction takes at once."""
        return self.instruction.vnni

    @property
    def lanes(self) -> int:
        """Columns of C in an accumulator register."""
        return self.instruction.shape[1]

    @property
    def native_bf16(self) -> bool:
        """See OperandLoader.native_bf16."""
        return rounds_to_bf16(self.instruction)

    def accumulator(self) -> ir.Type:
        """The type of an accumulator register."""
        return ir.VectorType.get([self.lanes], element_type(self.instruction.acc))

    def zero(self) -> ir.Value:
        """A cleared accumulator."""
        return zeros(self.lanes, element_type(self.instruction.acc))

    def load_lhs(self, a: MatrixRef, i: int, k: Index, live: int) -> ir.Value:
        """Elements (i, k) to (i, k + live - 1) of A in every lane, and zeros up to the end of the VNNI group."""
        a = a.from_row(i)
        at = a.offset(0, k)
        if self.vnni == 1 and (self.lhs_is_packed or (a.dtype == self.instruction.lhs and not a.bf16_split)):
            return broadcast(load_scalar(a.base, at), self.lanes)
        if self.vnni == 1 and a.dtype == "f16" and not a.bf16_split:  # a load broadcasts, which a conversion does not
            return self.lhs.convert(broadcast(load_scalar(a.base, at), self.lanes), a.dtype)
        group = load(a.base, at, self.vnni) if self.lhs_is_packed else self.lhs.load(a, at, self.vnni, live)
        scalar = vector.extract(bitcast(group, 1, self.lhs.vnni_type), [], [0])
        return bitcast(broadcast(scalar, self.lanes), self.lanes * self.vnni, self.lhs.element_type)

    def load_rhs(self, b: MatrixRef, k: Index, block: Block, live: int) -> Iterator[ir.Value]:
        """Rows k to k + live - 1 of B, register by register of the block's columns."""
        width = self.lanes * len(block.counts)
        if b.vnni > self.vnni:
            yield from self.rhs.load_f32_of_vnni_bf16(b, k, width)
        elif not self.rhs_is_packed:
            yield from self.rhs.load_vnni(b, k, width, block.cols, live)
        else:
            for j in range(0, width, self.lanes):
                yield load(b.base, b.offset(k, j), self.lanes * self.vnni)

    def zero_unless_finite(self, value: ir.Value) -> ir.Value:
        """A register of floats with zeros in place of infinities and NaN."""
        return v.select(v.less(v.magnitude(value), float("inf")), value, 0.0)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The sum of two accumulators."""
        return arith.addi(a, b) if self.instruction.acc == "s32" else arith.addf(a, b)

    def sum_lanes(self, values: Values) -> ir.Value:
        """A register whose lane j is the sum of all lanes of values[j]: a tree, in which neighbours share registers."""
        lanes, wanted = self.lanes, len(values)
        values = [*values, *[self.zero()] * ((1 << (wanted - 1).bit_length()) - wanted)]
        segment = lanes  # lanes that hold parts of one sum
        while segment > 1:
            half = segment // 2
            merge = len(values) > 1
            pairs = list(zip(values[0::2], values[1::2], strict=True)) if merge else [(values[0], values[0])]
            starts = range(0, lanes, segment)
            low = [base + start + i for base in (0, lanes)[: 1 + merge] for start in starts for i in range(half)]
            high = [i + half for i in low]
            if not merge:
                low, high = (indices + indices for indices in (low, high))
            values = [self.add(vector.shuffle(a, b, low), vector.shuffle(a, b, high)) for a, b in pairs]
            segment = half
        return values[0]

    def multiply_add(self, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """One instruction."""
        return MULTIPLY_ADD[self.instruction.name](acc, a, b)

    def update(self, acc: Values, product: PanelProduct, k: Index, live: int) -> Values:
        """Steps k to k + live - 1 on the whole block."""
        a, b, block = product.a, product.b, product.block
        width, result = len(block.counts), list(acc)
        if self.lhs_stationary:
            rows = [self.load_lhs(a, i, k, live) for i in range(block.rows)]
            for j, column in enumerate(self.load_rhs(b, k, block, live)):
                for i, row in enumerate(rows):
                    result[i * width + j] = self.multiply_add(result[i * width + j], row, column)
        else:
            columns = list(self.load_rhs(b, k, block, live))
            for i in range(block.rows):
                row = self.load_lhs(a, i, k, live)
                for j, column in enumerate(columns):
                    result[i * width + j] = self.multiply_add(result[i * width + j], row, column)
        return result


@dataclass(frozen=True, kw_only=True)
class TileNanokernel(Nanokernel):
    """The update on register tiles: a block's rows are counted in tiles, and it takes a tile's depth of k.

    A tile of A holds rows as they stand in memory, one of B rows of the VNNI layout. What tiles hold beyond the
    operands must be zero along k, and can be anything else.
    """

    def tile(self, dtype: str, rows: int, columns: int) -> ir.Type:
        """The type of a tile register. LLVM configures it so."""
        return ir.Type.parse(f"!amx.tile<{rows}x{columns}x{element_type(dtype)}>")

    def accumulator_tile(self) -> ir.Type:
        """The type of a tile of C."""
        return self.tile(self.instruction.acc, self.instruction.shape[0], self.lanes)

    def zero_tile(self) -> ir.Value:
        """A cleared accumulator."""
        return ir.Operation.create("amx.tile_zero", results=[self.accumulator_tile()]).result

    def load_tile(self, kind: ir.Type, source: MatrixRef, at: Index, stride: int) -> ir.Value:
        """A tile whose rows stand a stride apart."""
        operands = [source.base, index(at), index(stride)]
        return ir.Operation.create("amx.tile_load", [kind], operands, segments(1, 1, 1)).result

    def store_tile(self, tile: ir.Value, target: MatrixRef, i: int, j: int) -> None:
        """Stores a tile of C to where element (i, j) stands."""
        operands = [target.base, index(target.offset(i, j)), tile, index(target.strides[0])]
        ir.Operation.create("amx.tile_store", [], operands, segments(1, 1, 1, 1))

    def load_accumulator(self, source: MatrixRef, i: int, j: int) -> ir.Value:
        """The tile of sums at element (i, j)."""
        return self.load_tile(self.accumulator_tile(), source, source.offset(i, j), source.strides[0])

    def load_lhs(self, a: MatrixRef, i: int, k: Index, live: int) -> ir.Value:  # noqa: ARG002
        """The i-th tile of A's rows, from step k on."""
        rows, _, depth = self.instruction.shape
        kind = self.tile(self.instruction.lhs, rows, depth)
        return self.load_tile(kind, a, a.offset(i * rows, k), a.strides[0])

    def load_rhs(self, b: MatrixRef, k: Index, block: Block, live: int) -> Iterator[ir.Value]:  # noqa: ARG002
        """B from step k on, tile by tile of the block's columns."""
        kind = self.tile(self.instruction.rhs, self.instruction.shape[2] // self.vnni, self.lanes * self.vnni)
        for j in range(0, self.lanes * len(block.counts), self.lanes):
            yield self.load_tile(kind, b, b.offset(k, j), b.strides[0] * self.vnni)

    def multiply_add(self, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """One instruction."""
        if self.instruction.acc != "s32":
            return ir.Operation.create("amx.tile_mulf", [acc.type], [a, b, acc]).result
        unsigned = {"isZextLhs": self.instruction.lhs == "u8", "isZextRhs": self.instruction.rhs == "u8"}
        attributes: dict[str, ir.Attribute] = {name: ir.UnitAttr.get() for name, is_set in unsigned.items() if is_set}
        return ir.Operation.create("amx.tile_muli", [acc.type], [a, b, acc], attributes).result
