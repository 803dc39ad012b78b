"""How many threads compute products: of a process, and of the programs that a block of code makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from jax_nano.machine.host import thread_limit

ANY = 0  # threads: as many as there are
_of_programs = jax.make_user_context(default_value=ANY)  # part of the keys of JAX's caches


def set_threads(n: int | None) -> None:
    """Lets no more than n threads of this process compute products from now on, those of all devices taken together.

    It holds for programs that are compiled already, and for those that run. Results keep their bits. XLA's own
    operations go on using XLA's threads, as many as the process may run on.

    Args:
      n: threads; more than there are cores for count as that many. None: as at the beginning, what JAX_NANO_THREADS
        says, else as many as there are cores.

    Raises:
      ValueError: n is no whole number of at least 1.
    """
    thread_limit.apply(asked=ANY if n is None else checked(n))


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Has each product of the programs that are traced and compiled in the block computed by at most n threads.

    A program keeps that wherever it is called later on. Results keep their bits. Of blocks in blocks, the inner one
    holds.

    Args:
      n: threads, that which calls the kernel among them.

    Raises:
      ValueError: n is no whole number of at least 1.
    """
    with _of_programs(checked(n)):
        yield


def inner_limit(n: int) -> contextlib.AbstractContextManager[None]:
    """Has what is lowered in a block keep a limit that was found before; 0: none."""
    return _of_programs(n)


def checked(n: int) -> int:
    """A number of threads.

    Raises:
      ValueError: it is none.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"{n!r} is no number of threads: whole numbers from 1 on are")
    return int(n)


def program_limit() -> int:
    """The threads of each product that is lowered now; 0 where there is no limit."""
    return _of_programs.value
