"""Elements of A and B in registers, as an instruction wants them: converted, dequantized, interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.codegen.dequantize import int4_bf16_table, load_int4_pair_codes, load_integers
from jax_nano.codegen.index import Index, Values, add, divmod_, index, mul, subtract
from jax_nano.codegen.intrinsics import intrinsic
from jax_nano.codegen.load_store import first_lanes, load, load_int4
from jax_nano.codegen.matrix_ref import MatrixRef, PrologueView, QuantizedMatrixRef, Split
from jax_nano.codegen.registers import bitcast, broadcast, splat, zeros
from jax_nano.codegen.shuffles import interleave, interleave_registers
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import convert, signed_int4, split_float
from jax_nano.codegen.vector.evaluate import evaluate
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
        if isinstance(source, QuantizedMatrixRef):
            return self.convert(*load_integers(source, k, j, lanes, count))
        if isinstance(source, PrologueView):
            assert isinstance(count, int), "prologues are done on A, whose panels are known to the element"
            value = self.load_prologue(source, k, j, lanes, count)
            return self.convert(value, source.program.dtype(source.program.results[0]), source.bf16_split)
        return self.load(source, source.offset(k, j), lanes, count)

    def load_prologue(self, source: PrologueView, i: Index, j: Index, lanes: int, count: int) -> ir.Value:
        """The prologue's results for `count` columns from j on of row i; zeros beyond."""
        inputs = []
        for matrix, wanted in zip((source, *source.extras), source.program.inputs, strict=True):
            at, repeats = matrix.offset(i, j), matrix.strides[1] == 0
            value, dtype = load_elements(matrix, at, 1 if repeats else lanes, 1 if repeats else count)
            value = convert(value, dtype, wanted.dtype, native_bf16=self.native_bf16)
            inputs.append(broadcast(vector.extract(value, [], [0]), lanes) if repeats else value)
        (value,) = evaluate(source.program, inputs, native_bf16=self.native_bf16)
        if count < lanes:
            value = arith.select(first_lanes(count, lanes), value, zeros(lanes, v.element(value)))
        return value

    def load_vnni(self, source: MatrixRef, k: Index, width: int, cols: Index, live: int) -> Iterator[ir.Value]:
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
            is_empty = isinstance(count, int) and count <= 0
            return [
                self.load_row(source, add(k, row), j, lanes, count)
                if row < live and not is_empty
                else zeros(lanes, self.element_type)
                for row in range(self.vnni)
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
        codes = load_int4_pair_codes(source, k, j, self.lanes, count)
        kind = ir.VectorType(codes.type)
        entries = [ir.IntegerAttr.get(kind.element_type, entry) for entry in int4_bf16_table(source, TABLE)]
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


def load_elements(source: MatrixRef, at: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
    """`count` neighbours from `at` on, zeros beyond, and their type: 4-bit integers come as bytes.

    Where elements share bytes, the count is known here.
    """
    if BITS[source.dtype] > 4:
        return load(source.base, at, lanes, count), source.dtype
    assert isinstance(count, int)
    value = load_int4(source.base, at, lanes, count)
    return (signed_int4(value), "s8") if source.dtype == "s4" else (value, "u8")


def rounds_to_bf16(instruction: DotInstruction) -> bool:
    """Whether an instruction set that multiplies so has a conversion to bf16, too, which flushes subnormal numbers."""
    return instruction.name in ("vdpbf16ps", "tdpbf16ps")
