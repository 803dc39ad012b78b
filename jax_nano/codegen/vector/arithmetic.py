"""Arithmetic on vectors in which a number stands for itself in every lane."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, math, vector

from jax_nano.codegen.registers import bitcast, splat

Operand = ir.Value | float


def count(x: ir.Value) -> int:
    """Lanes of a vector."""
    return ir.VectorType(x.type).shape[0]


def element(x: ir.Value) -> ir.Type:
    """The type of a vector's elements."""
    return ir.VectorType(x.type).element_type


def like(x: ir.Value, number: float) -> ir.Value:
    """A number in every lane of a vector of x's type."""
    return splat_of(x, element(x), number)


def splat_of(x: ir.Value, dtype: ir.Type, number: float) -> ir.Value:
    """A number in as many lanes as x has, of an element type; an integer modulo 2**width."""
    if isinstance(dtype, ir.IntegerType):
        half = 1 << (dtype.width - 1)
        number = (int(number) + half) % (2 * half) - half
    return splat(number, count(x), dtype)


def of(x: ir.Value, dtype: ir.Type) -> ir.Type:
    """The type of a vector with as many lanes as x, of another element type."""
    return ir.VectorType.get([count(x)], dtype)


def vectors(*operands: Operand) -> list[ir.Value]:
    """The operands, at least one of them a vector, with numbers spread out."""
    model = next(x for x in operands if isinstance(x, ir.Value))
    return [x if isinstance(x, ir.Value) else like(model, x) for x in operands]


def is_integer(x: ir.Value) -> bool:
    """True of vectors of integers."""
    return isinstance(element(x), ir.IntegerType)


def add(a: Operand, b: Operand) -> ir.Value:
    """a + b."""
    a, b = vectors(a, b)
    return arith.addi(a, b) if is_integer(a) else arith.addf(a, b)


def sub(a: Operand, b: Operand) -> ir.Value:
    """a - b."""
    a, b = vectors(a, b)
    return arith.subi(a, b) if is_integer(a) else arith.subf(a, b)


def mul(a: Operand, b: Operand) -> ir.Value:
    """a * b."""
    a, b = vectors(a, b)
    return arith.muli(a, b) if is_integer(a) else arith.mulf(a, b)


def div(a: Operand, b: Operand) -> ir.Value:
    """a / b, of floats."""
    return arith.divf(*vectors(a, b))


def fma(a: Operand, b: Operand, c: Operand) -> ir.Value:
    """a * b + c, rounded once."""
    return vector.fma(*vectors(a, b, c))


def polynomial(x: ir.Value, coefficients: Sequence[Operand]) -> ir.Value:
    """The sum of coefficients[i] * x**i, i from 0 to at least 1, by Horner's rule."""
    result = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        result = fma(result, x, coefficient)
    return vectors(result)[0]


def less(a: Operand, b: Operand) -> ir.Value:
    """A mask of the lanes where a < b, of floats."""
    return arith.cmpf(arith.CmpFPredicate.OLT, *vectors(a, b))


def equal(a: Operand, b: Operand) -> ir.Value:
    """A mask of the lanes where a = b, of floats."""
    return arith.cmpf(arith.CmpFPredicate.OEQ, *vectors(a, b))


def select(condition: ir.Value, then: Operand, otherwise: Operand) -> ir.Value:
    """`then` where the condition holds, elsewhere `otherwise`; one of them at least is a vector."""
    return arith.select(condition, *vectors(then, otherwise))


def at_least(x: ir.Value, low: float) -> ir.Value:
    """The larger of x and a number; NaN stays."""
    return select(less(x, low), low, x)


def at_most(x: ir.Value, high: float) -> ir.Value:
    """The smaller of x and a number; NaN stays."""
    return select(less(high, x), high, x)


def magnitude(x: ir.Value) -> ir.Value:
    """x without its sign."""
    return math.absf(x)


def negative(x: ir.Value) -> ir.Value:
    """-x."""
    return arith.negf(x)


def with_sign(x: ir.Value, sign: ir.Value) -> ir.Value:
    """The magnitude of x with the sign of another."""
    return math.copysign(x, sign)


def bits(x: ir.Value) -> ir.Value:
    """Floats as the integers that have their bits."""
    return as_type(x, ir.IntegerType.get_signless(ir.FloatType(element(x)).width))


def as_type(x: ir.Value, dtype: ir.Type) -> ir.Value:
    """The bits as elements of another type of that width."""
    return bitcast(x, count(x), dtype)


def floats(x: ir.Value) -> ir.Value:
    """Integers as the floats that have their bits."""
    return as_type(x, {32: ir.F32Type, 64: ir.F64Type}[ir.IntegerType(element(x)).width].get())


def shift_left(x: ir.Value, places: int) -> ir.Value:
    """x * 2**places, of integers."""
    return arith.shli(x, like(x, places))


def shift_right(x: ir.Value, places: int) -> ir.Value:
    """The integer x without its lowest bits, its sign kept."""
    return arith.shrsi(x, like(x, places))


def mask(x: ir.Value, ones: int) -> ir.Value:
    """The bits of an integer that are one in a number too."""
    return arith.andi(x, like(x, ones))
