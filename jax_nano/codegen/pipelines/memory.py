"""Where the values of a pipeline are, as the stage that is being written sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, add, index, maximum, minimum, mul, times
from jax_nano.codegen.load_store import load_scalar
from jax_nano.codegen.matrix_ref import scratch
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.pipeline import TASK, Access, Place
from jax_nano.schedule.pipelines.plan import PipelinePlan


@dataclass(frozen=True)
class LoopState:
    """A loop around a stage: what it carries, its step, and in which half carried values are read."""

    carries: tuple[int, ...]
    step: Index
    half: Index


@dataclass(frozen=True)
class Reference:
    """Elements of an array in memory, by the axes of a stage.

    Attributes:
      base: the array.
      at: where the element at the beginning of all axes is.
      strides: of the axes.
      is_padded: whole registers may be read from the beginning of any axis on.
      dtype: the type of elements.
    """

    base: ir.Value
    at: Index
    strides: tuple[int, ...]
    is_padded: bool
    dtype: str

    def offset(self, indices: Sequence[Index]) -> Index:
        """Where the element at some indices is."""
        return add(self.at, *(mul(i, stride) for i, stride in zip(indices, self.strides, strict=True)))


@dataclass(frozen=True)
class Memory:
    """All values, and the loops around."""

    plan: PipelinePlan
    bases: list[ir.Value]
    task: Index
    loops: tuple[LoopState, ...] = ()
    halves: dict[int, Index] = field(default_factory=dict)  # of values that loops before have carried

    @classmethod
    def of(cls, plan: PipelinePlan, task: Index, local: ir.Value, arrays: Sequence[ir.Value]) -> Memory:
        """The values of a plan: what the kernel is given, and parts of its scratch."""
        program = plan.program
        given = dict(zip((*program.operands, *program.results), arrays, strict=True))
        bases = []
        for number, (value, layout) in enumerate(zip(program.values, plan.layouts, strict=True)):
            if number in given:
                bases.append(given[number])
            else:
                size = layout.half_bytes * (2 if value.role == "carry" else 1)
                bases.append(scratch(local, layout.at, size // bytes_of(value.dtype), value.dtype))
        return cls(plan, bases, task)

    def inside(self, loop: LoopState) -> Memory:
        """As a stage in a loop sees it."""
        halves = {value: half for value, half in self.halves.items() if value not in loop.carries}
        return replace(self, loops=(*self.loops, loop), halves=halves)

    def finish(self, carries: Sequence[int], half: Index) -> None:
        """Remembers where the values are that a loop has carried."""
        self.halves.update(dict.fromkeys(carries, half))

    def half(self, access: Access) -> Index:
        """The half of a carried value that an access reads or writes."""
        if access.value in self.halves:
            return self.halves[access.value]
        for loop in self.loops:
            if access.value in loop.carries:
                return arith.subi(index(1), index(loop.half)) if access.next else loop.half
        return 0

    def reference(self, access: Access, axes: int = 0) -> Reference:
        """The elements of an access to a value, by so many axes of a stage."""
        layout, value = self.plan.layouts[access.value], self.plan.program.values[access.value]
        at: Index = 0
        if value.role == "carry":
            at = mul(self.half(access), layout.half_bytes // bytes_of(value.dtype))
        for place, stride in zip(access.places, layout.strides, strict=True):
            at = add(at, times(self.position(place), stride))
        strides = tuple(layout.stride(access, axis) for axis in range(axes))
        return Reference(self.bases[access.value], at, strides, value.role in ("scratch", "carry"), value.dtype)

    def position(self, place: Place) -> Index:
        """A place at the beginning of a stage's axes, in this step."""
        at: Index = place.offset
        for axis, coefficient in place.terms:
            if axis == TASK:
                at = add(at, mul(self.task, coefficient))
            elif axis < 0:
                at = add(at, mul(self.loops[-1 - axis].step, coefficient))
        if place.index is not None:
            found = self.reference(place.index)
            cast = arith.index_castui if found.dtype[0] == "u" else arith.index_cast
            read = cast(ir.IndexType.get(), load_scalar(found.base, found.at))
            at = add(at, minimum(maximum(read, 0), place.limit))
        return at
