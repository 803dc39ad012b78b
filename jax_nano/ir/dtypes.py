"""Element types: one table of what is known of each, and the views of it that the rest of the package reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal["float", "signed", "unsigned", "bool"]
INT4_PER_WORD = 8


@dataclass(frozen=True)
class ElementType:
    """A type of array elements, by its short name."""

    name: str
    kind: Kind
    bits: int
    numpy: Any  # the type of NumPy's or ml_dtypes' scalars; of packed elements, that of the words they share
    ffi: int | None  # XLA_FFI_DataType, from xla/ffi/api/c_api.h; none for packed elements
    lossless_to: tuple[str, ...] = ()  # what kernels may turn it into, on the way into an instruction

    def __post_init__(self):
        stored = np.dtype(self.numpy)
        if self.packed:
            if self.ffi is not None or 8 * stored.itemsize != INT4_PER_WORD * self.bits:
                raise ValueError(f"{self.name}: {INT4_PER_WORD} elements of {self.bits} bits do not make a {stored}")
        elif dtype_name(stored) != self.name or self.ffi is None:
            raise ValueError(f"{self.name} is not the short name of {stored}, {dtype_name(stored)}, or has no FFI code")
        elif self.bits >= 8 and 8 * stored.itemsize != self.bits:
            raise ValueError(f"{self.name} has {self.bits} bits, but {stored} has {8 * stored.itemsize}")

    @property
    def packed(self) -> bool:
        """True where INT4_PER_WORD steps of k share a word of 32 bits, where packed_weight.step_bit says.

        Eight rows are one row of words.
        """
        return self.name.endswith(f"x{INT4_PER_WORD}")

    @property
    def largest(self) -> int:
        """The largest magnitude of an integer."""
        return 1 << self.bits - 1 if self.kind == "signed" else (1 << self.bits) - 1


def dtype_name(dtype) -> str:
    """The short name of a type: f32, bf16, s8, u8, f8e4m3fn, c64, pred, ..."""
    name = np.dtype(dtype).name
    if not (parts := re.fullmatch(r"(bfloat|float|uint|int|complex)(\d+)_?(\w*)", name)):
        return {"bool": "pred"}.get(name, name)
    kind, bits, variant = parts.groups()
    return {"bfloat": "bf", "float": "f", "uint": "u", "int": "s", "complex": "c"}[kind] + bits + variant


_HALVES = ("bf16", "f16", "f32")  # which hold every number of 8 bits
_INT4 = ("s8", "s16", *_HALVES)
_UINT4 = ("u8", *_INT4)

_ALL = (
    ElementType("f64", "float", 64, np.float64, 12, ("f64",)),
    ElementType("f32", "float", 32, np.float32, 11, ("f32",)),
    ElementType("bf16", "float", 16, ml_dtypes.bfloat16, 16, ("bf16", "f32")),
    ElementType("f16", "float", 16, np.float16, 10, ("f16", "f32")),
    ElementType("f8e5m2", "float", 8, ml_dtypes.float8_e5m2, 19, _HALVES),
    ElementType("f8e5m2fnuz", "float", 8, ml_dtypes.float8_e5m2fnuz, 24, _HALVES),
    ElementType("f8e4m3", "float", 8, ml_dtypes.float8_e4m3, 28, _HALVES),
    ElementType("f8e4m3fn", "float", 8, ml_dtypes.float8_e4m3fn, 20, _HALVES),
    ElementType("f8e4m3fnuz", "float", 8, ml_dtypes.float8_e4m3fnuz, 25, _HALVES),
    ElementType("f8e4m3b11fnuz", "float", 8, ml_dtypes.float8_e4m3b11fnuz, 23, _HALVES),
    ElementType("f8e3m4", "float", 8, ml_dtypes.float8_e3m4, 29, _HALVES),
    ElementType("s64", "signed", 64, np.int64, 5),
    ElementType("s32", "signed", 32, np.int32, 4),
    ElementType("s16", "signed", 16, np.int16, 3),
    ElementType("s8", "signed", 8, np.int8, 2, ("s8", "s16", *_HALVES)),
    ElementType("s4", "signed", 4, ml_dtypes.int4, 21, _INT4),
    ElementType("u64", "unsigned", 64, np.uint64, 9),
    ElementType("u32", "unsigned", 32, np.uint32, 8),
    ElementType("u16", "unsigned", 16, np.uint16, 7),
    ElementType("u8", "unsigned", 8, np.uint8, 6, ("u8", "s16", *_HALVES)),
    ElementType("u4", "unsigned", 4, ml_dtypes.uint4, 22, _UINT4),
    ElementType("s4x8", "signed", 4, np.uint32, None, _INT4),
    ElementType("u4x8", "unsigned", 4, np.uint32, None, _UINT4),
    ElementType("pred", "bool", 8, np.bool_, 1),  # truth values are bytes
)
ELEMENT_TYPES = {t.name: t for t in _ALL}

BITS = {t.name: t.bits for t in _ALL}
PACKED_INT4 = frozenset(t.name for t in _ALL if t.packed)
FLOAT8 = frozenset(t.name for t in _ALL if t.kind == "float" and t.bits == 8)
WIDENS = {t.name: t.lossless_to for t in _ALL if t.lossless_to}
"""The types that operands can be turned into without loss, on the way into an instruction."""
LARGEST = {t.name: t.largest for t in _ALL if t.kind in ("signed", "unsigned") and t.lossless_to}
"""Magnitudes of the integers that kernels multiply."""
NUMPY_TYPES: dict[str, Any] = {t.name: t.numpy for t in _ALL if not t.packed}
FFI_TYPES = {t.name: t.ffi for t in _ALL if t.ffi is not None}
NAMES: dict[Any, str] = {np.dtype(t.numpy): t.name for t in _ALL if t.bits >= 8 and t.name not in FLOAT8}
"""The types that elementwise programs compute in, by NumPy's types."""


def bytes_of(dtype: str, count: int = 1) -> int:
    """The size in bytes of `count` elements."""
    return -(-BITS[dtype] * count // 8)
