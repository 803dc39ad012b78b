"""Element types: short names, sizes, what holds what, and their names elsewhere."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np

BITS = {
    "f64": 64, "f32": 32, "bf16": 16, "f16": 16,
    "f8e5m2": 8, "f8e5m2fnuz": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3fnuz": 8, "f8e4m3b11fnuz": 8, "f8e3m4": 8,
    "s64": 64, "s32": 32, "s16": 16, "s8": 8, "s4": 4,
    "u64": 64, "u32": 32, "u16": 16, "u8": 8, "u4": 4,
    "s4x8": 4, "u4x8": 4,  # steps of k in a word of 32 bits, as step_bit says; eight rows are one row of words
    "pred": 8,  # truth values are bytes
}  # fmt: skip
PACKED_INT4 = frozenset({"s4x8", "u4x8"})
INT4_PER_WORD = 8
FLOAT8 = frozenset(dtype for dtype in BITS if dtype.startswith("f8"))
# What each type can be turned into without loss, on the way into an instruction.
WIDENS = {
    "f64": ("f64",),
    "f32": ("f32",),
    "bf16": ("bf16", "f32"),
    "f16": ("f16", "f32"),
    **dict.fromkeys(FLOAT8, ("bf16", "f16", "f32")),
    "s8": ("s8", "s16", "bf16", "f16", "f32"),
    "u8": ("u8", "s16", "bf16", "f16", "f32"),
    "s4": ("s8", "s16", "bf16", "f16", "f32"),
    "u4": ("u8", "s8", "s16", "bf16", "f16", "f32"),
}
WIDENS |= {"s4x8": WIDENS["s4"], "u4x8": WIDENS["u4"]}
# Magnitudes of the integers that kernels multiply.
LARGEST = {"s8": 128, "u8": 255, "s4": 8, "u4": 15, "s4x8": 8, "u4x8": 15}


def bytes_of(dtype: str, count: int = 1) -> int:
    """The size in bytes of `count` elements."""
    return -(-BITS[dtype] * count // 8)


def dtype_name(dtype) -> str:
    """The short name of a type: f32, bf16, s8, u8, f8e4m3fn, c64, pred, ..."""
    name = np.dtype(dtype).name
    if not (parts := re.fullmatch(r"(bfloat|float|uint|int|complex)(\d+)_?(\w*)", name)):
        return {"bool": "pred"}.get(name, name)
    kind, bits, variant = parts.groups()
    return {"bfloat": "bf", "float": "f", "uint": "u", "int": "s", "complex": "c"}[kind] + bits + variant


NUMPY_TYPES: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16,
    "s64": np.int64, "s32": np.int32, "s16": np.int16, "s8": np.int8,
    "u64": np.uint64, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8,
    "pred": np.bool_,
}  # fmt: skip
NAMES: dict[Any, str] = {np.dtype(dtype): name for name, dtype in NUMPY_TYPES.items()}


# XLA_FFI_DataType, from xla/ffi/api/c_api.h.
FFI_TYPES = {
    "pred": 1, "s4": 21, "s8": 2, "s16": 3, "s32": 4, "s64": 5, "u4": 22, "u8": 6, "u16": 7, "u32": 8, "u64": 9,
    "f16": 10, "f32": 11, "f64": 12, "bf16": 16,
    "f8e5m2": 19, "f8e5m2fnuz": 24, "f8e4m3": 28, "f8e4m3fn": 20, "f8e4m3fnuz": 25, "f8e4m3b11fnuz": 23, "f8e3m4": 29,
}  # fmt: skip
