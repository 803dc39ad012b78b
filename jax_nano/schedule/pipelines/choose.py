"""The choice of a pipeline's plan, by rules: what stands along lanes, what is copied for that, and register blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.pipeline import (
    Access,
    Contraction,
    Loop,
    Map,
    Pipeline,
    Place,
    Reduction,
    Stage,
    UnsupportedPipeline,
    Value,
    repeated,
)
from jax_nano.ir.program import Input, Operation, Program
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.cost.pipeline import pipeline_seconds
from jax_nano.schedule.pipelines.batch import Batch, batches, divided
from jax_nano.schedule.pipelines.fusion import reads, with_epilogues
from jax_nano.schedule.pipelines.hoist import hoisted, identity_program, is_invariant, written
from jax_nano.schedule.pipelines.plan import Block, Layout, PipelinePlan, padded, placed, row_major

FEW_ROWS_REGISTERS = 8  # of a row alone: as many sums as cover the latency of multiply-accumulates
# Registers of a panel of an operand beyond half of L1, for one row: in narrow panels, those that the step before read
# last are in L1 still. 3, 4 and 5 registers took 0.96 of the time of 6 or 8 where the operand has 48 KiB, and 0.68 of
# that where it has 75 or 192 (Zen 5, with 48 of L1).
PANEL_REGISTERS = (3, 4, 5)
MOST_SCRATCH = 1 << 25  # bytes of a thread
MOST_STAGES = 300  # which take a second to compile
SPARE_REGISTERS = 2  # beside accumulators and a row of B
L2_CYCLES = 2.0  # in which a register comes from L2


def choose_pipeline(problem: Pipeline, machine: Machine, isa: Isa) -> PipelinePlan:
    """The plan of a pipeline.

    Raises:
      UnsupportedPipeline: the target does not multiply such numbers.
    """
    stages = sum(1 for _ in repeated(problem.stages))
    if stages > MOST_STAGES:
        raise UnsupportedPipeline(f"{stages} stages, which would take long to compile; at most {MOST_STAGES} may be")
    vectors = isa.vectors or isa
    types = {stage.dtype for stage, _ in problem.contractions}
    found = [dot for dot in vectors.dots if dot.lhs == dot.rhs == dot.acc and dot.lhs in types]
    if len(found) < len(types):
        raise UnsupportedPipeline(f"{vectors.name} does not multiply {sorted(types)}")
    instruction = found[0] if found else next(dot for dot in vectors.dots if dot.lhs == "f32")
    pipeline = hoisted(problem)
    found = batches(pipeline)[:1]
    best: PipelinePlan | None = None
    for batch in (None, *found):
        for tasks in task_counts(batch, machine.threads):
            part = divided(pipeline, batch, tasks) if batch and tasks > 1 else pipeline
            for planner in planners(part, vectors, machine, batch):
                plan = planner.plan(problem, isa, instruction).replace(task_count=tasks)
                seconds = pipeline_seconds(plan, machine)
                if best is None or seconds < best.predicted_seconds:
                    best = plan.replace(predicted_seconds=seconds)
    assert best
    if best.local_bytes > MOST_SCRATCH:
        raise UnsupportedPipeline(f"{best.local_bytes:,} bytes pass from stage to stage; at most {MOST_SCRATCH:,} may")
    used = min(best.task_count, machine.threads)
    why = f"by rule: {1e6 * best.predicted_seconds:.1f} us expected on {used} thread{'s' if used > 1 else ''}"
    return best.replace(why=why)


def planners(pipeline: Pipeline, isa: Isa, machine: Machine, batch: Batch | None) -> Iterator[Planner]:
    """Every way to lay out values that is worth weighing: by which dimension is innermost in each."""
    last = [innermost(value) for value in pipeline.values]
    yield Planner(pipeline, isa, machine.l1.bytes, last)
    if batch:
        of_batch = {number: dim for number, dim in batch.dims.items() if pipeline.values[number].shape[dim] > 1}
        yield Planner(pipeline, isa, machine.l1.bytes, [of_batch.get(i, dim) for i, dim in enumerate(last)])
    wide = [wide_innermost(value, isa.register_bytes) for value in pipeline.values]
    if wide != last:
        yield Planner(pipeline, isa, machine.l1.bytes, wide)


def task_counts(batch: Batch | None, threads: int) -> list[int]:
    """Into how many tasks a batch is worth dividing: none or even parts, for up to so many threads."""
    if batch is None:
        return [1]
    return [count for count in range(2, threads + 1) if batch.size % count == 0 and batch.size // count > 1] + [1]


@dataclass
class Planner:
    """Lays out the values of a pipeline, adds copies, and chooses blocks."""

    pipeline: Pipeline
    isa: Isa
    l1_bytes: int
    inner: list[int | None]  # the dimension of each value that is innermost in memory
    values: list[Value] = field(init=False)
    blocks: list[tuple[Contraction, Block]] = field(default_factory=list)
    copies: dict[tuple[Access, tuple[int, ...], int], int] = field(default_factory=dict)
    places: list[list[Stage]] = field(default_factory=list)  # of copies; kept, as `copies` knows them by their ids

    def __post_init__(self):
        self.values, self.inner = list(self.pipeline.values), list(self.inner)

    def plan(self, problem: Pipeline, isa: Isa, instruction: DotInstruction) -> PipelinePlan:
        """The plan."""
        stages: list[Stage] = []
        for stage in self.pipeline.stages:
            before: list[Stage] = []
            changing = set(written([stage])) if isinstance(stage, Loop) else None
            planned = self.stage(stage, before, changing)
            stages += [*before, *planned]
        blocks = dict(self.blocks)
        stages = with_epilogues(stages, blocks, Counter(reads(stages)), set(self.pipeline.results))
        self.blocks = [
            (stage, blocks[replace(stage, epilogue=None)])
            for stage, _ in repeated(stages)
            if isinstance(stage, Contraction)
        ]
        program = Pipeline(values=tuple(self.values), stages=tuple(stages), results=self.pipeline.results)
        layouts = placed([self.layout(number) for number in range(len(self.values))], program)
        return PipelinePlan(
            problem=problem, isa=isa.name, instruction=instruction, register_bytes=self.isa.register_bytes,
            program=program, layouts=layouts, blocks=tuple(dict(self.blocks).items()),
        )  # fmt: skip

    def layout(self, number: int) -> Layout:
        """Where a value's elements are."""
        value = self.values[number]
        if value.role in ("operand", "out"):
            return row_major(value.shape)
        return padded(value.shape, self.inner[number], self.isa.register_bytes // bytes_of(value.dtype))

    def stage(self, stage: Stage, before: list[Stage], changing: set[int] | None) -> list[Stage]:
        """A stage with the copies that it needs.

        Args:
          stage: the stage.
          before: where copies go of what is the same in every step of the loops around.
          changing: the values that these loops write; None where there is no loop.
        """
        if isinstance(stage, Loop):
            inner = [new for each in stage.stages for new in self.stage(each, before, changing)]
            condition = [new for each in stage.condition for new in self.stage(each, before, changing)]
            return [replace(stage, stages=tuple(inner), condition=tuple(condition))]
        if isinstance(stage, Contraction):
            return self.contraction(stage, before, changing)
        return [stage]

    def contraction(self, stage: Contraction, before: list[Stage], changing: set[int] | None) -> list[Stage]:
        """A product, by lanes of its result or along its sum."""
        lane = self.inner[stage.output.value]
        if lane is None:
            return [as_reduction(stage)]
        operands = {name: getattr(stage, name) for name in ("lhs", "rhs")}
        unfit = {name: x for name, x in operands.items() if self.stride(x, lane) not in (0, 1)}
        varying = [x for x in unfit.values() if not is_read_again(x, changing)]
        if varying and self.sums_along_lanes(stage) and not self.is_worth_copying(stage, varying):
            return [as_reduction(stage)]
        here: list[Stage] = []
        for name, x in unfit.items():
            to = before if is_read_again(x, changing) else here
            stage = replace(stage, **{name: self.copy(x, stage, lane, to)})
        block, rank = self.block(stage, lane), len(stage.sizes)
        stage = self.in_panels(stage, block, before, changing)
        self.blocks.append((stage, replace(block, turning=rank) if len(stage.sizes) > rank else block))
        return [*here, stage]

    def in_panels(
        self, stage: Contraction, block: Block, before: list[Stage], changing: set[int] | None
    ) -> Contraction:
        """A product by panels of a large operand that is the same in every step, copied in the order it is read in."""
        lane, width = block.lane, block.registers * self.isa.register_bytes // bytes_of(stage.dtype)
        name, x = next(
            ((name, x) for name in ("lhs", "rhs") if self.stride(x := getattr(stage, name), lane)), ("", None)
        )
        size = bytes_of(stage.dtype, stage.sizes[lane] * math.prod(stage.summed))
        is_large = size > self.l1_bytes // 2 and stage.sizes[lane] > width and stage.sizes[lane] % width == 0
        if x is None or not is_large or not is_read_again(x, changing):
            return stage
        rank = len(stage.sizes)
        axes = [Place(0, ((axis + (axis >= rank), 1),)) for axis in range(rank + len(stage.summed))]
        axes[lane] = Place(0, ((lane, 1), (rank, width)))
        sizes = (
            *(width if axis == lane else size for axis, size in enumerate(stage.sizes)),
            stage.sizes[lane] // width,
        )
        moved = {each: getattr(stage, each).substituted(axes) for each in ("lhs", "rhs", "output")}
        split = replace(stage, sizes=sizes, **moved)
        return replace(split, **{name: self.copy(moved[name], split, lane, before, first=rank)})

    def sums_along_lanes(self, stage: Contraction) -> bool:
        """Whether both operands are contiguous along an axis that is summed over."""
        axes = range(len(stage.sizes), len(stage.sizes) + len(stage.summed))
        return any(self.stride(stage.lhs, axis) == 1 == self.stride(stage.rhs, axis) for axis in axes)

    def is_worth_copying(self, stage: Contraction, operands: Sequence[Access]) -> bool:
        """Whether a product by lanes, with operands copied, takes fewer instructions than sums along lanes.

        Those load both operands for each register, and add up the lanes of each element; a copy moves each element of
        an operand out of a register and into another.
        """
        lanes = self.isa.register_bytes // bytes_of(stage.dtype)
        results, steps, sizes = math.prod(stage.sizes), math.prod(stage.summed), (*stage.sizes, *stage.summed)
        along = results * (3 * -(-steps // lanes) + 2 * (lanes.bit_length() - 1))
        copied = sum(math.prod(size for axis, size in enumerate(sizes) if self.depends(x, axis)) for x in operands)
        return 2 * copied + 2 * results * steps // lanes < along

    def stride(self, access: Access, axis: int) -> int:
        """How far a step along an axis moves."""
        return self.layout(access.value).stride(access, axis)

    def copy(self, x: Access, stage: Contraction, lane: int, stages: list[Stage], first: int | None = None) -> Access:
        """An operand copied so that it is contiguous along lanes, and another axis is the outermost."""
        sizes = (*stage.sizes, *stage.summed)
        used = [axis for axis in range(len(sizes)) if axis != lane and self.depends(x, axis)] + [lane]
        used.sort(key=lambda axis: axis != first)
        shape = tuple(sizes[axis] for axis in used)
        axes = [Place(0, ((used.index(axis), 1),)) if axis in used else Place() for axis in range(len(sizes))]
        source = x.substituted(axes)
        key = source, shape, id(stages)
        if key not in self.copies:
            self.copies[key] = len(self.values)
            self.places.append(stages)
            self.values.append(Value(role="scratch", dtype=stage.dtype, shape=shape))
            self.inner.append(len(shape) - 1)
            whole = tuple(Place(0, ((axis, 1),)) for axis in range(len(shape)))
            output = Access(self.copies[key], whole)
            stages.append(Map(sizes=shape, sources=(source,), program=identity_program(stage.dtype), outputs=(output,)))
        return Access(self.copies[key], tuple(Place(0, ((axis, 1),)) for axis in used))

    @staticmethod
    def depends(x: Access, axis: int) -> bool:
        """Whether an access moves along an axis."""
        return any(axis == other for place in x.places for other, _ in place.terms)

    def block(self, stage: Contraction, lane: int) -> Block:
        """The register block of a product along lanes."""
        lanes = self.isa.register_bytes // bytes_of(stage.dtype)
        registers = -(-stage.sizes[lane] // lanes)
        others = [axis for axis, size in enumerate(stage.sizes) if axis != lane and size > 1]
        is_large = bytes_of(stage.dtype, stage.sizes[lane] * math.prod(stage.summed)) > self.l1_bytes // 2
        if not others:
            is_even = is_large and stage.sizes[lane] % lanes == 0
            narrow = [width for width in PANEL_REGISTERS if is_even and registers % width == 0]
            wide = min(narrow[0], registers) if narrow else even(registers, FEW_ROWS_REGISTERS)
            chains = max(1, min(-(-FEW_ROWS_REGISTERS // wide), math.prod(stage.summed) // 4))
            return Block(lane=lane, row=None, rows=1, registers=wide, chains=chains)
        row = max(others, key=lambda axis: stage.sizes[axis])
        most = self.isa.register_count - SPARE_REGISTERS
        line = L2_CYCLES if is_large else 0.5
        found = [
            (
                block_cost(stage.sizes[row], registers, (mr, nv), line),
                raggedness(stage.sizes[row], mr),
                -mr * nv,
                mr,
                nv,
            )
            for nv in range(1, min(4, registers) + 1)
            for mr in range(1, min(12, stage.sizes[row]) + 1)
            if mr * nv + nv <= most
        ]
        *_, mr, nv = min(found)
        chains = max(1, min(FEW_ROWS_REGISTERS // (mr * nv), math.prod(stage.summed) // 4))
        return Block(lane=lane, row=row, rows=mr, registers=nv, chains=chains)


def is_read_again(x: Access, changing: set[int] | None) -> bool:
    """Whether an operand is the same in every step of loops that write the values `changing`; None: there is none."""
    return changing is not None and is_invariant(x, changing)


def block_cost(rows: int, registers: int, block: tuple[int, int], line: float) -> float:
    """Cycles of a step of the sum over all blocks: two multiply-accumulates and two loads begin in each.

    Args:
      rows: of the result.
      registers: of a row.
      block: rows and registers of a block.
      line: cycles in which a register of a row comes.
    """
    total = 0.0
    mr, nv = block
    for r, times_r in ((mr, rows // mr), (rows % mr, 1)):
        for v, times_v in ((nv, registers // nv), (registers % nv, 1)):
            if r and v:
                total += times_r * times_v * max(r * v / 2, (r + v) / 2, line * v, 2)
    return total


def raggedness(rows: int, mr: int) -> int:
    """How many rows the last block has fewer than the others."""
    return -rows % mr


def even(size: int, most: int) -> int:
    """The size of the parts, where the fewest that cover `size` are even."""
    parts = -(-size // most)
    return -(-size // parts)


def innermost(value: Value) -> int | None:
    """The last dimension that has several elements."""
    return max((axis for axis, size in enumerate(value.shape) if size > 1), default=None)


def wide_innermost(value: Value, register_bytes: int) -> int | None:
    """The largest dimension, where the last one leaves at least half of a register's lanes empty."""
    last = innermost(value)
    if last is None or bytes_of(value.dtype, 2 * value.shape[last]) > register_bytes:
        return last
    return max(range(len(value.shape)), key=lambda dim: (value.shape[dim], dim))


def as_reduction(stage: Contraction) -> Reduction:
    """A product whose sum runs along lanes."""
    inputs = tuple(Input(argument=i, dtype=stage.dtype) for i in range(2))
    if stage.lhs == stage.rhs:
        inputs = inputs[:1]
    operation = Operation(name="mul", operands=(0, len(inputs) - 1), dtype=stage.dtype)
    program = Program(inputs=inputs, constants=(), operations=(operation,), results=(len(inputs),))
    return Reduction(
        sizes=stage.sizes, reduced=stage.summed, sources=(stage.lhs, stage.rhs)[: len(inputs)], program=program,
        kind="add", output=stage.output,
    )  # fmt: skip
