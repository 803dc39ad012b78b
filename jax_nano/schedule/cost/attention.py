"""The cost of attention: microkernels of both products, exponentials between them, packing, and what is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jax_nano.ir.attention_gradient import AttentionGradient
from jax_nano.ir.dtypes import bytes_of
from jax_nano.schedule.cost.microkernel import Unit, block_cycles, panels
from jax_nano.schedule.cost.turns import turns
from jax_nano.schedule.plan import LINE_BYTES

if TYPE_CHECKING:
    from jax_nano.machine.isa import Machine
    from jax_nano.schedule.attention.plan import AttentionPlan

SOFTMAX_INSTRUCTIONS = 24  # for a register of scores: scaled, compared, exponentiated, added up and rounded


def attention_seconds(plan: AttentionPlan, machine: Machine, threads: int | None = None) -> float:
    """The predicted time on all threads, or on so many."""
    workers, tasks = min(threads or machine.threads, plan.tasks["compute"]), plan.tasks["compute"]
    cycles = task_cycles(plan, machine)
    compute = turns(tasks, workers, machine) * (cycles / (machine.ghz * 1e9) + machine.fitted.task_us * 1e-6)
    memory = plan.problem.bytes / (machine.memory_gb_per_s[workers > 1] * 1e9)
    return max(compute, memory) + (machine.fitted.wake_us if workers > 1 else machine.fitted.call_us) * 1e-6


def task_cycles(plan: AttentionPlan, machine: Machine) -> float:
    """Cycles of a task, in the mean: masks by place rule out whole panels of blocks."""
    blocks = plan.rows / (plan.splits * min(plan.key_block, plan.rows)) * plan.visited
    of_panels = columns_cycles(plan, machine) / plan.query_blocks
    return plan.heads_per_task * blocks * (of_panels + packing_cycles(plan, machine))


def columns_cycles(plan: AttentionPlan, machine: Machine) -> float:
    """Cycles of all panels of a head, and a block of keys."""
    last = plan.last_panel
    if last is None:
        return -(-plan.columns // plan.nr) * panel_cycles(plan, machine)
    return plan.columns // plan.nr * panel_cycles(plan, machine) + panel_cycles(last, machine)


def panel_cycles(plan: AttentionPlan, machine: Machine) -> float:
    """Cycles of one panel of queries and a block of keys."""
    problem, instruction = plan.problem, plan.instruction
    isa = machine.isa(plan.isa)
    unit = Unit(machine, isa if instruction.tiles else isa.vectors or isa, instruction)
    keys, height = min(plan.key_block, plan.rows), instruction.shape[0]
    registers = plan.nr // plan.lanes
    if plan.by_rows:
        return rows_cycles(plan, unit)

    def product(size: int, depth: int) -> float:
        blocks = panels(-(-size // height) * height, plan.mr)
        steps = unit.steps(depth)
        return sum(count * block_cycles(unit, -(-rows // height), registers, steps) for rows, count in blocks)

    scores = product(-(-keys // plan.mr) * plan.mr, problem.depth)
    cycles = scores + product(problem.value_depth, keys)
    if isinstance(problem, AttentionGradient):  # scores, dP, and up to two sums
        more = product(-(-keys // plan.mr) * plan.mr, problem.value_depth)
        sums = product(problem.depth, keys), product(problem.value_depth, keys)
        cycles = scores + more + sum(sums[: {"queries": 1, "keys": 2, "bias": 0}[problem.of]])
    core = machine.vector_core(plan.isa)
    return cycles + keys * registers * score_instructions(plan) / core.vector_per_cycle * machine.fitted.softmax_wait


def rows_cycles(plan: AttentionPlan, unit: Unit) -> float:
    """Cycles of a block of keys where columns stand by rows: a register is loaded, and multiplied for each column.

    The lanes of a sum are added up by as many shuffles and additions as halve them, of which neighbours share most.
    """
    problem, core, (rate, _) = plan.problem, unit.core, unit.core.rate(plan.instruction.name)
    registers = (problem.depth + problem.value_depth) / (plan.lanes * plan.instruction.vnni)
    of_key = registers * max(plan.columns / rate, 1 / core.loads_per_cycle)
    sums = 3 * (plan.columns + math.log2(plan.lanes)) / core.vector_per_cycle
    softmax = score_instructions(plan) / core.vector_per_cycle * unit.machine.fitted.softmax_wait
    return min(plan.key_block, problem.keys) * (of_key + sums + softmax)


def score_instructions(plan: AttentionPlan) -> int:
    """Instructions for a register of scores."""
    return SOFTMAX_INSTRUCTIONS + (plan.problem.score.instructions if plan.problem.score else 0)


def packing_cycles(plan: AttentionPlan, machine: Machine) -> float:
    """Cycles of copying a block of K and V."""
    packed = plan.packs_keys * plan.problem.depth + plan.packs_values * plan.problem.value_depth
    return bytes_of(plan.instruction.lhs, plan.key_block * packed) / LINE_BYTES * machine.fitted.attention_line_cycles
