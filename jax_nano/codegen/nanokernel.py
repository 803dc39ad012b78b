"""Nanokernels: the smallest update of a block of accumulators that an instruction set offers.

This file owns every operation name that belongs to one target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.codegen.dequantize import integers, pair_codes, pair_table
from jax_nano.codegen.index import Index, Values, add, divmod_, element_type, index, mul, subtract
from jax_nano.codegen.load_store import first_lanes, load, load_halves, load_scalar
from jax_nano.codegen.matrix_ref import Integers, PrologueView, View
from jax_nano.codegen.registers import bitcast, broadcast, splat, zeros
from jax_nano.codegen.shuffles import interleave, interleave_registers
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import component, convert, signed_halves
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.dtypes import BITS, PACKED_INT4, WIDENS
from jax_nano.machine.isa import DotInstruction


@dataclass(frozen=True)
class Block:
    """A register block of C: `rows` by `cols` elements, `lanes` of them in a register; the last may be partly used."""

    rows: int
    cols: int
    lanes: int

    @property
    def counts(self) -> list[int]:
        """How many columns each register of a row holds."""
        return [min(self.lanes, self.cols - j) for j in range(0, self.cols, self.lanes)]


TABLE = 32  # numbers of 16 bits in a register


def elements(source: View, at: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
    """`count` neighbours from `at` on, zeros beyond, and their type: of 4 bits, one that has as many in a byte.

    Of elements that share bytes, the count is known here.
    """
    if BITS[source.dtype] > 4:
        return load(source.base, at, lanes, count), source.dtype
    assert isinstance(count, int)
    value = load_halves(source.base, at, lanes, count)
    return (signed_halves(value), "s8") if source.dtype == "s4" else (value, "u8")


def worked(source: PrologueView, i: Index, j: Index, lanes: int, count: int, native_bf16: bool) -> tuple[ir.Value, str]:
    """The same of a program's results, `count` columns of row i from j on."""
    program, inputs = source.program, []
    for view, wanted in zip((source, *source.beside), program.inputs, strict=True):
        at, repeats = view.offset(i, j), view.strides[1] == 0
        value, dtype = elements(view, at, 1 if repeats else lanes, 1 if repeats else count)
        value = convert(value, dtype, wanted.dtype, native_bf16)
        inputs.append(broadcast(vector.extract(value, [], [0]), lanes) if repeats else value)
    (value,) = evaluate(program, inputs, native_bf16)
    if count < lanes:
        value = arith.select(first_lanes(count, lanes), value, zeros(lanes, v.element(value)))
    return value, program.dtype(program.results[0])


