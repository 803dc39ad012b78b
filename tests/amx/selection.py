"""How code with AMX instructions runs on a machine. Tests ask it as they are collected: what cannot run is left out."""

import functools
import os
from collections.abc import Iterable, Set
from typing import Literal

from jax_nano.machine import host
from jax_nano.machine.x86 import AMX

Way = Literal["native", "emulated"]
NEEDED = {instruction.name: {*AMX.features, *instruction.features} for instruction in AMX.dots}


def way(needed: Iterable[str], present: Set[str]) -> Way | None:
    """How code runs that needs some features, on a processor where some are present.

    A processor without AMX raises SIGILL at each of its instructions, and the emulator executes them all. One with AMX
    raises it only at those that it lacks, whose tiles are in registers, where the emulator cannot reach them.

    Args:
      needed: LLVM's names, such as "amx-fp16"; others than those of AMX do not count.
      present: likewise.

    Returns:
      None where the code cannot run.
    """
    if "amx-tile" not in present:
        return "emulated"
    return "native" if {feature for feature in needed if feature.startswith("amx")} <= present else None


@functools.cache
def present_here() -> frozenset[str]:
    """The features of AMX that this processor has.

    By CPUID, since Linux does not list amx_fp16. $TESTS_AMX_FEATURES stands for them, separated by commas: what it says
    can be collected on another machine, but not run.
    """
    if "TESTS_AMX_FEATURES" in os.environ:
        return frozenset(os.environ["TESTS_AMX_FEATURES"].split(","))
    features = {feature for needed in NEEDED.values() for feature in needed if feature.startswith("amx")}
    return frozenset(feature for feature in features if host.has((feature,)))


def runs_here(instruction: str) -> bool:
    """A tile product, such as "tdpbf16ps", can run on the machine at hand."""
    return way(NEEDED[instruction], present_here()) is not None


def those_that_run(instructions: Iterable[str]) -> list[str]:
    """The tile products among some that can run on the machine at hand."""
    return [name for name in instructions if runs_here(name)]
