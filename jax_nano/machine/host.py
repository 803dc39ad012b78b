"""The running machine, found by its features, and other machines by name."""

from __future__ import annotations

import functools
import math
import platform
from dataclasses import replace
from pathlib import Path

from jax_nano import _native, config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import kin, x86
from jax_nano.machine.calibration import calibrated
from jax_nano.machine.isa import Isa, Machine
from jax_nano.machine.thread_limit import ThreadLimit
from jax_nano.machine.topology import ROOT, Topology
from jax_nano.machine.topology import read as read_topology


def _limit_threads(threads: int) -> None:
    _native.limit_threads(threads)


thread_limit = ThreadLimit(_limit_threads)


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


@functools.cache
def topology() -> Topology:
    """The processors that this process may run on, as they were when it was first asked."""
    return replace(read_topology(), limit=config.number("JAX_NANO_THREADS") or math.inf)


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

    A processor that nobody named is taken for its nearest kin, and a warning says so.

    Raises:
      UnsupportedDot: there is no target for this processor.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise UnsupportedDot(f"jax_nano has no target for {platform.machine()} processors")
    name = _native.host_cpu()
    found = kin.identify(name, vendor(), has)
    if found is None:
        raise UnsupportedDot(f"jax_nano has no target for this processor ({name}): it needs AVX2 and FMA")
    if found.stands_for:
        config.warn(
            f"jax_nano does not know this processor ({name}) and takes it for {found.name}, its nearest kin by "
            "instruction sets; if products are slow, JAX_NANO_AUTOTUNE=1 measures their plans"
        )
    thread_limit.apply(cores=topology().threads)
    return granted(on_topology(found, topology()))


def on_topology(machine: Machine, topology: Topology) -> Machine:
    """A machine with the threads and caches that a process sees."""
    threads, slow, caches = topology.threads, topology.slow_threads, topology.caches or machine.caches
    return replace(machine, threads=threads, slow_threads=slow, caches=caches)


def vendor(root: Path = ROOT) -> str:
    """The processor's vendor as CPUID has it, by Linux; empty where it does not say."""
    try:
        with (root / "proc/cpuinfo").open() as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
    except (OSError, UnicodeError):
        return ""


def has(features: tuple[str, ...]) -> bool:
    """This processor, and the system it runs, have all these features, in LLVM's names."""
    return not _native.missing_features(",".join(features))


def granted(machine: Machine) -> Machine:
    """The machine without tile registers, where Linux denies them to this process."""
    denied = _native.tiles_denied() if any(isa.vectors for isa in machine.isas) else ""
    if not denied:
        return machine
    names = ", ".join(isa.name for isa in machine.isas if isa.vectors)
    return replace(machine, isas=tuple(isa for isa in machine.isas if not isa.vectors), note=f"no {names}: {denied}")


def known(name: str) -> Machine:
    """The machine of x86.py of that name of LLVM's, with those instructions that it has.

    Raises:
      ValueError: there is none.
    """
    machine = kin.named(name)
    if machine is None:
        raise ValueError(f"there is no machine {name} (there are {', '.join(kin.NAMED)})")
    lacks = set(machine.lacks)
    return replace(machine, isas=tuple(kin.available(isa, lacks.isdisjoint) for isa in machine.isas))


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
    """How many threads are worth having in this process: see topology.py."""
    return topology().threads
