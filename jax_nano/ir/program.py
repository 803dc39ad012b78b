"""Elementwise programs: what becomes of each element of a product, as a value that can be compared, hashed and kept.

A `Program` is a list of operations on numbered scalars: it says what becomes of one element. Which element of which
array an input is, the axes of a Dot say.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jax_nano.ir.dtypes import NUMPY_TYPES

FLOATS = frozenset({"f64", "f32", "bf16", "f16"})
NARROW_FLOATS = frozenset({"bf16", "f16"})
WIDE_FLOATS = FLOATS - NARROW_FLOATS  # which hold those
INTEGERS = frozenset({"s64", "s32", "s16", "s8", "u64", "u32", "u16", "u8"})
DIVISIBLE = INTEGERS - {"s64", "u64"}  # an f64 holds them
NUMBERS = FLOATS | INTEGERS
ANYTHING = NUMBERS | {"pred"}

OPERATIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("add", "sub", "mul", "neg", "abs", "sign", "square", "integer_pow", "clamp"), NUMBERS),
    "one_minus_square": NUMBERS,
    **dict.fromkeys(("floor", "ceil", "round", "is_finite", "sqrt", "rsqrt", "cbrt", "pow"), FLOATS),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"), FLOATS),
    **dict.fromkeys(("sin", "cos"), FLOATS - {"f64"}),
    **dict.fromkeys(("shift_left", "shift_right_arithmetic", "shift_right_logical"), INTEGERS),
    **dict.fromkeys(("and", "or", "xor", "not"), INTEGERS | {"pred"}),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "max", "min", "select_n", "convert"), ANYTHING),
    "div": FLOATS | DIVISIBLE,
    "rem": DIVISIBLE,
}
"""The types of each operation's operands, of select_n's cases; names and meanings are those of jax.lax.

`convert` is lax.convert_element_type, to the type of the result.
"""


INSTRUCTIONS = {
    "div": 9, "rem": 20, "sqrt": 9, "rsqrt": 11, "exp": 23, "exp2": 23, "expm1": 21, "log": 35, "log1p": 36, "tanh": 30,
    "logistic": 30, "erf": 37, "erfc": 45, "cbrt": 52, "sin": 58, "cos": 57, "pow": 92,
}  # fmt: skip
"""Vector instructions of an operation, where they are more than a few; divisions and roots: their reciprocal
throughput, in instructions. Counted in what codegen/vector emits for f32.
"""


class Unfusable(Exception):
    """A computation is not an elementwise program; its text says why."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """An element that is read, of one of the program's arguments."""

    argument: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number, by its bits: NaN equals itself and 0 differs from -0."""

    dtype: str
    bits: int

    @classmethod
    def of(cls, number: Any, dtype: str) -> Constant:
        """A number, converted to a type."""
        data = np.asarray(number).astype(NUMPY_TYPES[dtype]).tobytes()
        return cls(dtype=dtype, bits=int.from_bytes(data, "little"))

    @property
    def number(self) -> Any:
        """As NumPy has it."""
        dtype = np.dtype(NUMPY_TYPES[self.dtype])
        return np.frombuffer(self.bits.to_bytes(dtype.itemsize, "little"), dtype)[0]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of OPERATIONS on values of smaller numbers, giving a value of a type."""

    name: str
    operands: tuple[int, ...]
    dtype: str
    params: tuple[tuple[str, Hashable], ...] = ()

    def param(self, name: str) -> Any:
        """A parameter's value."""
        return dict(self.params)[name]


