"""AMX instructions as functions, for the calling thread."""

import ctypes
import functools

import numpy as np

from .build import assemble

SOURCE = """
    .macro function name, instruction:vararg
    .globl \\name
    \\name:
        \\instruction
        ret
    .endm

    function ldtilecfg, ldtilecfg (%rdi)
    function sttilecfg, sttilecfg (%rdi)
    function tilerelease, tilerelease
    .irp tile, 0, 1, 2, 3, 4, 5, 6, 7
    function tilezero\\tile, tilezero %tmm\\tile
    function tileloadd\\tile, tileloadd (%rdi,%rsi), %tmm\\tile
    function tileloaddt1_\\tile, tileloaddt1 (%rdi,%rsi), %tmm\\tile
    function tilestored\\tile, tilestored %tmm\\tile, (%rdi,%rsi)
    .endr
"""


@functools.cache
def library() -> ctypes.CDLL:
    """One function for each instruction and tile."""
    return assemble(SOURCE)


def ldtilecfg(config: bytes) -> None:
    """Configures the tiles."""
    library().ldtilecfg(config)


def sttilecfg() -> bytes:
    """The tiles' configuration."""
    memory = ctypes.create_string_buffer(b"\xee" * 64, 64)
    library().sttilecfg(memory)
    return memory.raw


def tilerelease() -> None:
    """Gives the tiles up."""
    library().tilerelease()


def tilezero(tile: int) -> None:
    """Clears a tile."""
    library()[f"tilezero{tile}"]()


def tileloadd(tile: int, rows: np.ndarray) -> None:
    """Loads a tile from the start of an array, with the stride of its first axis."""
    library()[f"tileloadd{tile}"](rows.ctypes, ctypes.c_ssize_t(rows.strides[0]))


def tileloaddt1(tile: int, rows: np.ndarray) -> None:
    """Likewise, with the hint that the rows are not needed again soon."""
    library()[f"tileloaddt1_{tile}"](rows.ctypes, ctypes.c_ssize_t(rows.strides[0]))


def tilestored(tile: int, rows: np.ndarray) -> np.ndarray:
    """Stores a tile to the start of an array, which is returned."""
    library()[f"tilestored{tile}"](rows.ctypes, ctypes.c_ssize_t(rows.strides[0]))
    return rows
