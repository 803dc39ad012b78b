"""The predicted time of a pipeline, on one thread."""

from __future__ import annotations

import math

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.pipeline import Access, Contraction, Map, Reduction, instructions_of, repeated
from jax_nano.machine.isa import Machine
from jax_nano.schedule.pipelines.batch import sizes_of
from jax_nano.schedule.pipelines.hoist import outputs_of
from jax_nano.schedule.pipelines.plan import PipelinePlan

FAR_SHARE = 1.25  # of L2: what weights may fill, and most of them be there in the next step
KEPT_SHARE = 0.75  # of L1, that a step finds there of panels that the last one went through in the other direction


def pipeline_seconds(plan: PipelinePlan, machine: Machine) -> float:
    """The time of all stages, as often as they run; of a loop of unknown length, of one step."""
    total = sum(times * stage_cycles(stage, plan, machine) for stage, times in repeated(plan.program.stages))
    called = machine.fitted.pipeline_call_us + (machine.fitted.pipeline_wake_us if plan.task_count > 1 else 0.0)
    rounds = -(-plan.task_count // machine.threads)
    return 1e-6 * called + rounds * total / (machine.ghz * 1e9)


def stage_cycles(stage: Map | Reduction | Contraction, plan: PipelinePlan, machine: Machine) -> float:
    """The cycles of one stage."""
    core, fitted = machine.vector_core(plan.isa), machine.fitted
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
        loaded, passes = reading_of(stage, plan)
        kept = KEPT_SHARE * machine.l1.bytes if block.turning is not None and passes == 1 else 0.0
        from_l2 = (loaded * passes - kept) / machine.l2_bytes_per_cycle if loaded > machine.l1.bytes // 2 else 0.0
        from_l2 += kept / (core.loads_per_cycle * plan.register_bytes)
        largest = max(operand_bytes(x, stage) for x in (stage.lhs, stage.rhs))
        is_far = largest > FAR_SHARE * machine.l2.bytes
        share = fitted.far_pipeline_block_share if is_far else fitted.pipeline_block_share
        from_l3 = largest * machine.ghz / machine.l3_gb_per_s if is_far else 0.0
        after = stage_cycles(stage.epilogue, plan, machine) - fitted.stage_cycles if stage.epilogue else 0.0
        return (
            after
            + fitted.stage_cycles
            + max(
                updates / core.dots_per_cycle / share,
                loads / core.loads_per_cycle,
                latency,
                from_l2,
                from_l3,
            )
        )
    widest = max(bytes_of(value.dtype) for value in stage.program.values)
    lanes = plan.register_bytes // widest
    width = width_of(stage, plan)
    count = math.prod(sizes_of(stage)) / width * -(-width // lanes)
    each = instructions_of(stage.program) + 2 + access_instructions(stage, plan, lanes)
    return fitted.stage_cycles + count * each / core.vector_per_cycle + 2 * instructions_of(stage.program)


def width_of(stage: Map | Reduction, plan: PipelinePlan) -> int:
    """Elements along the lanes of a stage: of a map, neighbours in its result, in all axes that are one in all arrays.

    Of a reduction, those of its largest axis.
    """
    sizes, arrays = sizes_of(stage), [x for x in (*outputs_of(stage), *stage.sources) if isinstance(x, Access)]
    if isinstance(stage, Reduction):
        return max(sizes, default=1)

    def stride(x: Access, axis: int) -> int:
        return plan.layouts[x.value].stride(x, axis)

    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    lane = next((axis for axis in reversed(axes) if stride(arrays[0], axis) == 1), None)
    if lane is None:
        return 1
    width, inner = sizes[lane], lane
    if len(arrays) == len(stage.outputs) + len(stage.sources):
        for axis in reversed(axes[: axes.index(lane)]):
            if any(stride(x, axis) != sizes[inner] * stride(x, inner) for x in arrays):
                break
            width, inner = width * sizes[axis], axis
    return width


def access_instructions(stage: Map | Reduction, plan: PipelinePlan, lanes: int) -> float:
    """Instructions that read and write a register of each array: one, or one for each lane."""
    output = outputs_of(stage)[0]
    sizes = sizes_of(stage)
    lane = next((a for a, s in enumerate(sizes) if s > 1 and plan.layouts[output.value].stride(output, a) == 1), None)
    if lane is None or isinstance(stage, Reduction):
        return len(stage.sources) + 1
    arrays = [x for x in (*stage.sources, *stage.outputs) if isinstance(x, Access)]
    return sum(1 if plan.layouts[x.value].stride(x, lane) in (0, 1) else 2 * lanes for x in arrays)


def reading_of(stage: Contraction, plan: PipelinePlan) -> tuple[int, int]:
    """Bytes of the operand that is read along lanes, and how many times all of it is read."""
    block = plan.block(stage)
    x = next((x for x in (stage.rhs, stage.lhs) if plan.layouts[x.value].stride(x, block.lane)), None)
    if x is None:
        return 0, 1  # numbers that are the same along lanes
    axes = axes_of(x)
    others = math.prod(size for axis, size in enumerate(sizes_of(stage)) if axis not in axes)
    return operand_bytes(x, stage), -(-others // block.rows)


def axes_of(x: Access) -> set[int]:
    """The axes along which an operand moves."""
    return {axis for place in x.places for axis, _ in place.terms if axis >= 0}


def operand_bytes(x: Access, stage: Contraction) -> int:
    """The bytes of an operand that a product reads."""
    sizes = sizes_of(stage)
    return bytes_of(stage.dtype, math.prod(sizes[axis] for axis in axes_of(x)))
