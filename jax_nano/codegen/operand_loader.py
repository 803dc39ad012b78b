"""Elements of A and B in registers, as an instruction wants them: converted, dequantized, interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.dequantize import QuantizedMatrixRef
from jax_nano.codegen.index import Index, Values, add, divmod_, index, less, mul, select, subtract
from jax_nano.codegen.intrinsics import intrinsic
from jax_nano.codegen.load_store import load
from jax_nano.codegen.matrix_ref import MatrixRef, Split, load_elements
from jax_nano.codegen.registers import bitcast, broadcast, splat, zeros
from jax_nano.codegen.shuffles import interleave, interleave_registers
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector.convert import convert, split_float
from jax_nano.ir.dtypes import BITS, PACKED_INT4, WIDENS
from jax_nano.machine.isa import DotInstruction

TABLE = 32  # numbers of 16 bits in a register of 512


@dataclass(frozen=True)
class OperandLoader:
    """Loads one operand of an instruction, "lhs" (A) or "rhs" (B)."""

    instruction: DotInstruction
    operand: Literal["lhs", "rhs"]

    @property
    def dtype(self) -> str:
        """The type that the instruction multiplies."""
        return getattr(self.instruction, self.operand)

    @property
    def element_type(self) -> ir.Type:
        """The MLIR type of that."""
        return element_type(self.dtype)

    @property
    def vnni(self) -> int:
        """Steps of k that an instruction takes from neighbouring elements."""
        return self.instruction.vnni

    @property
    def lanes(self) -> int:
        """Columns of C in an accumulator register."""
        return self.instruction.shape[1]

    @property
    def vnni_type(self) -> ir.Type:
        """A VNNI group as one number."""
        return ir.IntegerType.get_signless(self.vnni * BITS[self.dtype])

    @property
    def native_bf16(self) -> bool:
        """Whether f32 is rounded to bf16 by instructions, which flush subnormal numbers: the products do so as well."""
        return rounds_to_bf16(self.instruction)

    def load(self, source: MatrixRef, at: Index, lanes: int, count: Index) -> ir.Value:
        """`count` neighbours from `at` on in the instruction's type; zeros beyond."""
        return self.convert(*load_elements(source, at, lanes, count), source.bf16_split)

    def convert(self, value: ir.Value, source: str, split: Split | None = None) -> ir.Value:
        """Elements of type `source`, or one of the numbers that each is split into, in the instruction's type.

        Where the instruction wants A of the opposite sign, that is moved by its offset.
        """
        if split and split.dtype not in WIDENS[source]:
            value = split_float(value, source, split, native_bf16=self.native_bf16)
            source = split.dtype
        value = convert(value, source, self.dtype, native_bf16=self.native_bf16)
        if self.operand == "lhs" and self.instruction.lhs_offset:
            kind = ir.VectorType(value.type)
            value = arith.xori(value, splat(-128, kind.shape[0], kind.element_type))  # plus or minus 128, modulo 256
        return value

    def load_row(self, source: MatrixRef, k: Index, j: Index, lanes: int, count: Index) -> ir.Value:
        """`count` columns from j on of row k, which is contiguous, in the instruction's type; zeros beyond."""
        return self.convert(*source.load_row(k, j, lanes, count), source.bf16_split)

    def load_vnni(self, source: MatrixRef, k: Index, width: int, cols: Index, live: Index) -> Iterator[ir.Value]:
        """Rows k to k + live - 1 interleaved, register by register of `width` columns; zeros beyond `cols` and `live`.

        Rows are contiguous, and are read by whole registers as long as there are as many columns. Where elements share
        bytes or words, `cols` is known here.
        """
        if isinstance(source, QuantizedMatrixRef) and self.has_int4_table(source):
            assert isinstance(cols, int)
            for j in range(0, width, self.lanes):
                yield self.look_up_int4_pairs(source, k, j, max(0, min(self.lanes, cols - j)))
            return
        register = self.lanes * self.vnni

        def rows(j: int, lanes: int) -> Values:
            count = min(lanes, cols - j) if isinstance(cols, int) else subtract(cols, j)
            counts = [count_of(row, live, count) for row in range(self.vnni)]
            return [
                zeros(lanes, self.element_type)
                if isinstance(count, int) and count <= 0
                else self.load_row(source, add(k, row), j, lanes, count)
                for row, count in enumerate(counts)
            ]

        whole = width // register * register
        for j in range(0, whole, register):
            yield from interleave_registers(rows(j, register))
        for j in range(whole, width, self.lanes):
            yield interleave(rows(j, self.lanes))

    def has_int4_table(self, source: QuantizedMatrixRef) -> bool:
        """Whether a table in a register turns pairs of packed int4 into bf16."""
        return source.dtype in PACKED_INT4 and self.dtype == "bf16" and self.vnni * self.lanes == TABLE

    def look_up_int4_pairs(self, source: QuantizedMatrixRef, k: Index, j: int, count: int) -> ir.Value:
        """Rows k and k + 1, k even, of `count` columns from j on, interleaved; zeros beyond.

        A row behind the last one holds finite numbers.
        """
        bf16 = element_type("bf16")
        if count == 0:
            return zeros(TABLE, bf16)
        codes = source.load_int4_pair_codes(k, j, self.lanes, count)
        kind = ir.VectorType(codes.type)
        entries = [ir.IntegerAttr.get(kind.element_type, entry) for entry in source.bf16_table(TABLE)]
        table = arith.constant(kind, ir.DenseElementsAttr.get(entries, kind))
        return bitcast(intrinsic("llvm.x86.avx512.permvar.hi.512", kind, table, codes), TABLE, bf16)

    def load_f32_of_vnni_bf16(self, source: MatrixRef, k: Index, width: int) -> Iterator[ir.Value]:
        """Row k of bf16 in pairs of rows, as f32: the lower or the upper halves of words, with zeros below."""
        pair, odd = divmod_(k, source.vnni)
        word = ir.IntegerType.get_signless(32)
        left = broadcast(arith.index_cast(word, index(subtract(16, mul(odd, 16)))), self.lanes)
        upper = splat(-1 << 16, self.lanes, word)
        for j in range(0, width, self.lanes):
            at = source.offset(mul(pair, source.vnni), j)
            words = bitcast(load(source.base, at, 2 * self.lanes), self.lanes, word)
            yield bitcast(arith.andi(arith.shli(words, left), upper), self.lanes, element_type("f32"))


def count_of(row: int, live: Index, count: Index) -> Index:
    """How many elements a row has: `count` if it is one of the first `live` rows, of which there is one at least."""
    if isinstance(live, int):
        return count if row < live else 0
    return select(less(row, live), count, 0) if row else count


def rounds_to_bf16(instruction: DotInstruction) -> bool:
    """Whether an instruction set that multiplies so has a conversion to bf16, too, which flushes subnormal numbers."""
    return instruction.name in ("vdpbf16ps", "tdpbf16ps")
