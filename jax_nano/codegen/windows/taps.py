"""Runs of taps of a convolution's kernel, and how a block of C goes through one: by unrolled ones, and a rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

from jax_nano.codegen.index import Index, Values, add, mul
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.windows.reference import Cursor
from jax_nano.ir.axes import Axis
from jax_nano.schedule.plan import Plan


@dataclass(frozen=True)
class Taps:
    """A run of taps for a block of C: where A and B are at the first of them, and at the block's first place."""

    cursor: Cursor
    rhs: Index
    count: int

    def from_tap(self, axis: Axis, k: Index, count: int) -> Self:
        """So many taps from the k-th on, along the axis of the sum."""
        return replace(self, cursor=self.cursor.moved(axis, k), rhs=add(self.rhs, mul(k, axis.rhs)), count=count)


T = TypeVar("T", bound=Taps)


class TapLoops(ABC, Generic[T]):
    """Writes the loops over taps."""

    plan: Plan

    @abstractmethod
    def some_taps(self, acc: Values, taps: T) -> Values:
        """The sums with a few taps, which are written out."""

    def steps(self, acc: Values, taps: T) -> Values:
        """The sums with all taps of a run."""
        axis, unroll = self.plan.k, self.plan.unroll
        whole = taps.count // unroll * unroll
        with section("taps"), for_range(0, whole, unroll, carry=acc) as loop:
            loop.next = self.some_taps(loop.carry, taps.from_tap(axis, loop.i, unroll))
        acc = loop.results
        if rest := taps.count - whole:
            acc = self.some_taps(acc, taps.from_tap(axis, whole, rest))
        return acc
