"""Every way to name memory, and which bytes of it are touched."""

import ctypes
import functools
import itertools
import mmap
import os
import random
from dataclasses import dataclass

import numpy as np
import pytest

from .build import assemble
from .config import tile_config
from .instructions import ldtilecfg, library, sttilecfg, tileloadd, tilerelease, tilestored

# By their encoding.
REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
SAVED = "rbx rbp r12 r13 r14 r15".split()

# void invoke(registers, step): jumps to an instruction, which jumps to `done`, with these registers, rsp included.
INVOKE = f"""
.globl invoke
invoke:
    {"; ".join(f"push %{register}" for register in SAVED)}
    mov %rsp, stack(%rip)
    mov %rsi, step(%rip)
    {"; ".join(f"mov {8 * i}(%rdi), %{register}" for i, register in enumerate(REGISTERS) if register != "rdi")}
    mov {8 * REGISTERS.index("rdi")}(%rdi), %rdi
    jmp *step(%rip)
done:
    mov stack(%rip), %rsp
    {"; ".join(f"pop %{register}" for register in reversed(SAVED))}
    ret
.local stack, step
.comm stack, 8
.comm step, 8
"""

ROW_BYTES, STRIDE = 20, 72
# Tile 1 serves where one register is both base and stride: the stride is too large for a second row.
ROWS = {0: 5, 1: 1}
CONFIG = tile_config({tile: (rows, ROW_BYTES) for tile, rows in ROWS.items()})

# Memory that a 32-bit displacement alone can name. It begins with a stack, for the forms whose base is rsp.
ARENA, ARENA_BYTES = 0x70000000, 1 << 19
STACK = ARENA + (1 << 18)
TARGET = STACK + 8192
FAR = 0x12345  # a displacement of 32 bits
NOISE = random.Random(8)  # for registers that do not matter


