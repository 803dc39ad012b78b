"""Maps and reductions: programs on registers along one axis of a stage, inside loops over the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from jax_nano.codegen.index import Index, Values, add, index, mul
from jax_nano.codegen.load_store import first_lanes, load, load_everywhere, load_scalar, store, store_lane
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.pipelines.memory import Memory, Reference
from jax_nano.codegen.pipelines.nests import Nest, along_lanes, in_squares, loops, nest_of
from jax_nano.codegen.registers import bitcast, broadcast, count_up
from jax_nano.codegen.shuffles import transpose
from jax_nano.codegen.types import element_type, is_float
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.cast import cast
from jax_nano.codegen.vector.evaluate import apply, evaluate, from_memory, to_memory
from jax_nano.ir.dtypes import BITS, NUMPY_TYPES
from jax_nano.ir.pipeline import Access, IndexInput, Kind, Map, Place, Reduction, Source
from jax_nano.ir.program import Operation, Program
from jax_nano.schedule.pipelines.plan import PipelinePlan

Input = Reference | IndexInput
Indices = dict[int | None, Index]  # by axis


def emit_map(plan: PipelinePlan, stage: Map, memory: Memory) -> None:
    """out[x] = program(...), in registers along the axis that is contiguous in the first output."""
    rank = len(stage.sizes)
    outputs = [memory.reference(access, rank) for access in stage.outputs]
    inputs = [read(source, memory, rank) for source in stage.sources]
    sizes, outputs, inputs = coalesced(stage.sizes, outputs, inputs)
    nest = nest_of(sizes, outputs[0].strides, plan.register_bytes // widest(stage.program))
    whole = [is_whole(plan, access, stage.sizes) for access in stage.outputs]

    def write(indices: Indices, count: int, inputs: Sequence[Input | ir.Value] = tuple(inputs)) -> None:
        values = values_of(stage.program, inputs, nest, indices, count)
        for value, target, full in zip(evaluate(stage.program, values), outputs, whole, strict=True):
            put(value, target, nest, indices, None if full and target.is_padded else count)

    axis = contiguous_elsewhere(inputs, nest)
    if axis is not None:

        def square(indices: Indices) -> None:
            turned = [turn(x, nest, indices) if is_along(x, nest, axis) else [x] * nest.lanes for x in inputs]
            for row, found in enumerate(zip(*turned, strict=True)):
                write({**indices, axis: add(indices[axis], row)}, nest.lanes, found)

        in_squares(nest, axis, square, write)
        return
    with loops(nest, nest.outer) as indices:
        along_lanes(nest, lambda at, count: write({**indices, nest.lane: at}, count))


def contiguous_elsewhere(inputs: Sequence[Input], nest: Nest) -> int | None:
    """The axis along which an input is contiguous that is not so along lanes, if squares fit there."""
    if nest.lane is None or nest.lanes & (nest.lanes - 1) or nest.width < nest.lanes:
        return None
    fitting = (axis for axis in nest.outer if nest.sizes[axis] >= nest.lanes)
    return next((axis for axis in fitting if any(is_along(x, nest, axis) for x in inputs)), None)


def is_along(x: Input, nest: Nest, axis: int) -> bool:
    """Whether an input is contiguous along an axis, and not along lanes."""
    if not isinstance(x, Reference) or nest.lane is None:
        return False
    return x.strides[axis] == 1 and x.strides[nest.lane] not in (0, 1)


def turn(x: Input, nest: Nest, indices: Indices) -> Values:
    """Registers along lanes, for each of as many elements along the axis along which an input is contiguous."""
    assert isinstance(x, Reference)
    assert nest.lane is not None
    at = x.offset(at_indices(nest, indices))
    rows = [load(x.base, add(at, lane * x.strides[nest.lane]), nest.lanes) for lane in range(nest.lanes)]
    return transpose(rows)


def read(source: Source, memory: Memory, rank: int) -> Input:
    """An input by the axes of a stage."""
    if isinstance(source, Access):
        return memory.reference(source, rank)
    return StepIndex(source.place, memory.position(source.place))


@dataclass(frozen=True)
class StepIndex(IndexInput):
    """A position, and where it begins in this step."""

    at: Index = 0

    @property
    def coefficients(self) -> dict[int, int]:
        """How far it moves along axes."""
        return {axis: coefficient for axis, coefficient in self.place.terms if axis >= 0}


def widest(program: Program) -> int:
    """Bytes of the widest type of a program."""
    return max(max(8, BITS[value.dtype]) for value in program.values) // 8


def is_whole(plan: PipelinePlan, access: Access, sizes: Sequence[int]) -> bool:
    """Whether an access covers the innermost dimension of a value, so that its padding may be written."""
    value, layout = plan.program.values[access.value], plan.layouts[access.value]
    for place, stride, size in zip(access.places, layout.strides, value.shape, strict=True):
        if stride == 1 and size > 1:
            return any(place == Place(0, ((axis, 1),)) for axis, other in enumerate(sizes) if other == size)
    return math.prod(value.shape) == 1


def coalesced(
    sizes: Sequence[int], outputs: list[Reference], inputs: list[Input]
) -> tuple[tuple[int, ...], list[Reference], list[Input]]:
    """A stage with neighbouring axes joined that are one in all arrays."""
    arrays = [x for x in (*outputs, *inputs) if isinstance(x, Reference)]
    if len(arrays) < len(outputs) + len(inputs) or not sizes:
        return tuple(sizes), outputs, inputs
    groups: list[list[int]] = []
    for axis in [axis for axis, size in enumerate(sizes) if size > 1] or [0]:
        last = groups[-1][-1] if groups else None
        if last is not None and all(x.strides[last] == sizes[axis] * x.strides[axis] for x in arrays):
            groups[-1].append(axis)
        else:
            groups.append([axis])

    def joined(x: Input) -> Input:
        assert isinstance(x, Reference)
        return replace(x, strides=tuple(x.strides[group[-1]] for group in groups))

    new = [joined(x) for x in outputs]
    shape = tuple(math.prod(sizes[axis] for axis in group) for group in groups)
    return shape, [x for x in new if isinstance(x, Reference)], [joined(x) for x in inputs]


def values_of(program: Program, inputs: Sequence[Input | ir.Value], nest: Nest, indices: Indices, count: int) -> Values:
    """Registers of a program's inputs, some of which may be there already."""
    found = ((inputs[source.argument], source.dtype) for source in program.inputs)
    return [x if isinstance(x, ir.Value) else get(x, dtype, nest, indices, count) for x, dtype in found]


