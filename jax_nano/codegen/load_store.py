"""Loads, stores and prefetches."""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from jax_nano.codegen.index import Index, add, divmod_, index, maximum, minimum, mul, subtract
from jax_nano.codegen.intrinsics import intrinsic
from jax_nano.codegen.registers import bitcast, broadcast, splat, zeros
from jax_nano.codegen.shuffles import interleave

BF16_BYTES = 2
WORD_BITS = 64


def first_lanes(count: Index, lanes: int) -> ir.Value:
    """A mask of the first `count` lanes: none or all of them, where a value is below 1 or above `lanes`."""
    kind = ir.VectorType.get([lanes], ir.IntegerType.get_signless(1))
    if isinstance(count, int):
        return vector.constant_mask(kind, [max(0, min(count, lanes))])
    return vector.create_mask(kind, [count])


def lanes_between(begin: Index, end: Index, lanes: int) -> ir.Value:
    """A mask of the lanes [begin, end), fewer than 64, made in general registers.

    Were bounds compared with the numbers of lanes, those would stay in two registers of vectors throughout loops around
    microkernels, whose accumulators would spill.
    """
    below, before = (bits_below(count, lanes) for count in (end, begin))
    ones = arith.constant(below.type, -1)
    bits = arith.andi(below, arith.xori(before, ones))
    if lanes < WORD_BITS:
        bits = arith.trunci(ir.IntegerType.get_signless(lanes), bits)
    return bitcast(broadcast(bits, 1), lanes, ir.IntegerType.get_signless(1))


def bits_below(count: Index, most: int) -> ir.Value:
    """A word whose first `count` bits are set: none or `most` of them, where a value is below 0 or above."""
    word = ir.IntegerType.get_signless(WORD_BITS)
    shift = arith.index_cast(word, index(minimum(maximum(count, 0), most)))
    ones = arith.constant(word, -1)
    return arith.xori(arith.shli(ones, shift), ones)


def load(base: ir.Value, at: Index, lanes: int, count: Index | None = None) -> ir.Value:
    """`lanes` elements from `at` on; beyond the first `count` nothing is read, and zeros stand."""
    dtype = ir.MemRefType(base.type).element_type
    kind = ir.VectorType.get([lanes], dtype)
    if count is None or (isinstance(count, int) and count >= lanes):
        return vector.load(kind, base, [index(at)])
    return masked_load(base, at, lanes, first_lanes(count, lanes))


def masked_load(base: ir.Value, at: Index, lanes: int, mask: ir.Value) -> ir.Value:
    """`lanes` elements from `at` on; those outside of a mask are not read, and are zeros."""
    dtype = ir.MemRefType(base.type).element_type
    if is_bf16(dtype):
        word = ir.IntegerType.get_signless(16)
        kind = ir.VectorType.get([lanes], word)
        words = intrinsic("llvm.masked.load", kind, pointer(base, at, BF16_BYTES), mask, zeros(lanes, word))
        return bitcast(words, lanes, dtype)
    kind = ir.VectorType.get([lanes], dtype)
    return vector.maskedload(kind, base, [index(at)], mask, zeros(lanes, dtype))


def masked_store(value: ir.Value, base: ir.Value, at: Index, mask: ir.Value) -> None:
    """Stores the lanes of a mask from `at` on."""
    dtype = ir.MemRefType(base.type).element_type
    if is_bf16(dtype):
        words = bitcast(value, ir.VectorType(value.type).shape[0], ir.IntegerType.get_signless(16))
        intrinsic("llvm.masked.store", None, words, pointer(base, at, BF16_BYTES), mask)
    else:
        vector.maskedstore(base, [index(at)], mask, value)


def is_bf16(dtype: ir.Type) -> bool:
    """Whether elements have masked loads and stores as integers alone: LLVM takes those of bf16 apart, lane by lane."""
    return isinstance(dtype, ir.BF16Type)


def pointer(base: ir.Value, at: Index, size: int) -> ir.Value:
    """LLVM's pointer to an element of so many bytes."""
    word = ir.IntegerType.get_signless(64)
    begin = memref.extract_aligned_pointer_as_index(base)
    address = arith.index_cast(word, index(add(begin, mul(at, size))))
    return ir.Operation.create("llvm.inttoptr", [ir.Type.parse("!llvm.ptr")], [address]).result


