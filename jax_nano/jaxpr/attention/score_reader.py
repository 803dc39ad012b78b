"""Score functions of users, read: what depends on the score or on a pair becomes a program, the rest arrays.

    lambda score, batch, head, query, key: jnp.where(ids[batch, query] == ids[batch, key], score + slopes[head], -1e9)

has a program of a comparison, a sum and a choice, on three arrays that are made before the kernel runs: the ids of
queries, those of keys, and the slopes. Axes are followed back from the result, whose labels are their places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.program import FLOATS, OPERATIONS, Builder, Constant, Input, Program, Unfusable, Value
from jax_nano.ir.score_function import FIRST_ARRAY, KEY, QUERY, SCORE, ScoreFunction
from jax_nano.jaxpr.attention.axis_labels import Equations, Labeled
from jax_nano.jaxpr.attention.axis_order import aligned
from jax_nano.jaxpr.inline import inline_calls, type_of, without_unused
from jax_nano.jaxpr.private import ClosedJaxpr
from jax_nano.jaxpr.program_reader import add_equation, dtype_of, operation_name

Score = Callable[..., Any]  # (score, batch, head, query, key) -> score
Shape = tuple[int, int, int, int]  # of scores: B, N, T, S

AXES = range(4)  # of the batch, of heads, of queries, of keys: labels
EACH = tuple(tuple(0 if axis == i else None for i in (None, *AXES)) for axis in reversed(AXES))


def mapped(score: Score) -> Score:
    """A function of scalars as one of scores [B, N, T, S] and of the numbers along each axis."""
    for axes in EACH:
        score = jax.vmap(score, (0, *axes[1:]))
    return score


def read_score(score: Score, shape: Shape, dtype: Any) -> tuple[ScoreFunction, list[Array]]:
    """Reads a score function: its program, and the arrays that it takes, [B, N, T, S] with any of them 1.

    Args:
      score: the function, of scalars or, where it closes over arrays that broadcast to scores, of arrays.
      shape: of the scores.
      dtype: theirs.

    Raises:
      TypeError: it is not elementwise, or gives something else than scores.
      Unfusable: it is elementwise, but there is no vector code for it.
    """
    closed, of_scalars = traced(score, shape, jnp.dtype(dtype))
    jaxpr = inline_calls(closed.jaxpr)
    given, _, _, query, key = jaxpr.invars
    reader = ScoreReader(
        Equations(jaxpr), Labeled(given, tuple(AXES)), (2, 3), {query: Axis(2, QUERY), key: Axis(3, KEY)}
    )
    try:
        program = reader.program(Labeled(jaxpr.outvars[0], tuple(AXES)), jnp.dtype(dtype))
    except Unfusable as reason:
        if of_scalars:
            raise
        raise TypeError(
            f"a score function has to be elementwise: {reason}; see jax_nano.dot_product_attention"
        ) from None
    name = getattr(score, "__name__", type(score).__name__)
    function, arrays = reader.function(program, "score" if name == "<lambda>" else name)
    return function, values(closed, jaxpr, reader.of_score, arrays, shape)


def values(
    closed: ClosedJaxpr, jaxpr: Jaxpr, of_score: set[Var], arrays: Sequence[Labeled], shape: Shape
) -> list[Array]:
    """The arrays of a score function that was traced, [B, N, T, S] with any of them 1."""
    if not arrays:
        return []
    _, *invars = jaxpr.invars
    eqns = [eqn for eqn in jaxpr.eqns if not of_score & set(eqn.outvars)]
    needed = jaxpr.replace(invars=invars, eqns=eqns, outvars=[x.atom for x in arrays])
    sizes = zip(invars, shape, strict=True)
    numbers = [jnp.arange(size, dtype=jnp.int32).reshape(type_of(x).shape) for x, size in sizes]
    found = jaxpr_as_fun(ClosedJaxpr(without_unused(needed), closed.consts))(*numbers)
    return [aligned(value, x.labels, AXES) for value, x in zip(found, arrays, strict=True)]


def traced(score: Score, shape: Shape, dtype: np.dtype) -> tuple[ClosedJaxpr, bool]:
    """The jaxpr of a score function on all scores, and whether it is one of scalars.

    Raises:
      TypeError: its result is none of scores.
    """
    scalar, number = jax.ShapeDtypeStruct((), dtype), jax.ShapeDtypeStruct((), jnp.int32)
    try:
        out = jax.eval_shape(score, scalar, *[number] * 4)
        of_scalars = getattr(out, "shape", None) == ()
    except Exception:  # noqa: BLE001  whatever it does not take, arrays may be right
        of_scalars = False
    scores = jax.ShapeDtypeStruct(shape, dtype)
    if of_scalars:
        numbers = [jax.ShapeDtypeStruct((size,), jnp.int32) for size in shape]
        return jax.make_jaxpr(mapped(score))(scores, *numbers), True
    numbers = [jax.ShapeDtypeStruct([shape[i] if i == axis else 1 for i in AXES], jnp.int32) for axis in AXES]
    closed, out = jax.make_jaxpr(score, return_shape=True)(scores, *numbers)
    if getattr(out, "shape", None) != shape:
        raise TypeError(
            f"a score function gives {out} for scores of {scores}; "
            "give one score for each, and index arrays or shape them so that they broadcast to [B, N, T, S]"
        )
    return closed, False


def renumbered(program: Program, arguments: dict[int, int]) -> Program:
    """A program whose inputs are other arguments, where they have other numbers."""

    def write(builder: Builder, value: Value, operands: list[int]) -> int:
        if isinstance(value, Input):
            return builder.add(Input(argument=arguments.get(value.argument, value.argument), dtype=value.dtype))
        return builder.copy(value, operands)

    builder, numbers = program.rebuilt(write)
    return builder.program([numbers[i] for i in program.results])


@dataclass(frozen=True)
class Axis:
    """The numbers along an axis, as an argument of a score function."""

    label: int
    argument: int


class ScoreReader:
    """Reads a score back to where it comes from: `arrays` are the values on the way that stay arrays.

    Attributes:
      equations: those of the program that it is made in.
      score: what the score is made of, and the labels of its axes.
      pair: the labels of the axes of queries and of keys.
      axes: values that are the numbers along one of these.
    """

    def __init__(self, equations: Equations, score: Labeled, pair: tuple[int, int], axes: Mapping[Var, Axis]):
        self.equations, self.score, self.pair, self.axes = equations, score, pair, axes
        self.builder = Builder()
        self.arrays: list[Labeled] = []
        self.numbers: dict[Labeled, int] = {}
        self.visited: list[JaxprEqn] = []  # of what depends on the score
        self.of_score = self.dependent()

    def dependent(self) -> set[Var]:
        """The values that depend on the score."""
        assert isinstance(self.score.atom, Var)
        found = {self.score.atom}
        for out, eqn in self.equations.makers.items():
            if any(x in found for x in eqn.invars if isinstance(x, Var)):
                found.add(out)
        return found

    def program(self, result: Labeled, dtype: np.dtype) -> Program:
        """The program of a score, which is computed in a type.

        Raises:
          Unfusable: it is no elementwise program.
        """
        self.builder.add(Input(argument=SCORE, dtype=NAMES[dtype]))
        return self.builder.program([self.builder.convert(self.number(result), NAMES[dtype])])

    def function(self, program: Program, name: str) -> tuple[ScoreFunction, list[Labeled]]:
        """A program that was read as a score function, and its arrays: those that it has a use for, floats first."""
        used = [x.argument - FIRST_ARRAY for x in program.inputs if x.argument >= FIRST_ARRAY]
        order = sorted(used, key=lambda i: dtype_of(self.arrays[i].atom) not in FLOATS)
        places = {FIRST_ARRAY + old: FIRST_ARRAY + new for new, old in enumerate(order)}
        types = tuple(dtype_of(self.arrays[i].atom) for i in order)
        program = renumbered(program, places).widened()
        return ScoreFunction(program=program, arrays=types, name=name), [self.arrays[i] for i in order]

    def number(self, x: Labeled) -> int:
        """Adds a value to the program, and gives its number."""
        before = self.equations.unconverted(x)
        if isinstance(before.atom, Var) and before.atom in self.of_score:
            self.visited += self.equations.moves(x.atom, before.atom)
        x = before
        if isinstance(x.atom, Literal) and not x.labels:
            return self.builder.add(Constant.of(x.atom.val, dtype_of(x.atom)))
        if isinstance(x.atom, Literal):
            return self.array(x)
        if x not in self.numbers:
            self.numbers[x] = self.added(x)
        return self.numbers[x]

    def added(self, x: Labeled) -> int:
        """Adds a value that is no constant: an argument, an operation, or an array."""
        if x.atom is self.score.atom:
            if any(label not in (right, None) for label, right in zip(x.labels, self.score.labels, strict=True)):
                raise Unfusable("scores are transposed")
            return self.builder.convert(0, dtype_of(x.atom))
        axis = self.axes.get(x.atom) if isinstance(x.atom, Var) else None
        if axis and set(x.labels) - {None} == {axis.label}:
            return self.builder.add(Input(argument=axis.argument, dtype="s32"))
        eqn = self.equations.maker(x.atom)
        if x.atom in self.of_score:
            assert eqn
            self.visited.append(eqn)
            return self.operation(eqn, x)
        if eqn and self.is_of_pairs(x):
            try:
                return self.operation(eqn, x)
            except Unfusable:
                pass  # it is an array, then: of a gather, for example
        return self.array(x)

    def array(self, x: Labeled) -> int:
        """Adds an element of an array that is made before the kernel runs."""
        self.arrays.append(x)
        return self.builder.add(Input(argument=FIRST_ARRAY + len(self.arrays) - 1, dtype=dtype_of(x.atom)))

    def operation(self, eqn: JaxprEqn, x: Labeled) -> int:
        """Adds what an elementwise equation makes."""
        shape = type_of(x.atom).shape
        if operation_name(eqn) not in OPERATIONS or len(eqn.outvars) > 1:
            raise Unfusable(f"{eqn.primitive.name} is not elementwise, or has no vector code")
        operands = []
        for operand in self.equations.operands(eqn, x.labels):
            sizes = type_of(operand.atom).shape
            if any(size not in (1, whole) for size, whole in zip(sizes, shape, strict=bool(sizes))):
                raise Unfusable(f"{eqn.primitive.name} is not elementwise")
            labels = tuple(label if size > 1 else None for label, size in zip(operand.labels, sizes, strict=True))
            operands.append(self.number(Labeled(operand.atom, labels)))
        return add_equation(self.builder, eqn, operands)

    def is_of_pairs(self, x: Labeled) -> bool:
        """Whether a value differs between queries and between keys."""
        sizes = zip(x.labels, type_of(x.atom).shape, strict=True)
        return set(self.pair) <= {label for label, size in sizes if size > 1}
