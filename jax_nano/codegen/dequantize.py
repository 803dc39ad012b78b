"""Quantized weights in registers: integers read as they are stored, sums of theirs scaled."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, add, divmod_, index, mul, subtract
from jax_nano.codegen.load_store import load
from jax_nano.codegen.matrix_ref import Integers, View
from jax_nano.codegen.registers import bitcast, broadcast
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import resized
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4


def integers(source: Integers, k: Index, j: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
    """`count` columns of row k from j on, zeros beyond; and their type, of which they may have more bits."""
    value, dtype = load(source.base, source.offset(k, j), lanes, count), source.dtype
    if dtype in PACKED_INT4:
        value, dtype = of_word(value, divmod_(add(source.row, k), INT4_PER_WORD)[1], dtype[0] == "s"), f"{dtype[0]}4"
    if source.zeros is None:
        return value, dtype
    return v.sub(resized(value, dtype, "s32"), zero_points(source, source.zeros, k, j, lanes, count)), "s16"


def zero_points(source: Integers, zeros: View, k: Index, j: Index, lanes: int, count: Index) -> ir.Value:
    """Those of row k, for `count` columns from j on, as words."""
    at = zeros.offset(divmod_(add(source.row, k), source.group_size)[0], j)
    return resized(load(zeros.base, at, lanes, count), zeros.dtype, "s32")


def of_word(word: ir.Value, step: Index, signed: bool) -> ir.Value:
    """The 4 bits of each word that belong to a step, as problem.step_bit has them, moved to the lower end."""
    pair, odd = divmod_(step, 2)
    left = subtract(28, add(mul(odd, 16), mul(pair, 4)))
    lanes, kind = v.count(word), v.element(word)
    upper = arith.shli(word, broadcast(arith.index_cast(kind, index(left)), lanes))
    return (arith.shrsi if signed else arith.shrui)(upper, v.like(word, 28))


def pair_codes(source: Integers, k: Index, j: int, lanes: int, count: int) -> ir.Value:
    """Steps k and k + 1, an even one and the next, of words: by the lowest 5 bits of each half, pair_table has them."""
    half = ir.IntegerType.get_signless(16)
    halves = bitcast(load(source.base, source.offset(k, j), lanes, count), 2 * lanes, half)
    pair = divmod_(divmod_(add(source.row, k), INT4_PER_WORD)[1], 2)[0]
    codes = arith.shrui(halves, broadcast(arith.index_cast(half, index(mul(pair, 4))), 2 * lanes))
    if source.zeros is None:
        return codes
    both = v.mul(zero_points(source, source.zeros, k, j, lanes, count), 0x10001)
    return v.sub(v.mask(codes, 15), bitcast(both, 2 * lanes, half))


def pair_table(source: Integers, size: int) -> list[int]:
    """The bits of bf16 numbers by their codes: of 4 bits and any fifth, or of 5 once zero points are taken off."""
    codes = np.arange(size)
    numbers = codes % 16 - 16 * (codes % 16 // 8) if source.dtype == "s4x8" else codes % 16
    if source.zeros:
        numbers = codes % 32 - 32 * (codes % 32 // 16)
    return numbers.astype(ml_dtypes.bfloat16).view(np.int16).tolist()
