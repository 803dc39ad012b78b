"""The roof: names of limits, the one that bounds a product, and rates of all that this machine has."""

import pytest

from benchmarks import roof, timing
from jax_nano.machine import host


@pytest.fixture
def short(monkeypatch):
    """Probes of little work."""
    monkeypatch.setattr(roof, "RUN_SECONDS", 1e-8)
    monkeypatch.setattr(roof, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(timing, "REST_SECONDS", 0)


@pytest.fixture
def on(monkeypatch):
    """Has a machine stand for this one."""

    def stand_for(name):
        monkeypatch.setattr(host, "machine", lambda: host.known(name))
        return host.known(name)

    return stand_for


@pytest.mark.parametrize(("name", "among"), [
    ("graniterapids", ["bf16 tdpbf16ps, L1", "bf16 tdpbf16ps, registers", "s8 tdpbssd, L1", "f32 fma_f32, avx512"]),
    ("arrowlake", ["f32 fma_f32, avx2", "u8 x s8 vpdpbusd_256, avx2", "s8 vpdpbssd_256, avx2"]),
])  # fmt: skip
def test_names_tell_limits_apart(name, among):
    names = [limit.name for limit in roof.limits(host.known(name))]
    assert len(set(names)) == len(names)
    assert set(among) <= set(names)


def test_a_limit_counts_multiplications_and_additions():
    tiles, _, *_ = limits = roof.limits(host.known("sapphirerapids"))
    vectors = next(limit for limit in limits if limit.name == "f32 fma_f32, avx512")
    assert tiles.gflop == pytest.approx(2e-9 * 16 * 16 * 32 * 4 * tiles.steps)
    assert vectors.gflop == pytest.approx(2e-9 * 16 * 12 * vectors.steps)


def test_all_that_this_machine_has_is_measured(short):
    found = roof.measure(turns=1)
    assert list(found.gflops) == [limit.name for limit in roof.limits(host.machine())]
    assert min(rate for rates in [*found.gflops.values(), found.read_gb_per_s] for rate in rates) > 0


def test_tiles_are_measured_from_l1_and_in_registers(here, monkeypatch):
    monkeypatch.setattr(roof, "RUN_SECONDS", 1e-8)
    first, second, *_ = roof.limits(host.known("sapphirerapids"))
    assert (first.loaded, second.loaded) == (True, False)
    for limit in (first, second):
        assert set(roof.runnable(limit, 1)().tolist()) == {limit.steps * 32}


@pytest.mark.emulator
def test_where_there_are_no_tiles_a_word_says_so():
    assert roof.why_no_tiles(host.machine()) == "this processor has no AMX"


def test_tiles_that_linux_denies_are_left_out(monkeypatch):
    monkeypatch.setattr(host._native, "tiles_denied", lambda: "Linux denies this process tile data: no")
    machine = host.granted(host.known("sapphirerapids"))
    assert {limit.unit.isa.name for limit in roof.limits(machine)} == {"avx512", "avx2"}
    assert roof.why_no_tiles(machine) == "no amx: Linux denies this process tile data: no"


@pytest.mark.parametrize("target, types, name", [
    ("avx2", ("bf16", "f32"), "f32 fma_f32, avx2"),
    ("avx2", ("f64",), "f64 fma_f64, avx2"),
    ("avx2", ("s64",), None),
    ("", ("bf16", "f32"), "bf16 tdpbf16ps, L1"),  # no product from memory is faster than tiles from L1
    ("", ("8 bits",), "s8 tdpbssd, L1"),
    ("", ("f32",), "f32 fma_f32, avx512"),
])  # fmt: skip
def test_the_peak_is_of_the_target(target, types, name, monkeypatch, on):
    monkeypatch.setenv("JAX_NANO_TARGET", target)
    on("sapphirerapids")
    limit = roof.peak(types)
    assert (limit.name if limit else None) == name
