"""Loops of real programs as one kernel each: solvers, optimizers, samplers, recurrent cells, decoders, rollouts."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import normal

import jax_nano
from jax_nano.runtime.report import reports


def array(*shape, scale=0.3, seed=0):
    return jnp.asarray(scale * normal(*shape, seed=seed))


def assert_loops_are_kernels(f, *arguments, tolerance=1e-4):
    """All loops of a program are kernels, and its results those of XLA."""
    with reports() as found:
        actual = jax.jit(jax_nano.accelerate(f))(*arguments)
    loops = [report for report in found if report.equation.startswith(("scan", "while"))]
    assert loops
    assert all(report.kernel for report in loops), [report.reason for report in loops]
    with jax_nano.installed():
        installed = jax.jit(partial(f))(*arguments)
    expected = jax.jit(f)(*arguments)
    for result in (actual, installed):
        for x, true in zip(*map(jax.tree.leaves, map(numbers, (result, expected))), strict=True):
            scale = max(1e-3, np.abs(true).max())
            np.testing.assert_allclose(x, true, rtol=0, atol=tolerance * scale)


def numbers(tree):
    """Arrays as NumPy's, in float64; keys as their words."""

    def each(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x, np.float64)

    return jax.tree.map(each, tree)


def mlp(layers, x):
    for w, b in layers[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


def layers_of(*sizes):
    return [(array(i, o, seed=i), array(o)) for i, o in itertools.pairwise(sizes)]


# Differential equations

NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)  # fmt: skip
FIFTH = (*STAGES[-1], 0)
FOURTH = 5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40


def dormand_prince(field, t, y, h):
    """A step of order 5, and the estimate of its error."""
    k = []
    for a, c in zip(STAGES, NODES, strict=True):
        k.append(field(t + c * h, y + h * sum((x * one for x, one in zip(a, k, strict=False)), jnp.zeros_like(y))))
    fifth, fourth = (h * sum(b * one for b, one in zip(order, k, strict=True)) for order in (FIFTH, FOURTH))
    return y + fifth, fifth - fourth


def adaptive(accept):
    """A solver with a step size of its own choice; `accept` puts what it saves in place."""

    def solve(layers, y):
        def step(state):
            t, y, h, i, saved = state
            h = jnp.minimum(h, 3.0 - t)
            following, error = dormand_prince(lambda t, y: 2 * jnp.sin(3 * t) + mlp(layers, y), t, y, h)
            ratio = jnp.sqrt(jnp.mean((error / (1e-4 + 1e-3 * jnp.abs(y))) ** 2))
            t, y, i, saved = accept(ratio <= 1, t, y, i, saved, t + h, following)
            return t, y, h * jnp.clip(0.9 * (ratio + 1e-6) ** -0.2, 0.2, 5.0), i, saved

        start = jnp.float32(0), y, jnp.float32(0.5), 0, jnp.zeros((64, *y.shape))
        t, y, _, i, saved = lax.while_loop(lambda s: (s[0] < 3.0) & (s[3] < 64), step, start)
        return t, y, i, saved

    return solve


def by_select(accepted, t, y, i, saved, t_next, y_next):
    saved = jnp.where(accepted, saved.at[i].set(y_next), saved)
    return jnp.where(accepted, t_next, t), jnp.where(accepted, y_next, y), i + accepted, saved


def by_cond(accepted, t, y, i, saved, t_next, y_next):
    def keep():
        return t_next, y_next, i + 1, lax.dynamic_update_index_in_dim(saved, y_next, i, 0)

    return lax.cond(accepted, keep, lambda: (t, y, i, saved))


@pytest.mark.parametrize("accept", [by_select, by_cond])
def test_a_solver_of_differential_equations_with_steps_of_its_own_choice(accept):
    assert_loops_are_kernels(adaptive(accept), layers_of(4, 32, 4), array(4), tolerance=5e-3)


# Training


def loss(layers, x, y):
    return jnp.mean((mlp(layers, x) - y) ** 2)


def test_adam_by_hand():
    def train(layers, xs, ys):
        def step(i, state):
            p, m, v = state
            x, y = (lax.dynamic_slice_in_dim(a, i % 4 * 16, 16) for a in (xs, ys))
            g = jax.grad(loss)(p, x, y)
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, g)
            a, b = 1 - 0.9 ** (i + 1.0), 1 - 0.99 ** (i + 1.0)
            return jax.tree.map(lambda p, m, v: p - 1e-2 * (m / a) / (jnp.sqrt(v / b) + 1e-6), p, m, v), m, v

        zeros = jax.tree.map(jnp.zeros_like, layers)
        return lax.fori_loop(0, 40, step, (layers, zeros, zeros))[0]

    assert_loops_are_kernels(train, layers_of(8, 32, 32, 1), array(64, 8), array(64, 1), tolerance=1e-3)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop", "adamw"])
