"""A run in which every product that is lowered is measured: what `python -m jax_nano tune` asks for.

Imports nothing of JAX, so that a program that is tuned may still set what JAX reads when it is imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_nano.ir.attention import Problem
    from jax_nano.runtime.tuning import Tuned


@dataclass
class Session:
    """What is to be measured, and what has been.

    Attributes:
      only_new: leaves products alone that have a winner of an earlier run.
      tuned: what was measured, by product.
      known: products that were left alone.
    """

    only_new: bool = False
    tuned: dict[Problem, Tuned] = field(default_factory=dict)
    known: set[Problem] = field(default_factory=set)

    def wants(self, dot: Problem, *, has_winner: bool) -> bool:
        """Whether a product is to be measured now. Notes those that are left alone."""
        if self.only_new and has_winner and dot not in self.tuned:
            self.known.add(dot)
        return dot not in self.tuned and dot not in self.known


_current: Session | None = None


def current() -> Session | None:
    """The session of this process, if there is one."""
    return _current


@contextlib.contextmanager
def tuning_session(*, only_new: bool = False) -> Iterator[Session]:
    """Has the products measured, once each, whose kernels this process first wants inside the block, in any thread."""
    global _current  # noqa: PLW0603  as wide as the table of kernels
    before, _current = _current, Session(only_new=only_new)
    try:
        yield _current
    finally:
        _current = before
