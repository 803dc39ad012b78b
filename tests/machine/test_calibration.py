"""Calibrations: files, what makes no sense in them, and what measured facts make of a machine."""

import json
import re
from dataclasses import asdict, replace

import pytest

from jax_nano import config
from jax_nano.machine import calibration, host, measured, x86
from jax_nano.machine.fitted import FITTED
from jax_nano.machine.measured import REFERENCES, RELATIVE, Measured, applied, consistent, rounded, without_reference
from jax_nano.machine.topology import Topology
from jax_nano.runtime import kernels

MACHINES = {machine.name: replace(machine, threads=2) for machine in x86.MACHINES}
ZEN5, SAPPHIRE_RAPIDS = MACHINES["znver5"], MACHINES["sapphirerapids"]
REFERENCE = REFERENCES["znver5"]
FACTS = Measured(
    clock_ghz=3.0,
    per_ns={"avx512 fma_f32": 5.6, "avx512 vdpbf16ps": 1.4, "avx2 fma_f32": 6.0},
    l1_gb_per_s=300,
    l2_gb_per_s=130,
    llc_gb_per_s=22,
    memory_gb_per_s=9,
    memory_all_gb_per_s=90,
    wake_us=5.0,
    task_us=0.1,
    call_us=0.5,
    page_fault_us=0.7,
)
OF = {"cpu": "vax", "threads": "2", "model name": "VAX-11/780"}


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path))
    config.warn.cache_clear()


# Files


def test_what_is_stored_is_loaded():
    assert calibration.load(OF) is None
    place = calibration.store(OF, FACTS)
    assert calibration.load(OF) == FACTS
    assert place.parent == config.storage() / "machines"
    assert [*place.parent.iterdir()] == [place]


def test_what_is_stored_again_takes_its_place():
    calibration.store(OF, FACTS)
    place = calibration.store(OF, replace(FACTS, wake_us=3.0))
    assert calibration.load(OF) == replace(FACTS, wake_us=3.0)
    assert [*place.parent.iterdir()] == [place]


def test_every_processor_has_a_file_of_its_own():
    calibration.store(OF, FACTS)
    for other in ({**OF, "threads": "4"}, {**OF, "model name": "VAX-11/750"}, {**OF, "cpu": "pdp"}):
        assert calibration.path(other) != calibration.path(OF)
        assert calibration.load(other) is None


def test_what_is_forgotten_is_gone():
    calibration.store(OF, FACTS)
    assert calibration.forget(OF)
    assert calibration.load(OF) is None
    assert not calibration.forget(OF)


def edited(**changes):
    return json.dumps({"format": calibration.FORMAT, "processor": OF, "measured": asdict(FACTS), **changes})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value: "),
        ("[1, 2", "Expecting ',' delimiter: "),
        ("[]", "it is not of format 1"),
        ("null", "it is not of format 1"),
        (edited(format=0), "it is not of format 1"),
        (edited(format="1"), "it is not of format 1"),
        (edited(processor={"cpu": "pdp"}), "it is of the processor {'cpu': 'pdp'}"),
        (edited(measured=[]), "it has no facts"),
        (edited(measured={"wake_ms": 1, "ghz": 1}), "there are no facts ['ghz', 'wake_ms']"),
        (edited(measured={"clock_ghz": "4"}), "clock_ghz is '4', which is not between 0.4 and 10"),
        (edited(measured={"clock_ghz": True}), "clock_ghz is True, which is not between 0.4 and 10"),
        (edited(measured={"clock_ghz": 1e9}), "clock_ghz is 1000000000.0, which is not between 0.4 and 10"),
        (edited(measured={"wake_us": -1}), "wake_us is -1, which is not between 0.001 and 10000"),
        (edited(measured={"memory_gb_per_s": float("nan")}), "memory_gb_per_s is nan, which is not between"),
        (edited(measured={"per_ns": 3}), "per_ns is 3, and no table"),
        (edited(measured={"per_ns": {"avx2 fma_f32": None}}), "avx2 fma_f32: per_ns is None, which is not between"),
        (edited(measured={"l2_gb_per_s": 10, "memory_gb_per_s": 20, "llc_gb_per_s": 10}),
         "memory_gb_per_s of 20 and llc_gb_per_s of 10 contradict each other"),
        (b"\xff\xfe\x00", "'utf-"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_warned_of_once(content, reason):
    place = calibration.store(OF, FACTS)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = f"jax_nano does not use the calibration {place}: {reason}"
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(text)}.*; `python -m jax_nano calibrate` makes") as warned:
        assert calibration.load(OF) is calibration.load(OF) is None
    assert len(warned) == 1


