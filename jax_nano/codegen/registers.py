"""Vectors as values: constants, broadcasts, other types of the same bits."""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector


def splat(number: float, lanes: int, dtype: ir.Type) -> ir.Value:
    """A constant in every lane."""
    kind = ir.VectorType.get([lanes], dtype)
    integer = isinstance(dtype, ir.IntegerType)
    value = ir.IntegerAttr.get(dtype, int(number)) if integer else ir.FloatAttr.get(dtype, number)
    return arith.constant(kind, ir.DenseElementsAttr.get_splat(kind, value))


def zeros(lanes: int, dtype: ir.Type) -> ir.Value:
    """A vector of zeros."""
    return splat(0, lanes, dtype)


def count_up(lanes: int, dtype: ir.Type) -> ir.Value:
    """The integers 0, 1, 2, ... in the lanes."""
    kind = ir.VectorType.get([lanes], dtype)
    return arith.constant(kind, ir.DenseElementsAttr.get([ir.IntegerAttr.get(dtype, i) for i in range(lanes)], kind))


def any_lane(mask: ir.Value) -> ir.Value:
    """A condition: a mask has a lane that is set."""
    word = ir.IntegerType.get_signless(ir.VectorType(mask.type).shape[0])
    bits = vector.extract(vector.bitcast(ir.VectorType.get([1], word), mask), [], [0])
    return arith.cmpi(arith.CmpIPredicate.ne, bits, arith.constant(word, 0))


def broadcast(scalar: ir.Value, lanes: int) -> ir.Value:
    """A scalar in every lane."""
    return vector.broadcast(ir.VectorType.get([lanes], scalar.type), scalar)


def bitcast(value: ir.Value, lanes: int, dtype: ir.Type) -> ir.Value:
    """The bits of a vector as one of other elements."""
    kind = ir.VectorType.get([lanes], dtype)
    return value if value.type == kind else vector.bitcast(kind, value)
