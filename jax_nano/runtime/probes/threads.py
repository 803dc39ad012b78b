"""Probes of what it takes to hand work out: to another thread, in many tasks, by a custom call."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax

from jax_nano.machine.isa import Machine
from jax_nano.runtime.probes.arithmetic import ADDITIONS, chain
from jax_nano.runtime.probes.probe import ones

TASK_SECONDS = 20e-6  # of the task that another thread is woken for: far longer than that takes
FEW_TASKS = 64  # at least
MANY_TIMES = 16
LOOP_CALLS = 1000  # steps of a loop that XLA runs operation by operation


def tasks_in_turn(machine: Machine, tasks: int) -> Callable[[], object]:
    """Runs so many tasks that wait for nothing but their own clock: threads that share a core do not slow each other.

    With two, the other thread has to be woken.
    """
    steps = int(TASK_SECONDS * machine.ghz * 1e9 / ADDITIONS)
    return chain(machine, tasks, steps).on_ones()


def empty_tasks(machine: Machine, tasks: int) -> Callable[[], object]:
    """Runs tasks that do nothing."""
    return chain(machine, tasks, 0).on_ones()


def few_and_many(machine: Machine) -> tuple[int, int]:
    """Two numbers of tasks, each enough for all threads to take part."""
    few = max(FEW_TASKS, 4 * machine.threads)
    return few, MANY_TIMES * few


def calls_in_a_loop(machine: Machine, calls: int) -> Callable[[], object]:
    """Runs a loop of LOOP_CALLS steps, each of so many custom calls that do nothing and wait for each other."""
    probe = chain(machine, 1, 0)
    operand = ones(probe.arrays[0])

    def step(_: jax.Array, x: jax.Array) -> jax.Array:
        for _call in range(calls):
            x = lax.broadcast_in_dim(probe.call(x)[0], (2,), ())
        return x

    with jax.enable_x64(new_val=True):
        compiled = jax.jit(lambda x: lax.fori_loop(0, LOOP_CALLS, step, x)).lower(operand).compile()
    return lambda: compiled(operand).block_until_ready()
