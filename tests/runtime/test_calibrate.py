"""Measuring this machine: what probes compute, facts that are there and can be, the command. No time is asserted."""

import math
import os
import re
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_nano import __main__ as command_line
from jax_nano import _native
from jax_nano.machine import calibration, host
from jax_nano.machine.measured import Measured, applied, faults
from jax_nano.runtime import kernels
from jax_nano.runtime.calibrate import arithmetic, command, memory, threads
from jax_nano.runtime.calibrate import measure as measuring
from jax_nano.runtime.calibrate.measure import Effort, buffers, distinct, measure
from jax_nano.runtime.probe import Probe, Target, features, ones

HERE = host.detected()
QUICK = Effort(turns=1, run_seconds=2e-5, largest_bytes=1 << 20)
UNITS = [arithmetic.Unit(HERE, isa, dot) for isa in HERE.isas for dot in distinct(isa) if not dot.tiles]
ELSEWHERE = replace(host.known("sapphirerapids"), threads=2)
TILES = [arithmetic.Unit(ELSEWHERE, ELSEWHERE.isas[0], dot) for dot in ELSEWHERE.isas[0].dots]


def result(probe, *operands):
    operands = operands or [ones(array) for array in probe.arrays[:-1]]
    return np.asarray(probe.compiled(*operands)(*operands))


# What probes compute


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.isa.name} {unit.dot.name}")
@pytest.mark.parametrize("tasks", [1, 3])
def test_every_chain_multiplies_in_every_step(unit, tasks):
    found = result(arithmetic.multiply_adds(unit, tasks, 7))
    depth = unit.dot.shape[2]
    assert found.size == tasks * unit.dot.shape[1]
    assert np.all(found == 7 * depth * arithmetic.CHAINS)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.isa.name} {unit.dot.name}")
def test_the_loop_has_an_instruction_a_chain_and_no_memory(unit):
    text = arithmetic.multiply_adds(unit, 1, 1 << 20).assembly
    (loop,) = re.findall(r"^(\.LBB\S+):(.*?)^\tj\w+\t\1$", text, re.M | re.S)
    instructions = re.findall(r"^\t(?:\{vex\}\s+)?([a-z]\w*)(.*)$", loop[1], re.M)
    multiplying = [name for name, _ in instructions if name.startswith(("vfmadd", "vdpbf16", "vpdpb"))]
    assert len(multiplying) == arithmetic.CHAINS
    assert not [operands for _, operands in instructions if "(" in operands]


def test_additions_wait_for_each_other():
    text = arithmetic.chain(HERE, 1, 1 << 20).assembly
    (loop,) = re.findall(r"^(\.LBB\S+):(.*?)^\tj\w+\t\1$", text, re.M | re.S)
    added = re.findall(r"^\t(?:add|xor)q\t(%\w+), (%\w+)$", loop[1], re.M)
    assert len(added) == arithmetic.ADDITIONS
    assert len(set(added)) == 1


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_task_reads_its_share(tasks):
    isa = HERE.isas[-1]
    probe = memory.reading(HERE, isa, tasks, 3 << 12, 5)
    (elements, _), _ = probe.arrays
    values = jnp.arange(elements, dtype=jnp.float32) % 7
    assert result(probe, values).sum() == 5 * np.asarray(values).sum()


@pytest.mark.parametrize("size", [64, 640, 1 << 14])
def test_links_go_through_all_lines_in_one_circle(size):
    links, lines = memory.links(size)
    assert lines == size // 64
    place, met = 0, set()
    for _ in range(lines):
        met.add(place)
        place = links[place]
    assert place == 0 and len(met) == lines
    assert {at % 8 for at in met} == {0}


def test_links_are_spread_over_a_buffer_of_more_lines(monkeypatch):
    monkeypatch.setattr(memory, "MOST_LINES", 10)
    links, lines = memory.links(1 << 14)
    assert lines == 10
    assert links.max() > links.size * 0.8


