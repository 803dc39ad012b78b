"""The running machine, found by its features, and other machines by name."""

from __future__ import annotations

import functools
import os
import pathlib
import platform
from collections.abc import Callable
from dataclasses import replace

from jax_nano import _native, config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import x86
from jax_nano.machine.calibration import calibrated
from jax_nano.machine.isa import Cache, Isa, Machine


def machine_for(name: str | None = None) -> Machine:
    """The machine to compose for: this one, or another where this one lacks the instruction set asked for.

    Kernels for another machine can be looked at here, not run.

    Raises:
      UnsupportedDot: there is no target for this processor.
      ValueError: no machine has an instruction set of that name.
    """
    here, wanted = machine(), name or config.text("JAX_NANO_TARGET")
    if not wanted or any(isa.name == wanted for isa in here.isas):
        return here
    return elsewhere(wanted)


def target(machine: Machine, name: str | None = None) -> Isa:
    """The instruction set to use: the one named, else the one JAX_NANO_TARGET names, else the machine's best.

    Raises:
      ValueError: the machine has none of that name.
    """
    wanted = name or config.text("JAX_NANO_TARGET")
    return machine.isa(wanted) if wanted else machine.isas[0]


CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@functools.cache
def machine() -> Machine:
    """The running machine, with what `python -m jax_nano calibrate` measured of it.

    Raises:
      UnsupportedDot: there is no target for this processor.
    """
    return calibrated(detected(), _native.host_cpu())


@functools.cache
def detected() -> Machine:
    """The running machine, by the table's facts.

    A processor that x86.py does not name is taken for the first named one whose instruction sets it has.

    Raises:
      UnsupportedDot: there is no target for this processor.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise UnsupportedDot(f"jax_nano has no target for {platform.machine()} processors")
    name = _native.host_cpu()
    named = {m.name: m for m in x86.MACHINES}
    candidates = [named[x86.ALIASES.get(name, name)]] if x86.ALIASES.get(name, name) in named else x86.MACHINES
    for candidate in candidates:
        isas = tuple(isa for isa in candidate.isas if has(isa.features))
        if isas == candidate.isas or (isas and candidate is candidates[-1]):
            here = replace(candidate, isas=tuple(available(isa, has) for isa in isas))
            return granted(replace(here, caches=caches() or candidate.caches, threads=threads()))
    raise UnsupportedDot(f"jax_nano has no target for this processor ({name}): it needs AVX2 and FMA")


def has(features: tuple[str, ...]) -> bool:
    """This processor, and the system it runs, have all these features, in LLVM's names."""
    return not _native.missing_features(",".join(features))


def available(isa: Isa, has: Callable[[tuple[str, ...]], bool]) -> Isa:
    """The instruction set with those instructions and conversions whose features a processor has."""
    dots = tuple(dot for dot in isa.dots if has(dot.features))
    conversions = tuple(feature for feature in isa.conversions if has((feature,)))
    return replace(isa, dots=dots, conversions=conversions, vectors=isa.vectors and available(isa.vectors, has))


def granted(machine: Machine) -> Machine:
    """The machine without tile registers, where Linux denies them to this process."""
    denied = _native.tiles_denied() if any(isa.vectors for isa in machine.isas) else ""
    if not denied:
        return machine
    names = ", ".join(isa.name for isa in machine.isas if isa.vectors)
    return replace(machine, isas=tuple(isa for isa in machine.isas if not isa.vectors), note=f"no {names}: {denied}")


def known(name: str) -> Machine:
    """The machine of x86.py of that name, with those instructions that it has.

    Raises:
      ValueError: there is none.
    """
    machines = {machine.name: machine for machine in x86.MACHINES}
    if name not in machines:
        raise ValueError(f"there is no machine {name} (there are {', '.join(machines)})")
    machine = machines[name]
    lacks = set(machine.lacks)
    return replace(machine, isas=tuple(available(isa, lacks.isdisjoint) for isa in machine.isas))


@functools.cache
def elsewhere(name: str) -> Machine:
    """The first machine of x86.py that has an instruction set of that name, with this one's number of threads.

    Raises:
      ValueError: none has.
    """
    for machine in x86.MACHINES:
        if any(isa.name == name for isa in machine.isas):
            return replace(known(machine.name), threads=threads())
    names = ", ".join(dict.fromkeys(isa.name for machine in x86.MACHINES for isa in machine.isas))
    raise ValueError(f"there is no target {name} (there are {names}); choose one of these")


def threads() -> int:
    """How many threads this process may run on."""
    return len(os.sched_getaffinity(0))


def caches() -> tuple[Cache, ...]:
    """The data caches of the first core, by Linux; empty where it says nothing that makes sense."""
    try:
        found = [cache for index in sorted(CACHES.glob("index*")) if (cache := data_cache(index))]
    except (OSError, ValueError, KeyError):
        return ()
    return tuple(sorted(found, key=lambda cache: cache.level))


def data_cache(index: pathlib.Path) -> Cache | None:
    """One cache, by a directory of Linux's; None if that holds instructions, or its ways are not known.

    Raises:
      OSError, ValueError, KeyError: Linux says something else.
    """
    kind, level, size, ways, line, shared = (
        (index / name).read_text().strip()
        for name in ("type", "level", "size", "ways_of_associativity", "coherency_line_size", "shared_cpu_list")
    )
    if kind == "Instruction" or not int(ways):
        return None
    several = "," in shared or "-" in shared
    return Cache(
        level=int(level),
        bytes=int(size[:-1]) * UNITS[size[-1]],
        ways=int(ways),
        line_bytes=int(line),
        shared=several and int(level) > 2,
    )
