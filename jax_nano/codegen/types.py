"""MLIR's types for short names of element types, and what code generation asks of a type."""

from __future__ import annotations

from collections.abc import Callable

from jax.extend.mlir import ir

from jax_nano.ir.dtypes import BITS, PACKED_INT4

FLOAT_TYPES: dict[str, Callable[[], ir.Type]] = {
    "f64": ir.F64Type.get,
    "f32": ir.F32Type.get,
    "bf16": ir.BF16Type.get,
    "f16": ir.F16Type.get,
}


def element_type(dtype: str) -> ir.Type:
    """The type of elements in memory.

    Integers carry no sign and 8-bit floats are bytes: operations know what they mean. Two elements of 4 bits share a
    byte, or eight of them a word of 32 bits.
    """
    if dtype in PACKED_INT4:
        return ir.IntegerType.get_signless(32)
    return FLOAT_TYPES[dtype]() if is_float(dtype) else ir.IntegerType.get_signless(max(8, BITS[dtype]))


def register_type(dtype: str) -> ir.Type:
    """The type of an elementwise program's values in registers, where truth values are bits."""
    return ir.IntegerType.get_signless(1) if dtype == "pred" else element_type(dtype)


def is_float(dtype: str) -> bool:
    """True of floats that MLIR has operations for: not of 8-bit ones."""
    return dtype in FLOAT_TYPES


def is_integer(dtype: str) -> bool:
    """True of integers, each an element of its own."""
    return dtype[0] in "su" and dtype[1:].isdigit()


def is_signed(dtype: str) -> bool:
    """True of integers with negative numbers."""
    return dtype[0] == "s"
