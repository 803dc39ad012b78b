"""Turns between processes: one makes what several want, and the others wait for it.

A turn is a lock of a file that Linux gives back when its holder ends, however it ends. Where locks cannot be had, as on
some network file systems, and where the holder takes too long, as one that was stopped, everyone goes on without.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

PATIENCE_SECONDS = 10  # a kernel is compiled in a tenth of that, on a busy machine
POLL_SECONDS = 0.005


@contextlib.contextmanager
def turn(folder: int, name: str) -> Iterator[bool]:
    """Holds a turn in the block; gives whether it had to be waited for.

    Args:
      folder: a descriptor of the directory that the lock's file is in, for as long as somebody holds it.
      name: of the file.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    file, waited = None, False
    while file is None and time.monotonic() < end:
        try:
            file = _take(folder, name)
        except OSError:
            break
        if file is None:
            waited = True
            time.sleep(POLL_SECONDS)
    try:
        yield waited
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
            os.close(file)


def _take(folder: int, name: str) -> int | None:
    """The locked file; None where somebody else holds it, or has just removed it.

    Raises:
      OSError: there are no locks here.
    """
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_ino == os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(file)
        raise
    os.close(file)
    return None