@dataclass(frozen=True)
class Form:
    """A memory operand: base + index * scale + displacement."""

    base: str | None
    index: str | None
    scale: int
    displacement: int

    def __str__(self):
        base = f"%{self.base}" if self.base else ""
        index = f",%{self.index},{self.scale}" if self.index else ""
        return f"{self.displacement}({base}{index})" if base or index else f"{self.displacement}"

    @property
    def tile(self) -> int:
        return int(self.base is not None and self.base == self.index)

    def registers(self, *, indexed: bool) -> tuple[dict[str, int], int]:
        """Registers that make this name memory at TARGET or a little above it, and where exactly.

        Args:
          indexed: whether the index is part of the address, rather than a stride.
        """
        values = {register: NOISE.getrandbits(64) for register in REGISTERS} | {"rsp": STACK}
        if self.base and self.tile == 1:
            weight = 1 + indexed * self.scale
            values[self.base] = -((self.displacement - TARGET) // weight)
            return values, values[self.base] * weight + self.displacement
        if self.base:
            values[self.base] = TARGET - self.displacement
        if self.index:
            values[self.index] = STRIDE // self.scale
        return values, TARGET + (STRIDE if indexed and self.index else 0)


INDICES = [(None, 1), *itertools.product([register for register in REGISTERS if register != "rsp"], [1, 2, 4, 8])]
FORMS = [
    *(
        Form(base, index, scale, offset)
        for base, (index, scale), offset in itertools.product(REGISTERS, INDICES, [0, -64, FAR])
    ),
    *(Form(None, index, scale, TARGET) for index, scale in INDICES),
]


@pytest.fixture(scope="module")
def arena():
    """ARENA_BYTES of memory at ARENA."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fixed_noreplace = 0x100000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace
    address = libc.mmap(ctypes.c_void_p(ARENA), ARENA_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert address == ARENA, f"no memory at {ARENA:#x}: {os.strerror(ctypes.get_errno())}"
    yield np.ctypeslib.as_array((ctypes.c_uint8 * ARENA_BYTES).from_address(ARENA))
    libc.munmap(ctypes.c_void_p(ARENA), ARENA_BYTES)


@pytest.fixture
def steps(amx, arena, instruction):
    """INVOKE, and `instruction` in each form, 32 bytes apart, from `steps` on."""
    arena[:] = np.random.default_rng(5).integers(0, 256, ARENA_BYTES, np.uint8)
    steps = "".join(f".balign 32\n{instruction.format(form=form, tile=form.tile)}\njmp done\n" for form in FORMS)
    library = assemble(f"{INVOKE}\n.balign 32\n.globl steps\nsteps:\n{steps}")
    ldtilecfg(CONFIG)
    yield library
    tilerelease()


def invoke_each(library, *, indexed=False):
    """Before each form's turn: the form, where it names memory, and a function that runs it."""
    first = ctypes.cast(library.steps, ctypes.c_void_p).value or 0
    for i, form in enumerate(FORMS):
        values, start = form.registers(indexed=indexed)
        registers = (ctypes.c_uint64 * 16)(*(values[register] for register in REGISTERS))
        yield form, start - ARENA, functools.partial(library.invoke, registers, ctypes.c_void_p(first + 32 * i))


def rows_at(memory, start, form):
    """The rows of the form's tile, by their positions in the arena."""
    stride = STRIDE if form.index else 0
    return [memory[at : at + ROW_BYTES] for at in (start + row * stride for row in range(ROWS[form.tile]))]


@pytest.mark.parametrize("instruction", ["tileloadd {form}, %tmm{tile}", "tileloaddt1 {form}, %tmm{tile}"])
def test_rows_are_loaded_by_every_form(arena, steps):
    for form, start, invoke in invoke_each(steps):
        expected = np.array(rows_at(arena, start, form))
        invoke()
        loaded = tilestored(form.tile, np.empty_like(expected))
        np.testing.assert_array_equal(loaded, expected, err_msg=str(form))


@pytest.mark.parametrize("instruction", ["tilestored %tmm{tile}, {form}"])
def test_rows_are_stored_by_every_form(arena, steps):
    for form, start, invoke in invoke_each(steps):
        rows = np.random.default_rng(start).integers(0, 256, (ROWS[form.tile], ROW_BYTES), np.uint8)
        tileloadd(form.tile, rows)
        invoke()
        expected = rows if form.index else rows[-1:].repeat(len(rows), axis=0)
        np.testing.assert_array_equal(rows_at(arena, start, form), expected, err_msg=str(form))


@pytest.mark.parametrize("instruction", ["ldtilecfg {form}"])
def test_a_configuration_is_loaded_by_every_form(arena, steps):
    for i, (form, start, invoke) in enumerate(invoke_each(steps, indexed=True)):
        config = tile_config({i % 8: (1 + i % 16, 4)})
        arena[start : start + 64] = np.frombuffer(config, np.uint8)
        invoke()
        assert sttilecfg() == config, form


@pytest.mark.parametrize("instruction", ["sttilecfg {form}"])
def test_a_configuration_is_stored_by_every_form(arena, steps):
    for form, start, invoke in invoke_each(steps, indexed=True):
        arena[start : start + 64] = 0xEE
        invoke()
        assert arena[start : start + 64].tobytes() == CONFIG, form


# Relative to the end of the instruction.
RELATIVE = """
.globl copy_config, source, destination
copy_config:
    ldtilecfg 0f(%rip)
    sttilecfg 1f(%rip)
    tilerelease
    ret
.data
source: 0: .fill 64
destination: 1: .fill 64
"""


def test_a_configuration_is_found_relative_to_the_code(amx):
    library = assemble(RELATIVE)
    source, destination = ((ctypes.c_char * 64).in_dll(library, name) for name in ("source", "destination"))
    source.raw = CONFIG
    library.copy_config()
    assert destination.raw == CONFIG


@pytest.fixture
def page():
    """A page of memory with none before and after it."""
    size = mmap.PAGESIZE
    page = np.frombuffer(mmap.mmap(-1, 3 * size), np.uint8)[size : 2 * size]
    for guard in (page.ctypes.data - size, page.ctypes.data + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), size, 0) == 0
    return page


def test_nothing_beside_the_operand_is_touched(amx, page):
    # A fault here ends the process.
    for rows, row_bytes, gap in itertools.product(range(1, 17), range(4, 65, 4), [0, 4, 100]):
        ldtilecfg(tile_config({0: (rows, row_bytes)}))
        stride = row_bytes + gap
        extent = (rows - 1) * stride + row_bytes
        for start in (0, len(page) - extent):
            operand = np.lib.stride_tricks.as_strided(page[start:], (rows, row_bytes), (stride, 1))
            tileloadd(0, operand)
            tilestored(0, operand)
    for memory in (page[:64], page[-64:]):
        library().sttilecfg(memory.ctypes)
        library().ldtilecfg(memory.ctypes)
    tilerelease()


def test_code_may_end_where_memory_ends(amx):
    size = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code = bytes.fromhex("C4E27849C0 C3")  # tilerelease; ret
    pages[size - len(code) : size] = code
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), size, 0) == 0
    ctypes.CFUNCTYPE(None)(start + size - len(code))()
