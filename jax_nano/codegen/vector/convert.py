"""Conversions of operands and sums, in registers: exact where the target holds a value, else to nearest even.

These types are those of products: floats of 64 to 8 bits, integers of 32 to 4. cast.py has JAX's conversions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.registers import bitcast
from jax_nano.codegen.types import element_type, is_float, is_integer, is_signed
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.ir.dtypes import BITS


@dataclass(frozen=True)
class Float8:
    """An 8-bit float: a sign, an exponent, and a mantissa, from the upper end down.

    `special` says which codes are not finite: "ieee", those whose exponent is all ones, as in IEEE 754; "fn", only the
    two that are all ones behind the sign, which are NaN; "fnuz", only the one that would be -0, which is NaN.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433); "8-bit Numerical Formats for Deep
    Neural Networks" (arXiv 2206.02915) for fnuz; ml_dtypes for the others.
    """

    mantissa: int  # bits
    bias: int  # of the exponent
    special: Literal["ieee", "fn", "fnuz"]


FLOAT8 = {
    "f8e5m2": Float8(2, 15, "ieee"),
    "f8e5m2fnuz": Float8(2, 16, "fnuz"),
    "f8e4m3": Float8(3, 7, "ieee"),
    "f8e4m3fn": Float8(3, 7, "fn"),
    "f8e4m3fnuz": Float8(3, 8, "fnuz"),
    "f8e4m3b11fnuz": Float8(3, 11, "fnuz"),
    "f8e3m4": Float8(4, 3, "ieee"),
}
F16_BIAS, F16_INFINITY, F16_NAN = 15, 0x7C00, 0x7E00


def convert(value: ir.Value, source: str, target: str, *, native_bf16: bool = False) -> ir.Value:
    """The vector `value` of element type `source` as elements of type `target`.

    Args:
      value: a vector.
      source: its element type's short name, which carries its sign.
      target: the element type to give.
      native_bf16: whether the target converts f32 to bf16 itself. Such instructions flush subnormal numbers.

    Raises:
      ValueError: there is no such conversion.
    """
    if source == target:
        return value
    if source in FLOAT8:
        return narrow_exactly(from_float8(value, FLOAT8[source]), target, native_bf16=native_bf16)
    kind = v.of(value, element_type(target))
    if is_float(source) and is_float(target):
        if BITS[source] < BITS[target]:
            return arith.extf(kind, value)
        if target == "bf16" and not native_bf16:
            return round_to_bf16(convert(value, source, "f32"))
        return arith.truncf(kind, value)
    if is_integer(source) and is_float(target):
        return from_integer(value, source, target, native_bf16=native_bf16)
    if is_integer(source) and is_integer(target):
        return resize_integer(value, source, target)
    raise ValueError(f"no conversion from {source} to {target}")


def resize_integer(value: ir.Value, source: str, target: str) -> ir.Value:
    """An integer in more or fewer bits; what does not fit wraps."""
    kind = v.of(value, element_type(target))
    if kind == value.type:
        return value
    if ir.IntegerType(v.element(value)).width > BITS[target]:  # a value may have more bits than its type asks for
        return arith.trunci(kind, value)
    return arith.extsi(kind, value) if is_signed(source) else arith.extui(kind, value)


def from_integer(value: ir.Value, source: str, target: str, *, native_bf16: bool) -> ir.Value:
    """An integer as a float, through s32 and f32, which all vector units convert between."""
    wide = resize_integer(value, source, "s32")
    if target == "f64":
        return arith.sitofp(v.of(wide, element_type("f64")), wide)
    single = arith.sitofp(v.of(wide, element_type("f32")), wide)
    if BITS[source] <= 8:
        return narrow_exactly(single, target, native_bf16=native_bf16)
    return convert(single, "f32", target, native_bf16=native_bf16)


def split_float(value: ir.Value, source: str, split: tuple[str, int], *, native_bf16: bool) -> ir.Value:
    """One of the numbers of a narrow type that floats are split into.

    Args:
      value: a vector.
      source: its element type.
      split: the narrow type, and which number: 0 is the float rounded, each further one what the others leave, rounded.
      native_bf16: see `convert`.
    """
    target, number = split
    rest = convert(value, source, "f32")
    for _ in range(number):
        rounded = convert(rest, "f32", target, native_bf16=native_bf16)
        rest = v.sub(rest, convert(rounded, target, "f32"))
    return convert(rest, "f32", target, native_bf16=native_bf16)


def signed_int4(value: ir.Value) -> ir.Value:
    """Signed 4-bit integers, each in the lower half of a byte, as signed bytes."""
    return v.sub(arith.xori(*v.vectors(value, 8)), 8)


def from_float8(value: ir.Value, source: Float8) -> ir.Value:
    """8-bit floats as f32: their fields moved to where f16 has them, and what f16 means by them scaled.

    The conversion of f16 keeps subnormal numbers, in every mode of the processor.
    """
    shift = 10 - source.mantissa
    wide = arith.extsi(v.of(value, ir.IntegerType.get_signless(16)), value)
    bits = v.mask(v.shift_left(wide, shift), (0x7F << shift) - 0x8000)
    magnitude = v.mask(bits, 0x7FFF)
    if source.bias > F16_BIAS:
        # f16 has infinity in place of the largest exponent. One less halves the number, which is right; where that
        # leaves no exponent, half of the bits is right, and the greater one.
        halved = arith.maxsi(v.sub(magnitude, 0x400), v.shift_right(magnitude, 1))
        bits = arith.ori(v.mask(bits, -0x8000), halved)
    if source.special == "fnuz":
        bits = v.select(compare("eq", wide, -0x80), F16_NAN, bits)
    elif source.special == "fn":
        bits = v.select(compare("eq", magnitude, 0x7F << shift), F16_NAN, bits)
    elif source.bias != F16_BIAS:
        finite = compare("slt", magnitude, 0x7F >> source.mantissa << 10)
        bits = v.select(finite, bits, arith.ori(*v.vectors(bits, F16_INFINITY)))
    single = arith.extf(v.of(bits, element_type("f32")), bitcast(bits, v.count(bits), element_type("f16")))
    return single if source.bias >= F16_BIAS else v.mul(single, 2.0 ** (F16_BIAS - source.bias))


def compare(how: str, value: ir.Value, number: int) -> ir.Value:
    """A mask of the lanes whose integers compare so with a number."""
    return arith.cmpi(arith.CmpIPredicate[how], *v.vectors(value, number))


def narrow_exactly(value: ir.Value, target: str, *, native_bf16: bool) -> ir.Value:
    """f32 as a narrower type, of numbers that this holds: no rounding, no flush of subnormal ones."""
    if target != "bf16" or native_bf16:
        return convert(value, "f32", target, native_bf16=native_bf16)
    return upper_half(v.bits(value))


def upper_half(bits: ir.Value) -> ir.Value:
    """bf16 numbers, out of the upper halves of words."""
    half = arith.trunci(v.of(bits, ir.IntegerType.get_signless(16)), v.shift_right(bits, 16))
    return bitcast(half, v.count(bits), element_type("bf16"))


def round_to_bf16(value: ir.Value) -> ir.Value:
    """f32 to bf16 in integer arithmetic, to nearest even: half an ulp is added, less one bit where the result is even.

    A NaN stays one: its upper half keeps the sign and is made quiet.
    """
    bits = v.bits(value)
    odd = v.mask(v.shift_right(bits, 16), 1)
    rounded = v.add(bits, v.add(odd, 0x7FFF))
    is_nan = arith.cmpf(arith.CmpFPredicate.UNO, value, value)
    quiet = arith.ori(*v.vectors(bits, 0x400000))
    return upper_half(arith.select(is_nan, quiet, rounded))
