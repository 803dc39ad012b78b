"""How many threads of this process compute at most: the native module counts them, this says how many they may be."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable

from jax_nano import config
from jax_nano.machine import control_groups
from jax_nano.machine.topology import ROOT


class ThreadLimit:
    """The least of three numbers: of cores, of what was asked for, and of what the environment says."""

    def __init__(self, limit_threads: Callable[[int], None]):
        """Limits threads by the native module's function, which machines elsewhere do without."""
        self._limit_threads = limit_threads
        self._lock = threading.Lock()
        self._asked = 0
        self._cores = 0

    def apply(self, *, asked: int | None = None, cores: int = 0) -> None:
        """Limits the threads of all kernels from now on.

        Args:
          asked: how many the program asks for, instead of what it asked for before and of JAX_NANO_THREADS; 0: as the
            environment says.
          cores: how many there are cores for, where that is known; before that, all processors count.
        """
        with self._lock:
            self._asked = self._asked if asked is None else asked
            self._cores = cores or self._cores or processors()
            wanted = self._asked or config.number("JAX_NANO_THREADS") or self._cores
            self._limit_threads(min(wanted, self._cores))


def processors() -> int:
    """How many processors this process may use, hyperthreads among them: a first answer, found in no time."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, control_groups.quota(ROOT))))
