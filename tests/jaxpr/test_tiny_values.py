"""Values computed for a few elements: what is computed, and what is not as it would not be those of the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_nano.jaxpr.attention.tiny_values import TinyValues, Unreadable


def tiny(f, labels):
    """The result of a function of one array of 4 x 5, of which every label has 2 elements."""
    jaxpr = jax.make_jaxpr(f)(jnp.zeros((4, 5))).jaxpr
    values = TinyValues({out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}, {0: 2, 1: 2})
    given = values.give(jaxpr.invars[0], labels, np.random.default_rng(0))
    return given, values(jaxpr.outvars[0])


def test_sums_over_axes_with_labels():
    given, found = tiny(lambda x: jax.lax.reduce_sum(x, (1,)), (0, 1))
    np.testing.assert_array_equal(found.array, given.array.sum(1))
    assert found.labels == (0,)


def test_sums_of_an_element_that_stands_for_several_are_not_computed():
    with pytest.raises(Unreadable):
        tiny(lambda x: jax.lax.reduce_sum(x, (1,)), (0, None))


@pytest.mark.parametrize(("dtype", "is_computed"), [(jnp.bfloat16, True), (jnp.float8_e5m2, False), (jnp.int8, False)])
def test_conversions_of_floats_may_round_and_no_more(dtype, is_computed):
    def f(x):
        return x.astype(dtype)

    if is_computed:
        given, found = tiny(f, (0, 1))
        np.testing.assert_array_equal(found.array, given.array)
    else:
        with pytest.raises(Unreadable):
            tiny(f, (0, 1))
