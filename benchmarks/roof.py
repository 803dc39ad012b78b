"""What this machine can do at most: multiply-accumulate instructions on registers and tiles, and reads from memory."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.timing import best_of
from jax_nano.ir.dtypes import BITS
from jax_nano.machine import host
from jax_nano.machine.host import target
from jax_nano.machine.isa import Machine
from jax_nano.machine.measured import vector_isa
from jax_nano.runtime.probes import memory
from jax_nano.runtime.probes.arithmetic import Unit, tile_products, units

RUN_SECONDS = 1.5e-3  # of a probe, about
READ_BYTES = 512 << 20  # beyond any cache


class Roof(NamedTuple):
    """Rates on one thread and on all."""

    gflops: dict[str, tuple[float, float]]  # by limit
    read_gb_per_s: tuple[float, float]
    left_out: str  # why there are no tile instructions; empty where there are


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An instruction at its full speed: no product that takes it is faster."""

    name: str  # which tells it from others
    multiplies: str  # the type of what it multiplies, "8 bits" for bytes of any sign
    steps: int  # of a task of its probe
    unit: Unit = field(compare=False)
    loaded: bool = False  # tiles come from L1, in every step

    @property
    def gflop(self) -> float:
        """Of a task; a multiplication and an addition are two."""
        return 2e-9 * math.prod(self.unit.dot.shape) * self.unit.chains * self.steps


def limits(machine: Machine) -> list[Limit]:
    """What bounds the products of a machine, best instruction set first; of tiles, those from L1 before registers."""
    return [limit for unit in units(machine) for limit in limits_of(unit)]


def limits_of(unit: Unit) -> Iterator[Limit]:
    """Those of one instruction."""
    dot = unit.dot
    types = dot.lhs if dot.lhs == dot.rhs else f"{dot.lhs} x {dot.rhs}"
    for source, loaded in (("L1", True), ("registers", False)) if dot.tiles else ((unit.isa.name, False),):
        yield Limit(
            name=f"{types} {dot.name}, {source}",
            multiplies="8 bits" if BITS[dot.lhs] == 8 else dot.lhs,
            steps=unit.steps(RUN_SECONDS),
            unit=unit,
            loaded=loaded,
        )


@functools.cache
def runnable(limit: Limit, tasks: int) -> Callable[[], Any]:
    """Compiles the probe of a limit; the function returned runs it in so many tasks, and waits."""
    if limit.loaded:
        return tile_products(limit.unit, tasks, limit.steps, loaded=True).on_ones()
    return limit.unit.probe(tasks, limit.steps).on_ones()


def peak(types: Sequence[str]) -> Limit | None:
    """What bounds a product: the best instruction of the target that multiplies the first type it can.

    On registers, or on tiles from L1: no product from memory is faster than that.

    Args:
      types: of what may be multiplied, by preference, in the words of Limit.multiplies.
    """
    machine = host.machine()
    isa = target(machine)
    names = {isa.name, isa.vectors.name if isa.vectors else isa.name}
    found = [limit for limit in limits(machine) if limit.unit.isa.name in names]
    return next((limit for dtype in types for limit in found if limit.multiplies == dtype), None)


def measure(turns: int) -> Roof:
    """Measures all that this processor has."""
    machine, both = host.machine(), (1, host.threads())
    gflops = {}
    for limit in limits(machine):
        seconds = best_of([runnable(limit, tasks) for tasks in both], turns)
        gflops[limit.name] = tuple(tasks * limit.gflop / s for tasks, s in zip(both, seconds, strict=True))
    reads = [memory.reading(machine, vector_isa(machine), tasks, READ_BYTES, 1).on_ones() for tasks in both]
    one, every = (READ_BYTES / seconds / 1e9 for seconds in best_of(reads, turns))
    return Roof(gflops, (one, every), why_no_tiles(machine))


def why_no_tiles(machine: Machine) -> str:
    """Why tile instructions are not measured; empty where they are."""
    if any(isa.vectors for isa in machine.isas):
        return ""
    return machine.note or "this processor has no AMX"
