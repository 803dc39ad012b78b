"""Memory that stays: the system clears what it hands out, page by page, and large results are made of fresh pages."""

from __future__ import annotations

import warnings

from jax_nano import _native, config

MOST_BYTES = (1 << 31) - 1  # what mallopt(3) takes
OTHER_ARENAS_BYTES = 64 << 20  # larger blocks fit only in glibc's first arena


def retain_memory(limit_bytes: int | None = None) -> None:
    """Makes this process keep memory that was freed, for the next large result, in place of fresh pages.

    Call it before the first JAX computation. Threads that malloc then start share one heap; those that have one of
    their own by then keep it, and in such a heap results above 64 MiB stay fresh. Results larger than the limit always
    do.

    Does nothing, with a warning, where malloc is not glibc's (jemalloc, tcmalloc, musl). It replaces what MALLOC_*
    variables or mallopt(3) have set. `release_memory` undoes it. With JAX_NANO=0 in the environment it does nothing.

    Args:
      limit_bytes: how much free memory may stay at the end of the heap, at most 2 GiB - 1; all of it if None. Twice
        the results that are alive at once is plenty. Holes between blocks in use stay as well, as they always do.

    Raises:
      ValueError: the limit is not positive, or above 2 GiB - 1.
    """
    if limit_bytes is not None and not 0 < limit_bytes <= MOST_BYTES:
        raise ValueError(
            f"limit_bytes = {limit_bytes}: glibc takes from 1 byte to 2 GiB - 1; give None to keep all, "
            "or call release_memory() to keep nothing"
        )
    if not config.enabled():
        return
    if other := _native.foreign_allocator():
        warnings.warn(
            f"retain_memory does nothing: malloc is that of {other}, not glibc's; it has settings of its own",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    limit = -1 if limit_bytes is None else limit_bytes
    _native.retain_memory(limit)
    if (limit < 0 or limit > OTHER_ARENAS_BYTES) and (arenas := _native.arenas()) > 1:
        warnings.warn(
            f"retain_memory came late: threads have {arenas} heaps already, and results above 64 MiB stay in one only; "
            "call it before the first JAX computation, or start Python with MALLOC_ARENA_MAX=1",
            RuntimeWarning,
            stacklevel=2,
        )


def release_memory() -> None:
    """Undoes `retain_memory`: gives free memory back to the system, now and when more is freed.

    glibc's thresholds become those that they grow to by themselves (blocks above 32 MiB are fresh). Threads that share
    a heap go on doing so. Does nothing where malloc is not glibc's.
    """
    _native.release_memory()
