"""The table of element types: what it claims, checked value by value, and its views."""

import re

import ml_dtypes
import numpy as np
import pytest

from jax_nano.ir import dtypes
from jax_nano.ir.dtypes import ELEMENT_TYPES, INT4_PER_WORD, ElementType

SMALL = [t for t in ELEMENT_TYPES.values() if t.lossless_to and t.bits <= 16]


def every_value(element):
    """All numbers of a type, but for those that are not numbers."""
    if element.kind == "signed":
        return np.arange(-element.largest, element.largest)
    if element.kind == "unsigned":
        return np.arange(element.largest + 1)
    bits = np.arange(1 << element.bits).astype(f"uint{element.bits}")
    with np.errstate(invalid="ignore"):  # signaling NaN
        values = bits.view(element.numpy).astype(np.float64)
    return values[~np.isnan(values)]


@pytest.mark.parametrize("element", SMALL, ids=lambda element: element.name)
def test_what_a_type_is_turned_into_holds_all_its_values(element):
    values = every_value(element)
    for target in element.lossless_to:
        assert np.array_equal(values.astype(ELEMENT_TYPES[target].numpy).astype(np.float64), values), target


def test_integers_are_as_large_as_their_types_say():
    for name, largest in dtypes.LARGEST.items():
        kind = {"s4x8": ml_dtypes.int4, "u4x8": ml_dtypes.uint4}.get(name, ELEMENT_TYPES[name].numpy)
        info = ml_dtypes.iinfo(kind)
        assert largest == max(-int(info.min), int(info.max))


def test_ffi_codes_are_one_for_each_type():
    codes = list(dtypes.FFI_TYPES.values())
    assert len(set(codes)) == len(codes)
    assert dtypes.FFI_TYPES.keys() | dtypes.PACKED_INT4 == ELEMENT_TYPES.keys()


def test_packed_elements_share_words():
    for name in dtypes.PACKED_INT4:
        assert 8 * np.dtype(ELEMENT_TYPES[name].numpy).itemsize == INT4_PER_WORD * ELEMENT_TYPES[name].bits


@pytest.mark.parametrize(
    "row, text",
    [
        (("f32", "float", 16, np.float32, 11), "f32 has 16 bits, but float32 has 32"),
        (("f32", "float", 32, np.float64, 11), "f32 is not the short name of float64, f64, or has no FFI code"),
        (("s16", "signed", 16, np.int16, None), "s16 is not the short name of int16, s16, or has no FFI code"),
        (("s4x8", "signed", 4, np.uint64, None), "s4x8: 8 elements of 4 bits do not make a uint64"),
    ],
)
def test_a_row_that_contradicts_itself(row, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ElementType(*row)