def test_optimizers_of_optax(name):
    optax = pytest.importorskip("optax")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), getattr(optax, name)(1e-2))

    def train(layers, xs, ys):
        def step(carry, i):
            p, state = carry
            rows = (jnp.arange(16) + 16 * i) % 64
            value, g = jax.value_and_grad(loss)(p, xs[rows], ys[rows])
            changes, state = optimizer.update(g, state, p)
            return (optax.apply_updates(p, changes), state), value

        (p, _), values = lax.scan(step, (layers, optimizer.init(layers)), jnp.arange(40))
        return p, values

    assert_loops_are_kernels(train, layers_of(8, 16, 1), array(64, 8), array(64, 1), tolerance=1e-3)


def test_gradient_descent_with_a_line_search():
    def minimize(a, b, x):
        def f(x):
            return 0.5 * jnp.sum((a @ x - b) ** 2) + 0.1 * jnp.sum(jnp.log(jnp.cosh(x)))

        def step(state):
            x, i, _ = state
            value, g = jax.value_and_grad(f)(x)
            square = g @ g
            shorter = lambda s: (f(x - s[0] * g) > value - 0.5 * s[0] * square) & (s[1] < 30)  # noqa: E731
            t, _ = lax.while_loop(shorter, lambda s: (0.5 * s[0], s[1] + 1), (jnp.float32(1), 0))
            return x - t * g, i + 1, square

        return lax.while_loop(lambda s: (s[1] < 60) & (s[2] > 1e-3), step, (x, 0, jnp.float32(jnp.inf)))[0]

    assert_loops_are_kernels(minimize, array(40, 24), array(40), array(24), tolerance=1e-2)


def test_conjugate_gradients():
    m = np.asarray(array(24, 24))
    a = jnp.asarray(m @ m.T + np.eye(24, dtype=np.float32))
    solve = lambda a, b: jax.scipy.sparse.linalg.cg(lambda x: a @ x, b, maxiter=40)[0]  # noqa: E731
    assert_loops_are_kernels(solve, a, array(24), tolerance=1e-3)


# Sampling


def test_hamiltonian_monte_carlo():
    def sample(x, y, w, key):
        def density(w):
            return -jnp.sum(jnp.logaddexp(0.0, -y * (x @ w))) - 0.5 * jnp.sum(w * w)

        def leap(_, state):
            q, p = state
            q = q + 0.1 * (p := p + 0.05 * jax.grad(density)(q))
            return q, p + 0.05 * jax.grad(density)(q)

        def step(state, _):
            key, w = state
            key, first, second = jax.random.split(key, 3)
            p = jax.random.normal(first, w.shape)
            q, last = lax.fori_loop(0, 5, leap, (w, p))
            gain = density(q) - 0.5 * jnp.sum(last * last) - density(w) + 0.5 * jnp.sum(p * p)
            accepted = jnp.log(jax.random.uniform(second)) < gain
            w = jnp.where(accepted, q, w)
            return (key, w), (w, accepted)

        return lax.scan(step, (key, w), None, length=20)

    x, y = array(64, 8), jnp.sign(array(64))
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert_loops_are_kernels(sample, x, y, array(8), key)


def test_a_particle_filter():
    def run(a, x, seen, key):
        def step(state, y):
            x, key = state
            key, first, second = jax.random.split(key, 3)
            x = x @ a.T + 0.1 * jax.random.normal(first, x.shape)
            weights = jax.nn.softmax(-5 * jnp.sum((x[:, :2] - y) ** 2, -1))
            places = (jnp.arange(x.shape[0]) + jax.random.uniform(second)) / x.shape[0]
            chosen = jnp.searchsorted(jnp.cumsum(weights), places).clip(0, x.shape[0] - 1)
            return (x[chosen], key), weights @ x

        return lax.scan(step, (x, key), seen)[1]

    assert_loops_are_kernels(run, array(4, 4), array(64, 4), array(10, 2), jax.random.key(0))


# Recurrent networks


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell", "MGUCell"])
def test_cells_of_linen(name):
    nn = pytest.importorskip("flax.linen")
    model, x = nn.RNN(getattr(nn, name)(features=24)), array(4, 40, 16)
    variables = model.init(jax.random.key(0), x)
    assert_loops_are_kernels(model.apply, variables, x)
    assert_loops_are_kernels(jax.grad(lambda v, x: model.apply(v, x).sum()), variables, x, tolerance=1e-3)


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell"])
def test_cells_of_nnx(name):
    nnx = pytest.importorskip("flax.nnx")
    cell = getattr(nnx, name)(in_features=16, hidden_features=24, rngs=nnx.Rngs(0))
    graph, state = nnx.split(nnx.RNN(cell))
    assert_loops_are_kernels(lambda state, x: nnx.merge(graph, state)(x), state, array(4, 40, 16))


