"""How many threads are worth having tasks for, and which caches they see: read from Linux's /proc and /sys.

Hyperthreads share the units of their core, so that matrix products gain nothing by the second one of a core: there is
one thread a core. Intel's library counts in the same way. What a hypervisor says of cores need not be so: there, every
processor counts, as a second thread on a core costs a few per cent, and a core without one half of the speed.

Source: Intel oneAPI Math Kernel Library, Developer Guide: Techniques to Set the Number of Threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jax_nano.machine import control_groups
from jax_nano.machine.isa import Cache

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
MOST = 1 << 16  # processors that Linux may have, and more
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The processors that a process may run on, in Linux's numbers, and what they share."""

    cores: tuple[frozenset[int], ...]  # hyperthreads of each core, fast cores first
    slow_cores: int = 0  # of these, efficiency cores beside faster ones
    quota: float = math.inf  # processors' worth of time that control groups grant
    caches: tuple[Cache, ...] = ()  # data caches of a fast core; empty where Linux says nothing that makes sense
    llcs: int = 1  # last-level caches of these cores
    limit: float = math.inf  # threads that the environment allows

    @property
    def processors(self) -> int:
        """Hardware threads, by affinity alone."""
        return sum(map(len, self.cores))

    @property
    def threads(self) -> int:
        """Threads worth having: one a core, no more than the quota keeps running, and than the environment allows.

        A quota of 1.5 processors is worth two threads: time that one leaves unused is lost, while of two each rests for
        a quarter of the time.
        """
        return max(1, math.ceil(min(self.quota, self.limit, len(self.cores))))

    @property
    def slow_threads(self) -> int:
        """Of these, those on efficiency cores: Linux fills the faster ones first."""
        return max(0, self.threads - (len(self.cores) - self.slow_cores))

    def __str__(self) -> str:
        """Why there are not as many threads as processors, all alike; empty where there are."""
        cores = len(self.cores)
        said = {
            f"{self.processors} hyperthreads on {cores} cores": self.processors > cores,
            f"{self.slow_cores} of {cores} cores are slower": self.slow_cores > 0,
            f"a quota of {self.quota:g} processors": self.quota < cores,
            f"JAX_NANO_THREADS={self.limit:g}": self.limit < cores,
            f"{self.llcs} last-level caches": self.llcs > 1,
        }
        return ", ".join(text for text, holds in said.items() if holds)


def read(root: Path = ROOT, affinity: Iterable[int] | None = None) -> Topology:
    """The topology that this process sees. What Linux does not tell is taken to be one thread a core, all alike.

    Args:
      root: what /proc and /sys are in.
      affinity: the processors that the process may run on; by default, as Linux has it.
    """
    allowed = sorted(os.sched_getaffinity(0) if affinity is None else affinity)
    slow = slow_processors(root, allowed)
    cores = tuple(sorted(cores_among(root, allowed), key=lambda core: (bool(core & slow), min(core))))
    fast = [min(core) for core in cores if not core & slow] or [min(core) for core in cores]
    llcs = last_level_caches(root, fast)
    smallest = min(llcs, key=lambda cpu: last_level_bytes(root, cpu))
    return Topology(
        cores=cores,
        slow_cores=len(cores) - len(fast),
        quota=control_groups.quota(root),
        caches=caches_of(root, smallest),
        llcs=len(llcs),
    )


def is_guest(root: Path) -> bool:
    """Whether a hypervisor runs below Linux."""
    try:
        with (root / "proc/cpuinfo").open() as lines:
            return next((" hypervisor" in line for line in lines if line.startswith("flags")), False)
    except (OSError, UnicodeError):
        return False


def slow_processors(root: Path, allowed: Iterable[int]) -> frozenset[int]:
    """Efficiency cores among processors, where some of them are performance cores."""
    fast, slow = (numbers(root / "sys/devices" / kind / "cpus") for kind in ("cpu_core", "cpu_atom"))
    return slow & frozenset(allowed) if fast & frozenset(allowed) else frozenset()


