"""The suite of products: its sizes, that every kind is computed and timed, and that its oracle notices errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import products, suite
from benchmarks.products import KINDS, SUITE, Size
from benchmarks.suites import SUITES


@pytest.mark.parametrize("text, size", [("512", (512, 512, 512)), ("1x20x300", (1, 20, 300))])
def test_sizes_are_cubes_or_m_n_k(text, size):
    assert Size.parse(text) == size


@pytest.mark.parametrize("text", ["1x2", "0", "1x2x3x4", "many", "64x", "1x-2x3"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match=f"'{text}' is neither a size nor MxNxK"):
        Size.parse(text)


def test_the_suite_is_registered():
    assert SUITES["products"] is SUITE and SUITE.kinds == tuple(KINDS)
    assert all(name == kind.name for name, kind in KINDS.items())


def test_kinds_are_named_as_types_are():
    names = ["f32", "f64", "bf16", "f16", "bf16>f32", "f16>f32", "s8", "u8xs8", "s4", "f8e4m3fn>bf16"]
    assert list(KINDS)[: len(names)] == names


def test_each_kind_has_sizes_of_its_own():
    cases = SUITE.cases(["f32", "bf16+int4"], [])
    assert [case.name for case in cases if case.kind == "bf16+int4"] == [f"{m}x4096x4096" for m in (1, 16, 128)]
    assert [case.sizes["m"] for case in cases if case.kind == "f32"][-1] == 2048


def test_a_case_counts_operations_and_bytes():
    (case,) = SUITE.cases(["bf16>f32"], ["2x3x5"])
    assert case.flops == 2 * 2 * 3 * 5
    assert case.bytes == 2 * (2 * 5 + 5 * 3) + 4 * 2 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_checked_and_timed(kind, quick):
    (case,) = SUITE.cases([kind], ["9x32x64"])
    row = suite.measure(SUITE, case, turns=2)
    assert {"jax_nano"} <= row.turns.keys() <= set(suite.LIBRARIES)
    assert row.turns.keys() >= {"XLA"} or kind == "s4"
    assert "NumPy" in row.turns or kind not in ("f32", "f64")
    assert all(len(turns) == 2 and min(turns) > 0 for turns in row.turns.values())
    assert row.gflops("jax_nano") > 0
    assert row.peak_gflops > 0 or not row.peak


@pytest.mark.parametrize("kind", ["f32", "f64", "bf16", "s8", "bf16+int8"])
def test_a_wrong_element_is_noticed(kind):
    (case,) = SUITE.cases([kind], ["9x32x64"])
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        a, b = (products.drawn(rng, shape, KINDS[kind].lhs) for shape in ((9, 64), (64, 32)))
        exact = jnp.asarray((a.astype(np.float64) @ b.astype(np.float64)).astype(products.NUMPY_TYPES[KINDS[kind].out]))
        error = np.full(exact.shape, 0.1) if KINDS[kind].quantized else None
        products.check(case, exact, (a, b), error)
        with pytest.raises(ValueError, match=rf"{kind} 9x32x64: element \(3, 5\) of jax_nano's result is off by"
                                             .replace("+", r"\+")):  # fmt: skip
            products.check(case, exact.at[3, 5].add(1), (a, b), error)


def test_integers_are_drawn_from_their_whole_range():
    drawn = products.drawn(np.random.default_rng(0), (100, 100), "s4")
    assert (drawn.astype(int).min(), drawn.astype(int).max()) == (-8, 7)
    assert products.drawn(np.random.default_rng(0), (100, 100), "u8").max() == 255


def test_a_library_that_cannot_compute_a_case_is_left_out():
    def fail():
        raise RuntimeError("no such type")

    assert not suite.computes("XLA", fail)
    assert suite.computes("XLA", lambda: 1)
    with pytest.raises(RuntimeError, match="no such type"):
        suite.computes("jax_nano", fail)
