"""The command line's view of the kernels on disk: `python -m jax_nano cache`."""

from __future__ import annotations

import argparse
import contextlib
import os
import time

from jax_nano.runtime import cache


def summary() -> str:
    """Whether the cache is in use, what it holds and where."""
    if reason := cache.why_off():
        return f"off: {reason}"
    try:
        with cache.open_directory() as folder:
            found = cache.entries(folder)
    except FileNotFoundError:
        found = []
    except (cache.Unusable, OSError) as reason:
        return f"not in use: {reason}"
    return f"{count_and_size(found)} of {cache.limit_bytes() >> 20} MiB at most, in {cache.directory()}"


def count_and_size(found: list[cache.Entry]) -> str:
    """As in `3 kernels, 25 KiB`, or `3 kernels, 1 winner of tuning, 25 KiB`."""
    winners = sum(entry.is_winner for entry in found)
    texts = [count(len(found) - winners, "kernel"), f"{sum(entry.bytes for entry in found) >> 10} KiB"]
    if winners:
        texts.insert(1, f"{count(winners, 'winner')} of tuning")
    return ", ".join(texts)


def count(number: int, thing: str) -> str:
    """As in `3 kernels`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `python -m jax_nano cache`."""
    parser = commands.add_parser("cache", help="the kernels kept on disk, and the winners of tuning")
    parser.add_argument("--list", action="store_true", help="name them, the last used first")
    parser.add_argument("--clear", action="store_true", help="remove them")


def command(options: argparse.Namespace) -> str:
    """What `python -m jax_nano cache` prints.

    Raises:
      ValueError: the cache must not be used, or cannot be.
    """
    if not options.list and not options.clear:
        return summary()
    try:
        with cache.open_directory() as folder:
            found = cache.entries(folder)
            for entry in found if options.clear else ():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=folder)
    except FileNotFoundError:
        found = []
    except (cache.Unusable, OSError) as reason:
        raise ValueError(str(reason)) from reason
    if options.clear:
        return f"removed {count_and_size(found)}"
    return "\n".join(f"{time.strftime('%F %T', time.localtime(e.used))} {e.bytes:9,}  {e.name}" for e in found)
