"""What is timed: a suite has cases, and makes of each what the libraries are called with."""

import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks import roof
from benchmarks.timing import turns_of
from jax_nano.machine import host

LIBRARIES = ("jax_nano", "XLA", "NumPy", "PyTorch")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a table."""

    kind: str  # the types, and the forms of operands, as --types names them
    name: str  # the rest, such as 512x512x512
    sizes: Mapping[str, int]
    flops: int  # multiplications and additions
    bytes: int  # of operands and result, each once
    multiplies: tuple[str, ...]  # of what types instructions may multiply, by preference: see roof.peak


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A case made ready to be timed.

    Attributes:
      functions: by library, of those in LIBRARIES that compute it; they return when they are done.
      check: raises ValueError where jax_nano's result is further from an oracle's than is promised.
    """

    functions: Mapping[str, Callable[[], Any]]
    check: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Cases of one sort.

    Attributes:
      name: on the command line and in results.
      kinds: those of its cases.
      cases: makes the cases of some kinds, of the sizes given as text, or of each kind's own where there are none;
        ValueError says what is wrong with a text.
      prepare: makes the operands of a case, and the functions. Called, and timed, under jax.enable_x64.
    """

    name: str
    kinds: tuple[str, ...]
    cases: Callable[[Sequence[str], Sequence[str]], list[Case]]
    prepare: Callable[[Case], Calls]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case that was timed, with the peak of the processor in the same turns."""

    suite: str
    kind: str
    name: str
    sizes: Mapping[str, int]
    flops: int
    bytes: int
    turns: Mapping[str, Sequence[float]]  # seconds of a call, by library, for each turn
    peak: str  # the probe's name; empty where no probe multiplies such types
    peak_gflops: float  # on all threads; NaN where there is none

    def seconds(self, library: str) -> float:
        """The best turn; NaN where the library does not compute it."""
        return min(self.turns.get(library, ()), default=math.nan)

    def gflops(self, library: str) -> float:
        """10^9 floating-point operations a second, in the best turn."""
        return self.flops / self.seconds(library) / 1e9

    def noise(self, library: str) -> float:
        """How much longer the median turn took than the best one, as a share."""
        return statistics.median(self.turns[library]) / self.seconds(library) - 1

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other rows."""
        return self.suite, self.kind, self.name


def installed() -> list[str]:
    """The libraries that are there."""
    return [name for name in LIBRARIES if name != "PyTorch" or importlib.util.find_spec("torch")]


def computes(library: str, function: Callable[[], Any]) -> bool:
    """Whether a library computes a case; jax_nano must."""
    try:
        function()
    except Exception:  # each library has its own
        if library == "jax_nano":
            raise
        return False
    return True


def measure(suite: Suite, case: Case, turns: int) -> Row:
    """Checks jax_nano's result once, and times every library in turn.

    Raises:
      ValueError: the result is wrong.
    """
    limit, threads = roof.peak(case.multiplies), host.threads()
    with jax.enable_x64(new_val=True):
        calls = suite.prepare(case)
        calls.check()
        functions = {name: function for name, function in calls.functions.items() if computes(name, function)}
        if limit:
            functions["peak"] = roof.runnable(limit, threads)
        found = dict(zip(functions, turns_of(list(functions.values()), turns), strict=True))
    peak = threads * limit.gflop / min(found.pop("peak")) if limit else math.nan
    return Row(suite=suite.name, kind=case.kind, name=case.name, sizes=case.sizes, flops=case.flops, bytes=case.bytes,
               turns=found, peak=limit.name if limit else "", peak_gflops=peak)  # fmt: skip
