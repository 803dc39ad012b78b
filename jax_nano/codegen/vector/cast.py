"""lax.convert_element_type on vectors, between all types of elementwise programs.

In registers truth values are i1, and integers carry no sign: a type's short name does. A float is rounded to nearest
even, once. An integer is rounded towards zero, is the nearest there is where it is beyond its range, and 0 for NaN.
"""

from __future__ import annotations

import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.types import is_float, is_signed, register_type
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import round_to_bf16
from jax_nano.ir.dtypes import BITS, NUMPY_TYPES
from jax_nano.ir.program import NARROW_FLOATS


def cast(x: ir.Value, source: str, target: str, *, native_bf16: bool = False) -> ir.Value:
    """A vector of type `source` as one of type `target`; `native_bf16` is that of convert.convert."""
    if source == target:
        return x
    if target == "pred":
        return is_not_zero(x, source)
    if source == "pred":
        one, zero = (v.splat_of(x, register_type(target), number) for number in (1, 0))
        return arith.select(x, one, zero)
    if is_float(source) and is_float(target):
        return float_to_float(x, source, target, native_bf16=native_bf16)
    if is_float(source):
        return float_to_integer(widen(x, source), target)
    if is_float(target):
        return integer_to_float(x, source, target, native_bf16=native_bf16)
    return integer_to_integer(x, source, target)


def is_not_zero(x: ir.Value, source: str) -> ir.Value:
    """A mask of the lanes that are not 0; NaN is not 0."""
    if is_float(source):
        return arith.cmpf(arith.CmpFPredicate.UNE, *v.vectors(widen(x, source), 0.0))
    return arith.cmpi(arith.CmpIPredicate.ne, *v.vectors(x, 0))


def widen(x: ir.Value, source: str) -> ir.Value:
    """A narrow float as f32, another one as it is."""
    if source == "bf16":
        # As integers, so that widening undoes what rounding did to the bits.
        i16, i32 = ir.IntegerType.get_signless(16), ir.IntegerType.get_signless(32)
        return v.floats(v.shift_left(arith.extui(v.of(x, i32), v.as_type(x, i16)), 16))
    return arith.extf(v.of(x, ir.F32Type.get()), x) if source == "f16" else x


def narrow(x: ir.Value, target: str, *, native_bf16: bool = False) -> ir.Value:
    """f32 as a narrow float, or as it is."""
    if target == "bf16" and not native_bf16:
        return round_to_bf16(x)
    return arith.truncf(v.of(x, register_type(target)), x) if target in NARROW_FLOATS else x


def float_to_float(x: ir.Value, source: str, target: str, *, native_bf16: bool) -> ir.Value:
    """Between float types; from f64 to narrow ones through an f32 that knows on which side of the middle it is."""
    x = widen(x, source)
    if source == "f64" and target != "f64":
        if target in NARROW_FLOATS:
            x = round_to_odd(x)
        x = arith.truncf(v.of(x, ir.F32Type.get()), x)
    if target == "f64":
        return x if source == "f64" else arith.extf(v.of(x, ir.F64Type.get()), x)
    return narrow(x, target, native_bf16=native_bf16)


def round_to_odd(x: ir.Value) -> ir.Value:
    """f64 with the bits that f32 has; the last one is set where any further bit was.

    A second rounding is then right. Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE
    Transactions on Computers 57(4), 2008.
    """
    integer, dropped = v.bits(x), (1 << 29) - 1
    any_dropped = arith.cmpi(arith.CmpIPredicate.ne, v.mask(integer, dropped), v.like(integer, 0))
    kept = v.mask(integer, ~dropped)
    return v.floats(arith.ori(kept, arith.select(any_dropped, v.like(integer, 1 << 29), v.like(integer, 0))))


def float_to_integer(x: ir.Value, target: str) -> ir.Value:
    """f32 or f64 to an integer."""
    info = np.iinfo(NUMPY_TYPES[target])
    low, high = float_range(info.min, info.max, np.float32 if v.element(x) == ir.F32Type.get() else np.float64)
    number = v.select(arith.cmpf(arith.CmpFPredicate.ORD, x, x), x, 0.0)
    number = v.at_most(v.at_least(number, low), high)
    wide = max(BITS[target], 32)
    convert = arith.fptosi if is_signed(target) or BITS[target] < 32 else arith.fptoui
    result = convert(v.of(x, ir.IntegerType.get_signless(wide)), number)
    if high < info.max:
        result = arith.select(v.less(high, x), v.like(result, info.max), result)
    return result if BITS[target] == wide else arith.trunci(v.of(x, register_type(target)), result)


def float_range(low: int, high: int, dtype: type[np.floating]) -> tuple[float, float]:
    """The outermost floats of a type within an integer type."""
    outermost = dtype(high)
    return float(low), float(outermost if int(outermost) <= high else np.nextafter(outermost, dtype(0)))


def integer_to_float(x: ir.Value, source: str, target: str, *, native_bf16: bool) -> ir.Value:
    """An integer as a float; of 32 bits and more as a narrow one through f64, which holds 53 bits of it."""
    if BITS[source] < 32:
        x, source = integer_to_integer(x, source, "s32"), "s32"
        middle = "f64" if target == "f64" else "f32"
    else:
        middle = "f64" if target in NARROW_FLOATS else target
    convert = arith.sitofp if is_signed(source) else arith.uitofp
    return float_to_float(convert(v.of(x, register_type(middle)), x), middle, target, native_bf16=native_bf16)


def integer_to_integer(x: ir.Value, source: str, target: str) -> ir.Value:
    """An integer in another width: the number modulo 2**width."""
    if BITS[source] == BITS[target]:
        return x
    kind = v.of(x, register_type(target))
    if BITS[source] > BITS[target]:
        return arith.trunci(kind, x)
    return arith.extsi(kind, x) if is_signed(source) else arith.extui(kind, x)
