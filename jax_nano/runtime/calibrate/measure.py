"""Measures all facts about this machine: probes in turns.

The best turn counts: nothing is faster than it can be. But how soon a thread wakes differs from call to call, with no
limit that it comes close to: of that, the median of turns counts, each a mean of calls.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_nano.machine import host
from jax_nano.machine.isa import Cache, Machine
from jax_nano.machine.measured import TABLES, Measured, consistent, rounded, vector_isa
from jax_nano.runtime.probes import arithmetic, memory, threads
from jax_nano.runtime.probes.arithmetic import Unit
from jax_nano.runtime.probes.probe import Probe
from jax_nano.runtime.progress import progress
from jax_nano.runtime.tuning import mean_seconds

GUESS_GB_PER_S = {"l1": 200, "l2": 100, "llc": 40, "memory": 20}  # how long a run takes hangs on them, not what it says
GUESS_NS = {"l1": 1.5, "l2": 5, "llc": 20, "memory": 120}
PAGE = "SC_AVPHYS_PAGES", "SC_PAGE_SIZE"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is done to measure: best of `turns` turns, of RUNS runs each."""

    turns: int = 12
    run_seconds: float = 2e-3  # of a run, about
    largest_bytes: int = 1 << 30  # of a buffer


RUNS = 3  # of a probe in its turn, after one that is not timed
CALLS = 200  # in a turn of which the mean counts


class Trial(NamedTuple):
    """One of the things that are timed."""

    name: str
    seconds: Callable[[], float]  # of one turn
    amount: float = 1.0  # of what is counted, in that time
    of_turns: Callable[[list[float]], float] = min


Seconds = dict[str, float]  # by trial: for one of what is counted


def measure(machine: Machine, effort: Effort) -> tuple[Measured, list[str]]:
    """Measures a machine, which is this one; and says which facts were refused, as they cannot be."""
    makers = list(trial_makers(machine, effort))
    with progress(len(makers) + effort.turns, "calibrating") as bar:
        trials: list[Trial] = []
        for label, make in makers:
            trials += make()
            bar.advance(label)
        seconds: list[list[float]] = [[] for _ in trials]
        for turn in range(effort.turns):
            for trial, found in zip(trials, seconds, strict=True):
                found.append(trial.seconds() / trial.amount)
            bar.advance(f"turn {turn + 1} of {effort.turns}")
        bar.finish(f"{len(trials)} probes in {effort.turns} turns")
    by_name = {trial.name: trial.of_turns(found) for trial, found in zip(trials, seconds, strict=True)}
    return consistent(facts_of(by_name, machine))


Maker = tuple[str, Callable[[], list[Trial]]]


def trial_makers(machine: Machine, effort: Effort) -> Iterator[Maker]:
    """(what it measures, makes its trials, which compiles them)."""
    steps = steps_for(effort, 1, machine.ghz / arithmetic.ADDITIONS)
    chain = partial(arithmetic.chain, machine, 1, steps)
    yield "clock", partial(timed, "clock_ghz", chain, steps * arithmetic.ADDITIONS)
    for unit in arithmetic.units(machine):
        yield f"{unit.isa.name} {unit.dot.name}", partial(instruction_trials, unit, effort)
    yield from memory_makers(machine, effort)
    if machine.threads > 1:
        yield "waking a thread", partial(wake_trials, machine)
        yield "handing out tasks", partial(task_trials, machine)
    yield "custom calls", partial(call_trials, machine)
    yield "page faults", lambda: [Trial("page_fault_us", lambda: 1e6 * memory.page_fault_seconds())]


def steps_for(effort: Effort, ns: float, per_step: float) -> int:
    """How often to do what takes `ns`, `per_step` times as fast, in a run."""
    return max(1, int(effort.run_seconds * 1e9 / ns * per_step))


# What a core computes.


def instruction_trials(unit: Unit, effort: Effort) -> list[Trial]:
    """One multiply-accumulate instruction; the first of an instruction set on all threads as well."""
    machine, isa, dot = unit
    key, steps = f"{isa.name} {dot.name}", unit.steps(effort.run_seconds)
    amount = unit.chains * steps
    trials = timed(f"per_ns {key}", partial(unit.probe, 1, steps), amount)
    if dot == isa.dots[0]:
        tasks = machine.threads
        trials += timed(f"all_per_ns {key}", partial(unit.probe, tasks, steps), tasks * amount)
    if dot == isa.dots[0] and dot.tiles:
        trials += timed("tile_pairs_per_ns", partial(arithmetic.tile_products, unit, 1, steps, loaded=True), amount)
    return trials


def timed(name: str, make: Callable[[], Probe], amount: float) -> list[Trial]:
    """A probe on ones."""
    return [Trial(name, partial(best_run, make().on_ones()), amount)]


def best_run(run: Callable[[], object]) -> float:
    """The best seconds of RUNS runs, after one that is not timed."""
    run()
    return min(mean_seconds(run, 1) for _ in range(RUNS))


# Caches and memory.


def memory_makers(machine: Machine, effort: Effort) -> Iterator[Maker]:
    """Of each level, how fast it is read, and how long a load takes."""
    for level, size in buffers(machine, effort).items():
        yield f"{level} bandwidth", partial(reading_trials, machine, level, size, effort)
        yield f"{level} latency", partial(chasing_trials, machine, level, size, effort)


