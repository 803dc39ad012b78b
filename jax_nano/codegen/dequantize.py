"""Quantized weights in registers: integers as they are stored, less their zero points; scales come after the sum."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, add, divmod_, index, mul, subtract
from jax_nano.codegen.load_store import load
from jax_nano.codegen.matrix_ref import QuantizedMatrixRef
from jax_nano.codegen.registers import bitcast, broadcast
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import resize_integer
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4


def load_integers(source: QuantizedMatrixRef, k: Index, j: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
    """`count` columns of row k from j on, zeros beyond; and their type, of which they may have more bits."""
    value, dtype = load(source.base, source.offset(k, j), lanes, count), source.dtype
    if dtype in PACKED_INT4:
        step, sign = divmod_(add(source.row, k), INT4_PER_WORD)[1], dtype[0]
        value, dtype = int4_of_words(value, step, signed=sign == "s"), f"{sign}4"
    if source.zeros is None:
        return value, dtype
    return v.sub(resize_integer(value, dtype, "s32"), load_zero_points(source, k, j, lanes, count)), "s16"


def load_zero_points(source: QuantizedMatrixRef, k: Index, j: Index, lanes: int, count: Index) -> ir.Value:
    """The zero points of row k, for `count` columns from j on, as s32."""
    zeros = source.zeros
    assert zeros, "only asked for where there are zero points"
    at = zeros.offset(divmod_(add(source.row, k), source.group_size)[0], j)
    return resize_integer(load(zeros.base, at, lanes, count), zeros.dtype, "s32")


def int4_of_words(words: ir.Value, step: Index, *, signed: bool) -> ir.Value:
    """A step's 4 bits of each word, at the lower end; packed_weight.step_bit says where they stand."""
    pair, odd = divmod_(step, 2)
    left = subtract(28, add(mul(odd, 16), mul(pair, 4)))
    lanes, kind = v.count(words), v.element(words)
    upper = arith.shli(words, broadcast(arith.index_cast(kind, index(left)), lanes))
    return (arith.shrsi if signed else arith.shrui)(upper, v.like(words, 28))


def load_int4_pair_codes(source: QuantizedMatrixRef, k: Index, j: int, lanes: int, count: int) -> ir.Value:
    """Rows k and k + 1, k even, in the halves of words, whose lowest 5 bits are places in int4_bf16_table."""
    half = ir.IntegerType.get_signless(16)
    halves = bitcast(load(source.base, source.offset(k, j), lanes, count), 2 * lanes, half)
    pair = divmod_(divmod_(add(source.row, k), INT4_PER_WORD)[1], 2)[0]
    codes = arith.shrui(halves, broadcast(arith.index_cast(half, index(mul(pair, 4))), 2 * lanes))
    if source.zeros is None:
        return codes
    zeros_in_both_halves = v.mul(load_zero_points(source, k, j, lanes, count), 0x10001)
    return v.sub(v.mask(codes, 15), bitcast(zeros_in_both_halves, 2 * lanes, half))


def int4_bf16_table(source: QuantizedMatrixRef, size: int) -> list[int]:
    """The bits of bf16 numbers by 5-bit codes: 4 bits with any fifth one, or 5 bits where zero points are taken off."""
    codes = np.arange(size)
    numbers = codes % 16 - 16 * (codes % 16 // 8) if source.dtype == "s4x8" else codes % 16
    if source.zeros:
        numbers = codes % 32 - 32 * (codes % 32 // 16)
    return numbers.astype(ml_dtypes.bfloat16).view(np.int16).tolist()
