"""JAX_NANO=0: everything computes, and nothing by jax_nano."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import kernels, normal, primitives, run_python

import jax_nano
from jax_nano.__main__ import main

X, W, B = normal(13, 32), normal(32, 17), normal(17)
OPERANDS = {
    "dot": (X, W), "matmul": (X, W), "inner": (X, W.T), "vecdot": (X, normal(13, 32, seed=1)),
    "tensordot": (X, W, 1), "einsum": ("mk,kn->mn", X, W), "dot_general": (X, W, (((1,), (0,)), ((), ()))),
}  # fmt: skip
WEIGHTS = {"packed": lambda: jax_nano.pack(W), "quantized": lambda: jax_nano.quantize(W, bits=4, group=32)}


@pytest.fixture(autouse=True)
def off(monkeypatch):
    monkeypatch.setenv("JAX_NANO", "0")


@pytest.mark.parametrize("name", OPERANDS)
def test_products_are_their_namesakes(name):
    namesake = getattr(jnp, name, None) or getattr(jax.lax, name)
    operands = OPERANDS[name]
    with kernels(0):
        assert np.array_equal(getattr(jax_nano, name)(*operands), namesake(*operands))
    arrays = [x for x in operands if isinstance(x, np.ndarray)]

    def program(product):
        rest = iter(arrays)
        return jax.make_jaxpr(lambda *_: product(*operands))(*rest).jaxpr

    assert "nano_dot_general" not in primitives(program(getattr(jax_nano, name)))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", ["matmul", "dot", "einsum"])
def test_weights_stand_for_the_same_arrays(name, weight):
    w = WEIGHTS[weight]()
    subscripts = ("mk,kn->mn",) if name == "einsum" else ()
    with kernels(0):
        product = getattr(jax_nano, name)(*subscripts, X, w)
        assert np.array_equal(product, getattr(jnp, name)(*subscripts, X, w.__jax_array__()))
        assert np.array_equal(jax.jit(jax_nano.accelerate(lambda x, w: x @ w))(X, w), X @ w.__jax_array__())


def test_accelerated_functions_are_what_they_were():
    def f(x, w, b):
        return jnp.tanh(x @ w + b)

    assert primitives(jax.make_jaxpr(jax_nano.accelerate(f))(X, W, B).jaxpr) == primitives(
        jax.make_jaxpr(f)(X, W, B).jaxpr
    )
    with kernels(0):
        assert np.array_equal(jax.jit(jax_nano.accelerate(f))(X, W, B), jax.jit(f)(X, W, B))
        grad, wanted = (jax.jit(jax.grad(lambda x, g=g: g(x, W, B).sum()))(X) for g in (jax_nano.accelerate(f), f))
        assert np.array_equal(grad, wanted)


def test_installing_does_nothing(monkeypatch):
    with jax_nano.installed(), kernels(0):
        jax.jit(lambda x, w: x @ w)(X, W)
    jax_nano.install()
    with kernels(0):
        jax.jit(lambda x, w: x @ w)(X, W)
    monkeypatch.delenv("JAX_NANO")
    jax_nano.uninstall()
    with kernels(0):
        jax.jit(lambda x, w: x @ w)(X, W)


def test_an_installation_made_before_does_nothing_for_what_is_compiled_now(monkeypatch):
    monkeypatch.delenv("JAX_NANO")
    with jax_nano.installed():
        monkeypatch.setenv("JAX_NANO", "0")
        with kernels(0):
            jax.jit(lambda x, w: x @ w)(X, W)
    with kernels(0):
        jax.jit(lambda x, w: x @ w)(X, W)


def test_fused_products_are_computed_by_jax(monkeypatch):
    def fused():
        return jax_nano.fused_matmul(X, W, B, epilogue=lambda acc, b: jnp.tanh(acc + b), prologue=jnp.abs)

    with kernels(0):
        result = fused()
    np.testing.assert_allclose(result, np.tanh(np.abs(X) @ W + B), rtol=1e-5, atol=1e-5)
    monkeypatch.delenv("JAX_NANO")
    with kernels(1):
        fused()
    monkeypatch.setenv("JAX_NANO", "0")
    with kernels(0):
        fused()


def test_programs_traced_before_are_lowered_without_kernels(monkeypatch):
    monkeypatch.delenv("JAX_NANO")
    traced = jax.jit(jax_nano.accelerate(lambda x, w, b: jnp.tanh(x @ w + b) @ w.T)).trace(X, W, B)
    monkeypatch.setenv("JAX_NANO", "0")
    with kernels(0):
        traced.lower().compile()(X, W, B)


@pytest.mark.parametrize(
    "f",
    [jnp.matmul, jax_nano.matmul, jax_nano.accelerate(lambda x, w: jnp.exp(x @ w))],
    ids=["jnp", "jax_nano", "accelerated"],
)
def test_inspection_says_so(f):
    (report,) = jax_nano.inspect(f, X, W)
    assert report.ran_as == "lax.dot_general"
    assert report.reason == "JAX_NANO=0"


def test_the_command_line_says_so(capsys):
    main(["inspect", "f32", "8", "8", "8"])
    assert "because  JAX_NANO=0" in capsys.readouterr().out
    main(["info"])
    assert "JAX_NANO            0 (environment)" in capsys.readouterr().out


def test_nothing_is_planned_or_put_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NANO_CACHE_DIR", str(tmp_path))
    code = """
import jax, jax.numpy as jnp, jax_nano
jax_nano.retain_memory()
jax_nano.install()
x = jnp.ones((8, 8))
print(jax.jit(jax_nano.accelerate(lambda x: jax_nano.matmul(x, x) @ jax_nano.pack(x)))(x).sum())
print(jax_nano.executed_kernels())
"""
    assert run_python(code).split() == ["4096.0", "0"]
    assert not list(tmp_path.iterdir())
