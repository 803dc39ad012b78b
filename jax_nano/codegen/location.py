"""Names of loops and phases, which MLIR's error messages print.

    with section("pack B"):
        ...                      operations made here carry loc("pack B"("k blocks"("nano_f32_m64n64k64")))

Names nest like calls in a stack trace, the innermost one first. They do not change the object code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

from jax.extend.mlir import ir


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Names the operations made inside, within the sections that are open already."""
    with ir.Location.name(name, childLoc=cast("ir.Location", ir.Location.current)):
        yield