def test_where_no_file_can_be_there_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path / "file"))
    assert calibration.load(OF) is None
    with pytest.raises(OSError, match="file"):
        calibration.store(OF, FACTS)


@pytest.mark.parametrize("content", [None, "", "model name : VAX\n\nmodel name : PDP\n", "\0: \xff\nmodel:7\n"])
def test_a_processor_is_told_by_what_linux_says(monkeypatch, tmp_path, content):
    monkeypatch.setattr(calibration, "CPUINFO", tmp_path / "cpuinfo")
    if content is not None:
        calibration.CPUINFO.write_text(content)
    found = calibration.processor("vax", 3)
    assert found["cpu"] == "vax" and found["threads"] == "3"
    assert found.get("model name") == ("VAX" if content and "VAX" in content else None)


def test_this_processor_is_told_alike_every_time():
    assert calibration.processor("x", 1) == calibration.processor("x", 1)


# What can be


def test_facts_that_contradict_each_other_are_left_out_with_a_word():
    facts, refused = consistent({"l1_gb_per_s": 300, "l2_gb_per_s": 500, "wake_us": -3.0, "clock_ghz": 3.0})
    assert facts == Measured(clock_ghz=3.0)
    assert refused == [
        "wake_us is -3.0, which is not between 0.001 and 10000",
        "l2_gb_per_s of 500 and l1_gb_per_s of 300 contradict each other",
    ]


def test_measurements_may_differ_a_little_from_what_can_be():
    facts, refused = consistent({"llc_gb_per_s": 30, "memory_gb_per_s": 31})
    assert facts.memory_gb_per_s == 31 and not refused


def test_all_threads_read_at_least_as_much_as_one():
    with pytest.raises(ValueError, match="memory_gb_per_s of 50 and memory_all_gb_per_s of 20 contradict each other"):
        Measured(memory_gb_per_s=50, memory_all_gb_per_s=20)


def test_names_are_of_what_was_measured():
    assert Measured(clock_ghz=3.0, per_ns={}).names == ("clock_ghz",)
    assert {*FACTS.names} == {name for name, value in asdict(FACTS).items() if value}


@pytest.mark.parametrize(("value", "kept"), [(4.2371, 4.2), (253.7, 250.0), (0.02374, 0.024), (0.0, 0.0)])
def test_two_digits_are_kept(value, kept):
    assert rounded(value) == kept


# What they make of a machine


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_nothing_measured_changes_no_fact(machine):
    assert applied(machine, Measured()) == machine


def test_the_machine_that_the_model_was_fitted_on_stays_as_it_is():
    noisy = {name: 1.05 * getattr(REFERENCE, name) for name in REFERENCE.names if name != "per_ns"}
    for facts in (REFERENCE, Measured(**noisy), replace(REFERENCE, wake_us=0.8, task_us=0.021, call_us=0.115)):
        here = applied(ZEN5, facts)
        assert replace(here, measured=()) == ZEN5
        assert here.measured == facts.names


