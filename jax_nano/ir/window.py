"""Windows: operands whose elements overlap in memory, and are zero where they would lie beyond it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Where an operand ends in one direction: elements at positions outside [0, size) are zero, and are not in memory.

    An element's position is `begin` plus, for each axis, its number times the axis' step, Axis.window.
    """

    begin: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """How A or B lies in an array that its axes go over more than once, or beyond.

    It is a window that moves over an image.
    """

    elements: int  # of the array
    begin: int = 0  # where in it the first element stands, or would stand: before the array where that is zero
    bounds: tuple[Bound, ...] = ()
    operand: Literal["lhs", "rhs"] = "lhs"  # whose it is

    def swapped(self) -> Window:
        """The window of the other operand."""
        return replace(self, operand="rhs" if self.operand == "lhs" else "lhs")
