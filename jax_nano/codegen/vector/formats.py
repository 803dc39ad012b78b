"""Float formats, and arithmetic on their exponents.

Two devices appear throughout:

- Adding 1.5 * 2**fraction_bits to a small float rounds it to an integer n, which then stands in the sum's lowest bits;
  from there a shift makes an exponent of it, 2**n. An offset added along with the 1.5 is added to n.
- x = n ln2 + r with |r| <= ln2 / 2, ln2 being the sum of a short and a long number, so that n times the short is exact.
  Source: Cody and Waite, "Software Manual for the Elementary Functions", 1980, chapter 6.
"""

from __future__ import annotations

import math as numbers
import struct
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.vector.arithmetic import (
    add,
    bits,
    element,
    floats,
    fma,
    less,
    mask,
    mul,
    of,
    select,
    shift_left,
    shift_right,
    sub,
)

LN2 = numbers.log(2)
INFINITY = float("inf")
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Format:
    """A float format."""

    name: str
    width: int
    fraction_bits: int
    ln2: tuple[float, float]  # a short number, and the rest

    @property
    def bias(self) -> int:
        """The exponent's bias: it is added to an exponent to store it."""
        return (1 << (self.width - self.fraction_bits - 2)) - 1

    @property
    def rounder(self) -> float:
        """A number that rounds others to integers by being added to them."""
        return 1.5 * 2.0**self.fraction_bits

    @property
    def smallest(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def exp_is_zero(self) -> float:
        """From here on down exp is zero."""
        return -(self.bias + self.fraction_bits + 1) * LN2

    @property
    def exp_is_infinite(self) -> float:
        """From here on up exp is infinite."""
        return (self.bias + 1.5) * LN2

    @property
    def negligible(self) -> float:
        """exp(-this) is less than half an ulp of 1."""
        return (self.fraction_bits + 3) * LN2

    def pattern(self, number: float) -> int:
        """The bits of a number."""
        return int.from_bytes(struct.pack({32: "<f", 64: "<d"}[self.width], number), "little")


F32 = Format(name="f32", width=32, fraction_bits=23, ln2=(0.693145751953125, 1.4286068203094172e-06))
F64 = Format(name="f64", width=64, fraction_bits=52, ln2=(0.6931471803691238, 1.9082149292705877e-10))


def format_of(x: ir.Value) -> Format:
    """The format of a vector's elements."""
    return F32 if isinstance(element(x), ir.F32Type) else F64


def widen(x: ir.Value) -> ir.Value:
    """f32 as f64."""
    return arith.extf(of(x, ir.F64Type.get()), x)


def narrow(x: ir.Value) -> ir.Value:
    """f64 as f32."""
    return arith.truncf(of(x, ir.F32Type.get()), x)


def reduce_argument(x: ir.Value, offset: int = 0) -> tuple[ir.Value, ir.Value]:
    """(m, r): x = n ln2 + r, and m is n + offset in its lowest bits."""
    f = format_of(x)
    rounder = f.rounder + offset
    m = fma(x, 1 / LN2, rounder)
    n = sub(m, rounder)
    return m, fma(n, -f.ln2[1], fma(n, -f.ln2[0], x))


def power_of_2(m: ir.Value) -> ir.Value:
    """2**n, where m is n + bias in its lowest bits."""
    return floats(shift_left(bits(m), format_of(m).fraction_bits))


def ldexp(x: ir.Value, m: ir.Value) -> ir.Value:
    """x * 2**n, where m is n + 2 bias in its lowest bits: by two factors, as 2**n alone need not be a number."""
    fraction_bits = format_of(x).fraction_bits
    integer = bits(m)
    half = shift_left(shift_right(integer, 1), fraction_bits)
    rest = sub(shift_left(integer, fraction_bits), half)
    return mul(mul(x, floats(half)), floats(rest))


def exponent(x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(e, k): x / 2**k is in [2/3, 4/3), and e is k where exponents stand in the bits of a float. x is normal."""
    f = format_of(x)
    e = mask(sub(bits(x), f.pattern(2 / 3)), -1 << f.fraction_bits)
    k = floats(add(shift_right(e, f.fraction_bits), f.pattern(f.rounder)))
    return e, sub(k, f.rounder)


TINY_LIFT = 54  # makes the smallest subnormal number normal, and is a multiple of 3


def frexp(x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(y, k): x = y 2**k, y in [2/3, 4/3), for a positive number."""
    tiny = less(x, format_of(x).smallest)
    normal = select(tiny, mul(x, 2.0**TINY_LIFT), x)
    e, k = exponent(normal)
    return floats(sub(bits(normal), e)), select(tiny, sub(k, float(TINY_LIFT)), k)
