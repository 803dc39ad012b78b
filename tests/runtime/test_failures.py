"""Where MLIR or LLVM fail, programs run all the same, and it is said what to report."""

import functools
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import kernels, normal

import jax_nano
from jax_nano import config
from jax_nano.machine import host
from jax_nano.runtime import compiler, tuning
from jax_nano.runtime import kernels as runtime_kernels

pytestmark = pytest.mark.breaks_the_compiler

X, W, V, B = normal(13, 32), normal(32, 17), normal(17, 29), normal(17)
ERROR = "LLVM ERROR: Cannot select: intrinsic %llvm.x86.something\nin function nano\n" + "more\n" * 50


@pytest.fixture(autouse=True)
def without_a_disk(monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE", "0")
    config.warn.cache_clear()
    runtime_kernels._kernels.clear()
    yield
    runtime_kernels._kernels.clear()


def fail_in_llvm(monkeypatch):
    def refuse(*_):
        raise RuntimeError(ERROR)

    monkeypatch.setattr(compiler._native, "compile", refuse)


def fail_in_mlir(monkeypatch):
    def build_module(_):
        raise ValueError("'vector.load' op result #0 must be vector of any type values")

    monkeypatch.setattr(compiler, "build_module", build_module)


def fail_in_planning(monkeypatch):
    def choose(*_):
        raise StopIteration

    monkeypatch.setattr(runtime_kernels, "choose", choose)


FAULTS = [fail_in_llvm, fail_in_mlir, fail_in_planning]


@pytest.fixture(params=FAULTS, ids=lambda fail: fail.__name__)
def faulty(request, monkeypatch):
    request.param(monkeypatch)


def packed(x):
    return x @ jax_nano.pack(W)


def quantized(x):
    return jax.nn.relu(x @ jax_nano.quantize(W, bits=4, group=32))


def compiled_anew(f):
    """Jitted, and nothing that jit remembers of f."""
    return jax.jit(functools.partial(f))


PROGRAMS = {
    "product": lambda x: jax_nano.matmul(x, W),
    "region": jax_nano.accelerate(lambda x: jnp.tanh(x @ W + B)),
    "several": jax_nano.accelerate(lambda x: jnp.tanh(x @ W + B) @ V),
    "fused": lambda x: jax_nano.fused_matmul(x, W, B, epilogue=lambda acc, b: jnp.exp(acc) * b),
    "packed": jax_nano.accelerate(packed),
    "quantized": jax_nano.accelerate(quantized),
    "gradient": jax.grad(lambda x: jax_nano.accelerate(lambda x: jnp.tanh(x @ W + B))(x).sum()),
}


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_without_its_kernels(faulty, monkeypatch, name):
    program = PROGRAMS[name]
    with kernels(0):
        result = compiled_anew(program)(X)
    monkeypatch.setenv("JAX_NANO", "0")
    np.testing.assert_allclose(result, compiled_anew(program)(X), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_installed_it_does_not_fail_either(faulty):
    with jax_nano.installed(), kernels(0):
        np.testing.assert_allclose(jax.jit(lambda x, w: x @ w)(X, W), X @ W, rtol=1e-4, atol=1e-4)


def test_the_log_says_what_to_report(monkeypatch, caplog):
    fail_in_llvm(monkeypatch)
    with pytest.warns(RuntimeWarning, match="LLVM ERROR: Cannot select.*XLA computes the product"):
        jax_nano.inspect(jax_nano.matmul, X, W)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.name == "jax_nano"
    for word in ("report", "jaxlib ", "LLVM, MLIR 22", "processor: ", "product: Dot(", "plan: Plan(", "JAX_NANO_DUMP"):
        assert word in record.message
    assert "error: RuntimeError: LLVM ERROR: Cannot select: intrinsic" in record.message
    assert len(record.message.splitlines()) < 20


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_a_report_has_the_reason(monkeypatch):
    fail_in_mlir(monkeypatch)
    for f in (jax_nano.matmul, jax_nano.accelerate(lambda x, w: jnp.exp(x @ w))):
        (report,) = jax_nano.inspect(f, X, W)
        assert report.ran_as == "lax.dot_general"
        assert report.reason == (
            "jax_nano could not compile its kernel (ValueError: 'vector.load' op result #0 must be vector of any type "
            "values); the logger jax_nano says what to report"
        )


def test_where_warnings_are_errors_the_program_runs(monkeypatch):
    fail_in_llvm(monkeypatch)
    with warnings.catch_warnings(action="error"), kernels(0):
        jax.jit(jax_nano.matmul)(X, W)


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_a_product_that_failed_is_not_tried_again(monkeypatch):
    tried = []

    def build_module(plan):
        tried.append(plan)
        raise ValueError("no")

    monkeypatch.setattr(compiler, "build_module", build_module)
    jax.jit(lambda x: jax_nano.matmul(x, W) + jax_nano.matmul(x * 2, W)).lower(X)
    assert len(tried) == 1


@pytest.mark.skipif(host.threads() < 2, reason="kernels are compiled on other threads where there are any")
@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_one_that_fails_on_another_thread_leaves_the_others_alone(monkeypatch):
    real = compiler.build_module

    def build_module(plan):
        if plan.dot.sizes[1:] in ((13, 29, 17), (29, 13, 17)):
            raise ValueError("no")
        return real(plan)

    monkeypatch.setattr(compiler, "build_module", build_module)
    program = jax.jit(jax_nano.accelerate(lambda x: jnp.tanh(jnp.tanh(x @ W + B) @ V) @ V.T))
    with kernels(2):
        result = program(X)
    np.testing.assert_allclose(result, np.tanh(np.tanh(X @ W + B) @ V) @ V.T, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_a_region_that_fails_leaves_a_product_that_does_not(monkeypatch):
    real = compiler.build_module

    def build_module(plan):
        if plan.dot.epilogue:
            raise ValueError("no")
        return real(plan)

    monkeypatch.setattr(compiler, "build_module", build_module)
    with kernels(1):
        result = jax.jit(jax_nano.accelerate(lambda x: jnp.tanh(x @ W + B)))(X)
    np.testing.assert_allclose(result, np.tanh(X @ W + B), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_tuning_leaves_out_what_does_not_compile(monkeypatch):
    real, refused = compiler.build_module, []

    def build_module(plan):
        refused.append(plan)
        if len(refused) == 1:
            raise ValueError("no")
        return real(plan)

    monkeypatch.setattr(compiler, "build_module", build_module)
    monkeypatch.setenv("JAX_NANO_AUTOTUNE", "1")
    with kernels():
        np.testing.assert_allclose(jax_nano.matmul(X, W), X @ W, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:jax_nano could not compile")
def test_measuring_that_fails_leaves_the_cost_models_choice(monkeypatch):
    def measure_kernels(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(tuning, "measure_kernels", measure_kernels)
    monkeypatch.setenv("JAX_NANO_AUTOTUNE", "1")
    with kernels(1):
        jax_nano.matmul(X, W)
