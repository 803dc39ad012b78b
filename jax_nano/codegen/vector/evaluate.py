"""Elementwise programs on registers: vector operations with JAX's meaning of each.

Vectors come and go in the types that they have in memory. An operation on bf16 or f16 is computed in f32 and rounded to
its type: `Program.widened` is the program that does without. A multiplication and an addition beside it may become one
fused operation, rounded once, as in XLA's own programs on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, math

from jax_nano.codegen.registers import bitcast
from jax_nano.codegen.types import is_float, is_signed, register_type
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector import math as vmath
from jax_nano.codegen.vector.cast import cast, integer_to_integer, narrow, widen
from jax_nano.codegen.vector.formats import INFINITY
from jax_nano.codegen.vector.power import power
from jax_nano.codegen.vector.simplify import simplify
from jax_nano.ir.dtypes import BITS
from jax_nano.ir.program import NARROW_FLOATS, Constant, Operation, Program

Function = Callable[..., ir.Value]


def evaluate(program: Program, inputs: Sequence[ir.Value], *, native_bf16: bool = False) -> list[ir.Value]:
    """Emits a program on one vector of each input.

    Args:
      program: what to compute.
      inputs: a vector for each of its inputs, all with as many lanes, of the types that they have in memory.
      native_bf16: whether the target rounds to bf16 itself. Such instructions flush subnormal numbers.

    Returns:
      A vector for each result.
    """
    given = dict(zip(program.inputs, inputs, strict=True))
    program = simplify(program)
    values = [from_memory(given[source], source.dtype) for source in program.inputs]
    values += [constant(inputs[0], number) for number in program.constants]
    for operation in program.operations:
        types = [program.dtype(i) for i in operation.operands]
        values.append(apply(operation, [values[i] for i in operation.operands], types, native_bf16=native_bf16))
    return [to_memory(values[i], program.dtype(i)) for i in program.results]


def constant(x: ir.Value, value: Constant) -> ir.Value:
    """A constant in as many lanes as x has."""
    return v.splat_of(x, register_type(value.dtype), value.number.item())


def from_memory(x: ir.Value, dtype: str) -> ir.Value:
    """A vector as it is computed with: truth values as bits."""
    return cast(x, "u8", "pred") if dtype == "pred" else x


def to_memory(x: ir.Value, dtype: str) -> ir.Value:
    """A vector as it is stored: truth values as bytes."""
    return cast(x, "pred", "u8") if dtype == "pred" else x


def apply(operation: Operation, operands: list[ir.Value], types: list[str], *, native_bf16: bool) -> ir.Value:
    """One operation on vectors of some types."""
    name, dtype = operation.name, types[-1]
    if name == "convert":
        return cast(operands[0], dtype, operation.dtype, native_bf16=native_bf16)
    if name == "bitcast_convert_type":
        return bitcast(operands[0], v.count(operands[0]), register_type(operation.dtype))
    operands = [widen(x, source) for x, source in zip(operands, types, strict=True)]
    if name == "select_n":
        result = arith.select(operands[0], operands[2], operands[1])
    elif name == "integer_pow":
        result = integer_power(operands[0], operation.param("y"))
    elif name == "round":
        result = ROUND[operation.param("rounding_method")](operands[0])
    elif is_float(dtype):
        result = FLOAT[name](*operands)
    elif dtype == "pred":
        result = PREDICATE[name](*operands)
    else:
        result = INTEGER[name](dtype, *operands)
    return narrow(result, operation.dtype, native_bf16=native_bf16) if operation.dtype in NARROW_FLOATS else result


def product(a: ir.Value, b: ir.Value) -> ir.Value:
    """a * b of floats or integers."""
    return arith.muli(a, b) if v.is_integer(a) else arith.mulf(a, b, fastmath=arith.FastMathFlags.contract)


def integer_power(x: ir.Value, y: int) -> ir.Value:
    """x**y by squaring; where y is negative, 1 / x**-y."""
    power, result, rest = x, None, abs(y)
    while rest:
        if rest & 1:
            result = power if result is None else product(result, power)
        rest >>= 1
        power = product(power, power) if rest else power
    result = v.like(x, 1) if result is None else result
    return v.div(1.0, result) if y < 0 else result


# Floats: f64 and f32

COMPARISON = {
    "eq": arith.CmpFPredicate.OEQ,
    "ne": arith.CmpFPredicate.UNE,
    "lt": arith.CmpFPredicate.OLT,
    "le": arith.CmpFPredicate.OLE,
    "gt": arith.CmpFPredicate.OGT,
    "ge": arith.CmpFPredicate.OGE,
}

ROUND: dict[int, Function] = {0: math.round, 1: math.roundeven}  # by jax.lax.RoundingMethod


def float_sign(x: ir.Value) -> ir.Value:
    """1 with x's sign; zeros and NaN stay."""
    is_itself = arith.cmpf(arith.CmpFPredicate.UEQ, *v.vectors(x, 0.0))
    return v.select(is_itself, x, v.with_sign(v.like(x, 1.0), x))


def float_clamp(low: ir.Value, x: ir.Value, high: ir.Value) -> ir.Value:
    """x, but at least `low` and, first of all, at most `high`."""
    return arith.minimumf(arith.maximumf(low, x), high)