def recurrent(dropout=None, remat=lambda step: step):
    def run(w, u, xs, key):
        def step(carry, x):
            h, key = carry
            h = jnp.tanh(x @ w + h @ u)
            if dropout:
                key, part = jax.random.split(key)
                h = jnp.where(jax.random.bernoulli(part, dropout, h.shape), h / dropout, 0)
            return (h, key), h

        return lax.scan(remat(step), (jnp.zeros((4, 24)), key), xs)[1]

    return run


def test_dropout_between_steps():
    assert_loops_are_kernels(recurrent(dropout=0.9), array(16, 24), 0.5 * array(24, 24), array(20, 4, 16),
                             jax.random.key(3))  # fmt: skip


def test_gradients_through_rematerialized_steps():
    def gradient(w, u, xs):
        run = recurrent(remat=jax.checkpoint)
        return jax.grad(lambda w, u: (run(w, u, xs, jnp.zeros(2)) ** 2).sum(), (0, 1))(w, u)

    assert_loops_are_kernels(gradient, array(16, 24), 0.5 * array(24, 24), array(20, 4, 16), tolerance=1e-3)


# Decoders and rollouts


def test_greedy_decoding():
    def decode(table, w, u, out):
        def step(state, i):
            h, token, tokens = state
            h = jnp.tanh(table[token] @ w + h @ u)
            token = jnp.argmax(h @ out).astype(jnp.int32)
            return (h, token, tokens.at[i].set(token)), token

        start = jnp.zeros(32), jnp.int32(0), jnp.zeros(30, jnp.int32)
        return lax.scan(step, start, jnp.arange(30))[0]

    assert_loops_are_kernels(decode, array(50, 16), array(16, 32), array(32, 32), array(32, 50, scale=2))


def test_sampling_from_a_recurrent_network():
    def decode(table, w, u, out, key):
        def step(i, state):
            h, token, key, tokens = state
            key, part = jax.random.split(key)
            h = jnp.tanh(jnp.take(table, token, axis=0) @ w + h @ u)
            token = jax.random.categorical(part, h @ out).astype(jnp.int32)
            return h, token, key, tokens.at[:, i].set(token)

        start = jnp.zeros((4, 32)), jnp.zeros(4, jnp.int32), key, jnp.zeros((4, 30), jnp.int32)
        return lax.fori_loop(0, 30, step, start)

    arguments = array(50, 16), array(16, 32), array(32, 32), array(32, 50), jax.random.key(1)
    assert_loops_are_kernels(decode, *arguments)


def test_attention_with_a_cache():
    def decode(q, k, v, out, x):
        def step(i, state):
            x, keys, values = state
            keys = lax.dynamic_update_slice(keys, (x @ k)[None], (i, 0))
            values = lax.dynamic_update_slice(values, (x @ v)[None], (i, 0))
            scores = jnp.where(jnp.arange(24) <= i, keys @ (x @ q) / 32**0.5, -jnp.inf)
            return jnp.tanh(jax.nn.softmax(scores) @ values @ out + x), keys, values

        return lax.fori_loop(0, 24, step, (x, jnp.zeros((24, 32)), jnp.zeros((24, 32))))

    assert_loops_are_kernels(decode, *(array(32, 32, seed=i) for i in range(4)), array(32))


def test_a_policy_in_a_simulated_environment():
    """A cart with a pole, which begins anew whenever the pole falls."""

    def rollout(layers, start, key):
        def step(state, key):
            x, v, angle, w = state
            action = jax.random.categorical(key, mlp(layers, jnp.stack(state)))
            force = jnp.where(action == 1, 10.0, -10.0)
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            push = (force + 0.05 * w * w * sin) / 1.1
            turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
            following = x + 0.02 * v, v + 0.02 * (push - 0.05 * turn * cos / 1.1), angle + 0.02 * w, w + 0.02 * turn
            done = (jnp.abs(following[0]) > 2.4) | (jnp.abs(following[2]) > 0.2)
            return jax.tree.map(lambda a, b: jnp.where(done, a, b), start, following), (action, done)

        return lax.scan(step, start, jax.random.split(key, 60))

    start = tuple(jnp.float32(0.01 * i) for i in range(4))
    assert_loops_are_kernels(rollout, layers_of(4, 32, 2), start, jax.random.key(0))
