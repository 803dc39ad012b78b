"""Packing: operands copied into panels that microkernels read from end to end.

B, a panel of `width` columns (NR):         A by rows:                    A by columns, a panel of MR rows:

    k=0   b00 b01 ... b0w                     i=0  a00 a01 ... a0k | pad     k=0   a00 a10 ... am0
    k=1   b10 b11 ... b1w                     i=1  a10 a11 ... a1k | pad     k=1   a01 a11 ... am1

Columns of B beyond the matrix are zero, so that microkernels read whole registers. Rows of A are padded apart, so that
the rows of a block do not compete for the same cache lines.
"""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from jax_nano.build import (
    Index,
    Values,
    View,
    add,
    equal,
    for_range,
    index,
    load,
    load_scalar,
    mul,
    store,
    transpose,
    when,
    zeros,
)
from jax_nano.kernels.micro import rounded_down


def pack_rhs_panel(source: View, target: View, depth: Index, tail: int, cols: int, width: int, lanes: int) -> None:
    """Copies `depth` rows and `cols` columns of B, element (k, j), to a panel of `width` columns.

    Args:
      source: element (k, j) of B from the panel's first column on.
      target: the panel, strides (width, 1).
      depth: rows to copy.
      tail: what `depth` leaves when divided by `lanes`, in every execution that leaves anything.
      cols: columns that exist; the rest of the panel becomes zero.
      width: columns of the panel, a multiple of `lanes`.
      lanes: elements in a register.
    """
    if source.strides[1] == 1:
        copy_rows(source, target, depth, cols, width, lanes)
    elif source.strides[0] == 1:
        copy_transposed(source, target, depth, tail, cols, width, lanes)
    else:
        copy_elements(source, target, depth, cols, width, lanes)


def copy_rows(source: View, target: View, depth: Index, cols: int, width: int, lanes: int) -> None:
    """Rows that are contiguous already."""
    with for_range(0, depth) as row:
        for j in range(0, width, lanes):
            count = max(0, min(lanes, cols - j))
            value = load(source.base, source.offset(row.i, j), lanes, count) if count else zeros(lanes, source.dtype)
            store(value, target.base, target.offset(row.i, j))


def copy_transposed(source: View, target: View, depth: Index, tail: int, cols: int, width: int, lanes: int) -> None:
    """Columns that are contiguous: squares of `lanes` x `lanes` transposed in registers."""

    def square(k: Index, count: int) -> None:
        for j in range(0, width, lanes):
            columns: Values = [
                load(source.base, source.offset(k, c), lanes, count) if c < cols else zeros(lanes, source.dtype)
                for c in range(j, j + lanes)
            ]
            for step, row in enumerate(transpose(columns)[:count]):
                store(row, target.base, target.offset(add(k, step), j))

    whole = rounded_down(depth, lanes)
    if whole != 0:
        with for_range(0, whole, lanes) as block:
            square(block.i, lanes)
    if tail:
        partial = True if isinstance(depth, int) else arith.cmpi(arith.CmpIPredicate.ne, index(whole), depth)
        with when(partial):
            square(whole, tail)


def copy_elements(source: View, target: View, depth: Index, cols: int, width: int, lanes: int) -> None:
    """Strided both ways: element by element."""
    with for_range(0, depth) as row:
        for j in range(0, width, lanes):
            store(zeros(lanes, source.dtype), target.base, target.offset(row.i, j))
        with for_range(0, cols) as column:
            value = load_scalar(source.base, source.offset(row.i, column.i))
            memref.store(value, target.base, [index(target.offset(row.i, column.i))])


def pack_lhs_rows(source: View, target: View, rows: Index, depth: Index, tail: int, lanes: int) -> None:
    """Copies rows of A, element (i, k), that are contiguous along k; `tail` as in pack_rhs_panel."""
    whole = rounded_down(depth, lanes)
    with for_range(0, rows) as row:
        if whole != 0:
            with for_range(0, whole, lanes) as column:
                value = load(source.base, source.offset(row.i, column.i), lanes)
                store(value, target.base, target.offset(row.i, column.i))
        if tail:
            partial = True if isinstance(depth, int) else arith.cmpi(arith.CmpIPredicate.ne, index(whole), depth)
            with when(partial):
                value = load(source.base, source.offset(row.i, whole), lanes, tail)
                store(value, target.base, target.offset(row.i, whole), tail)


def pack_lhs_columns(source: View, target: View, rows: int, depth: Index, lanes: int) -> None:
    """Copies one panel of A, element (i, k), contiguous along i, to k-major order: target strides (1, MR)."""
    with for_range(0, depth) as column:
        for i in range(0, rows, lanes):
            count = min(lanes, rows - i)
            value = load(source.base, source.offset(i, column.i), lanes, count)
            store(value, target.base, target.offset(i, column.i), count)
