"""The predicted time of a pipeline, on one thread."""

from __future__ import annotations

import math

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.pipeline import Contraction, Map, Reduction, instructions_of, repeated
from jax_nano.machine.isa import Machine
from jax_nano.schedule.pipeline import PipelinePlan

STAGE_CYCLES = 12  # from one stage to the next: what was stored is loaded again
CALL_SECONDS = 1e-6


def pipeline_seconds(plan: PipelinePlan, machine: Machine) -> float:
    """The time of all stages, as often as they run; of a loop of unknown length, of one step."""
    total = sum(times * stage_cycles(stage, plan, machine) for stage, times in repeated(plan.program.stages))
    return CALL_SECONDS + total / (machine.ghz * 1e9)


def stage_cycles(stage: Map | Reduction | Contraction, plan: PipelinePlan, machine: Machine) -> float:
    """The cycles of one stage."""
    core = machine.vector_core(plan.isa)
    if isinstance(stage, Contraction):
        block = plan.block(stage)
        lanes = plan.lanes(stage.dtype)
        registers = -(-stage.sizes[block.lane] // lanes)
        updates = math.prod(stage.sizes) // stage.sizes[block.lane] * registers * math.prod(stage.summed)
        rows = block.rows if block.row is not None else 1
        width = min(block.registers, registers)
        loads = updates * (rows + width) / (rows * width)
        chains = rows * width * block.chains
        latency = updates / chains * core.dot_latency_cycles
        loaded = bytes_of(stage.dtype, math.prod(stage.summed) * stage.sizes[block.lane])
        passes = -(-(math.prod(stage.sizes) // stage.sizes[block.lane]) // rows)
        from_l2 = loaded * passes / machine.l2_bytes_per_cycle if loaded > machine.l1.bytes // 2 else 0.0
        return STAGE_CYCLES + max(updates / core.dots_per_cycle, loads / core.loads_per_cycle, latency, from_l2)
    widest = max(bytes_of(value.dtype) for value in stage.program.values)
    lanes = plan.register_bytes // widest
    sizes = stage.sizes if isinstance(stage, Map) else (*stage.sizes, *stage.reduced)
    count = math.prod(sizes) / max(sizes, default=1) * -(-max(sizes, default=1) // lanes)
    each = instructions_of(stage.program) + len(stage.sources) + 2
    return STAGE_CYCLES + count * each / core.vector_per_cycle + 2 * instructions_of(stage.program)
