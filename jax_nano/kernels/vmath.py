"""Elementary functions on vectors of f32 or f64 with any number of lanes.

All is arithmetic: polynomials, quotients of polynomials (coefficients.py), and integer operations on exponents. There
are no tables in memory, no branches, no calls. Errors are at most 2 ulp in f32 and 4 ulp in f64 over the whole range,
and NaN gives NaN. Subnormal numbers are numbers where the processor is set to keep them, and zeros where it is not.

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
from jax.extend.mlir.dialects import arith, math

from jax_nano.kernels import coefficients as c
from jax_nano.kernels.lanes import (
    add,
    at_least,
    at_most,
    bits,
    div,
    element,
    equal,
    floats,
    fma,
    less,
    like,
    magnitude,
    mask,
    mul,
    negative,
    of,
    polynomial,
    select,
    shift_left,
    shift_right,
    sub,
    with_sign,
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
        """What is added to an exponent to store it."""
        return (1 << (self.width - self.fraction_bits - 2)) - 1

    @property
    def rounder(self) -> float:
        """What rounds to an integer when it is added."""
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


def widened(x: ir.Value) -> ir.Value:
    """f32 as f64."""
    return arith.extf(of(x, ir.F64Type.get()), x)


def narrowed(x: ir.Value) -> ir.Value:
    """f64 as f32."""
    return arith.truncf(of(x, ir.F32Type.get()), x)


# Exponents


def reduced(x: ir.Value, offset: int = 0) -> tuple[ir.Value, ir.Value]:
    """(m, r): x = n ln2 + r, and m is n + offset in its lowest bits."""
    f = format_of(x)
    rounder = f.rounder + offset
    m = fma(x, 1 / LN2, rounder)
    n = sub(m, rounder)
    return m, fma(n, -f.ln2[1], fma(n, -f.ln2[0], x))


def power_of_2(m: ir.Value) -> ir.Value:
    """2**n, where m is n + bias in its lowest bits."""
    return floats(shift_left(bits(m), format_of(m).fraction_bits))


def scaled(x: ir.Value, m: ir.Value) -> ir.Value:
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


def split(x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(y, k): x = y 2**k, y in [2/3, 4/3), for a positive number."""
    tiny = less(x, format_of(x).smallest)
    normal = select(tiny, mul(x, 2.0**TINY_LIFT), x)
    e, k = exponent(normal)
    return floats(sub(bits(normal), e)), select(tiny, sub(k, float(TINY_LIFT)), k)


# Exponential functions


def exp_reduced(r: ir.Value) -> ir.Value:
    """exp(r) for |r| <= ln2 / 2."""
    return polynomial(r, (1.0, 1.0, *c.EXP[format_of(r).name]))


def expm1_reduced(r: ir.Value) -> ir.Value:
    """exp(r) - 1 for |r| <= ln2 / 2."""
    return fma(mul(r, r), polynomial(r, c.EXP[format_of(r).name]), r)


def exp(x: ir.Value, lost: ir.Value | None = None) -> ir.Value:
    """The exponential function, of x + lost where that is given, at most half an ulp of x."""
    f = format_of(x)
    m, r = reduced(at_most(at_least(x, f.exp_is_zero), f.exp_is_infinite), 2 * f.bias)
    return scaled(exp_reduced(add(r, lost) if lost else r), m)


def exp2(x: ir.Value) -> ir.Value:
    """2**x."""
    f = format_of(x)
    x = at_most(at_least(x, f.exp_is_zero / LN2), f.exp_is_infinite / LN2)
    rounder = f.rounder + 2 * f.bias
    m = add(x, rounder)
    return scaled(exp_reduced(mul(sub(x, sub(m, rounder)), LN2)), m)


def expm1(x: ir.Value) -> ir.Value:
    """exp(x) - 1, by half of 2**n, as 2**n need not be a number."""
    f = format_of(x)
    m, r = reduced(at_most(at_least(x, -f.negligible), f.exp_is_infinite), f.bias - 1)
    half = power_of_2(m)
    result = fma(half, expm1_reduced(r), sub(half, 0.5))
    return with_sign(add(result, result), x)


