"""Every lax.dot_general of a program is replaced, at any depth, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, normal, primitives
from programs import FORWARD_ONLY, PROGRAMS, REVERSE_ONLY

import jax_nano
from jax_nano.lowering.dot_general import nano

S = normal(5, 5, seed=3)


def close(actual, exact):
    np.testing.assert_allclose(actual, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_product_of_a_program_is_rebound(name):
    assert_rebound(lambda f: f, PROGRAMS[name])


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - FORWARD_ONLY))
def test_every_product_of_a_gradient_is_rebound(name):
    assert_rebound(jax.jacrev, PROGRAMS[name])


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - REVERSE_ONLY))
def test_every_product_of_a_tangent_is_rebound(name):
    assert_rebound(jax.jacfwd, PROGRAMS[name])


def assert_rebound(transformation, program):
    """`program` has products, and none of them stays JAX's, whether it is transformed after rebinding or before."""
    exact = transformation(program)(S, S)
    for rebound in (transformation(nano(program)), nano(transformation(program))):
        names = primitives(jax.make_jaxpr(rebound)(S, S).jaxpr)
        assert "nano_dot_general" in names
        assert "dot_general" not in names
        close(rebound(S, S), exact)


def test_rebinding_keeps_what_is_not_an_array():
    @nano
    def f(tree, *, names, times):
        x = tree["x"]
        for _ in range(times):
            x = x @ tree["s"]
        return {"x": x, "names": names, "times": times}

    result = f({"x": S, "s": S}, names=("a", "b"), times=2)
    assert (result["names"], result["times"]) == (("a", "b"), 2)
    close(result["x"], S.astype(np.float64) @ S.astype(np.float64) @ S.astype(np.float64))


def test_rebinding_leaks_no_tracers():
    a = normal(3, 3)
    with jax.check_tracer_leaks(True):
        assert_close(jax.jit(jax_nano.matmul)(a, a), "mk,kn->mn", a, a)


def test_a_shared_jaxpr_stays_shared():
    layer = jax.jit(lambda x, s: jnp.tanh(x @ s))
    jaxpr = jax.make_jaxpr(nano(lambda x, s: layer(layer(layer(x, s), s), s)))(S, S)
    layers = [eqn.params["jaxpr"] for eqn in jaxpr.eqns]
    assert len(layers) == 3
    assert all(inner is layers[0] for inner in layers)


def test_rebinding_keeps_effects_in_order(capsys):
    def f(s):
        jax.debug.print("before", ordered=True)
        s = s @ s
        jax.debug.print("after", ordered=True)
        return s

    jax.block_until_ready(jax.jit(nano(f))(S))
    jax.effects_barrier()
    assert capsys.readouterr().out.split() == ["before", "after"]
