"""The kernel of a pipeline: its stages one after the other, loops of them as loops.

    for each step
        C = A @ B             contraction.py
        out = program(...)    elementwise.py, along the axis that is contiguous in the result
        carried values        read in one half of their scratch, written in the other

The halves exchange their places after every step.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, scf

from jax_nano.codegen.index import Index, index, subtract
from jax_nano.codegen.load_store import load_scalar
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import for_range, when
from jax_nano.codegen.pipelines.contraction import emit_contraction
from jax_nano.codegen.pipelines.elementwise import emit_map, emit_reduction
from jax_nano.codegen.pipelines.memory import LoopState, Memory
from jax_nano.ir.pipeline import Access, Contraction, Loop, Map, Reduction, Stage
from jax_nano.schedule.pipelines.plan import PipelinePlan


class PipelineKernel:
    """Writes the one phase of a plan."""

    def __init__(self, plan: PipelinePlan):
        """Takes what the plan says."""
        self.plan = plan

    def compute_phase(self, task: Index, local: ir.Value, arrays: Sequence[ir.Value]) -> None:
        """All stages, of one task."""
        self.emit(self.plan.program.stages, Memory.of(self.plan, task, local, arrays))

    def emit(self, stages: Sequence[Stage], memory: Memory) -> None:
        """Emits stages."""
        for number, stage in enumerate(stages):
            with section(f"{type(stage).__name__} {number}"):
                match stage:
                    case Loop():
                        self.emit_loop(stage, memory)
                    case Map():
                        emit_map(self.plan, stage, memory)
                    case Reduction():
                        emit_reduction(self.plan, stage, memory)
                    case Contraction():
                        emit_contraction(self.plan, stage, memory)

    def emit_loop(self, stage: Loop, memory: Memory) -> None:
        """Emits a loop; then its carried values are where the last step wrote them."""
        if stage.going and stage.length:
            self.emit_branch(stage, memory)
            return
        half = self.emit_while(stage, memory) if stage.length is None else self.emit_steps(stage, stage.length, memory)
        memory.finish(stage.carries, half)

    def emit_steps(self, stage: Loop, length: int, memory: Memory) -> Index:
        """Emits a loop of known length, and gives the half in which carried values stand at its end."""
        with for_range(0, length, carry=[index(0)]) as loop:
            step = subtract(length - 1, loop.i) if stage.reverse else loop.i
            half = loop.carry[0]
            self.emit(stage.stages, memory.inside(LoopState(stage.carries, step, half)))
            loop.next = [index(subtract(1, half))]
        return loop.results[0]

    def emit_branch(self, stage: Loop, memory: Memory) -> None:
        """Emits stages that run once or not at all."""
        assert stage.going
        with when(is_true(memory, stage.going)):
            self.emit(stage.stages, memory.inside(LoopState((), 0, 0)))

    def emit_while(self, stage: Loop, memory: Memory) -> Index:
        """Emits a loop with a condition, likewise."""
        kind = ir.IndexType.get()
        op = scf.WhileOp([kind], [index(0)])
        before, after = op.before.blocks.append(kind), op.after.blocks.append(kind)
        assert stage.going
        with ir.InsertionPoint(before):
            (half,) = before.arguments
            state = memory.inside(LoopState(stage.carries, 0, half))
            self.emit(stage.condition, state)
            scf.condition(is_true(state, stage.going), [half])
        with ir.InsertionPoint(after):
            (half,) = after.arguments
            self.emit(stage.stages, memory.inside(LoopState(stage.carries, 0, half)))
            scf.yield_([index(subtract(1, half))])
        return op.results[0]


def is_true(memory: Memory, access: Access) -> ir.Value:
    """Whether a truth value in memory holds."""
    found = memory.reference(access)
    byte = load_scalar(found.base, found.at)
    return arith.cmpi(arith.CmpIPredicate.ne, byte, arith.constant(byte.type, 0))