def test_bandwidths_count_by_what_they_are_to_those_that_the_model_was_fitted_to():
    facts = Measured(l2_gb_per_s=135, llc_gb_per_s=60, memory_gb_per_s=22.5, memory_all_gb_per_s=96)
    table, here = ZEN5, applied(replace(ZEN5, ghz=4.25), facts)
    assert here.l2_bytes_per_cycle == table.l2_bytes_per_cycle / 2
    assert here.l3_gb_per_s == table.l3_gb_per_s / 2
    assert here.l3_stream_bytes_per_cycle == table.l3_stream_bytes_per_cycle / 2
    assert here.memory_gb_per_s == (table.memory_gb_per_s[0] / 2, table.memory_gb_per_s[1] * 2)


def test_bandwidths_by_the_cycle_are_of_the_clock_that_was_measured():
    slow = Measured(clock_ghz=2.1, per_ns={"avx512 fma_f32": 4.25}, l2_gb_per_s=135)
    assert applied(ZEN5, slow).l2_bytes_per_cycle == ZEN5.l2_bytes_per_cycle


def test_bandwidths_are_compared_with_the_processor_that_coefficients_were_fitted_on():
    facts = Measured(memory_gb_per_s=17, memory_all_gb_per_s=30)
    one, _ = SAPPHIRE_RAPIDS.memory_gb_per_s
    for name in ("sapphirerapids", "graniterapids", "skylake-avx512"):
        assert applied(MACHINES[name], facts).memory_gb_per_s == (2 * one, 4 * one), "two threads of twice the speed"
    assert applied(MACHINES["znver4"], facts).memory_gb_per_s == (15.1, 30)


def test_a_guest_like_the_one_that_was_fitted_has_its_memory_for_two_threads():
    one, every = applied(SAPPHIRE_RAPIDS, REFERENCES["sapphirerapids"]).memory_gb_per_s
    assert one == SAPPHIRE_RAPIDS.memory_gb_per_s[0]
    assert min(2 * one, every) == min(2 * one, SAPPHIRE_RAPIDS.memory_gb_per_s[1])


def test_what_cannot_be_compared_does_not_count():
    here = applied(SAPPHIRE_RAPIDS, FACTS)
    left_out = ("l2_gb_per_s", "llc_gb_per_s", "wake_us", "task_us", "call_us")
    assert without_reference(SAPPHIRE_RAPIDS, FACTS) == left_out
    assert not {*left_out} & {*here.measured}
    assert here.fitted == SAPPHIRE_RAPIDS.fitted
    for name in ("l2_bytes_per_cycle", "l3_gb_per_s", "l3_stream_bytes_per_cycle"):
        assert getattr(here, name) == getattr(SAPPHIRE_RAPIDS, name)
    assert here.ghz == 2.8, "what a core computes counts as it is"


def test_what_was_not_measured_is_not_missed():
    assert without_reference(SAPPHIRE_RAPIDS, Measured(clock_ghz=3.0, l1_ns=2.0)) == ()
    assert without_reference(ZEN5, FACTS) == ()


def test_coefficients_of_a_processor_without_references_take_no_bandwidth():
    machine = replace(ZEN5, fitted=replace(ZEN5.fitted, processor="vax"))
    assert without_reference(machine, FACTS) == RELATIVE
    here = applied(machine, FACTS)
    assert (here.memory_gb_per_s, here.l2_bytes_per_cycle) == (ZEN5.memory_gb_per_s, ZEN5.l2_bytes_per_cycle)
    assert here.fitted == machine.fitted


@pytest.mark.parametrize("name", FITTED)
def test_references_are_by_the_processors_that_coefficients_were_fitted_on(name):
    assert name in REFERENCES
    assert name in MACHINES
    assert MACHINES[name].fitted.processor == name


def test_memory_that_is_as_fast_for_one_thread_as_for_all():
    one, every = applied(ZEN5, Measured(memory_gb_per_s=60, memory_all_gb_per_s=60)).memory_gb_per_s
    assert 0 < one <= every


