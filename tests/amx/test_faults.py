"""What the architecture forbids ends the process, by the signal that Linux sends then."""

import signal

import pytest

from . import child
from .build import assemble
from .config import tile_config
from .selection import those_that_run

FULL = tile_config(dict.fromkeys(range(8), (16, 64)))
NOTHING = bytes(64)


def assert_kills(amx, config, instruction, number, reason):
    """A process dies that loads `config` and executes `instruction`."""
    library = assemble(f".globl run\nrun: ldtilecfg (%rdi)\n{instruction}\nret")
    process = child.run(library, "run", config)
    assert process.returncode == -number, process.stderr
    if amx == "emulated":
        assert process.stderr == f"AMX emulator: {reason}\n"


def label(value):
    return "config" if isinstance(value, bytes) else None


def full_but(position, value):
    return FULL[:position] + bytes([value]) + FULL[position + 1 :]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (full_but(0, 2), "palettes are 0 and 1"),
        *((full_but(at, 1), "a reserved byte of the configuration is not 0") for at in (2, 15, 32, 47, 56, 63)),
        (tile_config({0: (16, 65)}), "a tile has at most 64 bytes a row"),
        (tile_config({7: (16, 256)}), "a tile has at most 64 bytes a row"),
        (tile_config({0: (17, 64)}), "a tile has at most 16 rows"),
        (tile_config({7: (1, 0)}), "a tile has rows and bytes, or neither"),
        (tile_config({7: (0, 4)}), "a tile has rows and bytes, or neither"),
    ],
    ids=label,
)
def test_a_malformed_configuration_is_a_protection_fault(amx, config, reason):
    assert_kills(amx, config, "", signal.SIGSEGV, f"ldtilecfg: {reason}")


# c is 2 x 5, a is 2 x 3, b is 3 x 5, in elements.
C, A, B = (2, 20), (2, 12), (3, 20)
UNCONFIGURED = "a tile is not configured"
FRACTION = "a row is not a multiple of 4 bytes"
BEYOND = "start_row is beyond the tile"


@pytest.mark.parametrize(
    ("config", "instruction", "reason"),
    [
        (NOTHING, "tileloadd (%rdi), %tmm0", UNCONFIGURED),
        (NOTHING, "tileloaddt1 (%rdi), %tmm0", UNCONFIGURED),
        (NOTHING, "tilestored %tmm0, (%rdi)", UNCONFIGURED),
        (NOTHING, "tilezero %tmm0", UNCONFIGURED),
        (NOTHING, "tdpbf16ps %tmm2, %tmm1, %tmm0", UNCONFIGURED),
        (tile_config({0: C, 1: A, 2: B}), "tileloadd (%rdi), %tmm3", UNCONFIGURED),
        (tile_config({0: C, 1: A, 2: B}), "tdpbssd %tmm3, %tmm1, %tmm0", UNCONFIGURED),
        (tile_config({0: C, 1: A, 2: B}), "tdpbssd %tmm2, %tmm3, %tmm0", UNCONFIGURED),
        (tile_config({0: C, 1: A, 2: B}), "tdpbssd %tmm2, %tmm1, %tmm3", UNCONFIGURED),
        (tile_config({0: (2, 6)}), "tileloadd (%rdi), %tmm0", FRACTION),
        (tile_config({0: (2, 6)}), "tilestored %tmm0, (%rdi)", FRACTION),
        (tile_config({0: (2, 18), 1: A, 2: (3, 18)}), "tdpbusd %tmm2, %tmm1, %tmm0", FRACTION),
        (tile_config({0: C, 1: (2, 11), 2: B}), "tdpbusd %tmm2, %tmm1, %tmm0", FRACTION),
        (tile_config({0: C}, start_row=2), "tileloadd (%rdi), %tmm0", BEYOND),
        (tile_config({0: C}, start_row=3), "tilestored %tmm0, (%rdi)", BEYOND),
        (
            tile_config({0: (3, 20), 1: A, 2: B}),
            "tdpbsud %tmm2, %tmm1, %tmm0",
            "the accumulator and the first source differ in rows",
        ),
        (
            tile_config({0: (2, 16), 1: A, 2: B}),
            "tdpbf16ps %tmm2, %tmm1, %tmm0",
            "the accumulator and the second source differ in columns",
        ),
        (tile_config({0: C, 1: A, 2: (4, 20)}), "tdpbf16ps %tmm2, %tmm1, %tmm0", "the two sources differ in depth"),
        *(
            (tile_config({0: C, 1: (2, 8), 2: B}), f"{name} %tmm2, %tmm1, %tmm0", "the two sources differ in depth")
            for name in those_that_run(["tdpfp16ps"])
        ),
    ],
    ids=label,
)
def test_tiles_that_do_not_fit_are_an_undefined_instruction(amx, config, instruction, reason):
    assert_kills(amx, config, instruction, signal.SIGILL, f"{instruction.split()[0]}: {reason}")


