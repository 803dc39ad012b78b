"""Programs rewritten to take fewer vector operations."""

from __future__ import annotations

from collections import Counter

from jax_nano.ir.program import Builder, Constant, Operation, Program, Value

NOT_ROUNDED = frozenset({"f64", "f32"})  # what is done in other types is rounded after each operation


def simplify(program: Program) -> Program:
    """The program with 1 + tanh(x), which GELU has, as 2 logistic(2x): nothing cancels in that, and it takes less.

    A tanh that is used elsewhere too stays. Inputs that nothing uses are left out.
    """
    uses = Counter(i for operation in program.operations for i in operation.operands) + Counter(program.results)

    def write(builder: Builder, value: Value, operands: list[int]) -> int:
        if isinstance(value, Operation) and value.dtype in NOT_ROUNDED and len(operands) == 2:
            for this, other in ((0, 1), (1, 0)):
                second = builder.values[operands[other]]
                match value.name, constant(builder.values[operands[this]]), second:
                    case "add", 1.0, Operation(name="tanh", operands=(x,)) if uses[value.operands[other]] == 1:
                        double = twice(builder, x)
                        return twice(builder, builder.add(operation("logistic", value.dtype, double)))
                    case "mul", 0.5, Operation(name="add", operands=(x, y)) if x == y:
                        return x
        return builder.copy(value, operands)

    builder, numbers = program.rebuilt(write)
    return builder.program([numbers[i] for i in program.results])


def constant(value: Value) -> float | None:
    """The number that a value is, where it is a constant."""
    return float(value.number) if isinstance(value, Constant) else None


def operation(name: str, dtype: str, *operands: int) -> Operation:
    """One operation without parameters."""
    return Operation(name=name, operands=operands, dtype=dtype)


def twice(builder: Builder, number: int) -> int:
    """x + x."""
    return builder.add(operation("add", builder.values[number].dtype, number, number))
