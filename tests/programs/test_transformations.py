"""Programs as one kernel each, under the transformations around accelerate and in those inside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import kernels, normal

import jax_nano

W, X = 0.3 * normal(16, 16), normal(4, 16)


def program(w, x):
    return jnp.tanh(jnp.tanh(x @ w) @ w).sum(-1)


fast = jax_nano.accelerate(program)


def assert_same(f, fast, *arguments, tolerance=1e-4):
    for x, true in zip(jax.tree.leaves(fast(*arguments)), jax.tree.leaves(f(*arguments)), strict=True):
        np.testing.assert_allclose(x, true, rtol=tolerance, atol=tolerance)


def test_a_gradient_is_one_kernel_forward_and_one_back():
    def gradient(f):
        return jax.jit(jax.value_and_grad(lambda w, x: f(w, x).sum(), (0, 1)))

    with kernels(2):
        gradient(fast)(W, X)
    assert_same(gradient(program), gradient(fast), W, X)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev, jax.hessian])
def test_jacobians(mode):
    def derivative(f):
        return jax.jit(mode(lambda x: f(W[:4, :4], x[None])[0]))

    with kernels():
        derivative(fast)(X[0, :4])
    assert_same(derivative(program), derivative(fast), X[0, :4])


def test_a_batch():
    def batch(f):
        return jax.jit(jax.vmap(f, (None, 0)))

    with kernels(1):
        batch(fast)(W, X[:, None])
    assert_same(batch(program), batch(fast), W, X[:, None])


def test_a_large_batch_is_a_kernel_for_each_product():
    with kernels(2):
        jax.block_until_ready(jax.jit(jax.vmap(fast, (None, 0)))(W, normal(512, 64, 16)))


def test_rematerialization():
    def gradient(f):
        return jax.jit(jax.grad(lambda w, x: jax.checkpoint(f)(w, x).sum()))

    with kernels():
        gradient(fast)(W, X)
    assert_same(gradient(program), gradient(fast), W, X)


def test_without_a_jit_each_product_is_a_kernel():
    with kernels(2):
        fast(W, X)
    with kernels(5):
        jax.grad(lambda w: fast(w, X).sum())(W)


def test_programs_in_programs():
    with kernels(1):
        jax.jit(jax_nano.accelerate(lambda w, x: fast(w, x) @ fast(w, x)))(W, X)


def test_in_a_loop_the_loop_is_the_kernel():
    def loop(w, x):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w) @ w, None), x, None, length=2000)[0]

    def with_program(w, x):
        step = jax_nano.accelerate(lambda x: jnp.tanh(x @ w) @ w)
        return lax.scan(lambda x, _: (step(x), None), x, None, length=2000)[0]

    with kernels(1):
        jax.jit(with_program)(W, X)
    assert_same(jax.jit(loop), jax.jit(with_program), W, X, tolerance=1e-3)


def test_several_devices_have_kernels_of_their_shards():
    mesh = jax.make_mesh((4,), ("x",))
    x = jax.device_put(X, NamedSharding(mesh, P("x")))
    found = jax_nano.inspect(jax.jit(fast), W, x)
    assert "XLA partitions this program over 4 devices" in found[0].reason
    assert_same(program, jax.jit(fast), W, x)


def test_a_shard_map_has_a_kernel_on_each_device():
    mesh = jax.make_mesh((4,), ("x",))
    sharded = jax.shard_map(fast, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"))
    arrays = jax.device_put(W, NamedSharding(mesh, P())), jax.device_put(X, NamedSharding(mesh, P("x")))
    with kernels(4):
        jax.jit(sharded)(*arrays)
    assert_same(program, jax.jit(sharded), *arrays)


def test_exported_programs_hold_jaxs_operations():
    exported = jax.export.export(jax.jit(fast))(W, X)
    assert "custom_call @jax_nano" not in exported.mlir_module()
    assert_same(program, exported.call, W, X)


def test_exported_with_kernels():
    with jax_nano.exporting_kernels():
        exported = jax.export.export(jax.jit(fast), disabled_checks=jax_nano.export_checks())(W, X)
    with kernels(1):
        exported.call(W, X)
