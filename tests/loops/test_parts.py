"""Loops by parts, whose products of all steps of a part are made at once, and results of inner loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano
from jax_nano.jaxpr.pipelines.loop_parts import steps_of
from jax_nano.lowering import loops


@pytest.fixture
def by_parts(monkeypatch):
    """Loops are computed by parts wherever they can be."""
    monkeypatch.setattr(loops, "LARGE_BYTES", 0)
    monkeypatch.setattr(loops, "before_seconds", lambda *_: float("inf"))


def run(w, u, xs, h):
    def step(h, x):
        a = x @ w
        h = jnp.tanh(a + h @ u)
        return h, (h, a, h.sum())

    return lax.scan(step, h, xs)


def exact(w, u, xs, h, reverse):
    w, u, xs, h = (np.asarray(x, np.float64) for x in (w, u, xs, h))
    found = []
    for x in xs[::-1] if reverse else xs:
        h = np.tanh(x @ w + h @ u)
        found.append((h, x @ w, h.sum()))
    return h, [np.stack(ys[::-1] if reverse else ys) for ys in zip(*found, strict=True)]


@pytest.mark.usefixtures("by_parts")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rows, steps", [(1, 24), (16, 24), (3, 20), (4, 23), (4, 2)])
def test_products_of_a_part_are_made_at_once(rows, steps, reverse):
    w, u, xs, h = normal(8, 16), 0.3 * normal(16, 16), normal(steps, rows, 8), normal(rows, 16)

    def loop(w, u, xs, h):
        def step(h, x):
            a = x @ w
            h = jnp.tanh(a + h @ u)
            return h, (h, a, h.sum())

        return lax.scan(step, h, xs, reverse=reverse)

    has_parts = steps_of(steps) not in (1, steps)
    with kernels(1 if has_parts else 2):
        final, ys = jax.jit(jax_nano.accelerate(loop))(w, u, xs, h)
    true, exact_ys = exact(w, u, xs, h, reverse)
    np.testing.assert_allclose(final, true, atol=1e-5)
    for y, expected in zip(ys, exact_ys, strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("by_parts")
def test_gradients_of_loops_by_parts():
    arrays = normal(8, 16), 0.3 * normal(16, 16), normal(24, 4, 8), normal(4, 16)
    gradient = jax.grad(lambda *a: (run(*a)[1][0] ** 2).sum(), (0, 1, 2, 3))
    found = jax.jit(jax_nano.accelerate(gradient))(*arrays)
    with jax.enable_x64(True):
        true = gradient(*(jnp.asarray(x, jnp.float64) for x in arrays))
    for x, expected in zip(found, true, strict=True):
        np.testing.assert_allclose(x, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "step",
    [
        lambda c, ys: (c, ys),  # written in place
        lambda c, ys: (c, (ys, ys)),
        lambda c, ys: (c, (ys, ys[0] + ys[1])),
        lambda c, ys: (ys[2], ys),
        lambda c, ys: (c, ys[::-1]),
        lambda c, ys: (c + ys.sum(0), ys * 2),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_results_of_inner_loops_are_results_of_the_outer_one(step, reverse):
    w = 0.3 * normal(8, 8)

    def loop(w, c, xs):
        def outer(c, x):
            return step(
                *lax.scan(lambda c, i: ((c := jnp.tanh(w @ c + x + i)), c), c, jnp.arange(3.0), reverse=reverse)
            )

        return lax.scan(outer, c, xs, reverse=reverse)

    arguments = w, normal(8), normal(5, 8)
    with kernels(1):
        found = jax.jit(jax_nano.accelerate(loop))(*arguments)
    for x, true in zip(jax.tree.leaves(found), jax.tree.leaves(loop(*arguments)), strict=True):
        np.testing.assert_allclose(x, true, rtol=1e-5, atol=1e-5)
