"""Lets object code for AMX run in this process, whatever the processor.

Where the processor has AMX, Linux is asked for tile data. Elsewhere its instructions raise SIGILL, and a handler in
csrc/ executes them in software, on any thread. What else such code needs (AVX-512) must be there.
"""

import ctypes
import functools
from pathlib import Path

from .build import processor_flags, shared_library

_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def install() -> str:
    """Prepares this process. May be called again, to the same effect.

    Returns:
      "native" or "emulated".

    Raises:
      OSError: Linux denies tile data, or SIGILL.
    """
    if "amx_tile" in processor_flags():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) != 0:
            raise OSError(ctypes.get_errno(), "Linux denies tile data to this process")
        return "native"
    if library().amx_emulator_install() != 0:
        raise OSError(ctypes.get_errno(), "SIGILL cannot be handled")
    return "emulated"


def executed() -> dict[str, int]:
    """How often each instruction was emulated since the process began, by all threads."""
    counts = {}
    while name := library().amx_emulator_mnemonic(len(counts)):
        counts[name.decode()] = library().amx_emulator_executed(len(counts))
    return counts


def traps() -> int:
    """How many traps that took: instructions in a row share one."""
    return library().amx_emulator_traps()


@functools.cache
def library() -> ctypes.CDLL:
    """The emulator, compiled where it is not yet."""
    options = ["-std=c++20", "-O2", "-march=native", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]
    # No operation is fused that is not written so; all functions are bound at once, since a handler cannot wait for it.
    options += ["-ffp-contract=off", "-Wl,-z,now"]
    sources = sorted((Path(__file__).parent / "csrc").iterdir())
    loaded = ctypes.CDLL(str(shared_library(options, sources=sources)), use_errno=True)
    loaded.amx_emulator_mnemonic.restype = ctypes.c_char_p
    loaded.amx_emulator_executed.restype = ctypes.c_uint64
    loaded.amx_emulator_traps.restype = ctypes.c_uint64
    return loaded