def buffers(machine: Machine, effort: Effort) -> dict[str, int]:
    """Bytes of a buffer that one level holds, and the one within it does not.

    Half of a cache's own size: there are other things in it. Of the last level, which others share, no more than it
    takes. Memory is left out where not enough of it is free to be sure that it is read.
    """
    l1, l2, llc = machine.l1, machine.l2, machine.llc
    found = {"l1": l1.bytes // 2}
    if l2.level > l1.level:
        found["l2"] = l2.bytes // 2
    if llc.level > l2.level and (size := min(8 * l2.bytes, llc.bytes // 2)) >= 2 * l2.bytes:
        found["llc"] = size
    caches = held(machine)
    size = min(4 * caches, effort.largest_bytes, math.prod(map(os.sysconf, PAGE)) // 8)
    if size >= 2 * caches:
        found["memory"] = size
    return {level: size for level, size in found.items() if size <= effort.largest_bytes}


def held(machine: Machine) -> int:
    """Bytes that all caches of this process's cores hold together."""

    def count(cache: Cache) -> int:
        return host.topology().llcs if cache.shared else machine.threads

    return sum(cache.bytes * count(cache) for cache in machine.caches)


def reading_trials(machine: Machine, level: str, size: int, effort: Effort) -> list[Trial]:
    """Reads a buffer in order; memory on all threads as well."""
    isa = vector_isa(machine)
    times = -(-steps_for(effort, 1, GUESS_GB_PER_S[level]) // size)
    trials = timed(f"{level}_gb_per_s", partial(memory.reading, machine, isa, 1, size, times), size * times)
    if level == "memory" and machine.threads > 1:
        every = partial(memory.reading, machine, isa, machine.threads, size, times)
        trials += timed("memory_all_gb_per_s", every, size * times)
    return trials


def chasing_trials(machine: Machine, level: str, size: int, effort: Effort) -> list[Trial]:
    """Goes through a buffer line by line; caches are filled before. Through memory, no line is met twice."""
    links, lines = memory.links(min(size, memory.MOST_CHASED_BYTES))
    steps = steps_for(effort, GUESS_NS[level], 1)
    probe = memory.chasing(machine, links.size, steps)
    with jax.enable_x64(new_val=True):
        array, place = jnp.asarray(links), jnp.zeros(1, np.int64)
    compiled = probe.compiled(array, place)
    whole = 0 if level == "memory" else lines // steps

    def run() -> None:
        nonlocal place
        place = compiled(array, place).block_until_ready()

    def seconds() -> float:
        for _ in range(whole):
            run()
        return best_run(run)

    return [Trial(f"{level}_ns", seconds, steps)]


# Threads and calls.


def wake_trials(machine: Machine) -> list[Trial]:
    """One task, and two."""
    runs = {tasks: threads.tasks_in_turn(machine, tasks) for tasks in (1, 2)}
    middle = statistics.median
    return [Trial(f"wake {n}", partial(mean_seconds, run, CALLS), of_turns=middle) for n, run in runs.items()]


def task_trials(machine: Machine) -> list[Trial]:
    """Few empty tasks, and many."""
    runs = {tasks: threads.empty_tasks(machine, tasks) for tasks in threads.few_and_many(machine)}
    return [Trial(f"tasks {n}", partial(mean_seconds, run, CALLS)) for n, run in runs.items()]


def call_trials(machine: Machine) -> list[Trial]:
    """One call in each step of a loop, and three."""
    loops = {calls: threads.calls_in_a_loop(machine, calls) for calls in (1, 3)}
    return [Trial(f"calls {calls}", partial(best_run, run), threads.LOOP_CALLS) for calls, run in loops.items()]


# From times to facts.


def facts_of(seconds: Seconds, machine: Machine) -> dict[str, Any]:
    """Facts in the units of their names, by the seconds of trials."""
    found: dict[str, Any] = {name: {} for name in TABLES}
    for name, each in seconds.items():
        table, _, key = name.partition(" ")
        if table in TABLES:
            found[table][key] = rounded(1e-9 / each)
        elif name.endswith(("_gb_per_s", "_per_ns", "_ghz")):
            found[name] = rounded(1e-9 / each)
        elif name.endswith("_ns"):
            found[name] = rounded(1e9 * each)
        elif name.endswith("_us"):
            found[name] = rounded(each)
    found |= differences(seconds, machine)
    if all_threads := found.get("memory_all_gb_per_s"):  # all of them together can do what one can
        found["memory_all_gb_per_s"] = max(all_threads, found["memory_gb_per_s"])
    elif "memory_gb_per_s" in found:
        found["memory_all_gb_per_s"] = found["memory_gb_per_s"]
    return found


def differences(seconds: Seconds, machine: Machine) -> dict[str, float]:
    """Facts of two trials that differ only by what is wanted, in us; not below zero."""
    few, many = threads.few_and_many(machine)
    pairs = {
        "wake_us": ("wake 1", "wake 2", 1),
        "task_us": (f"tasks {few}", f"tasks {many}", (many - few) / machine.threads),
        "call_us": ("calls 1", "calls 3", 2),
    }
    return {
        name: rounded(1e6 * max(0.0, seconds[more] - seconds[less]) / count)
        for name, (less, more, count) in pairs.items()
        if less in seconds
    }
