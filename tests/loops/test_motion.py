"""Products that leave their loop."""

import jax
import jax.numpy as jnp
from jax import lax

import jax_nano
from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.loop_motion import move_products
from jax_nano.jaxpr.pipelines.scans import Scan


def moved(f, *shapes):
    """What is left of the last scan of f, with what stands before and behind it."""
    jaxpr = jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr
    scan = Scan.of([eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"][-1].params)
    return move_products(Scan(inlined(scan.jaxpr), scan.constants, scan.carries, scan.length, scan.reverse))


def products(jaxpr):
    return sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)


def network(w, u, xs, h):
    return lax.scan(lambda h, x: (jnp.tanh(x @ w + h @ u), h), h, xs)[1]


NETWORK = (5, 7), (7, 7), (9, 2, 5), (2, 7)


def test_what_is_made_of_xs_alone_stands_before_the_loop():
    found = moved(network, *NETWORK)
    assert products(found.before) == products(found.scan.jaxpr) == 1
    assert len(found.scan.jaxpr.invars) == found.scan.constants + 1 + 2  # w @ x beside x


def test_a_product_of_elements_of_two_xs_stays():
    found = moved(lambda a, b, c: lax.scan(lambda c, x: (c + x[0] @ x[1], c @ c), c, (a, b)), *[(4, 3, 3)] * 2, (3, 3))
    assert not found.before.outvars


def test_gradients_of_weights_stand_behind_the_loop():
    found = moved(jax.grad(lambda *a: network(*a).sum(), (0, 1)), *NETWORK)
    assert len(found.sums) == 2
    assert len(found.kept) == 1
    assert products(found.scan.jaxpr) == 1


def test_a_sum_that_the_step_reads_stays():
    def loop(xs, c):
        def step(c, x):
            return c + x.T @ x, c.sum()

        return lax.scan(step, c, xs)

    assert not moved(loop, (4, 2, 3), (3, 3)).sums


def test_a_sum_that_is_a_result_twice_stays():
    def loop(xs, c):
        def step(c, x):
            c = c + x.T @ x
            return c, c

        return lax.scan(step, c, xs)

    assert not moved(loop, (4, 2, 3), (3, 3)).sums


def test_a_sum_of_two_products_in_each_step_is_two_sums():
    """The gradient of a matrix that a step multiplies by twice, once transposed."""

    def loop(w, xs):
        def step(c, x):
            return c + (x[:1].T @ x[1:2] + (x[1:2].T @ x[2:]).T), x.sum()

        return lax.scan(step, w, xs)

    found = moved(loop, (3, 3), (4, 3, 3))
    assert [each.number for each in found.sums] == [0, 0]
    assert not found.kept
    w, xs = jnp.ones((3, 3)), jnp.arange(36.0).reshape(4, 3, 3)
    for x, expected in zip(jax.jit(jax_nano.accelerate(loop))(w, xs), loop(w, xs), strict=True):
        assert jnp.allclose(x, expected)
