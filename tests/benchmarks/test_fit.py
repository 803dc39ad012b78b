"""The tool that fits the cost model: it finds coefficients that candidates were made with, and writes source."""

import importlib
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measured import Candidate, Measured, Product, Recording
from jax_nano.machine import host
from jax_nano.machine.coefficients import Evidence
from jax_nano.machine.fitted import FITTED
from jax_nano.schedule.choose import ranked_plans
from jax_nano.schedule.cost import estimate

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SIZES = ((64, 64, 64), (512, 256, 512), (16, 1024, 1024), (1000, 33, 300), (2048, 512, 128), (256, 256, 1000))


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delitem(sys.modules, "fit_cost_model", raising=False)
    return importlib.import_module("fit_cost_model")


@pytest.fixture
def recording():
    """Candidates whose seconds are those of the model with other coefficients."""
    machine = replace(host.known("znver5"), threads=2)
    truth = replace(machine, fitted=replace(machine.fitted, task_us=4.0, wake_us=20.0))

    def measured(size):
        product = Product("f32>f32", "nn", *size)
        plans = ranked_plans(product.dot, machine, machine.isas[0], 12)
        return Measured(product, 2, tuple(Candidate(p, (estimate.seconds(p, truth).total,)) for p in plans))

    return Recording(machine, tuple(map(measured, SIZES)))


def test_a_fit_finds_what_the_candidates_were_made_with(tool, recording):
    targets = [tool.Target.of(product) for product in recording.products]
    model = replace(tool.initial(recording), call_seconds=1e-9)
    fitted = tool.fit(model, targets, sweeps=4)
    assert fitted.mean_loss(targets) < 0.5 * model.mean_loss(targets)
    assert fitted.fitted.wake_us > 2 * model.fitted.wake_us


def test_halves_share_no_product(tool, recording):
    training, held_out = tool.halves(recording)
    assert len(training) == len(held_out) == 3
    assert not {t.product for t in training} & {t.product for t in held_out}


def test_a_sweep_that_was_slow_throughout_counts_as_any_other(tool, recording):
    product = recording.products[0]
    twice = tuple(Candidate(each.plan, (*each.resident, 3 * each.resident[0])) for each in product.candidates)
    one, both = (tool.Target.of(product._replace(candidates=c)).logs for c in (product.candidates, twice))
    assert [x - one[0] for x in one] == pytest.approx([x - both[0] for x in both])


def test_without_noise_nothing_is_lost_by_choosing_truly(tool, recording):
    twice = [
        product._replace(candidates=tuple(Candidate(c.plan, 2 * c.resident) for c in product.candidates))
        for product in recording.products
    ]
    assert tool.noise_floor(recording._replace(products=tuple(twice))) == pytest.approx(0, abs=1e-6)
    noisy = [
        product._replace(
            candidates=tuple(
                Candidate(c.plan, (c.resident[0], c.resident[0] * (1.3 if i % 2 else 0.8)))
                for i, c in enumerate(product.candidates)
            )
        )
        for product in recording.products
    ]
    assert tool.noise_floor(recording._replace(products=tuple(noisy))) > 0.02
    with pytest.raises(ValueError, match="noise is seen between sweeps, and there is one only"):
        tool.noise_floor(recording)


def test_coefficients_stay_within_what_can_be(tool, recording):
    model = tool.initial(recording)
    for name, (low, high) in tool.BOUNDS.items():
        assert getattr(model.moved(name, 1e-3).fitted, name) == low
        assert getattr(model.moved(name, 1e3).fitted, name) == high
    assert model.moved("memory_share", 1e3).fitted.memory_share == 1.0
    assert isinstance(model.moved("followed_pages", 1.3).fitted.followed_pages, int)


def test_what_is_written_is_source_that_says_the_same(tool, tmp_path):
    known = replace(FITTED["znver5"], evidence=(("wake_us", Evidence(spread=0.5, count=12)),))
    (tmp_path / "fitted.py").write_text(tool.source([known]))
    namespace = runpy.run_path(str(tmp_path / "fitted.py"))
    found = namespace["ZNVER5"]
    assert namespace["fitted_for"]("znver5", like="haswell") is found
    assert namespace["fitted_for"]("haswell", like="znver5") is found
    assert found.evidence == known.evidence
    assert found.wake_us == pytest.approx(known.wake_us, rel=0.01)
