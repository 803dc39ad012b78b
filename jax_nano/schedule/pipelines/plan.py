"""Plans of pipelines: where values lie, which operands of products are copied, and the blocks of products.

A kernel's scratch is that of one thread, values one behind the other, each from the beginning of a cache line on:

    | value 0 | value 1 | a carried value, twice | copies of operands | ...

The innermost dimension of a value in scratch is the one that stands along lanes, padded to whole registers: what reads
and writes it takes whole registers. What lies beyond is any number, and belongs to no element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.pipeline import Access, Contraction, Pipeline, Stage
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.scratch import whole_lines

REGISTER_ELEMENTS = 64  # beyond the end of a value, in bytes: what a whole register may reach


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the elements of a value are: strides of its dimensions, in elements, and how many it spans."""

    strides: tuple[int, ...]
    elements: int
    at: int = 0  # the first byte in scratch; a carried value's second half stands `half_bytes` behind
    half_bytes: int = 0

    def stride(self, access: Access, axis: int) -> int:
        """How far a step along an axis of a stage moves in memory."""
        return sum(
            coefficient * stride
            for place, stride in zip(access.places, self.strides, strict=True)
            for other, coefficient in place.terms
            if other == axis
        )


@dataclass(frozen=True, kw_only=True)
class Block:
    """The register block of a product.

    Attributes:
      lane: the axis along lanes.
      row: the axis whose elements share what is read along lanes; None where there is none.
      rows: of those so many.
      registers: of the lanes so many.
      chains: sums of every so many-th step, side by side.
      turning: the axis of panels, which every other step goes through backwards: those that the step before read last
        are in L1 still. None where there is none.
    """

    lane: int
    row: int | None
    rows: int
    registers: int
    chains: int = 1
    turning: int | None = None


@dataclass(frozen=True, kw_only=True)
class PipelinePlan:
    """Everything that shapes the code of one pipeline on one target.

    Attributes:
      problem: what is computed.
      isa: the instruction set.
      instruction: what multiplies.
      program: the pipeline with copies of operands.
      layouts: of its values.
      blocks: of its products, by what they are.
      task_count: how many tasks divide the batch; `program` is that of one.
      why: why it was chosen.
      predicted_seconds: by the cost model.
    """

    problem: Pipeline
    isa: str
    instruction: DotInstruction
    register_bytes: int
    program: Pipeline
    layouts: tuple[Layout, ...]
    blocks: tuple[tuple[Contraction, Block], ...]
    task_count: int = 1
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)

    def replace(self, **changes: Any) -> PipelinePlan:
        """The plan with some fields changed."""
        return replace(self, **changes)

    @property
    def rounds(self) -> int:
        """Rounds."""
        return 1

    @property
    def tasks(self) -> dict[str, int]:
        """How many tasks each phase has."""
        return {"compute": self.task_count}

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see."""
        return 0

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        ends = [layout.at + 2 * layout.half_bytes for layout in self.layouts]
        return max(ends, default=0) + REGISTER_ELEMENTS

    def block(self, stage: Contraction) -> Block:
        """The register block of a product."""
        return dict(self.blocks)[stage]

    def lanes(self, dtype: str) -> int:
        """How many elements fill a register."""
        return self.register_bytes // bytes_of(dtype)


def row_major(shape: tuple[int, ...]) -> Layout:
    """The layout of an array that JAX has."""
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return Layout(strides=strides, elements=math.prod(shape))


def padded(shape: tuple[int, ...], inner: int | None, lanes: int) -> Layout:
    """The layout of a value in scratch: one dimension innermost, padded where there are others, the others in order."""
    order = [i for i in range(len(shape)) if i != inner]
    strides = [0] * len(shape)
    size = 1
    if inner is not None:
        strides[inner] = 1
        rows = math.prod(shape[i] for i in order)
        size = shape[inner] if rows == 1 or shape[inner] == 1 else -(-shape[inner] // lanes) * lanes
    for dim in reversed(order):
        strides[dim] = size
        size *= shape[dim]
    return Layout(strides=tuple(strides), elements=size)


def placed(layouts: list[Layout], pipeline: Pipeline) -> tuple[Layout, ...]:
    """Layouts with places in scratch."""
    at, found = 0, []
    for layout, value in zip(layouts, pipeline.values, strict=True):
        if value.role in ("scratch", "carry"):
            size = whole_lines(bytes_of(value.dtype, layout.elements)) + whole_lines(REGISTER_ELEMENTS)
            found.append(replace(layout, at=at, half_bytes=size))
            at += size * (2 if value.role == "carry" else 1)
        else:
            found.append(layout)
    return tuple(found)


AnyStage = Stage
