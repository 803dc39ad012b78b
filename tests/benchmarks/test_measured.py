"""Files of measured candidates: what is written is read again, and what makes no sense is refused."""

from dataclasses import replace

import pytest

from benchmarks import collect, measured
from benchmarks.measured import Candidate, Measured, Product
from jax_nano.machine import host
from jax_nano.schedule.choose import ranked_plans

PRODUCTS = (
    Product("f32>f32", "nn", 64, 100, 33),
    Product("bf16>f32", "tn", 100, 48, 256),
    Product("u8xs8>s32", "nt", 16, 33, 64),
    Product("s8>s32", "nn", 128, 96, 100),
    Product("f16>f32", "nn", 3000, 3, 1000),
)


def candidates(product, machine):
    """A few plans, with seconds of as many digits as files have."""
    plans = ranked_plans(product.dot, machine, machine.isas[0], 5)
    slower = (float(f"{1.5e-5 + i * 1e-7:.4g}") for i in range(len(plans)))
    return tuple(
        Candidate(plan, (1.25e-5, seconds), (2e-5,) if i else ())
        for i, (plan, seconds) in enumerate(zip(plans, slower, strict=True))
    )


@pytest.mark.parametrize("name", ["znver5", "sapphirerapids", "haswell"])
def test_what_is_written_is_read_again(name, tmp_path):
    machine = replace(host.known(name), threads=2)
    if name == "haswell":
        products = [product for product in PRODUCTS if "u8" not in product.types and "s8" not in product.types]
    else:
        products = PRODUCTS
    written = [Measured(product, 2, candidates(product, machine)) for product in products]
    measured.write(tmp_path / "file.csv", measured.describe(machine, "a test"), written)
    recording = measured.read(tmp_path / "file.csv")
    assert recording.products == tuple(written)
    assert recording.machine.caches == machine.caches
    assert recording.machine.name == name


def test_every_field_of_a_plan_is_kept():
    kept = {*measured.PLAN, *measured.CONVOLUTIONS, "instruction"}
    left_out = {"dot", "why", "predicted_seconds"}  # what the product says, and words and predictions
    assert set(measured.Plan.__dataclass_fields__) - kept - left_out == {"swapped", "m", "n", "k", "outer", "k_outer"}


def test_an_instruction_that_the_product_cannot_have_is_refused(tmp_path):
    machine = replace(host.known("znver5"), threads=2)
    product = PRODUCTS[0]
    measured.write(tmp_path / "file.csv", measured.describe(machine, "a test"),
                   [Measured(product, 2, candidates(product, machine))])  # fmt: skip
    text = (tmp_path / "file.csv").read_text()
    (tmp_path / "file.csv").write_text(text.replace("fma_f32", "fma_f99"))
    with pytest.raises(ValueError, match=r"f32>f32 nn 64x100x33: avx512 has no instruction fma_f99"):
        measured.read(tmp_path / "file.csv")


@pytest.mark.parametrize("path", sorted(measured.DATA.glob("*.csv")), ids=lambda path: path.stem)
def test_recorded_files_are_of_known_machines_and_plausible(path):
    recording = measured.read(path)
    assert recording.machine.name == path.stem
    assert len(recording.products) >= 100
    seconds = [t for product in recording.products for each in product.candidates for t in each.resident]
    assert 1e-7 < min(seconds) < max(seconds) < 10


def test_drawn_products_are_the_same_every_time_and_each_once():
    first, second = (list(collect.draw(40, seed=1)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 40
    assert set(first) != set(collect.draw(40, seed=2))


def test_a_product_is_measured_here():
    machine = host.machine()
    found = collect.measure(Product("f32>f32", "nn", 33, 64, 50), machine, count=2)
    assert len(found.candidates) == 2
    assert all(seconds > 0 for each in found.candidates for seconds in each.resident)
