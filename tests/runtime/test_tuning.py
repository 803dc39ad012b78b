"""Autotuning: the winner of a measurement is what later programs run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from products import f32_product

import jax_nano
from jax_nano.machine import host
from jax_nano.runtime import cache, kernels
from jax_nano.runtime.kernels import Place, kernel_for, tune_and_remember
from jax_nano.schedule.choose import choose, ranked_plans

pytestmark = pytest.mark.usefixtures("own_cache")


def test_candidates_begin_with_the_models_choice():
    machine = host.machine()
    dot, isa = f32_product(100, 200, 50), machine.isas[0]
    plans = ranked_plans(dot, machine, isa, 5)
    assert plans[0] == choose(dot, machine, isa)
    assert 1 < len(plans) <= 5
    assert len(set(plans)) == len(plans)


def test_the_winner_is_remembered():
    dot = f32_product(40, 72, 24)
    result = tune_and_remember(dot)
    fastest, seconds = result.seconds[0]
    assert seconds <= result.chosen
    assert kernel_for(dot).plan == fastest
    assert "measured" in kernel_for(dot).plan.why


def test_a_winner_on_disk_serves_a_process_that_did_not_measure(monkeypatch):
    dot = f32_product(40, 72, 25)
    fastest, _ = tune_and_remember(dot).seconds[0]
    monkeypatch.setattr(cache, "_put", {})
    kernels._kernels.clear()
    assert kernel_for(dot).plan == fastest
    assert "measured" in kernel_for(dot).plan.why


def test_every_product_of_a_program_is_tuned_once():
    x = jax.ShapeDtypeStruct((24, 24), jnp.float32)
    results = jax_nano.autotune(lambda a, b: (a @ b) @ b, x, x)
    assert len(results) == 1
    assert "times as fast as the cost model's choice" in str(results[0])


def test_a_function_is_tuned_with_a_line_for_each_product_and_a_table(capsys):
    x, y = (jax.ShapeDtypeStruct((24, n), jnp.float32) for n in (24, 40))
    results = jax_nano.autotune(lambda a, b: (a @ a) @ b, x, y)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["product 1 of 2", "product 2 of 2"]
    assert all(line.endswith(tuned.summary) for line, tuned in zip(lines, results, strict=True))
    header, *rows, total = str(results).splitlines()
    assert header.endswith("cost model    best found   gain")
    assert [row.partition(";")[0] for row in rows] == ["M 24, N 24, K 24", "M 24, N 40, K 24"]
    assert total.startswith("2 products, each counted once")
    assert results.best <= results.chosen


def test_nothing_to_tune_is_said():
    assert str(jax_nano.autotune(lambda x: x + 1, jax.ShapeDtypeStruct((3,), jnp.float32))) == "no product was measured"


def test_the_environment_has_products_measured_without_a_word(monkeypatch, capsys):
    monkeypatch.setenv("JAX_NANO_AUTOTUNE", "1")
    jax_nano.matmul(np.ones((9, 34), np.float32), np.ones((34, 20), np.float32))
    assert capsys.readouterr().err == ""


def test_the_environment_asks_for_tuning_at_the_first_compilation(monkeypatch):
    monkeypatch.setenv("JAX_NANO_AUTOTUNE", "1")
    a, b = np.ones((9, 33), np.float32), np.ones((33, 20), np.float32)
    np.testing.assert_array_equal(jax_nano.matmul(a, b), a @ b)
    machine = host.machine()
    assert kernels.recall_winner(f32_product(9, 20, 33), Place(machine, machine.isas[0]))