def cores_among(root: Path, cpus: Iterable[int]) -> list[frozenset[int]]:
    """The cores of some processors, as far as Linux can know them."""
    return [frozenset({cpu}) for cpu in cpus] if is_guest(root) else cores_of(root, cpus)


def cores_of(root: Path, allowed: Iterable[int]) -> list[frozenset[int]]:
    """The cores of some processors, each with those of its hyperthreads that are among them."""
    left, cores = dict.fromkeys(allowed), []
    while left:
        cpu = next(iter(left))
        topology = root / CPUS / f"cpu{cpu}" / "topology"
        siblings = numbers(topology / "core_cpus_list") or numbers(topology / "thread_siblings_list")
        cores.append(frozenset(siblings & left.keys() | {cpu}))
        for sibling in cores[-1]:
            del left[sibling]
    return cores


def last_level_caches(root: Path, cpus: Iterable[int]) -> list[int]:
    """One processor beside each last-level cache of some processors."""
    seen, found = set(), []
    for cpu in cpus:
        if cpu not in seen:
            found.append(cpu)
            seen |= numbers(last_level(root, cpu) / "shared_cpu_list") | {cpu}
    return found if len(found) < len(seen) else found[:1]


def last_level(root: Path, cpu: int) -> Path:
    """The directory of a processor's last cache, which Linux has in order."""
    return max(cache_directories(root, cpu), default=root / CPUS / f"cpu{cpu}" / "cache")


def last_level_bytes(root: Path, cpu: int) -> int:
    """The size of a processor's last cache; 0 where Linux does not say."""
    try:
        return in_bytes((last_level(root, cpu) / "size").read_text())
    except (OSError, ValueError, KeyError):
        return 0


def caches_of(root: Path, cpu: int) -> tuple[Cache, ...]:
    """The data caches that a core has to itself, and the last one, innermost first; empty if unclear."""
    try:
        found = [cache for index in cache_directories(root, cpu) if (cache := data_cache(root, index))]
    except (OSError, ValueError, KeyError):
        return ()
    caches = tuple(sorted(found, key=lambda cache: cache.level))
    return caches if caches and caches[0].level == 1 else ()  # without L1, L2 would be taken for it


def cache_directories(root: Path, cpu: int) -> list[Path]:
    """A directory for each cache of a processor."""
    return sorted((root / CPUS / f"cpu{cpu}" / "cache").glob("index*"))


def data_cache(root: Path, index: Path) -> Cache | None:
    """One cache, by a directory of Linux's; None if that holds instructions, or its ways are not known.

    What several cores share below L3 is a core's share of it: it has as many ways less. All cores count, and not those
    that a process may run on: blocks, and with them the order of additions, are the same on one core and on all.

    Raises:
      OSError, ValueError, KeyError: Linux says something else.
    """
    kind, level, size, ways, line, shared = (
        (index / name).read_text().strip()
        for name in ("type", "level", "size", "ways_of_associativity", "coherency_line_size", "shared_cpu_list")
    )
    if kind == "Instruction" or not int(ways):
        return None
    several, outer = "," in shared or "-" in shared, int(level) > 2
    sharing = 1 if outer or not several else len(cores_among(root, sorted(in_list(shared))))
    kept = max(1, int(ways) // sharing)
    return Cache(
        level=int(level),
        bytes=in_bytes(size) * kept // int(ways),
        ways=kept,
        line_bytes=int(line),
        shared=several and outer,
    )


def in_bytes(size: str) -> int:
    """A size as Linux writes it: 32K.

    Raises:
      ValueError, KeyError: it is none.
    """
    size = size.strip()
    return int(size[:-1]) * UNITS[size[-1]]


def numbers(file: Path) -> frozenset[int]:
    """The processors that a file of Linux's lists; none where there is no such list."""
    try:
        return in_list(file.read_text())
    except (OSError, ValueError):
        return frozenset()


def in_list(text: str) -> frozenset[int]:
    """The numbers of a list such as 0-3,8.

    Raises:
      ValueError: it is none.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), min(int(last or first), MOST) + 1))
    return frozenset(found)
