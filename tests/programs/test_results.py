"""Small programs as one kernel: their results are those of XLA."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano


def array(*shape, scale=0.4, seed=0, dtype=np.float32):
    return jnp.asarray(scale * normal(*shape, seed=seed), dtype)


def layers_of(*sizes, dtype=np.float32):
    return [(array(i, o, seed=i, dtype=dtype), array(o, dtype=dtype)) for i, o in itertools.pairwise(sizes)]


def mlp(layers, x):
    for w, b in layers[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


def assert_one_kernel(f, *arguments, tolerance=1e-5, count=1):
    """A program is one kernel, or so many, and its results those of plain JAX."""
    with kernels(count):
        actual = jax.jit(jax_nano.accelerate(f))(*arguments)
    expected = jax.jit(f)(*arguments)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (x.dtype, x.shape) == (wanted.dtype, wanted.shape)
        true = np.asarray(wanted, np.float64)
        scale = max(1e-3, np.abs(true).max()) if true.size else 1
        np.testing.assert_allclose(np.asarray(x, np.float64), true, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_layers(rows):
    assert_one_kernel(mlp, layers_of(8, 32, 32, 3), array(rows, 8))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-14), (jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)])
def test_types(dtype, tolerance, x64):
    assert_one_kernel(mlp, layers_of(4, 16, 2, dtype=dtype), array(4, 4, dtype=dtype), tolerance=tolerance)


def actor_critic(parameters, x):
    hidden = mlp(parameters["trunk"], x)
    logits, value = mlp(parameters["actor"], hidden), mlp(parameters["critic"], hidden)
    return jax.nn.log_softmax(logits), jnp.argmax(logits, -1), value[..., 0], jax.nn.logsumexp(logits, -1)


@pytest.mark.parametrize("rows", [(), (16,)])
def test_several_results(rows):
    parameters = {"trunk": layers_of(4, 32, 16), "actor": layers_of(16, 3), "critic": layers_of(16, 1)}
    assert_one_kernel(actor_critic, parameters, array(*rows, 4))


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def decoder(parameters, x, heads):
    t, width = x.shape
    q, k, v = ((norm(x) @ parameters[name]).reshape(t, heads, width // heads) for name in "qkv")
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), jnp.einsum("tnh,snh->nts", q, k), -1e30)
    x = x + jnp.einsum("nts,snh->tnh", jax.nn.softmax(scores), v).reshape(t, width) @ parameters["o"]
    return x + jax.nn.gelu(norm(x) @ parameters["up"]) @ parameters["down"]


def decoder_parameters(width):
    squares = {name: array(width, width, seed=i) for i, name in enumerate("qkvo")}
    return squares | {"up": array(width, 2 * width), "down": array(2 * width, width)}


@pytest.mark.parametrize("t, width, heads", [(1, 16, 1), (8, 32, 4), (16, 16, 2)])
def test_a_decoder_layer(t, width, heads):
    """Of 16 tokens attention is found, and its definition stands in the kernel."""
    assert_one_kernel(lambda p, x: decoder(p, x, heads), decoder_parameters(width), array(t, width), tolerance=1e-4)


def test_gradients_of_attention():
    def gradient(p, x):
        return jax.grad(lambda p: decoder(p, x, 2).sum())(p)

    assert_one_kernel(gradient, decoder_parameters(16), array(16, 16), tolerance=1e-4)


def loss(layers, x, y):
    return jnp.mean((mlp(layers, x) - y) ** 2)


def test_a_training_step():
    def adam(p, m, v, x, y):
        g = jax.grad(loss)(p, x, y)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, g)
        return jax.tree.map(lambda p, m, v: p - 1e-2 * m / (jnp.sqrt(v) + 1e-3), p, m, v), m, v

    p = layers_of(8, 16, 1)
    zeros = jax.tree.map(jnp.zeros_like, p)
    assert_one_kernel(adam, p, zeros, zeros, array(16, 8), array(16, 1))


def kalman(f, h, q, r, p, m, y):
    m, p = f @ m, f @ p @ f.T + q
    s = h @ p @ h.T + r
    inverse = jnp.array([[s[1, 1], -s[0, 1]], [-s[1, 0], s[0, 0]]]) / (s[0, 0] * s[1, 1] - s[0, 1] * s[1, 0])
    gain = p @ h.T @ inverse
    return m + gain @ (y - h @ m), p - gain @ h @ p


@pytest.mark.parametrize("batch", [0, 32])
def test_a_filter(batch):
    eye = jnp.eye(4)
    state = [eye, array(4), array(2)]
    if batch:
        state = [jnp.broadcast_to(x, (batch, *x.shape)) for x in state]
    f = jax.vmap(kalman, (None,) * 4 + (0,) * 3) if batch else kalman
    assert_one_kernel(f, 0.9 * eye, array(2, 4), eye, jnp.eye(2), *state)


def rotations(angles):
    product = jnp.eye(3)
    for i in range(4):
        cos, sin, one, zero = jnp.cos(angles[i]), jnp.sin(angles[i]), jnp.float32(1), jnp.float32(0)
        turns = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
        product = product @ jnp.roll(jnp.array(turns), 1 + i % 2, (0, 1))
    return product


@pytest.mark.parametrize("batch", [(), (16,), (40,)])
def test_rotations(batch):
    """A batch of matrices stands along lanes, and its products are stored out of them."""
    assert_one_kernel(jax.vmap(rotations) if batch else rotations, array(*batch, 4, scale=1))


def test_an_ensemble():
    ensemble = jax.tree.map(lambda x: jnp.stack([x, 2 * x, x - 1]), layers_of(4, 16, 1))
    assert_one_kernel(jax.vmap(mlp, (0, None)), ensemble, array(2, 4))


def test_integers_and_keys():
    def act(table, layers, places, key):
        logits = mlp(layers, table[places].reshape(-1))
        return jax.random.categorical(key, logits), jnp.sum(places) + jnp.argmax(logits)

    arguments = array(20, 8), layers_of(16, 16, 4), jnp.array([3, 17])
    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        assert_one_kernel(act, *arguments, key)


def test_operands_that_are_one_number():
    """Neither moves along lanes."""
    assert_one_kernel(
        lambda w, x: jnp.tanh(x[:, :1] * jnp.ones((4, 8))) @ jnp.full((8, 16), w[0, 0]) @ w, array(16, 8), array(4, 8)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_that_are_only_moved(dtype):
    """LLVM would call a function for each that it moves alone."""

    def f(w, x):
        few = jnp.concatenate([x[:, :2], x[:, 5:7]], 1)
        return jnp.tanh(x @ w) @ w, few, x[:, 3], jnp.broadcast_to(x[:1, :1], (1, 3)), few.T

    assert_one_kernel(f, array(8, 8, dtype=dtype), array(2, 8, dtype=dtype), tolerance=2e-2)


def test_results_that_are_arguments_equal_or_constant():
    def f(w, x):
        y = jnp.tanh(x @ w) @ w
        return x, y, y, w, jnp.zeros(3), {"none": None, "text": "as it is", "y": y.T}

    with kernels(1):
        actual = jax_nano_jit(f)(array(4, 4), array(2, 4))
    assert actual[5]["text"] == "as it is"
    for x, true in zip(actual[:5], f(array(4, 4), array(2, 4))[:5], strict=True):
        np.testing.assert_allclose(x, true, atol=1e-6)


def jax_nano_jit(f):
    """A program with results that are no arrays: jit gives arrays alone."""
    rest = {}

    def arrays(*arguments):
        results = jax_nano.accelerate(f)(*arguments)
        rest["last"] = results[-1]
        return results[:-1]

    return lambda *arguments: (*jax.jit(arrays)(*arguments), rest["last"])


def test_donated_arguments():
    w, x = array(8, 8), array(4, 8)
    expected = jnp.tanh(x @ w) @ w
    with kernels(1):
        (actual,) = jax.block_until_ready(
            [jax.jit(jax_nano.accelerate(lambda w, x: jnp.tanh(x @ w) @ w), donate_argnums=1)(w, x)]
        )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


# Parts


def by_two_keys(x):
    """A sort that no pipeline has."""
    return lax.sort((x, x), num_keys=2)[0]


def test_parts_around_an_operation_that_no_pipeline_has():
    def f(first, second, x):
        hidden = mlp(first, x)
        return mlp(second, by_two_keys(hidden)), hidden, 2.5

    assert_one_kernel(f, layers_of(8, 16, 16), layers_of(16, 16, 4), array(2, 8), count=2)


def test_what_does_not_depend_on_such_an_operation_is_one_part():
    def f(first, second, x):
        ordered = by_two_keys(mlp(first, x))
        return mlp(second, x), jnp.tanh(ordered)

    assert_one_kernel(f, layers_of(8, 16, 4), layers_of(8, 16, 4), array(2, 8), count=1)


def test_parts_around_a_loop_that_is_a_kernel_itself():
    def f(first, second, w, x):
        start = mlp(first, x)
        end, _ = lax.scan(lambda c, _: (jnp.tanh(c @ w), None), start, None, length=2000)
        return mlp(second, end)

    assert_one_kernel(
        f, layers_of(8, 16, 16), layers_of(16, 16, 4), array(16, 16, scale=0.2), array(2, 8), count=3, tolerance=1e-4
    )


PARTS = {
    "first row": lambda y: (y * 2)[:1], "first rows, last": lambda y: (y, (y * 2)[:3]),
    "first columns": lambda y: (jnp.exp(y)[:, :2], y + 1), "both": lambda y: ((y * 2)[:2, :3], y.sum(0), y * 3),
    "other rows": lambda y: ((y * 2)[3:7], y),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_of_what_is_used_whole(part):
    x, w = array(17, 5), array(5, 5)

    def program(x, w):
        y = jnp.tanh(x @ w @ w)
        return part(y), y

    def loop(x, w):
        def step(y, _):
            y = jnp.tanh(y @ w)
            return y, part(y)

        return lax.scan(step, x, length=5)

    assert_one_kernel(program, x, w)
    assert_one_kernel(loop, x, w)
