"""What tests of the benchmarks share."""

import pytest

from benchmarks import roof, timing
from benchmarks.report import Results
from benchmarks.roof import Roof
from benchmarks.suite import Row


@pytest.fixture
def quick(monkeypatch):
    """Short turns, and no peak that would have to be probed."""
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(timing, "REST_SECONDS", 0)
    monkeypatch.setattr(timing, "WAKING_SECONDS", 1e-4)
    monkeypatch.setattr(roof, "RUN_SECONDS", 1e-7)


@pytest.fixture
def row():
    """Makes rows of results: the turns of jax_nano, and more."""

    def make(*turns, kind="f32", name="64x64x64", peak_gflops=100.0, **libraries):
        sizes = dict(zip("mnk", map(int, name.split("x")), strict=True))
        return Row(suite="products", kind=kind, name=name, sizes=sizes, flops=2 * 64**3, bytes=3 * 4 * 64**2,
                   turns={"jax_nano": turns, **libraries}, peak="f32 fma", peak_gflops=peak_gflops)  # fmt: skip

    return make


@pytest.fixture
def results():
    """Makes results of rows."""

    def make(*rows, jax="0.12"):
        found = {"date": "2026-01-02T03:04:05+00:00", "load": 0.1, "versions": {"jax": jax},
                 "machine": {"processor": "a processor", "target": "znver5", "threads": 2}}  # fmt: skip
        return Results(found, Roof({"f32 fma": (50.0, 100.0)}, (30.0, 40.0), "no AMX"), list(rows))

    return make
