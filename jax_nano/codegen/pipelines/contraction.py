"""Products of a pipeline: register blocks whose lanes run along one axis of the result.

    acc[i, j] += broadcast(x[i, k]) * y[k, j]

where either operand may stand still, move, or be contiguous along the lanes, so that a batch may stand there as well as
columns. Sums are added in the order of k, those of `chains` in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from jax_nano.codegen.index import Index, Values, add, index, mul, subtract
from jax_nano.codegen.load_store import load, load_scalar, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.pipelines.elementwise import Input, Nest, get, is_whole, put, read
from jax_nano.codegen.pipelines.memory import Memory, Reference
from jax_nano.codegen.registers import broadcast, zeros
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.pipeline import Contraction, Map
from jax_nano.schedule.pipelines.plan import Block, PipelinePlan

UNROLLED_UPDATES = 48  # multiply-accumulates that are written out, in place of a loop
STEPS = 4  # of the sum in an iteration


def emit_contraction(plan: PipelinePlan, stage: Contraction, memory: Memory) -> None:
    """out[x] = sum over k of lhs[x, k] * rhs[x, k]."""
    rank = len(stage.sizes) + len(stage.summed)
    lhs, rhs, out = (memory.reference(access, rank) for access in (stage.lhs, stage.rhs, stage.output))
    epilogue = Epilogue.of(plan, stage, memory) if stage.epilogue else None
    ContractionKernel(
        stage=stage,
        epilogue=epilogue,
        block=plan.block(stage),
        lanes=plan.lanes(stage.dtype),
        lhs=lhs,
        rhs=rhs,
        out=out,
        whole=out.is_padded and is_whole(plan, stage.output, stage.sizes),
        half=memory.loops[-1].half if memory.loops else 0,
    ).emit()


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """Elementwise work on the sums of a product.

    Attributes:
      stage: what it is.
      sums: which of its sources are the sums.
      inputs: its sources; the sums stand for themselves.
      outputs: where its results go.
      whole: whether the padding of each may be written.
    """

    stage: Map
    sums: int
    inputs: list[Input]
    outputs: list[Reference]
    whole: list[bool]

    @classmethod
    def of(cls, plan: PipelinePlan, stage: Contraction, memory: Memory) -> Epilogue:
        """The epilogue of a product."""
        work = stage.epilogue
        assert work
        rank = len(stage.sizes)
        outputs = [memory.reference(access, rank) for access in work.outputs]
        whole = [
            target.is_padded and is_whole(plan, access, work.sizes)
            for target, access in zip(outputs, work.outputs, strict=True)
        ]
        inputs = [read(source, memory, rank) for source in work.sources]
        return cls(stage=work, sums=work.sources.index(stage.output), inputs=inputs, outputs=outputs, whole=whole)

    def emit(self, value: ir.Value, lane: int, at: list[Index], count: int) -> None:
        """Emits the work on one register, which stands for `count` elements from indices on."""
        nest = Nest(self.stage.sizes, (), lane, ir.VectorType(value.type).shape[0])
        indices = dict[int | None, Index](enumerate(at[: len(self.stage.sizes)]))
        values = [
            value
            if source.argument == self.sums
            else get(self.inputs[source.argument], source.dtype, nest, indices, count)
            for source in self.stage.program.inputs
        ]
        results = evaluate(self.stage.program, values)
        for result, target, full in zip(results, self.outputs, self.whole, strict=True):
            put(result, target, nest, indices, None if full else count)


@dataclass(frozen=True, kw_only=True)
class ContractionKernel:
    """Writes one product.

    Attributes:
      stage: the product.
      block: its register block.
      lanes: of a register.
      lhs: the first operand.
      rhs: the second one.
      out: the result.
      whole: whether the padding of the result may be written.
      epilogue: what becomes of sums.
      half: 0 and 1 in turns, by the steps of the loop around.
    """

    stage: Contraction
    block: Block
    lanes: int
    lhs: Reference
    rhs: Reference
    out: Reference
    whole: bool
    epilogue: Epilogue | None = None
    half: Index = 0

    @functools.cached_property
    def k_axes(self) -> list[int]:
        """The axes that are summed over, the innermost last."""
        return list(range(len(self.stage.sizes), len(self.stage.sizes) + len(self.stage.summed)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of all axes."""
        return (*self.stage.sizes, *self.stage.summed)

    def emit(self) -> None:
        """All blocks."""
        block = self.block
        outer = [axis for axis in range(len(self.stage.sizes)) if axis not in (block.lane, block.row)]
        outer.sort(key=lambda axis: axis != block.turning)  # a panel for all that needs it
        self.over(outer, [0] * len(self.sizes))

    def over(self, axes: Sequence[int], at: list[Index]) -> None:
        """Loops over axes outside of blocks."""
        if axes:
            with for_range(0, self.sizes[axes[0]]) as loop:
                inner = list(at)
                inner[axes[0]] = self.there_and_back(loop.i, axes[0])
                self.over(axes[1:], inner)
            return
        width = self.block.registers * self.lanes
        for begin, end, columns in pieces(self.sizes[self.block.lane], width):
            with for_range(begin, end, columns) as loop:
                inner = list(at)
                inner[self.block.lane] = loop.i
                self.over_rows(inner, columns)

    def there_and_back(self, i: Index, axis: int) -> Index:
        """The i-th index of an axis; of the one that is turning, from the end in every other step."""
        if axis != self.block.turning or isinstance(self.half, int):
            return i
        last = self.sizes[axis] - 1
        is_back = arith.cmpi(arith.CmpIPredicate.ne, self.half, index(0))
        return arith.select(is_back, index(subtract(last, i)), index(i))

    def over_rows(self, at: list[Index], columns: int) -> None:
        """Loops over blocks of rows."""
        row = self.block.row
        if row is None:
            self.emit_block(at, 1, columns)
            return
        for begin, end, rows in pieces(self.sizes[row], self.block.rows):
            with for_range(begin, end, rows) as loop:
                inner = list(at)
                inner[row] = loop.i
                self.emit_block(inner, rows, columns)

    def emit_block(self, at: list[Index], rows: int, columns: int) -> None:
        """One register block."""
        registers = -(-columns // self.lanes)
        zero = zeros(self.lanes, element_type(self.stage.dtype))
        acc = [zero] * (rows * registers)
        acc = self.sums(self.k_axes, at, acc, (rows, columns))
        for number, value in enumerate(acc):
            i, j = divmod(number, registers)
            count = min(self.lanes, columns - j * self.lanes)
            inner = list(at)
            if self.block.row is not None:
                inner[self.block.row] = add(at[self.block.row], i)
            inner[self.block.lane] = add(at[self.block.lane], j * self.lanes)
            if self.epilogue:
                self.epilogue.emit(value, self.block.lane, inner, count)
            elif self.out.strides[self.block.lane] == 1:
                at_block = self.place(self.out, at, i, j * self.lanes)
                store(value, self.out.base, at_block, None if self.whole else count)
            else:
                nest = Nest(self.sizes, (), self.block.lane, self.lanes)
                put(value, self.out, nest, dict[int | None, Index](enumerate(inner)), count)

    def sums(self, axes: Sequence[int], at: list[Index], acc: Values, shape: tuple[int, int]) -> Values:
        """Loops over the sum; the innermost by several steps, which go to chains in turn."""
        if not axes:
            return self.update(acc, at, shape)
        size = self.sizes[axes[0]]
        if len(axes) > 1:
            with for_range(0, size, carry=acc) as loop:
                loop.next = self.sums(axes[1:], self.moved(at, axes[0], loop.i), loop.carry, shape)
            return loop.results
        chains = self.block.chains
        others = [zeros(self.lanes, element_type(self.stage.dtype))] * (len(acc) * (chains - 1))
        values = [*acc, *others]
        step = size if len(acc) * size <= UNROLLED_UPDATES else max(STEPS, chains)
        step = min(size, -(-step // chains) * chains)
        whole = size // step * step
        with for_range(0, whole, step, values) as loop:
            loop.next = self.steps(loop.carry, axes[0], at, (loop.i, step), shape)
        values = loop.results
        if rest := size - whole:
            values = self.steps(values, axes[0], at, (whole, rest), shape)
        split = [values[i * len(acc) : (i + 1) * len(acc)] for i in range(chains)]
        return [tree_sum(list(sums)) for sums in zip(*split, strict=True)]

    def steps(
        self, values: Values, axis: int, at: list[Index], span: tuple[Index, int], shape: tuple[int, int]
    ) -> Values:
        """Some steps of the sum, written out."""
        values, size = list(values), len(values) // self.block.chains
        for k in range(span[1]):
            begin = k % self.block.chains * size
            moved = self.moved(at, axis, add(span[0], k))
            values[begin : begin + size] = self.update(values[begin : begin + size], moved, shape)
        return values

    @staticmethod
    def moved(at: list[Index], axis: int, i: Index) -> list[Index]:
        """Indices with another one along an axis."""
        inner = list(at)
        inner[axis] = i
        return inner

    def update(self, acc: Values, at: list[Index], shape: tuple[int, int]) -> Values:
        """One step of the sum on a block."""
        rows, columns = shape
        registers = range(0, columns, self.lanes)
        known: dict[tuple[int, int, int], ir.Value] = {}

        def operand(number: int, i: int, j: int) -> ir.Value:
            x = (self.lhs, self.rhs)[number]
            key = number, i * self.moves(x, self.block.row), j * self.moves(x, self.block.lane)
            if key not in known:
                known[key] = self.load(x, at, i, (j, columns))
            return known[key]

        return [
            vector.fma(operand(0, i, j), operand(1, i, j), acc[i * len(registers) + number])
            for i in range(rows)
            for number, j in enumerate(registers)
        ]

    @staticmethod
    def moves(x: Reference, axis: int | None) -> int:
        """1 where an operand moves along an axis, else 0."""
        return int(axis is not None and x.strides[axis] != 0)

    def load(self, x: Reference, at: list[Index], i: int, columns: tuple[int, int]) -> ir.Value:
        """A register of an operand: a scalar in all lanes where it does not move along them."""
        j, end = columns
        place = self.place(x, at, i, j)
        if not x.strides[self.block.lane]:
            return broadcast(load_scalar(x.base, place), self.lanes)
        count = min(self.lanes, end - j)
        return load(x.base, place, self.lanes, None if x.is_padded else count)

    def place(self, x: Reference, at: list[Index], i: int, j: int) -> Index:
        """Where an element of a block is."""
        row = 0 if self.block.row is None else mul(i, x.strides[self.block.row])
        return add(x.offset(at), row, mul(j, x.strides[self.block.lane]))


def pieces(size: int, step: int) -> list[tuple[int, int, int]]:
    """(begin, end, size of a piece): whole pieces, and what is left."""
    whole = size // step * step
    found = [(0, whole, step)] if whole else []
    return [*found, (whole, size, size - whole)] if whole < size else found


def tree_sum(values: Values) -> ir.Value:
    """The sum of registers, neighbours first."""
    while len(values) > 1:
        pairs = [arith.addf(a, b) for a, b in zip(values[0::2], values[1::2], strict=False)]
        values = pairs + (values[-1:] if len(values) % 2 else [])
    return values[0]
