"""Quantized weights in registers: integers as they are stored, less their zero points; scales come after the sum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, add, divmod_, index, mul, subtract
from jax_nano.codegen.load_store import load
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.registers import bitcast, broadcast
from jax_nano.codegen.types import is_signed
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import resize_integer
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4


@dataclass(frozen=True)
class QuantizedMatrixRef(MatrixRef):
    """A matrix of quantized integers, less the zero points of their columns, one for `group_size` rows each.

    Rows are contiguous. Eight rows of packed int4 share words, so there `strides[0]` leads to the next row of words.
    """

    row: Index = 0  # of the whole matrix, where row 0 of this one stands
    group_size: int = 1
    zeros: MatrixRef | None = None

    def offset(self, i: Index = 0, j: Index = 0) -> Index:
        """The place in `base` of element (i, j), or of the word that holds it."""
        row = add(self.row, i)
        line = divmod_(row, INT4_PER_WORD)[0] if self.dtype in PACKED_INT4 else row
        return add(self.at, mul(line, self.strides[0]), j)

    def block(self, i: Index = 0, j: Index = 0) -> QuantizedMatrixRef:
        """The matrix that begins at element (i, j)."""
        return replace(self, row=add(self.row, i), at=add(self.at, j), zeros=self.zeros and self.zeros.block(0, j))

    def load_row(self, i: Index, j: Index, lanes: int, count: Index) -> tuple[ir.Value, str]:
        """See MatrixRef.load_row. Values may have more bits than their type."""
        value, dtype = load(self.base, self.offset(i, j), lanes, count), self.dtype
        if dtype in PACKED_INT4:
            step, sign = divmod_(add(self.row, i), INT4_PER_WORD)[1], dtype[0]
            value, dtype = int4_of_words(value, step, signed=is_signed(dtype)), f"{sign}4"
        if self.zeros is None:
            return value, dtype
        zeros = self.load_zero_points(self.zeros, i, j, lanes, count)
        return v.sub(resize_integer(value, dtype, "s32"), zeros), "s16"

    def load_zero_points(self, zeros: MatrixRef, i: Index, j: Index, lanes: int, count: Index) -> ir.Value:
        """The zero points of row i, for `count` columns from j on, as s32."""
        at = zeros.offset(divmod_(add(self.row, i), self.group_size)[0], j)
        return resize_integer(load(zeros.base, at, lanes, count), zeros.dtype, "s32")

    def load_int4_pair_codes(self, i: Index, j: int, lanes: int, count: int) -> ir.Value:
        """Rows i and i + 1, i even, in the halves of words, whose lowest 5 bits are places in bf16_table."""
        half = ir.IntegerType.get_signless(16)
        halves = bitcast(load(self.base, self.offset(i, j), lanes, count), 2 * lanes, half)
        pair = divmod_(divmod_(add(self.row, i), INT4_PER_WORD)[1], 2)[0]
        codes = arith.shrui(halves, broadcast(arith.index_cast(half, index(mul(pair, 4))), 2 * lanes))
        if self.zeros is None:
            return codes
        zeros_in_both_halves = v.mul(self.load_zero_points(self.zeros, i, j, lanes, count), 0x10001)
        return v.sub(v.mask(codes, 15), bitcast(zeros_in_both_halves, 2 * lanes, half))

    def bf16_table(self, size: int) -> list[int]:
        """The bits of bf16 numbers by 5-bit codes: 4 bits and any fifth one, or 5 where zero points are taken off."""
        codes = np.arange(size)
        numbers = codes % 16 - 16 * (codes % 16 // 8) if is_signed(self.dtype) else codes % 16
        if self.zeros:
            numbers = codes % 32 - 32 * (codes % 32 // 16)
        return numbers.astype(ml_dtypes.bfloat16).view(np.int16).tolist()


def int4_of_words(words: ir.Value, step: Index, *, signed: bool) -> ir.Value:
    """A step's 4 bits of each word, at the lower end; packed_weight.step_bit says where they stand."""
    pair, odd = divmod_(step, 2)
    left = subtract(28, add(mul(odd, 16), mul(pair, 4)))
    lanes, kind = v.count(words), v.element(words)
    upper = arith.shli(words, broadcast(arith.index_cast(kind, index(left)), lanes))
    return (arith.shrsi if signed else arith.shrui)(upper, v.like(words, 28))