def vex(opcode, prefix, modrm, *, r=0, b=0, w=0, vvvv=0, vector_length=0):
    """An instruction's bytes, behind a VEX prefix whose inverted fields are given as they are meant."""
    second = (r ^ 1) << 7 | 1 << 6 | (b ^ 1) << 5 | 2
    third = w << 7 | (vvvv ^ 15) << 3 | vector_length << 2 | prefix
    return f".byte 0xC4, {second:#x}, {third:#x}, {opcode:#x}, {modrm:#x}"


NONE, P66, PF3, PF2 = range(4)


@pytest.mark.parametrize(("a", "b"), [(0, 2), (1, 0), (1, 1)])
def test_the_tiles_of_a_product_must_differ(amx, a, b):
    tdpbuud = vex(0x5E, NONE, 0xC0 | a, vvvv=b)
    assert_kills(amx, FULL, tdpbuud, signal.SIGILL, "tdpbuud: the three tiles of a product must differ")


EIGHT = "there are 8 tiles"
WIDTH = "VEX.W and VEX.L must be 0"
UNKNOWN = "no instruction that this emulator knows has this prefix and operand"


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        (vex(0x49, PF2, 0xC0, w=1), WIDTH),
        (vex(0x49, PF2, 0xC0, vector_length=1), WIDTH),
        (vex(0x49, PF2, 0xC0, r=1), EIGHT),
        (vex(0x5E, PF2, 0xC1, r=1, vvvv=2), EIGHT),
        (vex(0x5E, PF2, 0xC1, b=1, vvvv=2), EIGHT),
        (vex(0x5E, PF2, 0xC1, vvvv=8), EIGHT),
        (vex(0x49, PF2, 0xC0, vvvv=1), "VEX.vvvv must be 1111"),
        (vex(0x49, NONE, 0x07, vvvv=1), "VEX.vvvv must be 1111"),
        (vex(0x49, NONE, 0x0F), "ModRM.reg must be 0"),
        (vex(0x49, NONE, 0xC8), "ModRM.reg must be 0"),
        (vex(0x49, NONE, 0xC1), "ModRM.rm must be 0"),
        (vex(0x49, PF2, 0xC1), "ModRM.rm must be 0"),
        (vex(0x4B, PF2, 0x07), "rows of a tile are addressed through a SIB byte"),
        (vex(0x4B, PF2, 0xC4), UNKNOWN),
        (vex(0x4B, NONE, 0x04), UNKNOWN),
        (vex(0x49, P66, 0xC0), UNKNOWN),
        (vex(0x49, PF3, 0xC0), UNKNOWN),
        (vex(0x5C, NONE, 0xC1, vvvv=2), UNKNOWN),
        (vex(0x5E, PF2, 0x07, vvvv=2), UNKNOWN),
    ],
)
def test_malformed_bytes_are_an_undefined_instruction(amx, instruction, reason):
    assert_kills(amx, FULL, instruction, signal.SIGILL, f"no instruction: {reason}")