LIFT = 64  # with this much more, no exponent of exp(x) for x <= 0 is a subnormal number's


def logistic(x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x)), numerator and denominator scaled by 2**-LIFT."""
    f = format_of(x)
    m, r = reduced(negative(at_most(at_least(x, f.exp_is_zero), f.negligible)), f.bias - LIFT)
    power, one = power_of_2(m), 2.0**-LIFT
    return div(one, add(fma(power, expm1_reduced(r), one), power))


def tanh(x: ir.Value) -> ir.Value:
    """The hyperbolic tangent: a polynomial up to 0.55, 1 - 2 / (exp(2x) + 1) beyond."""
    f = format_of(x)
    square = mul(x, x)
    small = fma(mul(x, square), polynomial(square, c.TANH[f.name]), x)
    double = at_most(magnitude(add(x, x)), f.negligible)
    m, r = reduced(double, f.bias)
    large = sub(1.0, div(2.0, fma(power_of_2(m), exp_reduced(r), 1.0)))
    return select(less(double, 1.1), small, with_sign(large, x))


# Logarithms


def log(x: ir.Value) -> ir.Value:
    """The natural logarithm."""
    y, k = split(x)
    return in_domain(log_reduced(sub(y, 1.0), k), x, x)


def log1p(x: ir.Value) -> ir.Value:
    """log(1 + x): the exponent is that of the rounded sum, the fraction is that of x / 2**k + 1 / 2**k."""
    f = format_of(x)
    total = add(x, 1.0)
    e, k = exponent(total)
    quadruple = floats(sub(f.pattern(4.0), e))  # 4 / 2**k, as 1 / 2**k need not be a normal number
    fraction = add(floats(sub(bits(x), e)), fma(quadruple, 0.25, -1.0))
    return select(equal(x, 0.0), x, in_domain(log_reduced(fraction, k), total, x))


def log_reduced(fraction: ir.Value, k: ir.Value) -> ir.Value:
    """log((1 + fraction) * 2**k) for |fraction| <= 1/3.

    log(1 + f) = 2 atanh(s), s = f / (2 + f). Source: fdlibm's e_log.c, for the order in which to add, too.
    """
    f = format_of(fraction)
    s = div(fraction, add(fraction, 2.0))
    square = mul(s, s)
    half_square = mul(mul(fraction, fraction), 0.5)
    rest = fma(square, polynomial(square, c.LOG[f.name]), half_square)
    return fma(k, f.ln2[0], sub(fraction, sub(half_square, fma(s, rest, mul(k, f.ln2[1])))))


def in_domain(logarithm: ir.Value, of_what: ir.Value, x: ir.Value) -> ir.Value:
    """The logarithm of a positive number, and what it is of others; infinity and NaN of x stay."""
    elsewhere = select(equal(of_what, 0.0), -INFINITY, like(x, NAN))
    return select(less(x, INFINITY), select(less(0.0, of_what), logarithm, elsewhere), x)


# Error functions


def erf(x: ir.Value) -> ir.Value:
    """The error function: a polynomial up to 1, 1 - exp(-x * x) Q(x) beyond."""
    f = format_of(x)
    absolute = at_most(magnitude(x), c.ERF_IS_1[f.name])
    m, r = reduced(negative(mul(absolute, absolute)), f.bias)
    numerator, denominator = (polynomial(absolute, part) for part in c.ERF_TAIL[f.name])
    tail = div(mul(exp_reduced(r), numerator), denominator)
    large = fma(negative(power_of_2(m)), tail, 1.0)
    return select(less(absolute, 1.0), erf_near_0(x), with_sign(large, x))


def erf_near_0(x: ir.Value) -> ir.Value:
    """The error function for |x| <= 1."""
    return fma(x, polynomial(mul(x, x), c.ERF[format_of(x).name]), x)


def erfc(x: ir.Value) -> ir.Value:
    """1 - erf(x): exp(-x * x) Q(|x|), or 2 less that where x is negative."""
    absolute = at_most(magnitude(x), c.ERFC_IS_0[format_of(x).name])
    result = erfc_f32(absolute) if format_of(x) is F32 else erfc_f64(absolute)
    return select(less(x, 0.0), sub(2.0, result), result)


def erfc_f32(x: ir.Value) -> ir.Value:
    """The same for 0 <= x <= ERFC_IS_0, computed in f64."""
    wide = widened(x)
    m, r = reduced(negative(mul(wide, wide)), F64.bias)
    numerator, denominator = (polynomial(wide, part) for part in c.ERFC["f32"])
    fraction = div(mul(polynomial(r, (1.0, 1.0, *c.EXP["f32"])), numerator), denominator)
    return narrowed(mul(fraction, power_of_2(m)))


def erfc_f64(x: ir.Value) -> ir.Value:
    """The same for 0 <= x <= ERFC_IS_0, with x * x as the sum of two numbers."""
    square = mul(x, x)
    lost = fma(x, x, negative(square))
    m, r = reduced(negative(square), F64.bias + LIFT)
    mapped = polynomial(div(sub(x, 4.0), add(x, 4.0)), c.ERFC_MAPPED["f64"])
    fraction = div(fma(mapped, expm1_reduced(sub(r, lost)), mapped), fma(x, 2.0, 1.0))
    large = mul(mul(fraction, power_of_2(m)), 2.0**-LIFT)
    return select(less(x, 0.5), sub(1.0, erf_near_0(x)), large)


# Powers and roots


def sqrt(x: ir.Value) -> ir.Value:
    """The square root."""
    return math.sqrt(x)


def rsqrt(x: ir.Value) -> ir.Value:
    """1 / sqrt(x)."""
    return div(1.0, math.sqrt(x))


def cbrt(x: ir.Value) -> ir.Value:
    """The cube root: x = m 8**j, m in [1/3, 8/3); Halley's method for m**(-1/3), then Newton's for m**(1/3)."""
    f = format_of(x)
    absolute = magnitude(x)
    y, k = split(absolute)
    j = sub(fma(k, 1 / 3, f.rounder), f.rounder)
    m = mul(y, power_of_2(add(fma(j, -3.0, k), f.rounder + f.bias)))
    root = polynomial(m, c.CBRT["f32"])
    for _ in range({"f32": 1, "f64": 2}[f.name]):
        error = fma(negative(mul(mul(m, root), root)), root, 1.0)
        root = fma(mul(root, error), fma(error, 2 / 9, 1 / 3), root)
    square = mul(root, root)
    result = mul(m, square)
    error = fma(negative(mul(result, result)), result, m)
    result = fma(error, mul(square, 1 / 3), result)
    result = with_sign(mul(result, power_of_2(add(j, f.rounder + f.bias))), x)
    return select(equal(x, 0.0), x, select(less(absolute, INFINITY), result, x))


def power(x: ir.Value, y: ir.Value) -> ir.Value:
    """x**y = exp(y log|x|) with a sign; special values as C99 has them. f32 is computed in f64, f64 in pairs of f64."""
    absolute = magnitude(x)
    if format_of(x) is F32:
        product, lost = mul(widened(y), log(widened(absolute))), None
    else:
        product, lost = times_log(y, absolute)
    is_one = arith.ori(equal(absolute, 1.0), equal(y, 0.0))
    result = exp(select(is_one, 0.0, product), lost and select(is_one, 0.0, lost))
    if format_of(x) is F32:
        result = narrowed(result)
    half = mul(y, 0.5)
    is_whole = equal(math.floor(y), y)
    is_odd = arith.andi(is_whole, arith.cmpf(arith.CmpFPredicate.ONE, math.floor(half), half))
    result = with_sign(result, select(is_odd, x, like(x, 1.0)))
    is_finite_negative = arith.andi(less(x, 0.0), less(-INFINITY, x))
    is_real = arith.ori(is_whole, arith.xori(is_finite_negative, like(is_whole, 1)))
    return select(is_real, result, NAN)


Pair = tuple[ir.Value, ir.Value]
"""A number as the sum of two, the second at most half an ulp of the first."""


def pair_sum(a: ir.Value, b: ir.Value) -> Pair:
    """a + b, where a is 0 or |a| >= |b|. Source: Dekker, Numerische Mathematik 18, 1971."""
    total = add(a, b)
    return total, add(sub(a, total), b)


def pair_product(a: Pair, b: Pair) -> Pair:
    """a * b, with an error of a few units in the last place of the second number."""
    product = mul(a[0], b[0])
    return product, fma(a[0], b[1], fma(a[1], b[0], fma(a[0], b[0], negative(product))))


def times_log(y: ir.Value, x: ir.Value) -> Pair:
    """y log(x) of f64 for x >= 0: log(1 + f) = 2s + 2/3 s**3 + ..., s = f / (2 + f), these two terms as pairs."""
    fraction, k = split(x)
    fraction = sub(fraction, 1.0)
    total = add(fraction, 2.0)
    quotient = div(fraction, total)
    rest = fma(negative(quotient), total, fraction)
    rest = fma(negative(quotient), sub(fraction, sub(total, 2.0)), rest)
    s = quotient, div(rest, total)
    square = pair_product(s, s)
    cube = pair_product(s, square)
    third = pair_product(cube, (like(x, 2 / 3), like(x, 3.700743415417188e-17)))
    higher = mul(mul(cube[0], square[0]), polynomial(square[0], c.LOG_OF_POW["f64"]))
    first = pair_sum(mul(k, F64.ln2[0]), add(s[0], s[0]))
    second = pair_sum(first[0], third[0])
    small = add(add(fma(k, F64.ln2[1], higher), third[1]), add(fma(s[1], 2.0, first[1]), second[1]))
    high, low = pair_sum(second[0], small)
    high = select(equal(x, 0.0), -INFINITY, select(less(x, INFINITY), high, x))
    product = mul(y, high)
    lost = fma(y, low, fma(y, high, negative(product)))
    return product, select(less(magnitude(product), 2 * F64.exp_is_infinite), lost, 0.0)


# Waves of f32, computed in f64


def sin(x: ir.Value) -> ir.Value:
    """The sine of f32."""
    quadrant, r = turned(x)
    return select(equal(x, 0.0), x, narrowed(wave(quadrant, r)))


def cos(x: ir.Value) -> ir.Value:
    """The cosine of f32."""
    quadrant, r = turned(x)
    return narrowed(wave(add(quadrant, 1), r))


HALF_PI = (1.5707963267948966, 6.123233995736766e-17)


def turned(x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(q, r): f32 x = q pi / 2 + r modulo 2 pi, |r| at most a little over pi / 4, as 64-bit integers and f64.

    A float of at least 2**(TURN_BITS j + 24) is a multiple of 2**(TURN_BITS j), which is known modulo 2 pi.
    """
    wide = widened(x)
    scale, high, low = (like(wide, number) for number in (1.0, *c.TURNS[0]))
    for j, turn in enumerate(c.TURNS[1:], 1):
        large = less(2.0 ** (c.TURN_BITS * j + 24), magnitude(wide))
        scale = select(large, 2.0 ** (-c.TURN_BITS * j), scale)
        high, low = select(large, turn[0], high), select(large, turn[1], low)
    multiple = mul(wide, scale)
    angle = mul(multiple, high)
    lost = fma(multiple, low, fma(multiple, high, negative(angle)))
    m = fma(angle, 1 / HALF_PI[0], F64.rounder)
    n = sub(m, F64.rounder)
    return bits(m), add(fma(n, -HALF_PI[1], fma(n, -HALF_PI[0], angle)), lost)


def wave(quadrant: ir.Value, r: ir.Value) -> ir.Value:
    """sin(quadrant * pi / 2 + r)."""
    square = mul(r, r)
    sine, cosine = mul(r, polynomial(square, c.SIN["f32"])), polynomial(square, c.COS["f32"])
    is_even = arith.cmpi(arith.CmpIPredicate.eq, mask(quadrant, 1), like(quadrant, 0))
    sign = shift_left(mask(quadrant, 2), F64.width - 2)
    return floats(arith.xori(bits(select(is_even, sine, cosine)), sign))
