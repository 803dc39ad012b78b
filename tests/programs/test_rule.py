"""Which programs become one kernel: by predicted time, operations and size; and what reports say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano
from jax_nano.lowering.programs import OTHERWISE


def by_two_keys(x):
    """A sort that no pipeline has."""
    return lax.sort((x, x), num_keys=2)[0]


def layers(f=jnp.tanh, last=lambda x: x):
    return lambda w, x: last(f(x @ w) @ w)


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def inspected(f, *arrays):
    return jax_nano.inspect(jax.jit(jax_nano.accelerate(f)), *arrays)


def test_small_layers_are_one_kernel():
    (report,) = inspected(layers(), spec(32, 32), spec(1, 32))
    assert report.kind == "programs"
    text = str(report)
    assert text.startswith("program of 2 calls\n  runs as  kernel nano_program_f32_")
    assert "2 products of f32" in text


def test_large_layers_are_a_kernel_each():
    found = inspected(layers(), spec(1024, 1024), spec(256, 1024))
    assert [report.kind for report in found] == ["products", "products"]


def test_where_arithmetic_takes_long_calls_do_not_count():
    found = inspected(layers(), spec(128, 128), spec(256, 128))
    assert [report.ran_as for report in found] == [OTHERWISE, "kernel", "kernel"]
    assert found[0].reason.startswith("its calls one by one are predicted to be as fast: ")


def test_one_product_with_all_that_it_fuses_is_a_kernel_of_its_own():
    found = inspected(lambda w, x: jnp.tanh(x @ w + 1), spec(16, 16), spec(1, 16))
    assert [report.kind for report in found] == ["products"]


def test_without_products_all_is_xlas():
    assert not inspected(lambda w, x: jax.nn.softmax(jnp.tanh(x + w)), spec(16, 16), spec(16))


@pytest.mark.parametrize(
    "f, reason",
    [
        (layers(f=by_two_keys), "sort is not elementwise"),
        (layers(f=lambda x: jnp.fft.fft(x).real), "complex64"),
        (layers(f=lambda x: lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)), "a scan loop in it"),
    ],
)
def test_reports_say_what_keeps_a_program_from_being_a_kernel(f, reason):
    found = inspected(f, spec(16, 16), spec(1, 16))
    assert found[0].ran_as == OTHERWISE
    assert reason in found[0].reason
    assert [report.ran_as for report in found[1:]] == ["kernel", "kernel"]


def test_effects_keep_a_program_as_it_is():
    def show(x):
        jax.debug.print("{}", x[0, 0])
        return jnp.tanh(x)

    assert [report.kind for report in inspected(layers(show), spec(16, 16), spec(1, 16))] == ["products", "products"]


def test_weights_that_are_packed_are_read_as_they_are():
    w = jax_nano.pack(normal(64, 64))
    found = inspected(layers(), w, spec(1, 64))
    assert [report.ran_as for report in found] == [OTHERWISE, "kernel", "kernel"]


def test_switched_off(monkeypatch):
    monkeypatch.setenv("JAX_NANO", "0")
    with kernels(0):
        jax.jit(jax_nano.accelerate(layers()))(normal(16, 16), normal(1, 16))


@pytest.mark.breaks_the_compiler
def test_faults_in_reading_are_reported_and_each_product_is_a_kernel(monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("jax_nano.lowering.programs.read_program", fail)
    found = inspected(layers(), spec(16, 16), spec(1, 16))
    assert found[0].reason == "jax_nano could not read the program (ZeroDivisionError: on purpose)"
    assert "a program of 2 calls could not be read" in caplog.text
    assert [report.ran_as for report in found[1:]] == ["kernel", "kernel"]


def test_a_result_does_not_depend_on_how_often_it_is_computed():
    f, w, x = jax.jit(jax_nano.accelerate(layers())), normal(16, 16), normal(1, 16)
    assert len({np.asarray(f(w, x)).tobytes() for _ in range(20)}) == 1


def test_reports_tell_of_parts():
    def f(w, x):
        return layers()(w, by_two_keys(layers()(w, x)))

    first, second, whole = inspected(f, spec(16, 16), spec(1, 16))
    assert first.equation == second.equation == "program of 2 calls, a part"
    assert first.kernel and second.kernel
    assert whole.ran_as == "kernels of its parts"
    assert whole.reason.startswith("sort is not elementwise")
