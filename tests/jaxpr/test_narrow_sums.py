"""Sums over rows of bf16 and f16 in accelerated programs: products with ones, rounded once."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from oracle import normal

import jax_nano

X, W, B = normal(300, 8), normal(8, 24, seed=1), normal(24, seed=2)


def compensated(x, w, b):
    return jnp.tanh(x @ w + b).astype(jnp.float32).sum()


def sums(f, *operands):
    """How many sums are left in the accelerated program, at any depth."""
    return str(jax.make_jaxpr(jax_nano.accelerate(f))(*operands)).count("= reduce_sum")


def total(*axes):
    return lambda x: jax.lax.reduce_sum(x, axes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["as it is", "jit", "remat"])
def test_a_biass_gradient_is_a_product(dtype, wrap):
    x, w, b = (jnp.asarray(array, dtype) for array in (X, W, B))
    f = jax.grad(wrap(compensated), argnums=2)
    assert sums(f, x, w, b) == 2  # that of the loss, and that of the one row that b is broadcast from
    actual = jax.jit(jax_nano.accelerate(f))(x, w, b)
    assert actual.dtype == dtype
    x, w, b = (np.asarray(array, np.float64) for array in (x, w, b))
    slopes = 1 - np.tanh(x @ w + b) ** 2
    # Each slope is made of values that were rounded a few times; their errors add up like the slopes, at most.
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), slopes.sum(0), rtol=0, atol=8 * float(jnp.finfo(dtype).eps) * len(x)
    )


@pytest.mark.parametrize("shape, axes", [((500, 5), (0,)), ((9, 1), (0,)), ((3, 50, 4, 7), (1, 0))])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_one_rounding_at_the_end(dtype, shape, axes):
    x = jnp.asarray(normal(*shape), dtype)
    assert not sums(total(*axes), x)
    exact = np.asarray(x, np.float64).sum(axes)
    actual = np.asarray(jax.jit(jax_nano.accelerate(total(*axes)))(x), np.float64)
    bound = 500 * np.finfo(np.float32).eps * np.abs(np.asarray(x, np.float64)).sum(axes)
    assert np.all(np.abs(actual - exact) <= bound + float(jnp.finfo(dtype).eps) / 2 * np.abs(exact))


def test_what_is_no_number_stays_in_its_column():
    x = jnp.ones((20, 4), jnp.bfloat16).at[3, 1].set(jnp.inf).at[5, 2].set(jnp.nan)
    actual = np.asarray(jax_nano.accelerate(total(0))(x), np.float64)
    np.testing.assert_array_equal(actual, [20, np.inf, np.nan, 20])


def test_derivatives_and_batches_are_those_of_a_sum():
    x = jnp.asarray(normal(4, 20, 5), jnp.bfloat16)
    f = jax_nano.accelerate(total(0))
    np.testing.assert_array_equal(jax.vmap(f)(x), np.stack([f(rows) for rows in x]))
    _, tangent = jax.jvp(f, (x[0],), (x[1],))
    np.testing.assert_array_equal(tangent, f(x[1]))
    (cotangent,) = jax.vjp(f, x[0])[1](x[1, 0])
    np.testing.assert_array_equal(cotangent, jnp.broadcast_to(x[1, 0], (20, 5)))


@pytest.mark.parametrize(
    "dtype, shape, axes",
    [
        (jnp.int8, (20, 4), (0,)),
        (jnp.float32, (20, 4), (0,)),
        (jnp.bfloat16, (20, 4), (1,)),
        (jnp.bfloat16, (20, 4), (0, 1)),
        (jnp.bfloat16, (8, 4), (0,)),
        (jnp.bfloat16, (20, 4), ()),
    ],
    ids=["integers", "f32", "columns", "everything", "few rows", "nothing"],
)
def test_other_sums_stay(dtype, shape, axes):
    assert sums(total(*axes), jnp.ones(shape, dtype)) == 1


def test_meshes_around_a_program_are_not_remembered():
    f, x = jax_nano.accelerate(total(0)), jnp.ones((40, 6), jnp.bfloat16)
    for kind in (None, AxisType.Explicit, AxisType.Auto, None):
        with jax.set_mesh(jax.make_mesh((1,), ("i",), axis_types=(kind,))) if kind else nullcontext():
            np.testing.assert_array_equal(np.asarray(jax.jit(f)(x), np.float64), 40)


@pytest.mark.parametrize("inside", [False, True])
def test_each_shard_is_summed(inside):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    place = (lambda f: f) if inside else jax_nano.accelerate
    kernel = jax_nano.accelerate if inside else (lambda f: f)
    shards = jax.shard_map(kernel(total(0)), mesh=mesh, in_specs=P("i", None), out_specs=P("i"))
    np.testing.assert_array_equal(np.asarray(jax.jit(place(shards))(jnp.ones((80, 6), jnp.bfloat16)), np.float64), 80)


def test_shardings_in_types_stay():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Explicit,))
    f = jax.jit(total(0))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((40, 6), jnp.bfloat16), jax.NamedSharding(mesh, P(None, "i")))
        plain, fast = (jax.eval_shape(g, x) for g in (f, jax_nano.accelerate(f)))
    assert plain.sharding.spec == P("i")
    assert plain.sharding == fast.sharding


@pytest.mark.parametrize("dtype, more, left", [(jnp.bfloat16, 1, 0), (jnp.float16, 0, 0), (jnp.float16, 1, 1)])
def test_large_sums_of_f16_stay(dtype, more, left):
    assert sums(total(0), jax.ShapeDtypeStruct((32, (1 << 19) + more), dtype)) == left
