"""Other libraries on jax_nano's products: through the parameters they have for one, accelerate and install."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from oracle import kernels, normal

import jax_nano

X = normal(4, 6, 16)
KEY = jax.random.key(0)


def assert_same(actual, wanted):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        tolerance = 2e-2 if x.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=10 * tolerance, atol=tolerance)


# Parameters that take a product.


def einsum(*operands, **options):
    return jnp.einsum(*operands, _dot_general=jax_nano.dot_general, **options)


def test_jnp_einsum_takes_a_product():
    y = normal(4, 6, 16, seed=1)
    with kernels(1):
        assert_same(einsum("bqd,bkd->bqk", X, y), jnp.einsum("bqd,bkd->bqk", X, y))


def test_flax_dense_takes_a_product():
    plain, ours = nn.Dense(24), nn.Dense(24, dot_general=jax_nano.dot_general)
    variables = jax.jit(plain.init)(KEY, X)
    with kernels(1):
        assert_same(jax.jit(ours.apply)(variables, X), plain.apply(variables, X))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_flax_attention_takes_products(dtype):
    plain = nn.MultiHeadDotProductAttention(num_heads=2, dtype=dtype)
    ours = plain.copy(
        qkv_dot_general=jax_nano.dot_general,
        out_dot_general=jax_nano.dot_general,
        qk_attn_weights_einsum_cls=lambda: einsum,
        attn_weights_value_einsum_cls=lambda: einsum,
    )
    variables = jax.jit(plain.init)(KEY, X)
    with kernels(6):
        assert_same(jax.jit(ours.apply)(variables, X), jax.jit(plain.apply)(variables, X))


def test_nnx_linear_takes_a_product():
    plain = nnx.Linear(16, 24, rngs=nnx.Rngs(0))
    ours = nnx.Linear(16, 24, rngs=nnx.Rngs(0), dot_general=jax_nano.dot_general)
    gradient = nnx.jit(nnx.grad(lambda layer: (layer(X) ** 2).mean()))
    with kernels(1):
        assert_same(nnx.jit(lambda layer: layer(X))(ours), plain(jnp.asarray(X)))
    with kernels(2):
        assert_same(gradient(ours), gradient(plain))


# Models through accelerate and install.


class Model(NamedTuple):
    apply: Callable[[Any, Any], jax.Array]
    params: Any
    compensated: int  # layers whose bias is added by the kernel of their product


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


def flax_model():
    model = Transformer()
    apply: Callable[..., Any] = model.apply
    return Model(apply, jax.jit(model.init)(KEY, X), compensated=6)


def nnx_model():
    layers = nnx.Sequential(nnx.Linear(16, 64, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(64, 16, rngs=nnx.Rngs(1)))
    definition, state = nnx.split(layers)
    return Model(lambda state, x: nnx.merge(definition, state)(x), state, compensated=2)


def equinox_model():
    arrays, static = eqx.partition(eqx.nn.MLP(16, 16, 64, 2, key=KEY), eqx.is_array)
    return Model(lambda arrays, x: jax.vmap(jax.vmap(eqx.combine(arrays, static)))(x), arrays, compensated=3)


def haiku_model():
    def network(x):
        return hk.nets.MLP([64, 64, 16])(x)

    model = hk.without_apply_rng(hk.transform(network))
    apply: Callable[..., Any] = model.apply
    return Model(apply, jax.jit(model.init)(KEY, X), compensated=3)


@functools.cache
def model_of(library):
    return {"flax": flax_model, "nnx": nnx_model, "equinox": equinox_model, "haiku": haiku_model}[library]()


@pytest.mark.parametrize("library", ["flax", "nnx", "equinox", "haiku"])
def test_models_run_on_kernels(library):
    apply, params, compensated = model_of(library)
    fast = jax_nano.accelerate(apply)
    wanted = jax.jit(apply)(params, X)
    reports = jax_nano.inspect(fast, params, X)
    assert all(report.ran_as == "kernel" for report in reports)
    assert sum("add" in report.fused for report in reports) == compensated
    with kernels(len(reports)):
        assert_same(jax.jit(fast)(params, X), wanted)
    with kernels(len(reports)), jax_nano.installed():
        assert_same(jax.jit(apply)(params, X), wanted)


def test_an_equinox_model_is_an_argument():
    model = eqx.nn.Linear(16, 8, key=KEY)

    def loss(model, x):
        return (jax.vmap(model)(x) ** 2).mean()

    gradient = eqx.filter_jit(eqx.filter_grad(jax_nano.accelerate(loss)))
    with kernels():
        assert_same(gradient(model, X[0]), eqx.filter_grad(loss)(model, X[0]))


def test_optax_trains_a_model():
    apply, params, _ = model_of("nnx")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(lambda params: ((apply(params, X) - jnp.sin(X)) ** 2).mean())(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def train(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=5)[1]

    losses = jax.jit(train)(params)
    assert losses[-1] < losses[0]
    with kernels():
        assert_same(jax.jit(jax_nano.accelerate(train))(params), losses)
    with kernels(), jax_nano.installed():
        assert_same(jax.jit(train)(params), losses)


# Convolutions.

IMAGES = normal(2, 12, 12, 4)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x)


def flax_convolutions():
    model = Cnn()
    apply: Callable[..., Any] = model.apply
    return apply, jax.jit(model.init)(KEY, IMAGES)


def nnx_convolutions():
    model = nnx.Sequential(
        nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu, nnx.ConvTranspose(8, 4, (2, 2), (2, 2), rngs=nnx.Rngs(1))
    )
    definition, state = nnx.split(model)
    return (lambda state, x: nnx.merge(definition, state)(x)), state


def equinox_convolutions():
    model = eqx.nn.Sequential(
        [eqx.nn.Conv2d(12, 8, 3, key=KEY), eqx.nn.Lambda(jax.nn.relu), eqx.nn.ConvTranspose2d(8, 4, 3, 2, key=KEY)]
    )
    arrays, static = eqx.partition(model, eqx.is_array)
    return (lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x)), arrays


def haiku_convolutions():
    def network(x):
        x = jax.nn.relu(hk.Conv2D(8, 3)(x))
        return hk.Conv2DTranspose(4, 3, stride=2)(hk.DepthwiseConv2D(1, 3)(x))

    model = hk.without_apply_rng(hk.transform(network))
    apply: Callable[..., Any] = model.apply
    return apply, jax.jit(model.init)(KEY, IMAGES)


CONVOLUTIONS = {
    "flax": flax_convolutions, "nnx": nnx_convolutions, "equinox": equinox_convolutions, "haiku": haiku_convolutions
}  # fmt: skip


@pytest.mark.parametrize("library", CONVOLUTIONS)
def test_convolutions_and_their_gradients_run_on_kernels(library):
    apply, params = CONVOLUTIONS[library]()

    def loss(params, x):
        return (apply(params, x) ** 2).sum()

    for f in (apply, jax.grad(loss)):
        wanted = jax.jit(f)(params, IMAGES)
        reports = jax_nano.inspect(jax_nano.accelerate(f), params, IMAGES)
        assert all(report.ran_as == "kernel" for report in reports)
        for run in (jax.jit(jax_nano.accelerate(f)), jax.jit(f)):
            with kernels(), jax_nano.installed():
                got = run(params, IMAGES)
            for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * float(jnp.abs(y).max()))


@pytest.fixture
def keras(tmp_path, monkeypatch):
    """Keras on JAX, which writes its settings to KERAS_HOME when it is imported."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    import keras

    return keras


def test_keras_predicts_and_trains_when_installed(keras):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)])
    x = normal(64, 16)
    wanted = model.predict(x, verbose=0)
    with kernels(), jax_nano.installed():
        assert_same(model.predict(x, verbose=0), wanted)
    model.compile(optimizer="adam", loss="mse")
    with kernels(), jax_nano.installed():
        losses = model.fit(x, x.sum(-1, keepdims=True), epochs=3, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_keras_convolves(keras):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.SeparableConv2D(8, 3, padding="same"),
            keras.layers.DepthwiseConv2D(3),
        ]
    )
    wanted = model.predict(IMAGES, verbose=0)
    with kernels(), jax_nano.installed():
        assert_same(model.predict(IMAGES, verbose=0), wanted)
