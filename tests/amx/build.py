"""Shared libraries for tests, compiled once per content."""

import ctypes
import functools
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).parents[2] / "build" / "tests"


def shared_library(command: Sequence[str], text: str = "", sources: Sequence[Path] = ()) -> Path:
    """Compiles sources, or `text` on the standard input, to a shared library.

    Args:
      command: options of the C++ compiler, which is $CXX or c++.
      text: what a "-" in the command stands for.
      sources: files that the result depends on; those that end in .cc are compiled.
    """
    arguments = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", *command]
    arguments += [str(source) for source in sources if source.suffix == ".cc"]
    # Code for the processor at hand must not outlive it in a cache.
    content = [*arguments, text, *(source.read_text() for source in sources), *sorted(processor_flags())]
    library = CACHE / f"{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*arguments, "-o", unfinished], input=text, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}\n{done.stderr}")
        unfinished.replace(library)
    return library


def assemble(text: str) -> ctypes.CDLL:
    """Loads functions written in assembly."""
    text += '\n.section .note.GNU-stack,"",@progbits\n'
    return ctypes.CDLL(str(shared_library(["-nostdlib", "-x", "assembler", "-"], text)))


@functools.cache
def processor_flags() -> frozenset[str]:
    """The processor's features by Linux's names, such as "amx_tile"."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":")[1].split())
    return frozenset()