@dataclass(frozen=True, kw_only=True)
class Program:
    """Operations on values that are numbered: inputs first, then constants, then what each operation gives."""

    inputs: tuple[Input, ...]
    constants: tuple[Constant, ...]
    operations: tuple[Operation, ...]
    results: tuple[int, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """The values by their numbers."""
        return (*self.inputs, *self.constants, *self.operations)

    def dtype(self, number: int) -> str:
        """The type of a value."""
        return self.values[number].dtype

    def widened(self) -> Program:
        """The program that carries bf16 and f16 in f32, and rounds to them its results and what it converts to them."""

        def write(builder: Builder, value: Value, operands: list[int]) -> int:
            dtype = "f32" if value.dtype in NARROW_FLOATS else value.dtype
            match value:
                case Operation(name="convert"):
                    return builder.convert(builder.convert(operands[0], value.dtype), dtype)
                case Operation():
                    return builder.copy(replace(value, dtype=dtype), operands)
            return builder.convert(builder.add(value), dtype)

        builder, numbers = self.rebuilt(write)
        return builder.program([builder.convert(numbers[i], self.dtype(i)) for i in self.results])

    def rebuilt(self, write: Callable[[Builder, Value, list[int]], int]) -> tuple[Builder, list[int]]:
        """Every value written anew, its operands being there, and their numbers."""
        builder, numbers = Builder(), []
        for value in self.values:
            operands = [numbers[i] for i in value.operands] if isinstance(value, Operation) else []
            numbers.append(write(builder, value, operands))
        return builder, numbers

    def __str__(self) -> str:
        """One line for each value."""
        lines = []
        for number, value in enumerate(self.values):
            match value:
                case Input():
                    text = f"argument {value.argument}"
                case Constant():
                    text = str(value.number)
                case Operation():
                    params = "".join(f" {name}={param}" for name, param in value.params)
                    text = " ".join([value.name, *(f"%{i}" for i in value.operands)]) + params
            lines.append(f"%{number}: {value.dtype} = {text}")
        return "\n".join([*lines, "return " + ", ".join(f"%{i}" for i in self.results)])


Value = Input | Constant | Operation


@dataclass
class Builder:
    """Collects values, each once, operands before what is made of them."""

    values: list[Value] = field(default_factory=list)
    numbers: dict[Value, int] = field(default_factory=dict)

    def add(self, value: Value) -> int:
        """The number of a value."""
        if value not in self.numbers:
            self.numbers[value] = len(self.values)
            self.values.append(value)
        return self.numbers[value]

    def copy(self, value: Value, operands: Sequence[int]) -> int:
        """Adds a value of another program, with operands of this one, and gives its number."""
        return self.add(replace(value, operands=tuple(operands)) if isinstance(value, Operation) else value)

    def convert(self, number: int, dtype: str) -> int:
        """The number of a value in a type."""
        value = self.values[number]
        if value.dtype == dtype:
            return number
        if isinstance(value, Constant):
            return self.add(Constant.of(value.number, dtype))
        if isinstance(value, Operation) and value.name == "convert" and dtype in NARROW_FLOATS:
            (source,) = value.operands
            if value.dtype in WIDE_FLOATS and self.values[source].dtype == dtype:
                return source
        return self.add(Operation(name="convert", operands=(number,), dtype=dtype))

    def program(self, results: Sequence[int]) -> Program:
        """The values that the results need, and the first one, an input, in any case."""
        needed = {0, *results}
        for number in reversed(range(len(self.values))):
            if number in needed:
                needed |= set(getattr(self.values[number], "operands", ()))

        def place(number: int) -> tuple[int, int]:
            value = self.values[number]
            return (Input, Constant, Operation).index(type(value)), getattr(value, "argument", 0)

        order = sorted(sorted(needed), key=place)
        numbers = {old: new for new, old in enumerate(order)}
        values = [self.values[old] for old in order]
        return Program(
            inputs=tuple(value for value in values if isinstance(value, Input)),
            constants=tuple(value for value in values if isinstance(value, Constant)),
            operations=tuple(
                replace(value, operands=tuple(numbers[i] for i in value.operands))
                for value in values
                if isinstance(value, Operation)
            ),
            results=tuple(numbers[i] for i in results),
        )
