"""The roof over a kernel: the least time that this processor's arithmetic and memory leave it."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax_nano.ir.attention import Problem
from jax_nano.ir.dot import Dot
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.machine.isa import Machine
from jax_nano.schedule.attention.plan import AnyPlan


class Roof(NamedTuple):
    """What bounds a kernel.

    Attributes:
      flops: additions and multiplications that it needs, each of which counts.
      bytes: of its operands and results, each once.
      peak: flops per second of its instruction on all threads.
      bandwidth: bytes per second that all threads read from memory.
    """

    flops: float
    bytes: int
    peak: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """The least that it takes, of operands in memory."""
        return max(self.flops / self.peak, self.bytes / self.bandwidth)

    @property
    def waits_for_memory(self) -> bool:
        """Whether memory bounds it, not arithmetic."""
        return self.bytes / self.bandwidth > self.flops / self.peak


def roof_of(plan: AnyPlan, machine: Machine) -> Roof:
    """The roof over a plan, by the facts that are known of a machine."""
    problem, instruction = plan.problem, plan.instruction
    per_cycle, _ = machine.cores[plan.isa].rate(instruction.name)
    fast = machine.threads - machine.slow_threads
    cores = fast + machine.slow_speed * machine.slow_threads
    peak = 2 * math.prod(instruction.shape) * per_cycle * machine.ghz * 1e9 * cores
    return Roof(flops_of(problem), problem.bytes, peak, machine.memory_gb_per_s[machine.threads > 1] * 1e9)


def flops_of(problem: Problem) -> float:
    """The additions and multiplications of a problem. Scores that masks rule out by place are not among them."""
    if isinstance(problem, Gated):
        return flops_of(problem.first) + flops_of(problem.second)
    if isinstance(problem, Grouped):
        return flops_of(problem.dot) * problem.batch.size
    if isinstance(problem, Dot):
        return 2.0 * math.prod(problem.sizes) * problem.terms
    return 2.0 * problem.multiplications
