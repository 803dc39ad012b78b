"""How long threads take for equal tasks, against a simulation of threads that take the next one."""

import heapq
import math
from dataclasses import replace

import pytest

from jax_nano.ir.dot import Dot, Operand
from jax_nano.machine import host, x86
from jax_nano.schedule.choose import choose, order_of_sums
from jax_nano.schedule.cost.turns import turns

MATRICES = (((1,), (0,)), ((), ()))


def machine(fast, slow, speed):
    return replace(x86.MACHINES[0], threads=fast + slow, slow_threads=slow, slow_speed=speed)


def simulated(tasks, fast, slow, speed):
    """The time until the last of some tasks is done, in those of a fast core."""
    threads = [(0.0, task) for task in [1.0] * fast + [1 / speed] * slow]
    heapq.heapify(threads)
    end = 0.0
    for _ in range(tasks):
        free, task = heapq.heappop(threads)
        end = max(end, free + task)
        heapq.heappush(threads, (free + task, task))
    return end


@pytest.mark.parametrize("tasks", [1, 2, 7, 8, 9, 63, 64])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_equal_threads_take_turns(tasks, threads):
    workers = min(tasks, threads)
    assert turns(tasks, workers, machine(threads, 0, 1.0)) == math.ceil(tasks / workers)


@pytest.mark.parametrize("fast, slow", [(1, 1), (2, 8), (8, 8), (6, 1)])
@pytest.mark.parametrize("speed", [0.37, 0.85, 0.61])
def test_slow_threads_take_fewer_tasks(fast, slow, speed):
    for tasks in range(1, 200):
        workers = min(tasks, fast + slow)
        least = simulated(tasks, min(fast, workers), max(0, workers - fast), speed)
        assert least <= turns(tasks, workers, machine(fast, slow, speed)) + 1e-9
        assert turns(tasks, workers, machine(fast, slow, speed)) <= least + 1 / speed


@pytest.mark.parametrize("fast, slow", [(8, 8), (2, 8)])
def test_small_tasks_are_not_held_up_by_slow_cores(fast, slow):
    speed = 0.37
    at_best = 1 / (fast + slow * speed)
    coarse, fine = (turns(tasks, fast + slow, machine(fast, slow, speed)) / tasks for tasks in (fast + slow, 1024))
    assert fine < 1.05 * at_best
    assert coarse == pytest.approx(1 / speed / (fast + slow))


def product(m, n, k):
    return Dot.of(Operand.row_major((m, k), "f32"), Operand.row_major((k, n), "f32"), MATRICES, "f32")


@pytest.mark.parametrize("sizes", [(1024, 1024, 1024), (128, 3072, 768)], ids=str)
def test_plans_for_hybrids_have_smaller_tasks_and_the_same_sums(sizes):
    known = host.known("alderlake")
    alike, hybrid = (replace(known, threads=16, slow_threads=slow) for slow in (0, 8))
    plans = [choose(product(*sizes), m, m.isas[0]) for m in (alike, hybrid)]
    assert order_of_sums(plans[0]) == order_of_sums(plans[1])
    counts = [plan.tasks["compute"] * plan.rounds for plan in plans]
    assert counts[1] >= 2 * 16
    assert counts[1] >= counts[0]
