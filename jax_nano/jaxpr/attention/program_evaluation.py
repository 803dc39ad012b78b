"""Elementwise programs in JAX's own operations: what kernels do on registers, on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jax_nano.ir.dtypes import NUMPY_TYPES
from jax_nano.ir.program import Input, Operation, Program

NAMES = {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "bitwise_not"}


def run_program(program: Program, arguments: Sequence[Array]) -> list[Array]:
    """The results of a program, elementwise.

    Args:
      program: what to compute.
      arguments: arrays by the numbers that the program's inputs have.
    """
    values: list[Array] = []
    for value in program.values:
        match value:
            case Input():
                values.append(arguments[value.argument])
            case Operation():
                values.append(run_operation(value, [values[i] for i in value.operands]))
            case _:
                values.append(jnp.asarray(value.number))
    return [values[i] for i in program.results]


def run_operation(operation: Operation, operands: list[Array]) -> Array:
    """One operation of a program."""
    function: Any
    match operation.name:
        case "convert":
            return operands[0].astype(NUMPY_TYPES[operation.dtype])
        case "one_minus_square":
            return 1 - lax.square(operands[0])
        case "integer_pow":
            return lax.integer_pow(operands[0], operation.param("y"))
        case "round":
            return lax.round(operands[0], lax.RoundingMethod(operation.param("rounding_method")))
        case name:
            function = getattr(lax, NAMES.get(name, name))
    return function(*jnp.broadcast_arrays(*operands))
