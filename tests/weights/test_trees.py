"""Weights of whole models: packed and quantized by their names, and read by products of libraries' layers."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracle import kernels, normal

import jax_nano
from jax_nano.weights.weight import Weight

KEY = jax.random.key(0)
X = normal(2, 12, 12, 8)
FUNCTIONS: Any = {
    "pack": jax_nano.pack,
    "8 bits": jax_nano.quantize,
    "4 bits": functools.partial(jax_nano.quantize, bits=4),
}
each_function = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)


def of_linen():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
            x = nn.silu(nn.Conv(16, (3, 3), strides=2)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    network = Network()
    return network.apply, network.init(KEY, X), X


def of_nnx():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv1, self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs), nnx.Conv(16, 16, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(16, 10, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.silu(self.conv2(nnx.relu(self.conv1(x)))).mean((1, 2)))

    graph, state = nnx.split(Network(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state, X


def of_haiku():
    def layers(x):
        x = jax.nn.relu(hk.Conv2D(16, 3)(x))
        return hk.Linear(10)(jax.nn.silu(hk.Conv2D(16, 3, stride=2)(x)).mean((1, 2)))

    network = hk.without_apply_rng(hk.transform(layers))
    return network.apply, network.init(KEY, X), X


def of_equinox():
    class Network(eqx.Module):
        conv1: eqx.nn.Conv2d
        conv2: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __call__(self, x):
            x = jax.nn.silu(self.conv2(jax.nn.relu(self.conv1(x))))
            return self.dense(x.mean((1, 2)))

    network = Network(
        eqx.nn.Conv2d(8, 16, 3, padding=1, key=KEY), eqx.nn.Conv2d(16, 16, 3, key=KEY), eqx.nn.Linear(16, 10, key=KEY)
    )
    params, static = eqx.partition(network, eqx.is_array)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, X.transpose(0, 3, 1, 2)


LIBRARIES = {"flax.linen": of_linen, "flax.nnx": of_nnx, "haiku": of_haiku, "equinox": of_equinox}


@pytest.mark.parametrize("library", LIBRARIES)
@each_function
def test_models_read_their_weights(library, f):
    apply, params, x = LIBRARIES[library]()
    kept = jax_nano.map_kernels(f, params)
    weights = [w for w in jax.tree.leaves(kept, is_leaf=lambda w: isinstance(w, Weight)) if isinstance(w, Weight)]
    assert len(weights) == 3
    fast = jax.jit(jax_nano.accelerate(lambda params, x: apply(jax_nano.as_arrays(params), x)))
    wanted = apply(jax_nano.as_arrays(kept), x)
    with kernels(3):
        np.testing.assert_allclose(fast(kept, x), wanted, rtol=1e-3, atol=1e-4)
    for report in jax_nano.inspect(fast, kept, x):
        assert {"packed weight", "nano_dequantize"} & set(report.fused)


def test_a_matrix_of_outputs_and_inputs_is_packed_in_panels():
    x, w = normal(8, 40), normal(72, 40, seed=1)
    f = jax_nano.accelerate(lambda x, w: jax.vmap(lambda x: w @ x)(x))
    (report,) = jax_nano.inspect(f, x, jax_nano.pack(w, kernel="OI"))
    assert report.problem
    assert report.problem.panels
    np.testing.assert_allclose(f(x, jax_nano.pack(w, kernel="OI")), x @ w.T, atol=1e-4)


SPECS = [
    ("params/Conv_0/kernel", (3, 3, 8, 16), "HWIO"),
    ("params/Dense_0/kernel", (8, 16), "IO"),
    ("conv2_d/w", (3, 3, 8, 16), "HWIO"),
    ("layers/0/weight", (16, 8, 3, 3), "OIHW"),
    ("layers/0/weight", (16, 8), "OI"),
    ("conv/kernel/value", (3, 3, 3, 8, 16), "DHWIO"),
    ("params/Conv_0/kernel", (3, 3, 1, 16), None),
    ("layers/0/weight", (16, 1, 3, 3), None),
    ("params/attention/query/kernel", (64, 4, 16), None),
    ("params/Embed_0/embedding", (1000, 64), None),
    ("params/Conv_0/bias", (16,), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "spec"), SPECS)
def test_weights_are_known_by_their_names(name, shape, spec):
    assert jax_nano.kernel_spec(name, np.zeros(shape, np.float32)) == spec
    assert jax_nano.kernel_spec(name, np.zeros(shape, np.int32)) is None


def test_weights_may_be_chosen():
    params = {"a": {"kernel": normal(8, 16)}, "b": {"kernel": normal(8, 16)}}
    kept = jax_nano.map_kernels(jax_nano.pack, params, lambda name, _: "IO" if name.startswith("b") else None)
    assert kept["a"]["kernel"] is params["a"]["kernel"]
    assert isinstance(kept["b"]["kernel"], jax_nano.PackedWeight)


def test_weights_stay_what_they_are():
    params = {"kernel": jax_nano.quantize(normal(8, 16)), "count": 3}
    assert jax_nano.map_kernels(jax_nano.pack, params)["kernel"] is params["kernel"]
    arrays = jax_nano.as_arrays(params)
    assert isinstance(arrays["kernel"], jnp.ndarray)
    assert arrays["count"] == 3


def test_experts_are_matrices_in_one_array():
    params = {"experts": {"up": {"kernel": normal(4, 16, 32)}}, "attention": {"kernel": normal(4, 16, 32)}}
    kept = jax_nano.map_kernels(jax_nano.pack, params)
    packed = kept["experts"]["up"]["kernel"]
    assert isinstance(packed, Weight)
    assert not isinstance(kept["attention"]["kernel"], Weight)
    sizes = jnp.array([2, 0, 5, 1], jnp.int32)
    x = jnp.asarray(normal(8, 16))
    with kernels(1):
        result = jax.block_until_ready(jax.jit(jax_nano.ragged_dot)(x, packed, sizes))
    expected = jax.lax.ragged_dot(x, jnp.asarray(params["experts"]["up"]["kernel"]), sizes)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert jax_nano.kernel_spec("experts/weight", normal(4, 32, 16)) == "OI"