def test_a_chase_goes_on_where_the_last_one_ended():
    links, lines = memory.links(1 << 12)
    probe = memory.chasing(HERE, links.size, lines // 2)
    with jax.enable_x64(True):
        array, start = jnp.asarray(links), jnp.zeros(1, np.int64)
    half = result(probe, array, start)
    assert half[0] != 0
    with jax.enable_x64(True):
        assert result(probe, array, jnp.asarray(half))[0] == 0


def test_pages_are_touched():
    assert memory.page_fault_seconds() > 0


def test_calls_in_a_loop_run(own_cache):
    before = _native.executed_kernels()
    threads.calls_in_a_loop(HERE, 3)()
    assert _native.executed_kernels() - before == 3 * threads.LOOP_CALLS


def test_probes_that_differ_only_in_what_they_are_given_have_keys_of_their_own():
    target = Target(HERE.isas[-1].name, (), 1)
    probes = [Probe(lambda *_: None, target, [(8, dtype), (8, "f32")], HERE) for dtype in ("s8", "u8")]
    assert len({str(probe.attributes()["key"]) for probe in probes}) == 2
    assert features(Target("avx2", ("avx2", "fma"), 1)) == "+avx2,+fma"


# Tiles, read in the assembly and run by whatever runs them


@pytest.mark.parametrize("unit", TILES, ids=lambda unit: unit.dot.name + "_" + unit.dot.lhs + unit.dot.rhs)
@pytest.mark.parametrize("loaded", [False, True], ids=["on registers", "loaded"])
def test_tile_loops_have_four_products_and_as_many_loads_or_none(unit, loaded):
    text = arithmetic.tile_products(unit, 1, 1 << 12, loaded=loaded).assembly
    loops = re.findall(r"^(\.LBB\S+):\s(?:(?!^\.LBB).)*?^\tj\w+\t\1$", text, re.M | re.S)
    bodies = [text.split(f"{label}:", 1)[1].split(f"\t{label}\n", 1)[0] for label in loops]
    (inner,) = [body for body in bodies if unit.dot.name in body]
    assert inner.count(unit.dot.name) == 4
    assert inner.count("tileloadd") == 4 * loaded
    assert text.count("ldtilecfg") == text.count("tilerelease") == 1
    assert "Folded Spill" not in text


@pytest.mark.parametrize("name", ["tdpbf16ps", "tdpbssd"])
@pytest.mark.parametrize("loaded", [False, True], ids=["on registers", "loaded"])
def test_tiles_multiply_in_every_step(amx, here, name, loaded):
    unit = next(unit for unit in TILES if unit.dot.name == name)
    found = result(arithmetic.tile_products(unit, 2, 16, loaded=loaded))
    assert found.size == 2 * 4 * 256
    assert np.all(found == 16 * unit.dot.shape[2])


def test_tiles_are_measured(amx, here):
    unit = TILES[0]
    trials = measuring.instruction_trials(unit, Effort(turns=1, run_seconds=1e-7))
    assert [trial.name for trial in trials] == [
        "per_ns amx tdpbf16ps",
        "all_per_ns amx tdpbf16ps",
        "tile_pairs_per_ns",
    ]
    assert all(trial.seconds() > 0 for trial in trials)


# Facts


@pytest.fixture(scope="module")
def quick():
    return measure(HERE, QUICK)


def test_what_is_measured_is_positive_and_finite(quick):
    measured, _ = quick
    found = asdict(measured)
    numbers = [x for x in found.values() if isinstance(x, float)]
    numbers += [*measured.per_ns.values(), *measured.all_per_ns.values()]
    assert all(math.isfinite(x) and x >= 0 for x in numbers)
    assert not faults(found)


def test_what_it_takes_no_luck_to_measure_is_there(quick):
    measured, refused = quick
    left_out = " ".join(refused)
    for name in ("clock_ghz", "l1_gb_per_s", "l1_ns", "call_us", "page_fault_us"):
        assert name in measured.names or name in left_out
    assert {*measured.per_ns} == {f"{unit.isa.name} {unit.dot.name}" for unit in UNITS} or "per_ns" in left_out
    assert ("wake_us" in measured.names) == (HERE.threads > 1) or "wake_us" in left_out


def test_memory_is_not_measured_in_a_buffer_that_caches_may_hold(quick):
    measured, _ = quick
    assert measured.memory_gb_per_s is measured.memory_all_gb_per_s is measured.memory_ns is None


def test_a_machine_takes_what_was_measured(quick):
    measured, _ = quick
    assert applied(HERE, measured).measured == measured.names


def test_each_buffer_is_of_one_level(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1 << 24, "SC_PAGE_SIZE": 4096}.get)
    machine = replace(host.known("znver5"), threads=4)
    sizes = buffers(machine, Effort())
    assert list(sizes) == ["l1", "l2", "llc", "memory"]
    assert machine.l1.bytes > sizes["l1"]
    assert machine.l2.bytes > sizes["l2"] > machine.l1.bytes
    assert machine.llc.bytes > sizes["llc"] > machine.l2.bytes
    assert sizes["memory"] > 2 * (machine.llc.bytes + 4 * machine.l2.bytes)


def test_memory_is_left_alone_where_little_is_free(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1 << 10, "SC_PAGE_SIZE": 4096}.get)
    assert "memory" not in buffers(HERE, Effort())


def test_a_machine_with_one_thread_wakes_none():
    labels = [label for label, _ in measuring.trial_makers(replace(HERE, threads=1), QUICK)]
    assert "clock" in labels and "waking a thread" not in labels


