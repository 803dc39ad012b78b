"""Scalar equations as elementwise programs: each result is followed back to the arguments it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn, Literal, Var

from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.program import OPERATIONS, Builder, Constant, Input, Operation, Program, Unfusable
from jax_nano.jaxpr.inline import Atom

SYNONYMS = {"add_any": "add", "convert_element_type": "convert", "copy": "convert", "copy_p": "convert"}
KEPT_PARAMS = ("rounding_method", "y")  # of round and integer_pow


def program_of(arguments: Sequence[Var], eqns: Sequence[JaxprEqn], results: Sequence[Atom]) -> Program:
    """Reads the program that makes `results` of `arguments`, all of them scalars.

    Argument 0 becomes input 0. The others follow by their numbers, as far as they are used.

    Args:
      arguments: what the equations start from.
      eqns: equations without calls, among them those that make the results.
      results: what the program gives.

    Raises:
      Unfusable: a primitive or a type has no place in an elementwise program.
    """
    reader = _Reader(arguments, eqns)
    reader.value(arguments[0])
    return reader.builder.program([reader.value(x) for x in results])


class _Reader:
    """Reads equations backwards, from the results to the arguments."""

    def __init__(self, arguments: Sequence[Var], eqns: Sequence[JaxprEqn]):
        self.builder = Builder()
        self.arguments = {x: number for number, x in enumerate(arguments)}
        self.makers = {out: eqn for eqn in eqns for out in eqn.outvars}
        self.numbers: dict[Var, int] = {}

    def value(self, x: Atom) -> int:
        """Adds a variable or literal to the program, and gives its number."""
        if isinstance(x, Literal):
            return self.builder.add(Constant.of(x.val, dtype_of(x)))
        if x not in self.numbers:
            self.numbers[x] = self.argument(x) if x in self.arguments else self.equation(self.makers[x])
        return self.numbers[x]

    def argument(self, x: Var) -> int:
        """Adds an argument."""
        return self.builder.add(Input(argument=self.arguments[x], dtype=dtype_of(x)))

    def equation(self, eqn: JaxprEqn) -> int:
        """Adds what an equation makes, after its operands."""
        return add_equation(self.builder, eqn, [self.value(x) for x in eqn.invars])


def add_equation(builder: Builder, eqn: JaxprEqn, operands: list[int]) -> int:
    """Adds what an equation makes of values of these numbers, and gives its number.

    Raises:
      Unfusable: its primitive or a type has no place in an elementwise program.
    """
    types = [builder.values[number].dtype for number in operands]
    dtype, name = dtype_of(eqn.outvars[0]), operation_name(eqn)
    check_operation(name, types)
    if name == "convert":
        return builder.convert(operands[0], dtype)
    if name == "pow":
        operands[1] = builder.convert(operands[1], dtype)
    params = tuple((key, int(eqn.params[key])) for key in KEPT_PARAMS if key in eqn.params)
    return builder.add(Operation(name=name, operands=tuple(operands), dtype=dtype, params=params))


def operation_name(eqn: JaxprEqn) -> str:
    """The name that the operation of an equation has, or would have, in a program."""
    return SYNONYMS.get(eqn.primitive.name, eqn.primitive.name)


def check_operation(name: str, types: Sequence[str]) -> None:
    """Checks that there is vector code for an operation on operands of these types.

    Raises:
      Unfusable: there is none.
    """
    if name not in OPERATIONS:
        raise Unfusable(f"{name} is not elementwise, or has no vector code")
    if name == "select_n" and (types[0] != "pred" or len(types) != 3):
        raise Unfusable(f"select_n by {types[0]} among {len(types) - 1}")
    if name != "convert" and types[-1] not in OPERATIONS[name]:
        raise Unfusable(f"{name} of {types[-1]} has no vector code")


def dtype_of(x: Any) -> str:
    """The short name of a variable's element type.

    Raises:
      Unfusable: programs do not know it.
    """
    dtype = getattr(x.aval, "dtype", None)
    if dtype not in NAMES:
        raise Unfusable(f"{x.aval} is no array of numbers")
    return NAMES[dtype]