def at_indices(nest: Nest, indices: Indices) -> list[Index]:
    """Indices by axes."""
    return [indices.get(axis, 0) for axis in range(len(nest.sizes))]


def get(x: Input, dtype: str, nest: Nest, indices: Indices, count: int) -> ir.Value:
    """A register of an input."""
    if isinstance(x, StepIndex):
        return positions(x, dtype, nest, indices)
    assert isinstance(x, Reference)
    at = x.offset(at_indices(nest, indices))
    stride = x.strides[nest.lane] if nest.lane is not None else 0
    if stride == 1 and (x.is_padded or count == nest.lanes):
        return load(x.base, at, nest.lanes)
    if stride == 1 and x.dtype != "bf16":  # of which LLVM moves masked elements one by one
        return load(x.base, at, nest.lanes, count)
    if stride == 0:
        return load_everywhere(x.base, at, nest.lanes)
    return collected(x, [add(at, min(i, count - 1) * stride) for i in range(nest.lanes)])


def collected(x: Reference, places: Sequence[Index]) -> ir.Value:
    """A register of elements at some places. LLVM rounds each bf16 that it moves alone, by a call: bits are moved."""
    if x.dtype != "bf16":
        scalars = [load_scalar(x.base, at) for at in places]
        return vector.from_elements(ir.VectorType.get([len(places)], scalars[0].type), scalars)
    word = ir.IntegerType.get_signless(16)
    scalars = [vector.extract(bitcast(load(x.base, at, 1), 1, word), [], [0]) for at in places]
    register = vector.from_elements(ir.VectorType.get([len(places)], word), scalars)
    return bitcast(register, len(places), element_type(x.dtype))


