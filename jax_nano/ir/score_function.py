"""A score function: elementwise work on the scores of an attention, as a program that can be compared and kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from jax_nano.ir.program import FLOATS, INSTRUCTIONS, Program

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

    def __str__(self) -> str:
        counts = Counter(operation.name for operation in self.program.operations)
        work = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())
        return f"{self.name} ({work})" if work else self.name
