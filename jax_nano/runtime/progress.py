"""Progress bars on standard error: drawn on a terminal; elsewhere a line for each piece of work, when it is done.

with progress(len(files), "reading") as bar:
    for file in files:
        bar.advance(file.name)
    bar.finish(f"{len(files)} files")
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

CELLS = 20  # of a bar


class Bar:
    """One piece of work: what it is, and how much of it is done."""

    def __init__(self, total: int, label: str, stream: TextIO | None):
        self.total = max(1, total)
        self.label = label
        self.done = 0
        self.text = ""
        self._stream = stream  # None shows nothing
        self._drawn = 0  # characters that stand in the terminal's line

    def advance(self, text: str = "", steps: int = 1) -> None:
        """Counts steps as done. The text says what goes on, and is what the line ends with if nothing else is said."""
        self.done = min(self.total, self.done + steps)
        self.text = text or self.text
        self.draw()

    def finish(self, text: str) -> None:
        """Says what came of it."""
        self.text = text

    def draw(self) -> None:
        """Shows the bar in a terminal's line."""
        if self._stream and self._stream.isatty():
            filled = CELLS * self.done // self.total
            self._write(f"[{'#' * filled}{'.' * (CELLS - filled)}] {self.described}")

    def clear(self) -> None:
        """Removes the bar."""
        if self._drawn:
            self._write("")

    def close(self) -> None:
        """Leaves a line in the place of the bar."""
        self.clear()
        if self._stream:
            self._stream.write(f"{self.described}\n")
            self._stream.flush()

    @property
    def described(self) -> str:
        """The label, with what is said of it."""
        return f"{self.label}: {self.text}" if self.text else self.label

    def _write(self, line: str) -> None:
        assert self._stream
        line = line[: shutil.get_terminal_size().columns - 1]
        self._stream.write(f"\r{line.ljust(self._drawn)}{'' if line else chr(13)}")
        self._stream.flush()
        self._drawn = len(line)


@contextlib.contextmanager
def progress(total: int, label: str) -> Iterator[Bar]:
    """Shows how a piece of work of `total` steps goes on; nothing where the label is empty.

    What the block raises passes on, and leaves no line.
    """
    bar = Bar(total, label, sys.stderr if label else None)
    bar.draw()
    try:
        yield bar
    except BaseException:
        bar.clear()
        raise
    bar.close()