FLOAT: dict[str, Function] = {
    "add": partial(arith.addf, fastmath=arith.FastMathFlags.contract),
    "sub": partial(arith.subf, fastmath=arith.FastMathFlags.contract),
    "mul": product,
    "square": lambda x: product(x, x),
    "one_minus_square": lambda x: v.fma(v.negative(x), x, 1.0),
    "div": arith.divf,
    "neg": arith.negf,
    "abs": math.absf,
    "sign": float_sign,
    "max": arith.maximumf,
    "min": arith.minimumf,
    "clamp": float_clamp,
    "floor": math.floor,
    "ceil": math.ceil,
    "is_finite": lambda x: v.less(v.magnitude(x), INFINITY),
    "exp": vmath.exp,
    "exp2": vmath.exp2,
    "expm1": vmath.expm1,
    "log": vmath.log,
    "log1p": vmath.log1p,
    "tanh": vmath.tanh,
    "logistic": vmath.logistic,
    "erf": vmath.erf,
    "erfc": vmath.erfc,
    "sqrt": vmath.sqrt,
    "rsqrt": vmath.rsqrt,
    "cbrt": vmath.cbrt,
    "pow": power,
    "sin": vmath.sin,
    "cos": vmath.cos,
    **{name: partial(arith.cmpf, predicate) for name, predicate in COMPARISON.items()},
}


# Integers: the first argument is their type, for its sign


def by_sign(of_signed: Function, of_unsigned: Function) -> Function:
    """The function that is one of two, by the sign of its type."""
    return lambda dtype, *operands: (of_signed if is_signed(dtype) else of_unsigned)(*operands)


def integer_comparison(name: str) -> Function:
    """The function that compares integers so."""
    kind = arith.CmpIPredicate
    if name in ("eq", "ne"):
        return lambda _, a, b: arith.cmpi(getattr(kind, name), a, b)
    of_signed, of_unsigned = getattr(kind, f"s{name}"), getattr(kind, f"u{name}")
    return by_sign(partial(arith.cmpi, of_signed), partial(arith.cmpi, of_unsigned))


def quotient(dtype: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """a / b towards zero, in f64; a / 0 is -1, and what has no place wraps around."""
    if BITS[dtype] < 32:
        wide = [integer_to_integer(x, dtype, "s32") for x in (a, b)]
        return integer_to_integer(quotient("s32", *wide), "s32", dtype)
    equal = partial(arith.cmpi, arith.CmpIPredicate.eq)
    to_float, to_integer = (arith.sitofp, arith.fptosi) if is_signed(dtype) else (arith.uitofp, arith.fptoui)
    kind = v.of(a, ir.F64Type.get())
    special = equal(b, v.like(b, 0))
    value = v.like(a, -1)
    if is_signed(dtype):
        by_minus_one = equal(b, v.like(b, -1))
        value = v.select(by_minus_one, v.sub(0, a), value)
        special = arith.ori(special, by_minus_one)
    ratio = arith.divf(to_float(kind, a), to_float(kind, v.select(special, 1, b)))
    # Where it is special a / 1 stands, which fits.
    return v.select(special, value, to_integer(a.type, ratio))


def remainder(dtype: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """a - a / b * b, of a's sign; a % 0 is a."""
    return v.sub(a, v.mul(b, quotient(dtype, a, b)))


def shift(operation: Function, dtype: str, x: ir.Value, places: ir.Value) -> ir.Value:
    """A shift that leaves nothing beyond the width."""
    fits = arith.cmpi(arith.CmpIPredicate.ult, places, v.like(places, BITS[dtype]))
    return v.select(fits, operation(x, places), 0)


def integer_clamp(dtype: str, low: ir.Value, x: ir.Value, high: ir.Value) -> ir.Value:
    """x, but at least `low` and, first of all, at most `high`."""
    return INTEGER["min"](dtype, INTEGER["max"](dtype, low, x), high)


INTEGER: dict[str, Function] = {
    "add": lambda _, a, b: arith.addi(a, b),
    "sub": lambda _, a, b: arith.subi(a, b),
    "mul": lambda _, a, b: arith.muli(a, b),
    "square": lambda _, x: arith.muli(x, x),
    "one_minus_square": lambda _, x: v.sub(1, v.mul(x, x)),
    "div": quotient,
    "rem": remainder,
    "neg": lambda _, x: v.sub(0, x),
    "abs": by_sign(lambda x: arith.maxsi(x, v.sub(0, x)), lambda x: x),
    "sign": by_sign(
        lambda x: arith.maxsi(arith.minsi(x, v.like(x, 1)), v.like(x, -1)), lambda x: arith.minui(x, v.like(x, 1))
    ),
    "max": by_sign(arith.maxsi, arith.maxui),
    "min": by_sign(arith.minsi, arith.minui),
    "clamp": integer_clamp,
    "and": lambda _, a, b: arith.andi(a, b),
    "or": lambda _, a, b: arith.ori(a, b),
    "xor": lambda _, a, b: arith.xori(a, b),
    "not": lambda _, x: arith.xori(x, v.like(x, -1)),
    "shift_left": partial(shift, arith.shli),
    "shift_right_logical": partial(shift, arith.shrui),
    "shift_right_arithmetic": lambda dtype, x, n: arith.shrsi(x, arith.minui(n, v.like(n, BITS[dtype] - 1))),
    **{name: integer_comparison(name) for name in COMPARISON},
}

# Truth values: false is 0 and less than true

PREDICATE: dict[str, Function] = {
    name: partial(INTEGER[name], "u1") for name in ("and", "or", "xor", "not", "max", "min", *COMPARISON)
}
