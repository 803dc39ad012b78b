"""The logger `jax_nano`: at DEBUG what becomes of each product, at ERROR what should be reported.

logging.basicConfig()
logging.getLogger("jax_nano").setLevel(logging.DEBUG)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger("jax_nano")
logger.addHandler(logging.NullHandler())


@dataclass
class Stopwatch:
    """How long a block of code took."""

    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{1e3 * self.seconds:.1f} ms"


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Times a block of code."""
    watch, start = Stopwatch(), time.perf_counter()
    try:
        yield watch
    finally:
        watch.seconds = time.perf_counter() - start
