"""The roof: a probe of each instruction, the one that bounds a product, and rates of all that this machine has."""

import pytest

from benchmarks import probe as machinery
from benchmarks import roof, timing
from benchmarks.probe import runnable, runs_here
from jax_nano import _native
from jax_nano.machine import host
from jax_nano.machine.x86 import AVX2, AVX512


@pytest.fixture
def short(monkeypatch):
    """Probes of little work."""
    monkeypatch.setattr(roof, "STEPS", 10)
    monkeypatch.setattr(roof, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(timing, "REST_SECONDS", 0)


def test_names_tell_probes_apart():
    names = [probe.name for probe in roof.PROBES]
    assert len(set(names)) == len(names)
    assert "f32 fma_f32, avx512" in names and "bf16 tdpbf16ps, L1" in names and "u8 x s8 vpdpbusd_256, avx2" in names


@pytest.mark.parametrize("isa", [AVX512, AVX2], ids=lambda isa: isa.name)
def test_every_accumulator_adds_up_all_products(isa, short):
    for probe in filter(runs_here, roof.vector_probes(isa)):
        dot = next(dot for dot in isa.dots if f" {dot.name}," in probe.name)
        result = runnable(probe, 2)()
        assert set(result.tolist()) == {10 * roof.CHAINS * dot.vnni}
        assert probe.gflop == pytest.approx(2e-9 * 10 * roof.CHAINS * dot.vnni * dot.shape[1])


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_read_probe_reads_all(tasks, short):
    result = runnable(roof.reading(tasks), tasks)()
    assert result.sum() == roof.READ_BYTES // 4


def test_all_that_this_machine_has_is_measured(short, monkeypatch):
    monkeypatch.setattr(roof, "PROBES", tuple(map(roof.vector_probe, [AVX2] * 2, AVX2.dots)))
    limits = roof.measure(turns=1)
    assert list(limits.gflops) == ["f32 fma_f32, avx2", "f64 fma_f64, avx2"]
    assert min(rate for rates in [*limits.gflops.values(), limits.read_gb_per_s] for rate in rates) > 0


@pytest.mark.emulator
def test_where_there_are_no_tiles_a_word_says_so():
    assert roof.why_no_tiles() == "this processor has no AMX"


def test_tiles_that_linux_denies_are_left_out(monkeypatch):
    monkeypatch.setattr(machinery.host, "has", lambda _: True)
    monkeypatch.setattr(_native, "tiles_denied", lambda: "Linux denies this process tile data: no")
    assert [runs_here(probe) for probe in roof.PROBES] == [probe.isa != "amx" for probe in roof.PROBES]


@pytest.mark.parametrize("target, types, name", [
    ("avx2", ("bf16", "f32"), "f32 fma_f32, avx2"),
    ("avx2", ("f64",), "f64 fma_f64, avx2"),
    ("avx2", ("s64",), None),
])  # fmt: skip
def test_the_peak_is_of_the_target(target, types, name, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", target)
    probe = roof.peak_probe(types)
    assert (probe.name if probe else None) == name


def test_a_peak_of_tiles_is_that_from_l1(here, monkeypatch):
    monkeypatch.setattr(roof.host, "machine", lambda: host.elsewhere("amx"))
    probe = roof.peak_probe(("bf16", "f32"))
    assert probe and probe.name == "bf16 tdpbf16ps, L1"