def positions(x: StepIndex, dtype: str, nest: Nest, indices: Indices) -> ir.Value:
    """A register of indices, in a type."""
    word = ir.IntegerType.get_signless(64)
    at = add(x.at, *(mul(indices.get(axis, 0), factor) for axis, factor in x.coefficients.items()))
    value = broadcast(arith.index_cast(word, index(at)), nest.lanes)
    factor = x.coefficients.get(nest.lane, 0) if nest.lane is not None else 0
    if factor:
        value = v.add(value, v.mul(count_up(nest.lanes, word), factor))
    return to_memory(cast(value, "s64", dtype), dtype)


def put(value: ir.Value, target: Reference, nest: Nest, indices: Indices, count: int | None) -> None:
    """Stores a register: whole where `count` is None, else so many lanes."""
    at = target.offset(at_indices(nest, indices))
    stride = target.strides[nest.lane] if nest.lane is not None else 1
    if nest.lane is None or (stride != 1 and nest.lanes == 1):
        store_lane(value, 0, target.base, at)
    elif stride == 1:
        store(value, target.base, at, count)
    else:
        for i in range(nest.lanes if count is None else count):
            store_lane(value, i, target.base, add(at, i * stride))


# Reductions


def emit_reduction(plan: PipelinePlan, stage: Reduction, memory: Memory) -> None:
    """out[x] = the reduction over r of program(...): along lanes, or with the result's elements in lanes."""
    rank = len(stage.sizes) + len(stage.reduced)
    sizes = (*stage.sizes, *stage.reduced)
    output = memory.reference(stage.output, rank)
    inputs = [read(source, memory, rank) for source in stage.sources]
    lanes = plan.register_bytes // widest(stage.program)
    across = nest_of(stage.sizes, output.strides[: len(stage.sizes)], lanes)
    along = contiguous(inputs, range(len(stage.sizes), rank), sizes)
    if along is not None and (across.lane is None or sizes[along] >= lanes or across.width < sizes[along]):
        outer = tuple(range(len(stage.sizes)))
        nest = Nest(sizes, outer, along, lanes)
        with loops(nest, outer) as indices:
            result = ReducedRegister(stage, inputs, nest).along_lanes(indices)
            memref.store(result, output.base, [index(output.offset(at_indices(nest, indices)))])
        return
    nest = Nest(sizes, across.outer, across.lane, across.lanes)
    full = output.is_padded and is_whole(plan, stage.output, stage.sizes)
    with loops(nest, nest.outer) as indices:

        def body(at: Index, count: int) -> None:
            here = {**indices, nest.lane: at}
            value = ReducedRegister(stage, inputs, nest).across_lanes(here, count)
            put(to_memory(value, stage.dtype), output, nest, here, None if full else count)

        along_lanes(nest, body)


def contiguous(inputs: Sequence[Input], axes: Sequence[int], sizes: Sequence[int]) -> int | None:
    """The axis along which inputs are contiguous or the same, if there is one."""
    arrays = [x for x in inputs if isinstance(x, Reference)]
    fit = [
        axis
        for axis in axes
        if sizes[axis] > 1 and {x.strides[axis] for x in arrays} <= {0, 1} and any(x.strides[axis] for x in arrays)
    ]
    return max(fit, key=lambda axis: sizes[axis], default=None)


