"""A score function: elementwise work on the scores of an attention, as a program that can be compared and kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from jax_nano.ir.program import FLOATS, INSTRUCTIONS, Builder, Constant, Input, Operation, Program

SCORE, QUERY, KEY, FIRST_ARRAY = range(4)
"""The arguments of a score function's program: the score, the numbers of its query and its key, then the arrays."""


@dataclass(frozen=True, kw_only=True)
class ScoreFunction:
    """What becomes of a score, of one query and one key of one head.

    Attributes:
      program: on scalars; its arguments are SCORE, QUERY and KEY (s32), and FIRST_ARRAY + i for an element of array i.
      arrays: the types of the arrays, each of which broadcasts to the scores; floating-point ones come first.
      name: for reports.
    """

    program: Program
    arrays: tuple[str, ...] = ()
    name: str = field(default="score", compare=False)

    @property
    def differentiable(self) -> int:
        """How many arrays have derivatives: the first ones."""
        return sum(dtype in FLOATS for dtype in self.arrays)

    def may_hide(self, masked: float) -> bool:
        """Whether it may hide pairs: a constant of it is no score, but half as low as those of masked pairs."""
        constants = [constant.number for constant in self.program.constants if constant.dtype in FLOATS]
        return any(float(number) <= masked / 2 for number in constants)

    @property
    def instructions(self) -> int:
        """Vector instructions for a register of scores, about."""
        return sum(INSTRUCTIONS.get(operation.name, 1) for operation in self.program.operations)

    @classmethod
    def identity(cls, dtype: str) -> ScoreFunction:
        """The function that leaves scores alone."""
        builder = Builder()
        return cls(program=builder.program([builder.add(Input(argument=SCORE, dtype=dtype))]), name="")

    def masked(self, mask: ScoreFunction, masked: float) -> tuple[ScoreFunction, tuple[int, ...]]:
        """This function with scores hidden where a mask, a function of a truth value, does not hold.

        Args:
          mask: gives truth values.
          masked: the score of what is hidden.

        Returns:
          The function, and which of both functions' arrays in a row its arrays are.
        """
        types = (*self.arrays, *mask.arrays)
        order = tuple(sorted(range(len(types)), key=lambda i: types[i] not in FLOATS))
        places = {FIRST_ARRAY + old: FIRST_ARRAY + new for new, old in enumerate(order)}
        shift = len(self.arrays)
        shifted = {FIRST_ARRAY + i: places[FIRST_ARRAY + i + shift] for i in range(len(mask.arrays))}
        builder = Builder()
        score = builder.add(self.program.inputs[0])
        dtype = builder.values[score].dtype
        (score,) = appended(builder, self.program, score, places)
        (seen,) = appended(builder, mask.program, builder.add(Constant.of(number=True, dtype="pred")), shifted)
        hidden = builder.add(Constant.of(masked, dtype))
        result = builder.add(Operation(name="select_n", operands=(seen, hidden, score), dtype=dtype))
        name = ", ".join(filter(None, (self.name, mask.name)))
        arrays = tuple(types[i] for i in order)
        return ScoreFunction(program=builder.program([result]), arrays=arrays, name=name), order

    def __str__(self) -> str:
        counts = Counter(operation.name for operation in self.program.operations)
        work = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())
        return f"{self.name} ({work})" if work else self.name


def appended(builder: Builder, program: Program, score: int, arguments: dict[int, int]) -> list[int]:
    """Adds a program to another one's values, and gives the numbers of its results.

    Args:
      builder: has the values.
      program: what is added.
      score: the number of the value that its argument SCORE is.
      arguments: what its other arguments are, where they have other numbers.
    """
    numbers: list[int] = []
    for value in program.values:
        match value:
            case Input(argument=argument) if argument == SCORE:
                numbers.append(score)
            case Input():
                numbers.append(builder.add(replace(value, argument=arguments.get(value.argument, value.argument))))
            case Operation():
                numbers.append(builder.copy(value, [numbers[i] for i in value.operands]))
            case _:
                numbers.append(builder.add(value))
    return [numbers[i] for i in program.results]
