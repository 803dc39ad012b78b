"""Sums with what is scattered over zeros: the same numbers, scattered over the other operand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import normal, primitives

import jax_nano

TABLE, X, G = normal(5, 8), normal(4, 8, seed=1), normal(4, 5, seed=2)
ROWS = np.array([3, 0, 3, 4])


def tied(table):
    """A model that reads its table twice, as an embedding and as a matrix."""
    return ((jnp.tanh(table[ROWS]) @ table.T).astype(jnp.float32) * G).sum()


def made(f, *operands):
    """The equations that make the operands of each scatter in the accelerated program."""
    jaxpr = jax.make_jaxpr(jax_nano.accelerate(f))(*operands).jaxpr
    makers: dict[object, str] = {out: eqn.primitive.name for eqn in jaxpr.eqns for out in eqn.outvars}
    return [makers.get(eqn.invars[0]) for eqn in jaxpr.eqns if eqn.primitive.name == "scatter-add"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_an_embeddings_gradient_adds_to_the_product_in_place(dtype):
    table = jnp.asarray(TABLE, dtype)
    exact = np.asarray(table, np.float64)
    embedded = np.tanh(exact[ROWS])
    wanted = G.T @ embedded
    np.add.at(wanted, ROWS, (1 - embedded**2) * (G @ exact))
    assert made(jax.grad(tied), table) == ["nano_region"]
    actual = jax.jit(jax_nano.accelerate(jax.grad(tied)))(table)
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=0, atol=40 * float(jnp.finfo(dtype).eps))


def over(start):
    return lambda x: jnp.full_like(x, start).at[ROWS[:2]].add(1.0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x @ x.T @ x + over(1.0)(x),
        lambda x: (lambda s: (x @ x.T @ x + s, s))(over(0.0)(x)),
        lambda x: x @ x.T @ x * over(0.0)(x),
        lambda x: over(0.0)(x) + 1.0,
    ],
    ids=["over other numbers", "used twice", "multiplied", "no array to scatter over"],
)
def test_other_scatters_stay(f):
    assert made(f, X) == ["broadcast_in_dim"]
    for actual, wanted in zip(jax.tree.leaves(jax_nano.accelerate(f)(X)), jax.tree.leaves(f(X)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_either_operand_may_be_the_scatter(first):
    def f(x):
        pair = (over(0.0)(x), x @ x.T @ x)
        return jnp.add(*(pair if first else pair[::-1]))

    assert made(f, X) == ["nano_region"]
    np.testing.assert_allclose(jax_nano.accelerate(f)(X), f(X), rtol=1e-5, atol=1e-5)


def test_derivatives_pass_through():
    wanted = jax.grad(lambda t: (jax.grad(tied)(t) ** 2).sum())(TABLE)
    actual = jax.grad(lambda t: (jax_nano.accelerate(jax.grad(tied))(t) ** 2).sum())(TABLE)
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
    assert "nano_region" in primitives(jax.make_jaxpr(jax_nano.accelerate(jax.grad(tied)))(TABLE).jaxpr)