@dataclass(frozen=True)
class ReducedRegister:
    """Writes a reduction of registers."""

    stage: Reduction
    inputs: Sequence[Input]
    nest: Nest

    @property
    def reduced(self) -> list[int]:
        """The axes that are reduced, but for the one along lanes."""
        first = len(self.stage.sizes)
        return [axis for axis in range(first, len(self.nest.sizes)) if axis != self.nest.lane]

    def identity(self) -> ir.Value:
        """A register that changes nothing."""
        dtype = self.stage.dtype
        kind = ir.IntegerType.get_signless(1) if dtype == "pred" else element_type(dtype)
        number = identity_of(self.stage.kind, dtype)
        value = ir.IntegerAttr.get(kind, number) if not is_float(dtype) else ir.FloatAttr.get(kind, number)
        return broadcast(arith.constant(kind, value), self.nest.lanes)

    def combine(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """One more."""
        operation = Operation(name=self.stage.kind, operands=(0, 1), dtype=self.stage.dtype)
        return apply(operation, [a, b], [self.stage.dtype] * 2, native_bf16=False)

    def value(self, indices: Indices, count: int) -> ir.Value:
        """A register of what is reduced."""
        values = values_of(self.stage.program, self.inputs, self.nest, indices, count)
        (result,) = evaluate(self.stage.program, values)
        return from_memory(result, self.stage.dtype)

    def over(self, axes: Sequence[int], indices: Indices, acc: ir.Value, count: int) -> ir.Value:
        """Emits loops over reduced axes."""
        if not axes:
            return self.combine(acc, self.value(indices, count))
        size = self.nest.sizes[axes[0]]
        if size <= 4:
            for i in range(size):
                acc = self.over(axes[1:], {**indices, axes[0]: i}, acc, count)
            return acc
        with for_range(0, size, carry=[acc]) as loop:
            loop.next = [self.over(axes[1:], {**indices, axes[0]: loop.i}, loop.carry[0], count)]
        return loop.results[0]

    def across_lanes(self, indices: Indices, count: int) -> ir.Value:
        """The reduction of each lane."""
        return self.over(self.reduced, indices, self.identity(), count)

    def along_lanes(self, indices: Indices) -> ir.Value:
        """The reduction of all lanes, a scalar as it stands in memory."""
        nest, acc = self.nest, self.identity()
        whole = nest.width // nest.lanes * nest.lanes
        if whole:
            with for_range(0, whole, nest.lanes, carry=[acc]) as loop:
                here = {**indices, nest.lane: loop.i}
                loop.next = [self.over(self.reduced, here, loop.carry[0], nest.lanes)]
            (acc,) = loop.results
        if rest := nest.width - whole:
            here = {**indices, nest.lane: whole}
            tail = self.over(self.reduced, here, self.identity(), rest)
            acc = self.combine(acc, arith.select(first_lanes(rest, nest.lanes), tail, self.identity()))
        return vector.extract(to_memory(self.lane_tree(acc), self.stage.dtype), [], [0])

    def lane_tree(self, acc: ir.Value) -> ir.Value:
        """A register of one lane: upper halves onto lower halves."""
        lanes = v.count(acc)
        while lanes > 1:
            half = lanes // 2
            low, high = (vector.shuffle(acc, acc, list(range(start, start + half))) for start in (0, half))
            acc, lanes = self.combine(low, high), half
        return acc


def identity_of(kind: Kind, dtype: str) -> float:
    """The number that changes nothing."""
    if dtype == "pred":
        return {"and": 1, "or": 0, "max": 0, "min": 1, "add": 0, "mul": 1}[kind]
    if kind in ("add", "or"):
        return 0
    if kind == "mul":
        return 1
    if kind == "and":
        return -1
    if is_float(dtype):
        return float("-inf") if kind == "max" else float("inf")
    info = np.iinfo(NUMPY_TYPES[dtype])
    number = int(info.min if kind == "max" else info.max)
    return number - (1 << BITS[dtype]) if number >= 1 << (BITS[dtype] - 1) else number
