"""How long threads take for equal tasks, where some of their cores may be slower than others."""

from __future__ import annotations

import math

from jax_nano.machine.isa import Machine

ROUNDING = 1e-9  # of a time at which a slow core begins a task


def turns(tasks: int, workers: int, machine: Machine) -> float:
    """The time until all tasks are done, in those that a fast core takes for one.

    Threads take the next task whenever they are done with one (csrc/run.cc). So the last task may fall to a slow core,
    for which all others wait: the larger the tasks, the longer.
    """
    slow = min(machine.slow_threads, max(0, workers - (machine.threads - machine.slow_threads)))
    fast, speed = workers - slow, machine.slow_speed
    if not slow:
        return math.ceil(tasks / workers)
    begun_last = max(0.0, (tasks - workers) / (fast + slow * speed))  # no earlier than this
    while fast * (done(begun_last, 1) + 1) + slow * (done(begun_last, speed) + 1) < tasks:
        begun_last = min(done(begun_last, 1) + 1, (done(begun_last, speed) + 1) / speed)
    return max(done(begun_last, 1) + 1, (done(begun_last, speed) + 1) / speed)


def done(time: float, speed: float) -> int:
    """How many tasks a core has done by some time, if it had always one to do."""
    return math.floor(time * speed + ROUNDING)