def load_where(base: ir.Value, at: Index, lanes: int, mask: ir.Value | None) -> ir.Value:
    """`lanes` elements from `at` on; those outside of a mask are not read, and are zeros."""
    if mask is None:
        return load(base, at, lanes)
    return masked_load(base, at, lanes, mask)


def load_int4(base: ir.Value, at: Index, lanes: int, count: int) -> ir.Value:
    """Unsigned 4-bit elements, two in a byte with the first in its lower half, each as a byte; zeros beyond `count`."""
    byte, odd = divmod_(at, 2)
    lower = load_half_bytes(base, byte, mul(odd, 4), max(1, lanes // 2), (count + 1) // 2)
    if lanes == 1:
        return lower
    upper = load_half_bytes(base, add(byte, odd), subtract(4, mul(odd, 4)), lanes // 2, count // 2)
    return interleave([lower, upper])


def load_half_bytes(base: ir.Value, at: Index, bit: Index, lanes: int, count: int) -> ir.Value:
    """Half of each byte from `at` on: the 4 bits from `bit` on, which is 0 or 4."""
    byte, word = ir.IntegerType.get_signless(8), ir.IntegerType.get_signless(16)
    value = load(base, at, lanes, count) if count else zeros(lanes, byte)
    unit, units = (word, lanes // 2) if lanes % 2 == 0 else (byte, lanes)  # vector units shift words, not bytes
    by = broadcast(arith.index_cast(unit, index(bit)), units)
    shifted = bitcast(arith.shrui(bitcast(value, units, unit), by), lanes, byte)
    return arith.andi(shifted, splat(15, lanes, byte))


def store(value: ir.Value, base: ir.Value, at: Index, count: int | None = None) -> None:
    """Stores the first `count` lanes (all by default) from `at` on."""
    lanes = ir.VectorType(value.type).shape[0]
    if count is None or count >= lanes:
        vector.store(value, base, [index(at)])
    elif count == 1:  # LLVM 22 writes 32 bits for one lane that is truncated to fewer
        store_lane(value, 0, base, at)
    else:
        masked_store(value, base, at, first_lanes(count, lanes))


def store_lane(value: ir.Value, lane: int, base: ir.Value, at: Index) -> None:
    """Stores one lane. LLVM rounds each bf16 that it moves alone, by a call: bits are moved."""
    kind = ir.VectorType(value.type)
    if not isinstance(kind.element_type, ir.BF16Type):
        memref.store(vector.extract(value, [], [lane]), base, [index(at)])
        return
    word = ir.IntegerType.get_signless(16)
    bits = vector.extract(bitcast(value, kind.shape[0], word), [], [lane])
    vector.store(bitcast(broadcast(bits, 1), 1, kind.element_type), base, [index(at)])


def store_where(value: ir.Value, base: ir.Value, at: Index, mask: ir.Value | None) -> None:
    """Stores the lanes of a mask, or all of them."""
    if mask is None:
        vector.store(value, base, [index(at)])
    else:
        masked_store(value, base, at, mask)


def prefetch(base: ir.Value, at: Index, *, write: bool = False) -> None:
    """Prefetches the cache line of an element: into L2 to read it, into L1 to write it.

    The element need not exist.
    """
    memref.prefetch(base, [index(at)], is_write=write, locality_hint=3 if write else 2, is_data_cache=True)


def load_scalar(base: ir.Value, at: Index) -> ir.Value:
    """One element."""
    return memref.load(base, [index(at)])


def load_everywhere(base: ir.Value, at: Index, lanes: int) -> ir.Value:
    """One element in all of `lanes`; of bf16, its bits."""
    dtype = ir.MemRefType(base.type).element_type
    if not isinstance(dtype, ir.BF16Type):
        return broadcast(load_scalar(base, at), lanes)
    word = ir.IntegerType.get_signless(16)
    bits = vector.extract(bitcast(load(base, at, 1), 1, word), [], [0])
    return bitcast(broadcast(bits, lanes), lanes, dtype)
