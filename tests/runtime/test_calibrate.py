"""Measuring this machine: facts that are there and can be, the command. No time is asserted."""

import math
import os
import re
from dataclasses import asdict, replace

import pytest

from jax_nano import __main__ as command_line
from jax_nano.machine import calibration, host
from jax_nano.machine.measured import Measured, applied, faults, without_reference
from jax_nano.machine.topology import Topology
from jax_nano.runtime import kernels
from jax_nano.runtime.calibrate import command
from jax_nano.runtime.calibrate import measure as measuring
from jax_nano.runtime.calibrate.measure import Effort, buffers, measure
from jax_nano.runtime.probes import threads
from jax_nano.runtime.probes.arithmetic import Unit, units

HERE = host.detected()
QUICK = Effort(turns=1, run_seconds=2e-5, largest_bytes=1 << 20)


# Facts


def test_tiles_are_measured(amx, here):
    machine = replace(host.known("sapphirerapids"), threads=2)
    unit = Unit(machine, machine.isas[0], machine.isas[0].dots[0])
    trials = measuring.instruction_trials(unit, Effort(turns=1, run_seconds=1e-7))
    assert [trial.name for trial in trials] == [
        "per_ns amx tdpbf16ps",
        "all_per_ns amx tdpbf16ps",
        "tile_pairs_per_ns",
    ]
    assert all(trial.seconds() > 0 for trial in trials)


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
    assert {*measured.per_ns} == {f"{unit.isa.name} {unit.dot.name}" for unit in units(HERE)} or "per_ns" in left_out
    assert ("wake_us" in measured.names) == (HERE.threads > 1) or "wake_us" in left_out


def test_memory_is_not_measured_in_a_buffer_that_caches_may_hold(quick):
    measured, _ = quick
    assert measured.memory_gb_per_s is measured.memory_all_gb_per_s is measured.memory_ns is None


def test_a_machine_takes_what_was_measured(quick):
    measured, _ = quick
    idle = without_reference(HERE, measured)
    assert applied(HERE, measured).measured == tuple(name for name in measured.names if name not in idle)


def test_each_buffer_is_of_one_level(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1 << 24, "SC_PAGE_SIZE": 4096}.get)
    machine = replace(host.known("znver5"), threads=4)
    sizes = buffers(machine, Effort())
    assert list(sizes) == ["l1", "l2", "llc", "memory"]
    assert machine.l1.bytes > sizes["l1"]
    assert machine.l2.bytes > sizes["l2"] > machine.l1.bytes
    assert machine.llc.bytes > sizes["llc"] > machine.l2.bytes
    assert sizes["memory"] > 2 * (machine.llc.bytes + 4 * machine.l2.bytes)


@pytest.mark.parametrize("llcs", [1, 2])
def test_every_last_level_cache_of_the_process_is_filled(llcs, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1 << 24, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setattr(host, "topology", lambda: Topology(cores=(frozenset({0}), frozenset({8})), llcs=llcs))
    machine = replace(host.known("znver5"), threads=2)
    assert measuring.held(machine) == llcs * machine.llc.bytes + 2 * (machine.l2.bytes + machine.l1.bytes)
    assert buffers(machine, Effort())["memory"] == 4 * measuring.held(machine)


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


# Waking a thread takes six times as long as where the coefficients were fitted.
WAKING = rf"waking a thread +{HERE.fitted.wake_us:.3g} +{6 * HERE.fitted.wake_us:.3g}  us"
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
    for words in (r"avx2 fma_f32, one thread +6  a ns", r"clock +3  GHz", r"L2 read by one thread +90  GB/s",
                  WAKING, r"left out: l2_ns of 9 and llc_ns of 4 contradict; calibrate again",
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
    assert re.search(WAKING, out)


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
    assert re.search(WAKING, text)
    assert "fma_f32" not in text
    machine = host.known("znver5")
    slower = Measured(clock_ghz=4.1, per_ns={"avx512 fma_f32": 8.2, "avx512 vdpbf16ps": 4.1})
    assert re.search(r"vdpbf16ps, avx512 +2 +1  a cycle", command.comparison(machine, slower))
    assert calibration.COMMAND in command.NOT_CALIBRATED


def test_facts_that_cannot_be_compared_are_shown_and_said_not_to_be_applied():
    facts = Measured(clock_ghz=2.1, l2_gb_per_s=90, memory_gb_per_s=17, memory_all_gb_per_s=30, wake_us=9.0)
    text = command.comparison(host.known("sapphirerapids"), facts)
    assert re.search(r"memory, one thread +12 +24  GB/s", text)
    assert re.search(r"L2 +48 +-  bytes a cycle", text) and re.search(r"L2 read by one thread +90  GB/s", text)
    assert re.search(r"waking a thread +[\d.]+ +-  us", text) and re.search(r"waking a thread +9  us", text)
    assert text.endswith(
        "\nnot applied, as the cost model's coefficients are those of sapphirerapids, where these were not measured: "
        "L2 read by one thread, waking a thread"
    )
    assert "not applied" not in command.comparison(host.known("znver5"), facts)
