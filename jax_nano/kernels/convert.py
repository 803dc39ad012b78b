"""Conversions between element types, on whole registers: exact where the target holds every value, else to nearest even."""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.build import broadcast, element_type

FLOATS = ("f64", "f32", "bf16", "f16")
SIGNED = ("s4", "s8", "s16", "s32")
UNSIGNED = ("u4", "u8")


def convert(value: ir.Value, source: str, target: str, native_bf16: bool = False) -> ir.Value:
    """The vector `value` of element type `source` as elements of type `target`.

    Args:
      value: a vector.
      source: its element type's short name, which carries its sign.
      target: the element type to give.
      native_bf16: whether the target converts f32 to bf16 itself. Such instructions take denormal numbers for zero.

    Raises:
      ValueError: there is no such conversion.
    """
    if source == target:
        return value
    kind = ir.VectorType.get(ir.VectorType(value.type).shape, element_type(target))
    if source in FLOATS and target in FLOATS:
        if widens(source, target):
            return arith.extf(kind, value)
        if target == "bf16" and not native_bf16:
            return round_to_bf16(convert(value, source, "f32"))
        return arith.truncf(kind, value)
    if source in SIGNED and target in FLOATS:
        return from_integer(value, source, target, arith.sitofp)
    if source in UNSIGNED and target in FLOATS:
        return from_integer(value, source, target, arith.uitofp)
    if source in SIGNED and target in SIGNED:
        return arith.extsi(kind, value)
    if source in UNSIGNED and target in SIGNED:
        return arith.extui(kind, value)
    raise ValueError(f"no conversion from {source} to {target}")


def widens(source: str, target: str) -> bool:
    """Whether every value of one float type is one of another, wider one."""
    return (source, target) in {("bf16", "f32"), ("f16", "f32"), ("bf16", "f64"), ("f16", "f64"), ("f32", "f64")}


def from_integer(value: ir.Value, source: str, target: str, operation) -> ir.Value:
    """An integer as a float, through s32 and f32, which all vector units convert between."""
    shape = ir.VectorType(value.type).shape
    wide = arith.extui if source in UNSIGNED else arith.extsi
    if source not in ("s32", "u32"):
        value = wide(ir.VectorType.get(shape, element_type("s32")), value)
        operation = arith.sitofp
    if target == "f64":
        return operation(ir.VectorType.get(shape, element_type("f64")), value)
    return convert(operation(ir.VectorType.get(shape, element_type("f32")), value), "f32", target)


def round_to_bf16(value: ir.Value) -> ir.Value:
    """f32 to bf16 in integer arithmetic, to nearest even: adding half an ulp, less one bit where the result is even, carries.

    A NaN stays one: its upper half keeps the sign and is made quiet.
    """
    lanes = ir.VectorType(value.type).shape[0]
    i32, i16 = element_type("s32"), ir.IntegerType.get_signless(16)

    def splat(bits: int) -> ir.Value:
        return broadcast(arith.constant(i32, bits), lanes)

    bits = vector.bitcast(ir.VectorType.get([lanes], i32), value)
    odd = arith.andi(arith.shrui(bits, splat(16)), splat(1))
    rounded = arith.addi(bits, arith.addi(odd, splat(0x7FFF)))
    is_nan = arith.cmpf(arith.CmpFPredicate.UNO, value, value)
    quiet = arith.ori(bits, splat(0x400000))
    upper = arith.shrui(arith.select(is_nan, quiet, rounded), splat(16))
    half = arith.trunci(ir.VectorType.get([lanes], i16), upper)
    return vector.bitcast(ir.VectorType.get([lanes], element_type("bf16")), half)
