"""Elementary functions on vectors of f32 or f64 with any number of lanes.

All is arithmetic: polynomials, quotients of polynomials (coefficients.py), and integer operations on exponents. There
are no tables in memory, no branches, no calls. Errors are at most 2 ulp in f32 and 4 ulp in f64 over the whole range,
and NaN gives NaN. Subnormal numbers are numbers where the processor is set to keep them, and zeros where it is not.
"""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, math

from jax_nano.codegen.vector import coefficients as c
from jax_nano.codegen.vector.arithmetic import (
    add,
    at_least,
    at_most,
    bits,
    div,
    equal,
    floats,
    fma,
    less,
    like,
    magnitude,
    mask,
    mul,
    negative,
    polynomial,
    select,
    shift_left,
    sub,
    with_sign,
)
from jax_nano.codegen.vector.formats import (
    F32,
    F64,
    INFINITY,
    LN2,
    NAN,
    exponent,
    format_of,
    frexp,
    ldexp,
    narrow,
    power_of_2,
    reduce_argument,
    widen,
)

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
    m, r = reduce_argument(at_most(at_least(x, f.exp_is_zero), f.exp_is_infinite), 2 * f.bias)
    return ldexp(exp_reduced(add(r, lost) if lost else r), m)


def exp_of_difference(x: ir.Value) -> ir.Value:
    """exp(x) for x of at most a little above 0, as differences from a maximum are; zero below all normal numbers."""
    f = format_of(x)
    m, r = reduce_argument(at_least(x, -f.bias * LN2), f.bias)
    return mul(exp_reduced(r), power_of_2(m))


def exp2(x: ir.Value) -> ir.Value:
    """2**x."""
    f = format_of(x)
    x = at_most(at_least(x, f.exp_is_zero / LN2), f.exp_is_infinite / LN2)
    rounder = f.rounder + 2 * f.bias
    m = add(x, rounder)
    return ldexp(exp_reduced(mul(sub(x, sub(m, rounder)), LN2)), m)


def expm1(x: ir.Value) -> ir.Value:
    """exp(x) - 1, by half of 2**n, as 2**n need not be a number; of the smallest x, whose half is none, x."""
    f = format_of(x)
    m, r = reduce_argument(at_most(at_least(x, -f.negligible), f.exp_is_infinite), f.bias - 1)
    half = power_of_2(m)
    result = fma(half, expm1_reduced(r), sub(half, 0.5))
    return with_sign(select(less(magnitude(x), SMALLEST), x, add(result, result)), x)


SMALLEST = 2.0**-64  # numbers that expm1 leaves as they are: half of their square is far below half an ulp
LIFT = 64  # with this much more, no exponent of exp(x) for x <= 0 is a subnormal number's


def logistic(x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x)), numerator and denominator scaled by 2**-LIFT."""
    f = format_of(x)
    m, r = reduce_argument(negative(at_most(at_least(x, f.exp_is_zero), f.negligible)), f.bias - LIFT)
    power, one = power_of_2(m), 2.0**-LIFT
    return div(one, add(fma(power, expm1_reduced(r), one), power))


def tanh(x: ir.Value) -> ir.Value:
    """The hyperbolic tangent: a polynomial up to 0.55, 1 - 2 / (exp(2x) + 1) beyond."""
    f = format_of(x)
    square = mul(x, x)
    small = fma(mul(x, square), polynomial(square, c.TANH[f.name]), x)
    double = at_most(magnitude(add(x, x)), f.negligible + LN2)
    m, r = reduce_argument(double, f.bias)
    large = sub(1.0, div(2.0, fma(power_of_2(m), exp_reduced(r), 1.0)))
    return with_sign(select(less(double, 1.1), small, large), x)


# Logarithms


def log(x: ir.Value) -> ir.Value:
    """The natural logarithm."""
    y, k = frexp(x)
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
    """A logarithm of `of_what` with its values at 0 and below; infinity and NaN of x stay."""
    elsewhere = select(equal(of_what, 0.0), -INFINITY, like(x, NAN))
    return select(less(x, INFINITY), select(less(0.0, of_what), logarithm, elsewhere), x)


# Error functions


def erf(x: ir.Value) -> ir.Value:
    """The error function: a polynomial up to 1, 1 - exp(-x * x) Q(x) beyond."""
    f = format_of(x)
    absolute = at_most(magnitude(x), c.ERF_IS_1[f.name])
    m, r = reduce_argument(negative(mul(absolute, absolute)), f.bias)
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
    """erfc(x) of f32 for 0 <= x <= ERFC_IS_0, computed in f64."""
    wide = widen(x)
    m, r = reduce_argument(negative(mul(wide, wide)), F64.bias)
    numerator, denominator = (polynomial(wide, part) for part in c.ERFC["f32"])
    fraction = div(mul(polynomial(r, (1.0, 1.0, *c.EXP["f32"])), numerator), denominator)
    return narrow(mul(fraction, power_of_2(m)))


def erfc_f64(x: ir.Value) -> ir.Value:
    """erfc(x) of f64 for 0 <= x <= ERFC_IS_0, with x * x as the sum of two numbers."""
    square = mul(x, x)
    lost = fma(x, x, negative(square))
    m, r = reduce_argument(negative(square), F64.bias + LIFT)
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
    y, k = frexp(absolute)
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


# Waves of f32, computed in f64


def sin(x: ir.Value) -> ir.Value:
    """The sine of f32."""
    quadrant, r = reduce_angle(x)
    return select(equal(x, 0.0), x, narrow(wave(quadrant, r)))


def cos(x: ir.Value) -> ir.Value:
    """The cosine of f32."""
    quadrant, r = reduce_angle(x)
    return narrow(wave(add(quadrant, 1), r))


HALF_PI = (1.5707963267948966, 6.123233995736766e-17)


def reduce_angle(x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(q, r): f32 x = q pi / 2 + r modulo 2 pi, |r| at most a little over pi / 4, as 64-bit integers and f64.

    A float of at least 2**(TURN_BITS j + 24) is a multiple of 2**(TURN_BITS j), which is known modulo 2 pi.
    """
    wide = widen(x)
    factor, high, low = (like(wide, number) for number in (1.0, *c.TURNS[0]))
    for j, turn in enumerate(c.TURNS[1:], 1):
        large = less(2.0 ** (c.TURN_BITS * j + 24), magnitude(wide))
        factor = select(large, 2.0 ** (-c.TURN_BITS * j), factor)
        high, low = select(large, turn[0], high), select(large, turn[1], low)
    multiple = mul(wide, factor)
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
