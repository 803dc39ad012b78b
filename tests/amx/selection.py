"""How code with AMX instructions runs on a machine. Decided at collection: no test is collected that cannot run there."""

from collections.abc import Iterable
from typing import Literal

from jax_nano.machine.x86 import AMX

from .build import processor_flags

Way = Literal["native", "emulated"]


def way(features: Iterable[str], flags: frozenset[str]) -> Way | None:
    """How code runs that needs some features of a processor.

    A processor without AMX raises SIGILL at each of its instructions, and the emulator executes them all. One with AMX
    raises it only at those that it lacks, whose tiles are in registers, where the emulator does not have them.

    Args:
      features: LLVM's names, such as "amx-fp16"; others than those of AMX do not count.
      flags: what Linux lists of the processor in /proc/cpuinfo, such as "amx_fp16".

    Returns:
      None where the code cannot run.
    """
    if "amx_tile" not in flags:
        return "emulated"
    needed = {feature.replace("-", "_") for feature in features if feature.startswith("amx")}
    return "native" if needed <= flags else None


def runs_here(features: Iterable[str]) -> bool:
    """Code that needs these features can run on the machine at hand."""
    return way(features, processor_flags()) is not None


def those_that_run(names: Iterable[str]) -> list[str]:
    """Of tile products by name, such as "tdpbf16ps", those that can run on the machine at hand."""
    features = {instruction.name: instruction.features for instruction in AMX.dots}
    return [name for name in names if runs_here(features[name])]
