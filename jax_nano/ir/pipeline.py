"""Pipelines: several stages in a row as one kernel, and loops of them; a frozen description of what to compute.

A pipeline has *values*, which are arrays, and *stages*, which read and write them. A stage runs over *axes*, numbered
from 0. Where it reads or writes a value is an `Access`: every dimension's position is an affine function of the stage's
axes and of the steps of the loops around it. So slices, transposes, broadcasts and reshapes are no work.

    Map          out[x]  =  program(in0[x], in1[x], ...)
    Reduction    out[x]  =  sum, maximum, ... over r of program(in0[x, r], ...)
    Contraction  out[x]  =  sum over k of lhs[x, k] * rhs[x, k]
    Loop         stages, again and again; what they carry stands twice, as it is read and as it is written
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.program import INSTRUCTIONS, Program

TASK = -1000
"""The axis whose index is the number of the task, where tasks divide a batch."""

Role = Literal["operand", "out", "carry", "scratch"]
Kind = Literal["add", "mul", "max", "min", "and", "or"]


class UnsupportedPipeline(UnsupportedDot):
    """jax_nano has no kernel for a loop or a program; its text says why."""


class PipelineArray(NamedTuple):
    """One of the arrays that a kernel is given."""

    role: Role
    dtype: str
    elements: int  # in memory


@dataclass(frozen=True, kw_only=True)
class Value:
    """An array: given to the kernel, made by it, carried from step to step, or passed from stage to stage."""

    role: Role
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Place:
    """A position along a dimension: `offset`, plus coefficient * index for each term (axis, coefficient).

    Axis -1 - n is the step of the n-th loop around the stage, counted from the outermost one. `index`, where there is
    one, is a scalar that is read and added, after it was put into 0...`limit`.
    """

    offset: int = 0
    terms: tuple[tuple[int, int], ...] = ()
    index: Access | None = None
    limit: int = 0

    def substituted(self, axes: Sequence[Place]) -> Place:
        """The position as a function of other axes, of which `axes` says what each of these is.

        Raises:
          UnsupportedPipeline: two indices read from memory would be added.
        """
        offset, terms, index, limit = self.offset, dict[int, int](), self.index, self.limit
        for axis, coefficient in self.terms:
            inner = Place(0, ((axis, 1),)) if axis < 0 else axes[axis]
            if inner.index is not None:
                if index is not None or coefficient != 1:
                    raise UnsupportedPipeline("a position depends on two indices that are read from memory")
                index, limit = inner.index, inner.limit
            offset += coefficient * inner.offset
            for other, factor in inner.terms:
                terms[other] = terms.get(other, 0) + coefficient * factor
        return Place(offset, tuple(sorted((a, c) for a, c in terms.items() if c)), index, limit)


@dataclass(frozen=True)
class Access:
    """Where a stage reads or writes a value: a place for each of its dimensions.

    Attributes:
      value: its number.
      places: positions.
      next: of a carried value, what is written for the next step, in place of what is read in this one.
    """

    value: int
    places: tuple[Place, ...] = ()
    next: bool = False

    def substituted(self, axes: Sequence[Place]) -> Access:
        """The access of what other axes say."""
        return replace(self, places=tuple(place.substituted(axes) for place in self.places))

    @property
    def steps(self) -> set[int]:
        """The numbers of the loops whose steps it depends on."""
        return {-1 - axis for place in self.places for axis, _ in place.terms if TASK < axis < 0}


@dataclass(frozen=True)
class IndexInput:
    """An input that is a position, not an element of a value: what lax.iota makes."""

    place: Place


Source = Access | IndexInput


@dataclass(frozen=True, kw_only=True)
class Map:
    """Elementwise work: `sources` are the program's arguments, `outputs` where its results go."""

    sizes: tuple[int, ...]
    sources: tuple[Source, ...]
    program: Program
    outputs: tuple[Access, ...]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A reduction of what a program makes; its axes are those of the result, and then those that are reduced."""

    sizes: tuple[int, ...]
    reduced: tuple[int, ...]
    sources: tuple[Source, ...]
    program: Program
    kind: Kind
    output: Access

    @property
    def dtype(self) -> str:
        """The type of the result, in which is reduced."""
        return self.program.dtype(self.program.results[0])


@dataclass(frozen=True, kw_only=True)
class Contraction:
    """A product; its axes are those of the result, and then those that are summed over.

    Where there is an `epilogue`, sums are not stored: they are what it reads as `output`.
    """

    sizes: tuple[int, ...]
    summed: tuple[int, ...]
    dtype: str
    lhs: Access
    rhs: Access
    output: Access
    epilogue: Map | None = None

    @property
    def multiplications(self) -> int:
        """How many there are."""
        return math.prod(self.sizes) * math.prod(self.summed)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Stages that are repeated.

    Attributes:
      length: how many steps; None where `condition` decides before each. A branch is a loop of one step that runs
        where `going` holds.
      reverse: whether steps are counted downwards.
      carries: the values that it carries.
      stages: of a step.
      condition: stages that make `going`, a truth value.
      going: whether there is another step.
    """

    length: int | None
    reverse: bool = False
    carries: tuple[int, ...] = ()
    stages: tuple[Stage, ...] = ()
    condition: tuple[Stage, ...] = ()
    going: Access | None = None


Stage = Map | Reduction | Contraction | Loop


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Values and stages of one kernel; `results` are the numbers of the values that it gives, in order."""

    values: tuple[Value, ...]
    stages: tuple[Stage, ...]
    results: tuple[int, ...]

    @property
    def operands(self) -> tuple[int, ...]:
        """The numbers of the values that are given."""
        return tuple(number for number, value in enumerate(self.values) if value.role == "operand")

    @property
    def arrays(self) -> tuple[PipelineArray, ...]:
        """The arrays in the order in which kernels take them, the results last."""
        chosen = [self.values[number] for number in (*self.operands, *self.results)]
        return tuple(PipelineArray(value.role, value.dtype, value.elements) for value in chosen)

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(bytes_of(array.dtype, array.elements) for array in self.arrays)

    @property
    def contractions(self) -> list[tuple[Contraction, int]]:
        """All products, and how often each is computed; once a loop of unknown length."""
        return [(stage, times) for stage, times in repeated(self.stages) if isinstance(stage, Contraction)]

    @property
    def multiplications(self) -> int:
        """Of all products."""
        return sum(times * stage.multiplications for stage, times in self.contractions)

    @property
    def label(self) -> str:
        """A name: the length of the loop, the number of stages, and the type of products."""
        loops = [str(stage.length or "while") for stage in self.stages if isinstance(stage, Loop)]
        types = dict.fromkeys(stage.dtype for stage, _ in self.contractions)
        count = sum(1 for _ in repeated(self.stages))
        return "_".join([f"loop{'_'.join(loops)}" if loops else "program", *types, f"{count}stages"])


def repeated(stages: Sequence[Stage], times: int = 1) -> Iterator[tuple[Map | Reduction | Contraction, int]]:
    """All stages that are no loops, and how often each runs; once a loop of unknown length."""
    for stage in stages:
        if isinstance(stage, Loop):
            inner = times * (1 if stage.length is None else stage.length)
            yield from repeated((*stage.condition, *stage.stages), inner)
        else:
            yield stage, times


def instructions_of(program: Program) -> int:
    """Vector instructions of a program, about."""
    return sum(INSTRUCTIONS.get(operation.name, 1) for operation in program.operations)
