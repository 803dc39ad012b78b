"""Grouped products in loops: the smallest are XLA's, in the one function it makes of a step; others are kernels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import normal

import jax_nano
from jax_nano.lowering.small_loops import INLINE, read_loop


def stepping(product, sizes, count=4):
    def f(x, w):
        return lax.fori_loop(0, count, lambda _, x: jnp.tanh(product(x, w, sizes)), x)

    return f


def operands(rows, k, groups):
    return jnp.asarray(normal(rows, k)), jnp.asarray(normal(groups, k, k)), jnp.full(groups, rows // groups, jnp.int32)


def outcomes(f, *args):
    return [(report.ran_as, report.reason) for report in jax_nano.inspect(f, *args) if "groups of" in report.equation]


@pytest.mark.parametrize("product", [jax_nano.ragged_dot, jax_nano.accelerate(lax.ragged_dot)], ids=["own", "fast"])
def test_tiny_ones_are_left_to_xla(product):
    x, w, sizes = operands(2, 3, 2)
    f = stepping(product, sizes)
    assert outcomes(f, x, w) == [("lax.ragged_dot_general", INLINE)]
    np.testing.assert_allclose(f(x, w), stepping(lax.ragged_dot, sizes)(x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", [jax_nano.ragged_dot, jax_nano.accelerate(lax.ragged_dot)], ids=["own", "fast"])
def test_others_are_kernels(product):
    x, w, sizes = operands(64, 96, 8)
    f = stepping(product, sizes)
    ((ran_as, _),) = outcomes(f, x, w)
    assert ran_as == "kernel"
    np.testing.assert_allclose(f(x, w), stepping(lax.ragged_dot, sizes)(x, w), rtol=1e-4, atol=1e-4)


def test_weights_that_only_kernels_read_make_kernels():
    x, w, sizes = operands(2, 3, 2)
    packed: Any = jax_nano.pack(w)
    f = lambda x: lax.fori_loop(0, 4, lambda _, x: jax_nano.ragged_dot(x, packed, sizes), x)  # noqa: E731
    assert [ran_as for ran_as, _ in outcomes(f, x)] == ["kernel"]


def test_a_loop_knows_of_them():
    x, w, sizes = operands(2, 3, 2)
    step = jax.make_jaxpr(jax_nano.ragged_dot)(x, w, sizes).jaxpr
    (product,) = read_loop(step).products
    assert product.sizes == (1, 2, 3, 6)
    assert product.dot is not None