def intrinsic(name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """A call of an LLVM intrinsic that no dialect has an operation for."""
    attributes = {
        "intrin": ir.StringAttr.get(name),
        **segments(len(operands), 0),
        "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
    }
    return ir.Operation.create("llvm.call_intrinsic", [result], list(operands), attributes).result


def fma(acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc + a * b in every lane, rounded once."""
    return vector.fma(a, b, acc)


def dot_bf16(acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus two products of bf16 in every lane."""
    return ir.Operation.create("x86vector.avx512.dot", results=[acc.type], operands=[acc, a, b]).result


def dot_bytes(name: str, swapped: bool, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus four products of bytes in every lane; those of B come first where `swapped`: unsigned before signed."""
    return intrinsic(name, acc.type, acc, *((b, a) if swapped else (a, b)))


def dot_words(name: str, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """acc plus two products of signed 16-bit numbers in every lane."""
    return arith.addi(acc, intrinsic(name, acc.type, a, b))


MULTIPLY_ADD: dict[str, Callable[[ir.Value, ir.Value, ir.Value], ir.Value]] = {
    "fma_f32": fma,
    "fma_f64": fma,
    "vdpbf16ps": dot_bf16,
    "vpdpbusd_512": partial(dot_bytes, "llvm.x86.avx512.vpdpbusd.512", False),
    "vpdpbusd_512_swapped": partial(dot_bytes, "llvm.x86.avx512.vpdpbusd.512", True),
    "vpdpbusd_256": partial(dot_bytes, "llvm.x86.avx512.vpdpbusd.256", False),
    "vpdpbusd_256_swapped": partial(dot_bytes, "llvm.x86.avx512.vpdpbusd.256", True),
    "vpdpbssd_256": partial(dot_bytes, "llvm.x86.avx2.vpdpbssd.256", False),
    "vpdpbuud_256": partial(dot_bytes, "llvm.x86.avx2.vpdpbuud.256", False),
    "vpmaddwd_512": partial(dot_words, "llvm.x86.avx512.pmaddw.d.512"),
    "vpmaddwd_256": partial(dot_words, "llvm.x86.avx2.pmadd.wd"),
}


@dataclass(frozen=True)
class Nanokernel:
    """acc[i, j] += a[i, k] * b[k, j] on one block, by one instruction: a broadcast, b along the lanes.

    An instruction takes `vnni` steps of k at once: that many neighbours of A in every lane, and B interleaved, as the
    VNNI layout has it.
    """

    instruction: DotInstruction
    lhs_stationary: bool = False  # broadcast all rows of A first and stream B; else hold B and stream A

    @property
    def vnni(self) -> int:
        """How many neighbours along k stand together."""
        return self.instruction.vnni

    @property
    def lanes(self) -> int:
        """How many columns of C one accumulator register holds."""
        return self.instruction.shape[1]

    @property
    def native_bf16(self) -> bool:
        """Whether an instruction that takes denormal numbers for zero may round to bf16: what multiplies does."""
        return self.instruction.name in ("vdpbf16ps", "tdpbf16ps")

    def accumulator(self) -> ir.Type:
        """The type of an accumulator register."""
        return ir.VectorType.get([self.lanes], element_type(self.instruction.acc))

    def zero(self) -> ir.Value:
        """A cleared accumulator."""
        return zeros(self.lanes, element_type(self.instruction.acc))

    def read(self, source: View, at: Index, lanes: int, count: Index, operand: str) -> ir.Value:
        """`count` neighbours from `at` on as the instruction wants them of its operand "lhs" or "rhs"; zeros beyond."""
        return self.ready(*elements(source, at, lanes, count), operand, source.component)

    def ready(self, value: ir.Value, source: str, operand: str, part: tuple[str, int] | None = None) -> ir.Value:
        """Elements of type `source`, or the part of each that is meant, as the instruction wants them."""
        target = getattr(self.instruction, operand)
        if part and part[0] not in WIDENS[source]:
            value, source = component(value, source, *part, self.native_bf16), part[0]
        value = convert(value, source, target, self.native_bf16)
        if operand == "lhs" and self.instruction.lhs_offset:
            kind = ir.VectorType(value.type)
            value = arith.xori(value, splat(-128, kind.shape[0], kind.element_type))  # adds or takes 128 modulo 256
        return value

    def read_row(self, source: View, k: Index, j: Index, lanes: int, count: Index, operand: str) -> ir.Value:
        """The same of `count` columns from j on of row k."""
        if isinstance(source, Integers):
            return self.ready(*integers(source, k, j, lanes, count), operand)
        if isinstance(source, PrologueView):
            assert isinstance(count, int)
            value, dtype = worked(source, k, j, lanes, count, self.native_bf16)
            return self.ready(value, dtype, operand, source.component)
        return self.read(source, source.offset(k, j), lanes, count, operand)

    def load_lhs(self, a: View, i: int, k: Index, live: int, packed: bool) -> ir.Value:
        """Elements (i, k) to (i, k + live - 1) of A in every lane, and zeros up to the group."""
        if self.vnni == 1 and (packed or (a.dtype == self.instruction.lhs and not a.component)):
            return broadcast(load_scalar(a.base, a.offset(i, k)), self.lanes)
        at = a.offset(i, k)
        if self.vnni == 1 and a.dtype == "f16" and not a.component:  # memory repeats an element for nothing
            return self.ready(broadcast(load_scalar(a.base, at), self.lanes), a.dtype, "lhs")
        group = load(a.base, at, self.vnni) if packed else self.read(a, at, self.vnni, live, "lhs")
        unit = ir.IntegerType.get_signless(self.vnni * BITS[self.instruction.lhs])
        scalar = vector.extract(bitcast(group, 1, unit), [], [0])
        kind = element_type(self.instruction.lhs)
        return bitcast(broadcast(scalar, self.lanes), self.lanes * self.vnni, kind)

    def load_rhs(self, b: View, k: Index, block: Block, live: int, packed: bool) -> Iterator[ir.Value]:
        """Rows k to k + live - 1 of B, register by register of the block's columns."""
        width = self.lanes * len(block.counts)
        if b.interleaved > self.vnni:
            yield from self.taken_apart(b, k, width)
            return
        if not packed:
            yield from self.interleaved(b, k, width, block.cols, live, "rhs")
            return
        for j in range(0, width, self.lanes):
            yield load(b.base, b.offset(k, j), self.lanes * self.vnni)

    def taken_apart(self, b: View, k: Index, width: int) -> Iterator[ir.Value]:
        """Row k of bf16 in pairs of rows, as f32: the lower halves of words or the upper ones, and zeros below."""
        pair, odd = divmod_(k, b.interleaved)
        word = ir.IntegerType.get_signless(32)
        left = broadcast(arith.index_cast(word, index(subtract(16, mul(odd, 16)))), self.lanes)
        upper = splat(-1 << 16, self.lanes, word)
        for j in range(0, width, self.lanes):
            words = bitcast(load(b.base, b.offset(mul(pair, b.interleaved), j), 2 * self.lanes), self.lanes, word)
            yield bitcast(arith.andi(arith.shli(words, left), upper), self.lanes, element_type("f32"))

    def interleaved(
        self, source: View, k: Index, width: int, cols: Index, live: int, operand: str
    ) -> Iterator[ir.Value]:
        """The same, of `width` columns, out of rows that are contiguous; what is beyond `cols` and `live` is zero.

        Rows are read by whole registers as long as there are as many columns. Of elements that share bytes or words,
        `cols` is known here.
        """
        if isinstance(source, Integers) and self.looks_up(source):
            assert isinstance(cols, int)
            for j in range(0, width, self.lanes):
                yield self.pairs_of_words(source, k, j, max(0, min(self.lanes, cols - j)))
            return
        kind, whole = element_type(getattr(self.instruction, operand)), self.lanes * self.vnni

        def rows(j: int, lanes: int) -> Values:
            count = min(lanes, cols - j) if isinstance(cols, int) else subtract(cols, j)
            none = isinstance(count, int) and count <= 0
            return [
                self.read_row(source, add(k, row), j, lanes, count, operand)
                if row < live and not none
                else zeros(lanes, kind)
                for row in range(self.vnni)
            ]

        first = width // whole * whole
        for j in range(0, first, whole):
            yield from interleave_registers(rows(j, whole))
        for j in range(first, width, self.lanes):
            yield interleave(rows(j, self.lanes))

    def looks_up(self, source: Integers) -> bool:
        """Whether a table gives pairs of steps as bf16 out of words of 4-bit integers."""
        return source.dtype in PACKED_INT4 and self.instruction.rhs == "bf16" and self.vnni * self.lanes == TABLE

    def pairs_of_words(self, source: Integers, k: Index, j: int, count: int) -> ir.Value:
        """Steps k and k + 1, an even one and the next, of `count` columns from j on; zeros beyond.

        After the last step stands some finite number.
        """
        bf16 = element_type("bf16")
        if count == 0:
            return zeros(TABLE, bf16)
        codes = pair_codes(source, k, j, self.lanes, count)
        kind = ir.VectorType(codes.type)
        entries = [ir.IntegerAttr.get(kind.element_type, entry) for entry in pair_table(source, TABLE)]
        table = arith.constant(kind, ir.DenseElementsAttr.get(entries, kind))
        return bitcast(intrinsic("llvm.x86.avx512.permvar.hi.512", kind, table, codes), TABLE, bf16)

    def load_along_k(self, source: View, at: Index, live: int, operand: str) -> ir.Value:
        """`live` neighbours along k as one register, zeros beyond."""
        return self.read(source, at, self.lanes * self.vnni, live, operand)

    def finite(self, value: ir.Value) -> ir.Value:
        """A register of floats with zeros in place of infinities and NaN."""
        return v.select(v.less(v.magnitude(value), float("inf")), value, 0.0)

    def plus(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The sum of two accumulators."""
        return arith.addi(a, b) if self.instruction.acc == "s32" else arith.addf(a, b)

    def sums(self, values: Values) -> ir.Value:
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
            values = [self.plus(vector.shuffle(a, b, low), vector.shuffle(a, b, high)) for a, b in pairs]
            segment = half
        return values[0]

    def multiply_add(self, acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """One instruction."""
        return MULTIPLY_ADD[self.instruction.name](acc, a, b)

    def update(
        self, acc: Values, a: View, b: View, k: Index, block: Block, live: int, packed: tuple[bool, bool]
    ) -> Values:
        """Steps k to k + live - 1 on the whole block; `packed` says whether A and B are in panels."""
        width = len(block.counts)
        result = list(acc)

        def lhs(i: int) -> ir.Value:
            return self.load_lhs(a, i, k, live, packed[0])

        if self.lhs_stationary:
            held = [lhs(i) for i in range(block.rows)]
            for j, streamed in enumerate(self.load_rhs(b, k, block, live, packed[1])):
                for i in range(block.rows):
                    result[i * width + j] = self.multiply_add(result[i * width + j], held[i], streamed)
        else:
            held = list(self.load_rhs(b, k, block, live, packed[1]))
            for i in range(block.rows):
                streamed = lhs(i)
                for j in range(width):
                    result[i * width + j] = self.multiply_add(result[i * width + j], streamed, held[j])
        return result


@dataclass(frozen=True)
class TileNanokernel(Nanokernel):
    """The same on register tiles: a block's rows are counted in tiles, and an update takes a tile's depth of k.

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

    def load_tile(self, kind: ir.Type, source: View, at: Index, stride: int) -> ir.Value:
        """A tile whose rows stand a stride apart."""
        operands = [source.base, index(at), index(stride)]
        return ir.Operation.create("amx.tile_load", [kind], operands, segments(1, 1, 1)).result

    def store_tile(self, tile: ir.Value, target: View, i: int, j: int) -> None:
        """Stores a tile of C to where element (i, j) stands."""
        operands = [target.base, index(target.offset(i, j)), tile, index(target.strides[0])]
        ir.Operation.create("amx.tile_store", [], operands, segments(1, 1, 1, 1))

    def load_accumulator(self, source: View, i: int, j: int) -> ir.Value:
        """The tile of sums at element (i, j)."""
        return self.load_tile(self.accumulator_tile(), source, source.offset(i, j), source.strides[0])

    def load_lhs(self, a: View, i: int, k: Index, live: int, packed: bool) -> ir.Value:  # noqa: ARG002
        """The i-th tile of A's rows, from step k on."""
        rows, _, depth = self.instruction.shape
        kind = self.tile(self.instruction.lhs, rows, depth)
        return self.load_tile(kind, a, a.offset(i * rows, k), a.strides[0])

    def load_rhs(self, b: View, k: Index, block: Block, live: int, packed: bool) -> Iterator[ir.Value]:  # noqa: ARG002
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


def segments(*sizes: int) -> dict[str, ir.Attribute]:
    """How many operands stand for each of an operation's arguments."""
    return {"operandSegmentSizes": ir.DenseI32ArrayAttr.get(sizes)}
