"""Scans as values: their steps and how often they are done, whatever JAX's parameters are called in a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jax.extend.core import Jaxpr

T = TypeVar("T")


@dataclass(frozen=True)
class Scan:
    """A scan.

    Attributes:
      jaxpr: of a step: (constants, carry, elements of xs) -> (carry, elements of ys).
      constants: how many operands are the same in each step.
      carries: how many are carried.
      length: how many steps there are.
      reverse: whether they begin with the last elements.
    """

    jaxpr: Jaxpr
    constants: int
    carries: int
    length: int
    reverse: bool

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Scan:
        """The scan of an equation with these parameters."""
        if "num_consts" in params:
            constants, carries = params["num_consts"], params["num_carry"]
        else:
            constants, carries, _ = map(len, params["ft_in"].unpack())
        return cls(params["jaxpr"].jaxpr, constants, carries, params["length"], params["reverse"])

    def split(self, operands: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """Constants, carries and xs, of operands or of the variables that a step begins with."""
        first, second = self.constants, self.constants + self.carries
        return list(operands[:first]), list(operands[first:second]), list(operands[second:])
