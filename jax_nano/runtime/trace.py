"""What XLA's profiler saw of a program: how long each of its operations took."""

from __future__ import annotations

import contextlib
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

CONTAINERS = ("while", "call", "conditional")  # operations that may have others within
TRACER_LEVEL = 2  # the lowest at which XLA names the operations of CPUs


class Event(NamedTuple):
    """An operation of a compiled program as it ran once. Nanoseconds."""

    name: str
    program: tuple[str, int]  # its name, and which run of it
    start: float
    end: float


@dataclass
class Trace:
    """What a block of code ran.

    Attributes:
      seconds: {operation of XLA's, without its number: (how often, how long)}.
      problem: why nothing is known; empty where it is.
    """

    seconds: dict[str, tuple[int, float]] = field(default_factory=dict)
    problem: str = ""


@contextlib.contextmanager
def traced() -> Iterator[Trace]:
    """Traces what XLA runs inside the block; the trace is filled in when it ends."""
    trace = Trace()
    options: Any = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, TRACER_LEVEL
    with tempfile.TemporaryDirectory(prefix="jax_nano_trace_") as folder:
        try:
            jax.profiler.start_trace(folder, profiler_options=options)
        except RuntimeError as error:  # there is another
            trace.problem = str(error)
            yield trace
            return
        try:
            yield trace
        finally:
            try:
                jax.profiler.stop_trace()
                trace.seconds = summed(events(pathlib.Path(folder)))
            except RuntimeError as error:  # the program ended it
                trace.problem = str(error)


def events(folder: pathlib.Path) -> list[Event]:
    """The operations in a trace, in any order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of jaxlib's own types
        return [event for event in map(read, all_events(folder)) if event]


def all_events(folder: pathlib.Path) -> Iterator[Any]:
    """Whatever a trace has."""
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                yield from line.events


def read(event: Any) -> Event | None:
    """An event of a trace, if it is an operation's."""
    stats = dict(event.stats)
    if "hlo_op" not in stats:
        return None
    program = str(stats.get("hlo_module", "")), int(stats.get("run_id", 0))
    return Event(str(stats["hlo_op"]), program, event.start_ns, event.start_ns + event.duration_ns)


def summed(found: list[Event]) -> dict[str, tuple[int, float]]:
    """How often each operation ran, and how long. Of those that have others within, the others count."""
    runs: dict[tuple[str, int], list[Event]] = {}
    for event in found:
        runs.setdefault(event.program, []).append(event)
    result: dict[str, tuple[int, float]] = {}
    for event in found:
        name = re.sub(r"[.\d]+$", "", event.name)
        if name in CONTAINERS and any(is_within(other, event) for other in runs[event.program]):
            continue
        times, seconds = result.get(name, (0, 0.0))
        result[name] = times + 1, seconds + (event.end - event.start) / 1e9
    return result


def is_within(inner: Event, outer: Event) -> bool:
    """Whether one operation of a run is part of another."""
    return inner is not outer and outer.start <= inner.start and inner.end <= outer.end
