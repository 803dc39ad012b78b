"""Loops as one kernel: what they compute, beside NumPy's loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano

LONG = 2000  # steps: enough for a kernel to be worth its call


def logistic(x):
    return 1 / (1 + np.exp(-x))


def assert_near(actual, exact, tolerance=2e-5):
    exact = np.asarray(exact, np.float64)
    scale = max(np.abs(exact).max(), 1e-30)
    assert np.asarray(actual).shape == exact.shape
    assert np.abs(np.asarray(actual, np.float64) - exact).max() <= tolerance * scale


def nano(f, *arrays):
    """The results of f as kernels, of which there is one for every loop."""
    return jax.jit(jax_nano.accelerate(f))(*arrays)


def reports(f, *arrays):
    return jax_nano.inspect(f, *arrays)


def gru(w, u, b, xs, h):
    n = h.shape[1]

    def step(h, x):
        a, g = x @ w + b, h @ u
        r, z = jax.nn.sigmoid(a[:, :n] + g[:, :n]), jax.nn.sigmoid(a[:, n : 2 * n] + g[:, n : 2 * n])
        h = (1 - z) * jnp.tanh(a[:, 2 * n :] + r * g[:, 2 * n :]) + z * h
        return h, h

    return lax.scan(step, h, xs)


def exact_gru(w, u, b, xs, h):
    w, u, b, xs, h = (np.asarray(x, np.float64) for x in (w, u, b, xs, h))
    n, ys = h.shape[1], []
    for x in xs:
        a, g = x @ w + b, h @ u
        r, z = logistic(a[:, :n] + g[:, :n]), logistic(a[:, n : 2 * n] + g[:, n : 2 * n])
        h = (1 - z) * np.tanh(a[:, 2 * n :] + r * g[:, 2 * n :]) + z * h
        ys.append(h)
    return h, np.stack(ys)


def gru_arrays(rows, inputs, hidden, steps, dtype=np.float32):
    shapes = (inputs, 3 * hidden), (hidden, 3 * hidden), (3 * hidden,), (steps, rows, inputs), (rows, hidden)
    return [0.3 * normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("rows, inputs, hidden", [(1, 64, 64), (3, 5, 7), (32, 8, 16), (9, 16, 40)])
def test_a_recurrent_network_is_one_kernel_and_a_product(rows, inputs, hidden):
    arrays = gru_arrays(rows, inputs, hidden, 300)
    with kernels(2):
        final, states = nano(gru, *arrays)
    exact_final, exact_states = exact_gru(*arrays)
    assert_near(final, exact_final)
    assert_near(states, exact_states)


def test_installed_loops_are_kernels():
    arrays = gru_arrays(2, 16, 32, 300)
    with jax_nano.installed(), kernels(2):
        final, _ = jax.jit(gru)(*arrays)
    assert_near(final, exact_gru(*arrays)[0])


@pytest.mark.parametrize("rows, hidden", [(1, 16), (4, 24)])
def test_gradients_of_loops_are_kernels(rows, hidden):
    arrays = gru_arrays(rows, 8, hidden, 200)

    def loss(*arrays):
        final, states = gru(*arrays)
        return (final**2).sum() + states.sum()

    with kernels():
        found = nano(jax.grad(loss, (0, 1, 2, 3, 4)), *arrays)
    with jax.enable_x64(True):
        exact = jax.grad(loss, (0, 1, 2, 3, 4))(*(jnp.asarray(x, jnp.float64) for x in arrays))
    for x, true in zip(found, exact, strict=True):
        assert_near(x, true, 1e-4)


def test_gradients_of_weights_are_products_behind_the_loop():
    arrays = gru_arrays(4, 8, 24, 200)
    found = reports(jax.grad(lambda *a: gru(*a)[1].sum(), (0, 1, 2)), *arrays)
    loops = [report for report in found if report.equation.startswith("scan")]
    assert [report.ran_as for report in loops] == ["kernel", "kernel"]
    sums = [report for report in found if report.problem and getattr(report.problem, "sizes", (0,))[-1:] == (800,)]
    assert len(sums) == 3  # both weights' and the bias's


def test_matrices_of_a_batch_stand_in_lanes():
    a, x = 0.3 * normal(64, 3, 3), normal(64, 3, 3)

    def loop(a, x):
        return lax.scan(lambda c, _: (a @ c * 0.9 + 0.1, None), x, None, length=LONG)[0]

    with kernels(1):
        found = nano(jax.vmap(loop), a, x)
    c = x.astype(np.float64)
    for _ in range(LONG):
        c = a.astype(np.float64) @ c * 0.9 + 0.1
    assert_near(found, c)
    (report,) = reports(jax.vmap(loop), a, x)
    assert report.kernel


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_go_forwards_and_backwards(reverse):
    f, xs = 0.2 * normal(3, 3, dtype=np.float64), normal(LONG, 3, dtype=np.float64)

    def loop(f, xs):
        return lax.scan(lambda c, x: (jnp.tanh(f @ c + x), (c, c[::-1] * 2)), jnp.zeros(3), xs, reverse=reverse)

    with kernels(1):
        final, (states, mirrored) = nano(loop, f, xs)
    c, found = np.zeros(3), []
    for x in xs[::-1] if reverse else xs:
        found.append(c)
        c = np.tanh(f @ c + x)
    exact = np.stack(found[::-1] if reverse else found)
    assert_near(final, c, 1e-13)
    assert_near(states, exact, 1e-13)
    assert_near(mirrored, exact[:, ::-1] * 2, 1e-13)


@pytest.mark.usefixtures("x64")
def test_counters_and_truth_values_are_carried():
    a = 0.5 * np.eye(4) + 0.1 * normal(4, 4, dtype=np.float64)

    def step(carry, _):
        x, i, odd = carry
        x = jnp.where(odd, a @ x, x + i)
        return (x, i + 1, ~odd), (i, odd)

    def loop(x):
        return lax.scan(step, (x, 0, False), None, length=LONG)

    with kernels(1):
        (x, i, odd), (counted, flags) = nano(loop, np.ones(4))
    exact, state = np.ones(4), False
    for number in range(LONG):
        exact = a @ exact if state else exact + number
        state = not state
    assert_near(x, exact, 1e-12)
    assert (i, bool(odd)) == (LONG, state)
    np.testing.assert_array_equal(counted, np.arange(LONG))
    np.testing.assert_array_equal(flags, np.arange(LONG) % 2 == 1)


@pytest.mark.usefixtures("x64")
def test_while_loops_go_on_as_long_as_their_condition_holds():
    a = np.eye(24) + 0.02 * normal(24, 24, dtype=np.float64)
    b = normal(24, dtype=np.float64)

    def loop(a, b):
        def step(c):
            x = c[0] + 0.5 * (b - a @ c[0])
            return x, jnp.max(jnp.abs(b - a @ x)), c[2] + 1

        start = b, jnp.asarray(1.0), 0
        return lax.while_loop(lambda c: (c[1] > 1e-9) & (c[2] < 500), step, start)

    with kernels(1):
        x, _, steps = nano(loop, a, b)
    assert_near(x, np.linalg.solve(a, b), 1e-8)
    assert steps == loop(a, b)[2]


@pytest.mark.usefixtures("x64")
def test_a_condition_that_never_holds_leaves_what_there_was():
    a = normal(8, 8, dtype=np.float64)

    def loop(a, limit):
        return lax.while_loop(lambda c: c[1] < limit, lambda c: (a @ c[0], c[1] + 1), (jnp.ones(8), 0))

    found, steps = nano(loop, a, 0)
    np.testing.assert_array_equal(found, np.ones(8))
    assert steps == 0


def test_loops_in_loops_are_one_kernel():
    a = 0.2 * normal(8, 8)

    def outer(c, x):
        c = lax.fori_loop(0, 3, lambda _, c: jnp.tanh(a @ c + x), c)
        return c, c.sum()

    def loop(c, xs):
        return lax.scan(outer, c, xs)

    c, xs = normal(8), normal(700, 8)
    with kernels(1):
        final, sums = nano(loop, c, xs)
    exact, found = c.astype(np.float64), []
    for x in xs:
        for _ in range(3):
            exact = np.tanh(a.astype(np.float64) @ exact + x)
        found.append(exact.sum())
    assert_near(final, exact)
    assert_near(sums, found)


def test_parts_are_put_together_and_padded():
    a, x = 0.3 * normal(6, 6), normal(6)

    def step(c, _):
        y = jnp.concatenate([a @ c, c[:3] * 2, jnp.pad(c[1:3], (1, 2))])
        return jnp.tanh(y[2:14:2]), y

    def exact_step(c):
        y = np.concatenate([a.astype(np.float64) @ c, c[:3] * 2, [0], c[1:3], [0, 0]])
        return np.tanh(y[2:14:2]), y

    with kernels(1):
        final, ys = nano(lambda x: lax.scan(step, x, None, length=LONG), x)
    c, found = x.astype(np.float64), []
    for _ in range(LONG):
        c, y = exact_step(c)
        found.append(y)
    assert_near(final, c)
    assert_near(ys, np.stack(found))


def test_softmax_in_a_loop():
    a, x = normal(10, 10), normal(4, 10)

    def loop(x):
        return lax.scan(lambda c, _: (jax.nn.softmax(c @ a, axis=-1), jnp.max(c)), x, None, length=500)

    with kernels(1):
        final, largest = nano(loop, x)
    c, found = x.astype(np.float64), []
    for _ in range(500):
        found.append(c.max())
        c = np.exp(c @ a.astype(np.float64))
        c /= c.sum(-1, keepdims=True)
    assert_near(final, c)
    assert_near(largest, found)


def test_elements_are_read_where_an_index_says():
    a, table = 0.3 * normal(8, 8), normal(40, 8)

    def loop(c, table, places):
        def step(c, i):
            row = lax.dynamic_index_in_dim(table, i, keepdims=False)
            return jnp.tanh(a @ c + row), None

        return lax.scan(step, c, places)[0]

    c, places = normal(8), np.random.default_rng(0).integers(0, 40, LONG).astype(np.int32)
    with kernels(1):
        found = nano(loop, c, table, places)
    exact = c.astype(np.float64)
    for i in places:
        exact = np.tanh(a.astype(np.float64) @ exact + table[i])
    assert_near(found, exact)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_loops_of_few_steps_give_what_they_gave(length):
    a, x = normal(4, 4), normal(4)

    def loop(x):
        return lax.scan(lambda c, _: (a @ c, c), x, None, length=length)

    for found, expected in zip(nano(loop, x), loop(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_report_says_which_operation_stopped_it():
    a, x = jnp.asarray(normal(8, 8)), normal(8)

    def loop(x):
        return lax.scan(lambda c, _: (lax.sort((a @ c, -c), num_keys=2)[0], None), x, None, length=LONG)[0]

    found = reports(loop, x)
    assert found[0].ran_as == "XLA's loop"
    assert found[0].reason == "sort is not elementwise, or has no vector code"


def test_rows_are_divided_among_threads_with_the_same_bits():
    arrays = gru_arrays(32, 16, 64, 300)
    (loop, *_) = reports(gru, *arrays)
    one, _ = jax.jit(jax_nano.accelerate(gru))(*arrays)
    several, _ = nano(gru, *(jnp.concatenate([x, x], axis=1 if x.ndim == 3 else 0) if x.ndim == 3 or i == 4 else x
                             for i, x in enumerate(map(jnp.asarray, arrays))))  # fmt: skip
    np.testing.assert_array_equal(one, several[:32])
    assert loop.kernel


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_multiplied_in_f32_and_rounded_once(dtype):
    w, xs = jnp.asarray(0.2 * normal(24, 24), dtype), jnp.asarray(normal(50, 3, 24), dtype)

    def step(h, x):
        return jnp.tanh(h @ w + x), h

    with kernels(1):
        final, states = nano(lambda xs: lax.scan(step, xs[0], xs), xs)
    assert final.dtype == dtype
    h = np.asarray(xs[0], np.float64)
    for x, state in zip(np.asarray(xs, np.float64), np.asarray(states, np.float64), strict=True):
        assert np.abs(state - h).max() <= 3 * float(jnp.finfo(dtype).eps)
        h = np.tanh(state @ np.asarray(w, np.float64) + x)


def test_branches_by_platform_are_those_of_cpus():
    a = 0.3 * normal(6, 6)

    def double(x):
        return lax.platform_dependent(x, tpu=lambda x: 3 * x, default=lambda x: 2 * x)

    with kernels(1):
        found = nano(lambda a: lax.scan(lambda c, _: (jnp.tanh(double(a @ c)), None), a, None, length=100)[0], a)
    exact = a.astype(np.float64)
    for _ in range(100):
        exact = np.tanh(2 * (a.astype(np.float64) @ exact))
    assert_near(found, exact, 1e-4)
