"""Short names of element types."""

from __future__ import annotations

import re

import numpy as np


def dtype_name(dtype) -> str:
    """The short name of a type: f32, bf16, s8, u8, f8e4m3fn, c64, pred, ..."""
    name = np.dtype(dtype).name
    if not (parts := re.fullmatch(r"(bfloat|float|uint|int|complex)(\d+)_?(\w*)", name)):
        return {"bool": "pred"}.get(name, name)
    kind, bits, variant = parts.groups()
    return {"bfloat": "bf", "float": "f", "uint": "u", "int": "s", "complex": "c"}[kind] + bits + variant
