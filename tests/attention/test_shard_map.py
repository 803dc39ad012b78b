"""Derivatives of attention under shard_map, which follows over which axes of a mesh values vary."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_nano

NN: Any = jax.nn.dot_product_attention
KEYS = jax.random.split(jax.random.key(0), 5)


def arrays():
    shapes = (2, 70, 4, 16), (2, 90, 2, 16), (2, 90, 2, 16)
    return [jax.random.normal(key, shape) for key, shape in zip(KEYS, shapes, strict=False)]


SHARDED = {
    "batch": ({}, ("x", "x", "x")),
    "causal": ({"is_causal": True}, ("x", "x", "x")),
    "bias": ({"bias": jax.random.normal(KEYS[3], (1, 4, 70, 90))}, ("x", "x", "x")),
    "mask": ({"mask": jax.random.uniform(KEYS[4], (1, 1, 70, 90)) < 0.3}, ("x", "x", "x")),
    "queries": ({}, ((None, "x"), (), ())),
}


@pytest.mark.parametrize("accelerated", [False, True], ids=["namesake", "accelerate"])
@pytest.mark.parametrize(("options", "axes"), SHARDED.values(), ids=SHARDED)
def test_gradients_under_shard_map(options, axes, accelerated):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = tuple(jax.sharding.PartitionSpec(*axis) for axis in axes)
    attention = jax_nano.accelerate(NN) if accelerated else jax_nano.dot_product_attention

    def loss(f):
        return lambda *x: (f(*x) ** 2).sum()

    def of(*x):
        return attention(*x, **options)

    sharded = jax.shard_map(of, mesh=mesh, in_specs=specs, out_specs=specs[0])
    operands = arrays()
    for transform in (lambda f: f, jax.jit):
        found = transform(jax.grad(loss(sharded), (0, 1, 2)))(*operands)
        right = jax.grad(loss(lambda *x: NN(*x, **options)), (0, 1, 2))(*operands)
        for a, b in zip(found, right, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_tangents_under_shard_map():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v = arrays()
    rows, whole = jax.sharding.PartitionSpec(None, "x"), jax.sharding.PartitionSpec()

    def sharded(f):
        return jax.shard_map(f, mesh=mesh, in_specs=(rows, whole, whole), out_specs=rows)

    found, right = (jax.jvp(f, (q, k, v), (q + 1, k, v))[1] for f in (sharded(jax_nano.dot_product_attention), NN))
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_score_functions_under_shard_map(masked):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("x"), jax.sharding.PartitionSpec()
    hides = jax_nano.block_mask(lambda b, h, i, j: j < 40, (1, 1, 70, 90), block=(16, 16)) if masked else None

    def attend(q, k, v, slopes):
        def score(s, b, h, i, j):
            return 5 * jnp.tanh(s / 5) + slopes[h] * (j - i)

        return jax_nano.dot_product_attention(q, k, v, score=score, block_mask=hides)

    sharded = jax.shard_map(attend, mesh=mesh, in_specs=(rows, rows, rows, whole), out_specs=rows)
    operands = [*arrays(), jnp.arange(4) / 10]
    found, right = (jax.grad(lambda *x, f=f: (f(*x) ** 2).sum(), (0, 1, 2, 3))(*operands) for f in (sharded, attend))
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)