@pytest.mark.parametrize(
    ("clock", "rate", "ghz", "units"),
    [
        (5.2, 10.4, 5.2, 2),
        (4.3, 8.6, 4.1, 2),  # the table's, but for noise
        (5.2, 5.2, 5.2, 1),  # one unit, where the table has two
        (3.8, 5.6, 2.8, 2),  # a clock that wide vectors lower
        (5.2, 10.8, 5.4, 2),  # faster than the clock by chance
        (3.0, 12.0, 3.0, 4),
    ],
)
def test_the_clock_is_that_of_multiply_adds(clock, rate, ghz, units):
    here = applied(ZEN5, Measured(clock_ghz=clock, per_ns={"avx512 fma_f32": rate}))
    assert here.ghz == ghz
    assert here.cores["avx512"].dots_per_cycle == units


def test_a_rate_that_no_clock_explains_changes_nothing():
    here = applied(ZEN5, Measured(clock_ghz=1.0, per_ns={"avx512 fma_f32": 90.0}))
    assert here.ghz == ZEN5.ghz


def test_other_instruction_sets_count_by_the_same_clock():
    here = applied(SAPPHIRE_RAPIDS, Measured(clock_ghz=3.8, per_ns={"avx512 fma_f32": 5.6, "avx2 fma_f32": 7.6}))
    assert here.ghz == 2.8
    assert here.cores["avx512"] == SAPPHIRE_RAPIDS.cores["avx512"]
    assert here.cores["avx2"].dots_per_cycle == 2.7


def test_instructions_of_other_rates_are_named_with_their_kin():
    facts = Measured(clock_ghz=4.2, per_ns={"avx512 fma_f32": 8.4, "avx512 vpdpbusd_512": 4.2, "avx512 vdpbf16ps": 8.0})
    core = applied(ZEN5, facts).cores["avx512"]
    latency = ZEN5.cores["avx512"].dot_latency_cycles
    assert {*core.slower} == {("vpdpbusd_512", 1.0, latency), ("vpdpbusd_512_swapped", 1.0, latency)}


def test_an_instruction_that_was_measured_itself_takes_no_other_ones_rate():
    machine = MACHINES["graniterapids"]
    facts = Measured(clock_ghz=2.1, per_ns={"avx512 fma_f32": 4.2, "amx tdpbf16ps": 0.13, "amx tdpfp16ps": 0.065})
    core = applied(machine, facts).cores["amx"]
    assert core.dots_per_cycle == machine.cores["amx"].dots_per_cycle
    assert [name for name, *_ in core.slower] == ["tdpfp16ps"]


def test_instructions_that_the_table_calls_slower_are_as_they_were_measured():
    facts = Measured(clock_ghz=2.8, per_ns={"avx512 fma_f32": 5.6, "avx512 vdpbf16ps": 2.8})
    assert applied(SAPPHIRE_RAPIDS, facts).cores["avx512"].slower == (("vdpbf16ps", 1.0, 8),)


def test_tiles_count_by_the_clock_of_vectors():
    facts = Measured(
        clock_ghz=2.8,
        per_ns={"amx tdpbf16ps": 0.0875, "amx tdpbssd": 0.175, "avx512 fma_f32": 5.6},
        tile_pairs_per_ns=0.0583,
    )
    core = applied(SAPPHIRE_RAPIDS, facts).cores["amx"]
    assert core.dots_per_cycle == 0.031
    assert core.loads_per_cycle == 0.021
    assert {rate for name, rate, _ in core.slower} == {0.062}
    assert {name for name, *_ in core.slower} == {"tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"}


def test_tile_loads_that_hold_nothing_up_count_as_the_table_says():
    facts = Measured(clock_ghz=2.8, per_ns={"avx512 fma_f32": 5.6}, tile_pairs_per_ns=0.175)
    assert applied(SAPPHIRE_RAPIDS, facts).cores["amx"] == SAPPHIRE_RAPIDS.cores["amx"]


def test_a_machine_without_tiles_has_no_use_for_their_rates():
    facts = Measured(per_ns={"amx tdpbf16ps": 0.1}, tile_pairs_per_ns=0.1)
    assert applied(ZEN5, facts).cores == ZEN5.cores


