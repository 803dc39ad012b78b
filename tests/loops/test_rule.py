"""Which loops become kernels: by predicted time, operations and size."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano
from jax_nano.lowering.loops import OTHERWISE


def matrix_by_vector(steps):
    def loop(w, x):
        return lax.scan(lambda x, _: (jnp.tanh(w @ x), None), x, None, length=steps)[0]

    return loop


def loop_report(f, *arrays):
    """What became of the first loop of f."""
    return next(r for r in jax_nano.inspect(f, *arrays) if "scan of" in r.equation or "while loop" in r.equation)


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_a_long_loop_is_a_kernel_and_a_short_one_is_not():
    arrays = spec(24, 24), spec(24)
    assert loop_report(matrix_by_vector(1000), *arrays).kernel
    short = loop_report(matrix_by_vector(3), spec(3, 3), spec(3))
    assert short.ran_as == OTHERWISE
    assert short.reason.startswith("XLA's loop is predicted to be as fast")


def test_large_products_are_kernels_of_their_own():
    """A library, or a kernel for each, has all threads take part."""
    arrays = spec(2048, 2048), spec(2048, 2048)
    found = jax_nano.inspect(matrix_by_vector(10), *arrays)
    assert [report.ran_as for report in found] == [OTHERWISE, "kernel"]


@pytest.mark.parametrize(
    "step, reason",
    [
        (lambda w, x: lax.sort((w @ x, x), num_keys=2)[0], "sort is not elementwise, or has no vector code"),
        (lambda w, x: (w.astype(jnp.int8) @ x.astype(jnp.int8)).astype(x.dtype),
         "a product of s8 and s8 into s8; loops multiply f64, or f32, bf16 and f16"),
        (lambda w, x: lax.dot(w, x, precision=lax.DotAlgorithmPreset.BF16_BF16_F32_X3),
         "a product by the algorithm BF16_BF16_F32_X3"),
        (lambda w, x: jnp.fft.fft(w @ x).real, "complex64[16] is no array of numbers"),
    ],
)  # fmt: skip
def test_reports_say_what_keeps_a_loop_from_being_a_kernel(step, reason):
    def loop(w, x):
        return lax.scan(lambda x, _: (step(w, x), None), x, None, length=1000)[0]

    found = loop_report(loop, spec(16, 16), spec(16))
    assert found.ran_as == OTHERWISE
    assert found.reason.startswith(reason)


def test_an_inner_loop_is_a_kernel_where_the_outer_one_is_none():
    def loop(w, x):
        def step(x, _):
            return lax.sort((matrix_by_vector(20000)(w, x), x), num_keys=2)[0], None

        return lax.scan(step, x, None, length=3)[0]

    with kernels(3):
        jax.jit(jax_nano.accelerate(loop))(0.1 * normal(24, 24), normal(24))


def test_loops_without_products_of_ours_are_left_alone():
    with kernels(0):
        jax.jit(matrix_by_vector(1000))(normal(24, 24), normal(24))
        jax.jit(jax_nano.accelerate(lambda x: lax.fori_loop(0, 1000, lambda _, x: jnp.sin(x), x)))(normal(24))


def test_switched_off(monkeypatch):
    monkeypatch.setenv("JAX_NANO", "0")
    with kernels(0):
        jax.jit(jax_nano.accelerate(matrix_by_vector(1000)))(0.1 * normal(24, 24), normal(24))


def test_effects_keep_a_loop_as_it_is():
    def loop(w, x):
        def step(x, _):
            jax.debug.callback(lambda _: None, x[0])
            return w @ x, None

        return lax.scan(step, x, None, length=1000)[0]

    assert loop_report(loop, spec(24, 24), spec(24)).reason == "the loop has effects, or constants of its own"


def test_a_report_describes_the_kernel():
    text = str(loop_report(matrix_by_vector(1000), spec(24, 24), spec(24)))
    assert "kernel nano_loop1000_f32_" in text
    assert "1 product of f32 and" in text
    assert "576,000 multiplications" in text
    assert "us expected on 1 thread" in text


@pytest.mark.breaks_the_compiler
def test_faults_in_reading_are_reported_and_xla_computes_the_loop(monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("jax_nano.lowering.loops.read_scan", fail)
    found = loop_report(matrix_by_vector(1000), spec(24, 24), spec(24))
    assert found.reason == "jax_nano could not read the loop (ZeroDivisionError: on purpose)"
    assert "Please report: ZeroDivisionError: on purpose" in caplog.text


def test_a_short_inner_loop_is_no_kernel_where_xla_makes_a_function_of_the_outer_one():
    def loop(w, x):
        def step(x, _):
            return lax.sort((matrix_by_vector(20)(w, x), x), num_keys=2)[0], None

        return lax.scan(step, x, None, length=1000)[0]

    with kernels(0):
        jax.jit(jax_nano.accelerate(loop))(0.1 * normal(8, 8), normal(8))
