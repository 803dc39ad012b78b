"""x**y, by pairs of numbers where one has too few digits: an error of log x counts y times."""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, math

from jax_nano.codegen.vector.arithmetic import (
    add,
    div,
    equal,
    fma,
    less,
    like,
    magnitude,
    mul,
    negative,
    polynomial,
    select,
    sub,
    with_sign,
)
from jax_nano.codegen.vector.coefficients import LOG_OF_POW
from jax_nano.codegen.vector.formats import F32, F64, INFINITY, NAN, format_of, frexp, narrow, widen
from jax_nano.codegen.vector.math import exp, log


def power(x: ir.Value, y: ir.Value) -> ir.Value:
    """x**y = exp(y log|x|) with a sign; special values as C99 has them. f32 is computed in f64, f64 in pairs of f64."""
    absolute = magnitude(x)
    if format_of(x) is F32:
        product, lost = mul(widen(y), log(widen(absolute))), None
    else:
        product, lost = times_log(y, absolute)
    is_one = arith.ori(equal(absolute, 1.0), equal(y, 0.0))
    result = exp(select(is_one, 0.0, product), lost and select(is_one, 0.0, lost))
    if format_of(x) is F32:
        result = narrow(result)
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
    fraction, k = frexp(x)
    fraction = sub(fraction, 1.0)
    total = add(fraction, 2.0)
    quotient = div(fraction, total)
    rest = fma(negative(quotient), total, fraction)
    rest = fma(negative(quotient), sub(fraction, sub(total, 2.0)), rest)
    s = quotient, div(rest, total)
    square = pair_product(s, s)
    cube = pair_product(s, square)
    third = pair_product(cube, (like(x, 2 / 3), like(x, 3.700743415417188e-17)))
    higher = mul(mul(cube[0], square[0]), polynomial(square[0], LOG_OF_POW["f64"]))
    first = pair_sum(mul(k, F64.ln2[0]), add(s[0], s[0]))
    second = pair_sum(first[0], third[0])
    small = add(add(fma(k, F64.ln2[1], higher), third[1]), add(fma(s[1], 2.0, first[1]), second[1]))
    high, low = pair_sum(second[0], small)
    high = select(equal(x, 0.0), -INFINITY, select(less(x, INFINITY), high, x))
    product = mul(y, high)
    lost = fma(y, low, fma(y, high, negative(product)))
    return product, select(less(magnitude(product), 2 * F64.exp_is_infinite), lost, 0.0)