def test_threads_and_calls_are_coefficients():
    fitted, table = applied(ZEN5, FACTS).fitted, ZEN5.fitted
    for name in ("wake_us", "task_us", "call_us"):
        times = getattr(FACTS, name) / getattr(REFERENCE, name)
        assert getattr(fitted, name) == pytest.approx(getattr(table, name) * times, rel=0.01)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_machine_takes_measured_facts(machine):
    here = applied(machine, FACTS)
    assert {*here.measured} == {*FACTS.names} - {*without_reference(machine, FACTS)}
    assert applied(machine, FACTS) == here


# Keys, and the running machine


def test_calibrated_facts_are_part_of_the_key():
    table, once, again = ZEN5, applied(ZEN5, FACTS), applied(ZEN5, replace(FACTS))
    other = applied(ZEN5, replace(FACTS, l2_gb_per_s=140))
    digests = [kernels.machine_digest(machine) for machine in (table, once, again, other)]
    assert digests[1] == digests[2]
    assert len({*digests}) == 3


def test_the_key_is_the_same_after_a_file():
    calibration.store(OF, FACTS)
    loaded = calibration.load(OF)
    assert loaded
    here = applied(ZEN5, loaded)
    assert kernels.machine_digest(here) == kernels.machine_digest(applied(ZEN5, FACTS))


@pytest.fixture
def another_process(monkeypatch):
    """Begins a process as it were, on so many cores where a number is given."""

    def begin(cores=None):
        if cores:
            topology = Topology(cores=tuple(frozenset({cpu}) for cpu in range(cores)))
            monkeypatch.setattr(host, "topology", lambda: topology)
        host.machine.cache_clear()
        host.detected.cache_clear()

    begin()
    yield begin
    monkeypatch.undo()
    begin()


def test_the_running_machine_is_the_calibrated_one(another_process):
    here = host.detected()
    of = calibration.processor(host._native.host_cpu(), here.threads)
    assert host.machine() == here
    calibration.store(of, FACTS)
    assert host.machine() == here  # of this process
    another_process()
    assert host.machine() == applied(here, FACTS)
    assert host.machine().measured
    assert host.detected() == here


def test_a_calibration_is_of_a_number_of_threads(another_process):
    digests = []
    for cores in (2, 1, 3, 2):
        another_process(cores)
        if not digests:
            calibration.store(calibration.processor(host._native.host_cpu(), host.detected().threads), FACTS)
        assert host.detected().threads == cores
        assert bool(host.machine().measured) == (cores == 2)
        assert host.machine() == (applied(host.detected(), FACTS) if cores == 2 else host.detected())
        digests.append(kernels.machine_digest(host.machine()))
    assert digests[0] == digests[3]
    assert len({*digests}) == 3


def test_calibrations_of_several_numbers_of_threads_stand_beside_each_other(another_process):
    for cores, clock in ((1, 3.0), (2, 5.0)):
        another_process(cores)
        facts = replace(FACTS, wake_us=clock)
        calibration.store(calibration.processor(host._native.host_cpu(), host.detected().threads), facts)
    for cores, clock in ((1, 3.0), (2, 5.0)):
        another_process(cores)
        assert host.machine() == applied(host.detected(), replace(FACTS, wake_us=clock))


def test_facts_that_fit_no_machine_are_warned_of(monkeypatch):
    def contradictory(machine, facts):
        raise ValueError("a core without throughput")

    calibration.store(calibration.processor("vax", ZEN5.threads), FACTS)
    monkeypatch.setattr(calibration, "applied", contradictory)
    with pytest.warns(RuntimeWarning, match="does not use its calibration: a core without throughput; `python -m"):
        assert calibration.calibrated(ZEN5, "vax") is ZEN5


def test_units_are_those_that_names_end_with():
    for name in measured.NAMES:
        assert any(name.endswith(unit) for unit in measured.RANGES)
