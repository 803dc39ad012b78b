"""Progress of what takes seconds: a bar on a terminal, elsewhere a line a step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

CELLS = 24  # of a bar


class Bar:
    """Counts steps, on standard error."""

    def __init__(self, total: int, label: str, stream: TextIO):
        self._total, self._label, self._stream = total, label, stream
        self._done = 0

    def advance(self, text: str = "") -> None:
        """One more step is done, which `text` names."""
        self._done += 1
        if not self._stream.isatty():
            self._write(f"{self._label} {self._done}/{self._total} {text}".rstrip() + "\n")
            return
        filled = CELLS * min(self._done, self._total) // max(1, self._total)
        bar = "#" * filled + "." * (CELLS - filled)
        self._write(f"\r{self._label} [{bar}] {self._done}/{self._total} {text}".rstrip() + "\033[K")

    def close(self) -> None:
        """Leaves the bar where it is."""
        if self._stream.isatty() and self._done:
            self._write("\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # no one reads it
            self._stream.write(text)
            self._stream.flush()


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Bar]:
    """Shows how far work of `total` steps has come."""
    bar = Bar(total, label, sys.stderr)
    try:
        yield bar
    finally:
        bar.close()
