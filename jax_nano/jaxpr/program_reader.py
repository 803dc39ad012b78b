"""Jaxprs as elementwise programs: each result is followed back to the arguments it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr

from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.program import OPERATIONS, Axes, Builder, Constant, Input, Operation, Program, Unfusable

SYNONYMS = {"add_any": "add", "convert_element_type": "convert"}
CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
NOTHING = {"copy", "copy_p", "stop_gradient", "name", "optimization_barrier"}
REDUCED = {(8, 7): "bf16", (5, 10): "f16", (8, 23): "f32"}  # by bits of exponent and fraction


def program_of(jaxpr: ClosedJaxpr) -> Program:
    """The program of a jaxpr, whose results all have the shape of its argument 0.

    Argument 0 becomes input 0. The others follow by their numbers, as far as they are used: once, or once for each way
    they lie along the result. What only moves dimensions (broadcasts, transposes, reshapes that add or drop dimensions
    of size 1) is in the inputs' axes. Calls are written out.

    Raises:
      Unfusable: a primitive, a type or a shape has no place in an elementwise program.
    """
    return Reader(jaxpr).program()


@dataclass(eq=False)
class Scope:
    """A jaxpr's variables, each by where it comes from."""

    jaxpr: Any
    consts: dict[Any, Any]
    arguments: dict[Any, Any]  # what calls are made with, in the scope outside
    outside: Scope | None = None

    def __post_init__(self):
        self.equations = {out: (eqn, i) for eqn in self.jaxpr.eqns for i, out in enumerate(eqn.outvars)}
        self.calls: dict[int, Scope] = {}

    def called(self, eqn: Any) -> Scope:
        """The variables of the jaxpr that an equation calls."""
        if id(eqn) not in self.calls:
            callee = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
            jaxpr = getattr(callee, "jaxpr", callee)
            consts = dict(zip(jaxpr.constvars, getattr(callee, "consts", ()), strict=True))
            self.calls[id(eqn)] = Scope(jaxpr, consts, dict(zip(jaxpr.invars, eqn.invars, strict=True)), self)
        return self.calls[id(eqn)]


