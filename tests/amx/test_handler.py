"""The emulator among other handlers of signals."""

import ctypes
import signal
from pathlib import Path

import pytest

from . import child, emulator
from .build import assemble, shared_library
from .config import tile_config
from .instructions import ldtilecfg, tilerelease, tilezero

PROBE = Path(__file__).with_name("probe.cc")
CONFIG = tile_config(dict.fromkeys(range(8), (5, 64)))
about_the_emulator = pytest.mark.emulator
RAISING = ["raise_sigill", "raise_sigill_before_tilezero"]


@pytest.fixture(scope="module")
def probe():
    return ctypes.CDLL(str(shared_library(["-O1"], sources=[PROBE])))


@about_the_emulator
def test_installing_twice_is_installing_once(amx):
    assert emulator.install() == "emulated"
    ldtilecfg(CONFIG)
    tilerelease()


@about_the_emulator
def test_executed_instructions_are_counted(amx):
    before = emulator.executed()
    ldtilecfg(CONFIG)
    tilezero(1)
    tilezero(2)
    tilerelease()
    after = emulator.executed()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "ldtilecfg": 1,
        "tilezero": 2,
        "tilerelease": 1,
    }


@about_the_emulator
def test_instructions_in_a_row_need_one_trap(amx):
    instructions = ["ldtilecfg (%rdi)", "tilezero %tmm1", "tilezero %tmm2", "tilerelease"]
    library = assemble("\n".join([".globl run", "run:", *instructions, "mov $7, %eax", "ret"]))
    executed, traps = sum(emulator.executed().values()), emulator.traps()
    assert library.run(CONFIG) == 7
    assert sum(emulator.executed().values()) == executed + len(instructions)
    assert emulator.traps() == traps + 1


@about_the_emulator
@pytest.mark.parametrize("earlier", ["handle_with_context", "handle_with_number"])
def test_what_is_not_amx_goes_to_the_handler_before(amx, probe, earlier):
    process = child.run(probe, "undefined_between_tiles", CONFIG, before=earlier)
    assert (process.returncode, process.stdout) == (0, "1"), process.stderr
    assert not process.stderr


@about_the_emulator
def test_an_undefined_instruction_of_amx_goes_to_the_handler_before(amx, probe):
    process = child.run(probe, "tiles_unconfigured", before="handle_with_context")
    assert (process.returncode, process.stdout) == (0, "1"), process.stderr
    assert process.stderr == "AMX emulator: tilezero: a tile is not configured\n"


@about_the_emulator
@pytest.mark.parametrize("function", RAISING)
def test_a_signal_that_no_instruction_raised_goes_to_the_handler_before(amx, probe, function):
    process = child.run(probe, function, CONFIG, before="handle_with_number")
    assert (process.returncode, process.stdout) == (0, "1"), process.stderr


@about_the_emulator
@pytest.mark.parametrize("function", ["undefined_between_tiles", "tiles_unconfigured", *RAISING])
def test_with_no_handler_before_the_process_dies(amx, probe, function):
    assert child.run(probe, function, CONFIG).returncode == -signal.SIGILL


@about_the_emulator
def test_faulthandler_shows_where_python_was(amx, probe):
    process = child.run(probe, "tiles_unconfigured", before="faulthandler")
    assert process.returncode == -signal.SIGILL
    assert "Fatal Python error: Illegal instruction" in process.stderr
    assert "in main" in process.stderr


def test_a_protection_fault_finds_the_instruction_itself(amx, probe):
    process = child.run(probe, "protection_fault", CONFIG)
    assert (process.returncode, process.stdout) == (0, "1"), process.stderr


def test_a_protection_fault_kills_where_sigsegv_is_blocked(amx, probe):
    assert child.run(probe, "protection_fault_while_blocked").returncode == -signal.SIGSEGV


@pytest.mark.parametrize("function", ["repaired_load", "repaired_store"])
def test_a_fault_of_memory_can_be_repaired(amx, probe, function):
    process = child.run(probe, function, CONFIG)
    assert (process.returncode, process.stdout) == (0, "1"), process.stderr


@about_the_emulator
def test_an_abandoned_load_says_where_to_go_on(amx, probe):
    """Its handler leaves by a long jump with the tiles as they are. Linux clears those of a processor before it."""
    process = child.run(probe, "abandoned_load", CONFIG)
    assert (process.returncode, process.stdout) == (0, "3"), process.stderr


@pytest.mark.parametrize("function", ["load_from_nowhere", "store_to_nowhere", "configure_from_nowhere"])
def test_a_fault_of_memory_kills(amx, probe, function):
    process = child.run(probe, function, CONFIG)
    assert process.returncode == -signal.SIGSEGV
    assert not process.stderr