def test_all_threads_take_part_in_few_tasks_already():
    few, many = threads.few_and_many(replace(HERE, threads=100))
    assert 100 < few < many


def test_differences_are_not_below_zero():
    best = {"wake 1": 2e-6, "wake 2": 1e-6, "calls 1": 1e-7, "calls 3": 5e-7}
    assert measuring.differences(best, HERE) == {"wake_us": 0.0, "call_us": 0.2}


def test_facts_are_in_the_units_of_their_names():
    best = {"clock_ghz": 0.25e-9, "per_ns avx2 fma_f32": 0.125e-9, "l2_gb_per_s": 1e-11, "l2_ns": 4e-9,
            "page_fault_us": 1.234}  # fmt: skip
    assert measuring.facts_of(best, HERE) == {
        "per_ns": {"avx2 fma_f32": 8.0},
        "all_per_ns": {},
        "clock_ghz": 4.0,
        "l2_gb_per_s": 100.0,
        "l2_ns": 4.0,
        "page_fault_us": 1.2,
    }


def test_all_threads_read_what_one_reads_at_least():
    best = {"memory_gb_per_s": 1 / 40e9, "memory_all_gb_per_s": 1 / 30e9}
    assert measuring.facts_of(best, HERE)["memory_all_gb_per_s"] == 40


# The command


FACTS = Measured(clock_ghz=3.0, per_ns={"avx2 fma_f32": 6.0}, l1_gb_per_s=200, l2_gb_per_s=90, wake_us=9.0)


@pytest.fixture
def command_here(own_cache, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda machine: (FACTS, ["l2_ns of 9 and llc_ns of 4 contradict"]))
    host.machine.cache_clear()
    yield
    host.machine.cache_clear()


def printed(capsys, *arguments):
    command_line.main(arguments)
    return capsys.readouterr().out


def test_the_command_measures_keeps_shows_and_forgets(command_here, capsys):
    assert printed(capsys, "calibrate", "--show") == "not calibrated: python -m jax_nano calibrate\n"
    out = printed(capsys, "calibrate")
    for words in (r"avx2 fma_f32, one thread +- +6  a ns", r"clock +- +3  GHz", r"L2 read by one thread +- +90  GB/s",
                  r"waking a thread +2 +12  us", r"left out: l2_ns of 9 and llc_ns of 4 contradict; calibrate again",
                  r"kept in \S+/cache/machines/"):  # fmt: skip
        assert re.search(words, out), words
    assert printed(capsys, "calibrate", "--show").strip() in out
    assert printed(capsys, "calibrate", "--forget") == "forgotten\n"
    assert printed(capsys, "calibrate", "--forget") == "not calibrated: python -m jax_nano calibrate\n"


def test_emptying_the_cache_keeps_the_calibration(command_here, capsys):
    printed(capsys, "calibrate")
    printed(capsys, "cache", "--clear")
    assert "clock" in printed(capsys, "calibrate", "--show")


def test_info_shows_measured_beside_assumed(command_here, capsys):
    assert "\n\nnot calibrated: python -m jax_nano calibrate\n\nenvironment:" in printed(capsys, "info")
    printed(capsys, "calibrate")
    out = printed(capsys, "info")
    assert "\n\nmeasured beside assumed:\nas the cost model counts" in out
    assert re.search(r"waking a thread +2 +12  us", out)


def test_inspect_says_which_facts_were_used(command_here, capsys):
    assert ", by the table's facts\n" in printed(capsys, "inspect", "f32", "40", "24", "56")
    printed(capsys, "calibrate")
    host.machine.cache_clear()
    kernels._kernels.clear()
    assert ", by measured facts\n" in printed(capsys, "inspect", "f32", "40", "24", "56")


def test_what_cannot_be_kept_is_said(command_here, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(SystemExit, match=r"python -m jax_nano: the calibration cannot be kept: .*file"):
        command_line.main(["calibrate"])


def test_a_processor_without_a_target_is_not_calibrated(command_here, monkeypatch):
    def detected():
        raise host.UnsupportedDot("jax_nano has no target for vax processors")

    monkeypatch.setattr(host, "detected", detected)
    with pytest.raises(SystemExit, match="python -m jax_nano: jax_nano has no target for vax processors"):
        command_line.main(["calibrate"])


def test_facts_the_table_has_alike_are_not_listed():
    text = command.comparison(HERE, Measured(wake_us=9.0))
    assert re.search(r"waking a thread +2 +12  us", text)
    assert "fma_f32" not in text
    machine = host.known("znver5")
    slower = Measured(clock_ghz=4.1, per_ns={"avx512 fma_f32": 8.2, "avx512 vdpbf16ps": 4.1})
    assert re.search(r"vdpbf16ps, avx512 +2 +1  a cycle", command.comparison(machine, slower))
    assert calibration.COMMAND in command.NOT_CALIBRATED