class Reader:
    """Reads a jaxpr backwards from its results, asking for each value along the axes on which it is used."""

    def __init__(self, closed: ClosedJaxpr):
        jaxpr = closed.jaxpr
        self.shape = jaxpr.invars[0].aval.shape
        self.builder = Builder()
        self.axes: Axes = tuple(None if size == 1 else axis for axis, size in enumerate(self.shape))
        arguments = {x: number for number, x in enumerate(jaxpr.invars)}
        self.top = Scope(jaxpr, dict(zip(jaxpr.constvars, closed.consts, strict=True)), arguments)
        self.known: dict[tuple[Scope, Any, Axes], int] = {}

    def program(self) -> Program:
        """The whole."""
        outs = self.top.jaxpr.outvars
        for out in outs:
            if out.aval.shape != self.shape:
                raise Unfusable(f"a result has the shape {out.aval.shape}, the product {self.shape}")
        self.builder.add(Input(argument=0, dtype=dtype_of(self.top.jaxpr.invars[0]), axes=self.axes))
        return self.builder.program([self.value(self.top, out, self.axes) for out in outs])

    def value(self, scope: Scope, x: Any, axes: Axes) -> int:
        """The number of a variable or literal."""
        if hasattr(x, "val"):
            return self.constant(x.val, dtype_of(x))
        if x in scope.consts:
            return self.constant(scope.consts[x], dtype_of(x))
        if x in scope.arguments:
            source = scope.arguments[x]
            return self.value(scope.outside, source, axes) if scope.outside else self.input(source, dtype_of(x), axes)
        key = scope, x, axes
        if key not in self.known:
            self.known[key] = self.equation(scope, *scope.equations[x], axes)
        return self.known[key]

    def input(self, argument: int, dtype: str, axes: Axes) -> int:
        """The number of an argument's elements."""
        if argument == 0 and axes != self.axes:
            raise Unfusable("the product is read along other axes than the result's")
        return self.builder.add(Input(argument=argument, dtype=dtype, axes=axes))

    def constant(self, value: Any, dtype: str) -> int:
        """The number of a constant."""
        data = np.asarray(value)
        first = data.reshape(-1)[:1]
        if data.tobytes() != first.tobytes() * data.size:
            raise Unfusable(f"a constant array of the shape {data.shape} is not an argument; make it one")
        return self.builder.add(Constant.of(first[0], dtype))

    def equation(self, scope: Scope, eqn: Any, index: int, axes: Axes) -> int:
        """The number of one of an equation's results."""
        name: str = eqn.primitive.name
        if name in CALLS:
            inner = scope.called(eqn)
            return self.value(inner, inner.jaxpr.outvars[index], axes)
        if name in NOTHING:
            return self.value(scope, eqn.invars[index], axes)
        if name in MOVES:
            (source,) = eqn.invars
            return self.value(scope, source, fitting(source, MOVES[name](eqn, axes)))
        operands = [self.value(scope, x, fitting(x, axes)) for x in eqn.invars]
        dtype = dtype_of(eqn.outvars[index])
        if name == "reduce_precision":
            return self.reduced(operands[0], dtype, eqn.params["exponent_bits"], eqn.params["mantissa_bits"])
        return self.operation(SYNONYMS.get(name, name), operands, dtype, eqn.params)

    def reduced(self, number: int, dtype: str, exponent_bits: int, mantissa_bits: int) -> int:
        """A float rounded to a format of fewer bits."""
        if (name := REDUCED.get((exponent_bits, mantissa_bits))) is None:
            raise Unfusable(f"reduce_precision to {exponent_bits} bits of exponent and {mantissa_bits} of mantissa")
        return self.builder.convert(self.builder.convert(number, name), dtype)

    def operation(self, name: str, operands: list[int], dtype: str, params: dict[str, Any]) -> int:
        """The number of what an operation gives."""
        if name not in OPERATIONS:
            raise Unfusable(f"{name} is not elementwise, or has no vector code")
        types = [self.builder.values[number].dtype for number in operands]
        if name == "convert":
            return self.builder.convert(operands[0], dtype)
        if name == "select_n" and (types[0] != "pred" or len(types) != 3):
            raise Unfusable(f"select_n by {types[0]} among {len(types) - 1}")
        if name == "pow":
            operands[1] = self.builder.convert(operands[1], dtype)
        if types[-1] not in OPERATIONS[name]:
            raise Unfusable(f"{name} of {types[-1]} has no vector code")
        kept = {key: int(params[key]) for key in ("rounding_method", "y") if key in params}
        return self.builder.add(Operation(name=name, operands=tuple(operands), dtype=dtype, params=tuple(kept.items())))


def dtype_of(x: Any) -> str:
    """The short name of a variable's type."""
    dtype = getattr(x.aval, "dtype", None)
    if dtype not in NAMES:
        raise Unfusable(f"{x.aval} is no array of numbers")
    return NAMES[dtype]


def fitting(x: Any, axes: Axes) -> Axes:
    """The axes of an array that is used where the dimensions run along `axes`; a scalar fits everywhere."""
    shape = x.aval.shape
    return tuple(None if size == 1 else axis for size, axis in zip(shape, axes, strict=True)) if shape else ()


def _broadcast(eqn: Any, axes: Axes) -> Axes:
    return tuple(axes[d] for d in eqn.params["broadcast_dimensions"])


def _transpose(eqn: Any, axes: Axes) -> Axes:
    result: list[int | None] = [None] * len(axes)
    for axis, d in zip(axes, eqn.params["permutation"], strict=True):
        result[d] = axis
    return tuple(result)


def _reshape(eqn: Any, axes: Axes) -> Axes:
    source, target = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if [size for size in source if size != 1] != [size for size in target if size != 1]:
        raise Unfusable(f"{eqn.primitive.name} from {source} to {target} moves elements")
    remaining = iter([axis for size, axis in zip(target, axes, strict=True) if size != 1])
    return tuple(None if size == 1 else next(remaining) for size in source)


MOVES: dict[str, Callable[[Any, Axes], Axes]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
}
"""Primitives that only move dimensions: the axes of the operand, from those of the result."""
