"""Over several devices: kernels on the shards, under shard_map and pmap and wherever XLA partitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import assert_close, kernels, normal

import jax_nano

DEVICES = 4
A, B = normal(64, 32), normal(32, 48, seed=1)
PLACEMENTS = {
    "rows": (P("x"), P(), P("x")),
    "columns": (P(), P(None, "x"), P(None, "x")),
    "contracted": (P(None, "x"), P("x"), P()),
}


def mesh(kind=AxisType.Auto, shape=(DEVICES,), names=("x",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def placed(mesh, *specs):
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip((A, B), specs, strict=False)]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("product", [jax_nano.matmul, jax.jit(jax_nano.matmul)])
def test_named_sharding(placement, product):
    lhs, rhs, _ = PLACEMENTS[placement]
    with kernels(DEVICES):
        assert_close(product(*placed(mesh(), lhs, rhs)), "ij,jk->ik", A, B)


def test_named_sharding_when_installed():
    with jax_nano.installed(), kernels(DEVICES):
        assert_close(jnp.matmul(*placed(mesh(), P("x"), P())), "ij,jk->ik", A, B)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_explicit_sharding(placement):
    lhs, rhs, out = PLACEMENTS[placement]
    with jax.set_mesh(mesh(AxisType.Explicit)):
        a, b = jax.device_put(A, lhs), jax.device_put(B, rhs)
        result = jax.jit(lambda a, b: jax_nano.matmul(a, b, out_sharding=out))(a, b)
        assert jax.typeof(result).sharding.spec == P(*out, *[None] * (2 - len(out)))
        assert_close(result, "ij,jk->ik", A, B)


def test_ambiguous_sharding_is_the_namesakes_error():
    with jax.set_mesh(mesh(AxisType.Explicit)):
        a, b = jax.device_put(A, P(None, "x")), jax.device_put(B, P("x"))
        for f in (jnp.matmul, jax_nano.matmul):
            with pytest.raises(Exception, match="Contracting dimensions are sharded and it is ambiguous"):
                f(a, b)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_shard_map(placement, jit):
    lhs, rhs, out = PLACEMENTS[placement]

    def product(a, b):
        c = jax_nano.matmul(a, b)
        return jax.lax.psum(c, "x") if placement == "contracted" else c

    f = jax.shard_map(product, mesh=mesh(), in_specs=(lhs, rhs), out_specs=out)
    with kernels(DEVICES):
        assert_close((jax.jit(f) if jit else f)(A, B), "ij,jk->ik", A, B)


def test_gradient_of_shard_map():
    f = jax.shard_map(jax_nano.matmul, mesh=mesh(), in_specs=(P("x"), P()), out_specs=P("x"))
    with kernels(2 * DEVICES):
        da, db = jax.jit(jax.grad(lambda a, b: f(a, b).sum(), (0, 1)))(A, B)
    ones = np.ones((64, 48))
    assert_close(da, "ik,jk->ij", ones, B)
    np.testing.assert_allclose(db, A.astype(np.float64).T @ ones, rtol=1e-4, atol=1e-4)


def over_some_axes(f, *, check_vma):
    return jax.shard_map(
        f, mesh=mesh(shape=(2, 2), names=("x", "y")), in_specs=(P("x"), P()), out_specs=P("x"), axis_names={"x"},
        check_vma=check_vma,
    )  # fmt: skip


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_over_some_axes_only(check_vma):
    product = over_some_axes(jax_nano.matmul, check_vma=check_vma)
    accelerated = jax_nano.accelerate(over_some_axes(jnp.matmul, check_vma=check_vma))
    for f in (product, accelerated):
        assert_close(jax.jit(f)(A, B), "ij,jk->ik", A, B)


def test_shard_map_over_some_axes_only_runs_eagerly_where_it_does_in_jax():
    try:
        over_some_axes(jnp.matmul, check_vma=False)(A, B)
    except ValueError:  # of JAX 0.10
        pytest.skip("this JAX takes the axes that are not named for manual ones")
    accelerated = jax_nano.accelerate(over_some_axes(jnp.matmul, check_vma=False))
    assert_close(accelerated(A, B), "ij,jk->ik", A, B)
    gradient = jax.grad(lambda a: accelerated(a, B).sum())(A)
    assert_close(gradient, "ik,jk->ij", np.ones((64, 48)), B)


def test_rebinding_inside_and_outside_of_shard_map():
    from jax_nano.lowering.dot_general import nano

    def sharded(f):
        return jax.shard_map(f, mesh=mesh(), in_specs=(P("x"), P()), out_specs=P("x"))

    for f in (sharded(nano(jnp.matmul)), nano(sharded(jnp.matmul)), jax.jit(nano(sharded(jnp.matmul)))):
        with kernels(DEVICES):
            assert_close(f(A, B), "ij,jk->ik", A, B)


def test_pmap():
    a = A.reshape(DEVICES, -1, 32)
    with kernels(DEVICES):
        assert_close(jax.pmap(jax_nano.matmul, in_axes=(0, None))(a, B), "bij,jk->bik", a, B)
    with jax_nano.installed(), kernels(DEVICES):
        assert_close(jax.pmap(jnp.matmul, in_axes=(0, None))(a, B), "bij,jk->bik", a, B)


def test_another_device_than_the_first():
    a, b = (jax.device_put(x, jax.devices()[2]) for x in (A, B))
    with kernels(1):
        result = jax_nano.matmul(a, b)
    assert result.devices() == {jax.devices()[2]}
    assert_close(result, "ij,jk->ik", A, B)
