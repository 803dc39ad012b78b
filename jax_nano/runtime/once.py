"""Values that are made once in a process, by whichever thread asks first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Once(Generic[K, V]):
    """A table whose values are made on demand. Threads that want one that is being made wait for it.

    Values for different keys are made beside each other. What raises is made again when it is next asked for. A forked
    process makes for itself what threads, which it does not have, were about to make.
    """

    def __init__(self):
        self._values: dict[K, V] = {}
        self._locks: dict[K, threading.Lock] = {}
        os.register_at_fork(after_in_child=self._locks.clear)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, else what `make` returns, which is kept."""
        if (value := self._values.get(key)) is not None:
            return value
        with self._locks.setdefault(key, threading.Lock()):
            try:
                if (value := self._values.get(key)) is None:
                    value = self._values[key] = make()
                return value
            finally:
                self._locks.pop(key, None)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def pop(self, key: K) -> None:
        """Forgets a value."""
        self._values.pop(key, None)

    def clear(self) -> None:
        """Forgets all values."""
        self._values.clear()
