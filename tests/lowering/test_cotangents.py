"""Cotangents of weights: products that give them as they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import ShapedArray
from oracle import normal

import jax_nano
from jax_nano.jaxpr.primitives import DOTS

CASES = {
    "dense": (lambda x, w: x @ w, (4, 5), (5, 6)),
    "dense of several axes": (lambda x, w: x @ w, (2, 4, 5), (5, 6)),
    "vector": (lambda x, w: x @ w, (5,), (5, 6)),
    "transposed weights": (lambda x, w: x @ w.T, (4, 5), (6, 5)),
    "contracting last dimensions": (lambda x, w: lax.dot_general(x, w, (((1,), (1,)), ((), ()))), (4, 5), (6, 5)),
    "batch": (lambda x, w: x @ w, (3, 4, 5), (3, 5, 6)),
    "two sums": (lambda x, w: jnp.einsum("abij,ijc->abc", x, w), (2, 3, 4, 5), (4, 5, 6)),
    "sums in another order": (lambda x, w: jnp.einsum("abij,jic->abc", x, w), (2, 3, 4, 5), (5, 4, 6)),
    "vmap": (jax.vmap(lambda x, w: x @ w, (0, None)), (4, 5), (5, 6)),
}


def gradient(f):
    return jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1))


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "_"))
def test_gradients_are_those_of_jax(case):
    f, *shapes = CASES[case]
    arrays = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    expected = gradient(f)(*arrays)
    with jax_nano.installed():
        found = jax.jit(gradient(f))(*arrays)
        second = jax.jit(jax.hessian(lambda w: jnp.sum(jnp.sin(f(arrays[0], w)))))(arrays[1])
    for x, true in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, true, rtol=1e-5, atol=1e-5)
    true = jax.hessian(lambda w: jnp.sum(jnp.sin(f(arrays[0], w))))(arrays[1])
    np.testing.assert_allclose(second, true, rtol=1e-4, atol=1e-4)


def transposes(f, *arrays):
    return [eqn for eqn in jax.make_jaxpr(f)(*arrays).eqns if eqn.primitive.name == "transpose"]


def test_weights_get_their_gradient_without_a_transpose():
    def weights(product):
        return jax.grad(lambda w, x: jnp.sum(product(x, w)))

    arrays = jnp.ones((5, 6)), jnp.ones((4, 5))
    assert len(transposes(weights(jnp.matmul), *arrays)) == 1
    assert not transposes(weights(jax_nano.matmul), *arrays)
    with jax_nano.installed():
        assert not transposes(weights(jnp.matmul), *arrays)
    assert len(transposes(weights(jnp.matmul), *arrays)) == 1


def test_weights_that_need_none_have_none_still():
    f = gradient(CASES["contracting last dimensions"][0])
    with jax_nano.installed():
        assert not transposes(f, jnp.ones((4, 5)), jnp.ones((6, 5)))


def test_precision_and_type_are_what_was_asked_for():
    x, w = jnp.ones((4, 5), jnp.bfloat16), jnp.ones((5, 6), jnp.bfloat16)

    def product(x, w):
        return lax.dot_general(x, w, (((1,), (0,)), ((), ())), precision="high", preferred_element_type=jnp.float32)

    with jax_nano.installed():
        jaxpr = jax.make_jaxpr(jax.grad(lambda w: product(x, w).sum()))(w)
    cotangent = [eqn for eqn in jaxpr.eqns if eqn.primitive in DOTS][-1]
    assert cotangent.params["precision"] == (lax.Precision.HIGH, lax.Precision.HIGH)
    assert cotangent.params["preferred_element_type"] == jnp.float32
    assert jaxpr.out_avals == [ShapedArray((5, 6), jnp.bfloat16)]


def test_weak_types_stay_weak(x64):
    def gradient():
        return jax.grad(lambda w: jnp.sum(jnp.ones((4, 3), jnp.float32) @ lax.broadcast(w, (3, 2))))(1.5)

    with jax_nano.installed():
        assert gradient().weak_type
        assert (jnp.ones((), jnp.bfloat16) - gradient()).dtype == jnp.bfloat16
