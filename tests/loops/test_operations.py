"""Operations in the steps of loops beside products, each beside NumPy or JAX without a loop's kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from oracle import kernels, normal

import jax_nano

W = 0.3 * normal(8, 8)


def looped(step, *carry, length=20):
    """A loop whose step gets a product of the first carried value as well."""

    def loop(w, carry, numbers):
        return lax.scan(lambda c, i: step(jnp.tanh(w @ c[0]), i, *c), carry, numbers)

    return loop, (W, carry, np.arange(length, dtype=np.int32))


def assert_one_kernel_computes_what_xla_does(f, arguments, tolerance=1e-5):
    with kernels(1):
        found = jax.jit(jax_nano.accelerate(f))(*arguments)
    for x, expected in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(f)(*arguments)), strict=True):
        np.testing.assert_allclose(x, expected, rtol=tolerance, atol=tolerance)
    return found


X = normal(8, seed=3)


@pytest.mark.parametrize(
    "change",
    [
        lambda y, i, x, rows: lax.dynamic_update_slice(rows, y[None], (i, 0)),
        lambda y, i, x, rows: lax.dynamic_update_slice(rows, (y * rows[i])[None], (i, 0)),
        lambda y, i, x, rows: lax.dynamic_update_slice(rows, (y * rows[i - 1])[None], (i, 0)),
        lambda y, i, x, rows: lax.dynamic_update_slice(rows, rows[::-1][:2] + y, (i, 0)),
        lambda y, i, x, rows: lax.dynamic_update_slice(rows, y[None, :3], (30 - i, 30 - i)),
        lambda y, i, x, rows: rows.at[i].set(y).at[2 * i].add(y),
        lambda y, i, x, rows: rows.at[i, 2].set(y[0]),
        lambda y, i, x, rows: rows.at[i + 15].add(y),
        lambda y, i, x, rows: jnp.where(y[0] > 0, rows.at[i].set(y), rows),
        lambda y, i, x, rows: jnp.where(y[0] > 0, rows, rows.at[i].set(y)),
        lambda y, i, x, rows: jnp.where(y > 0, rows.at[i].set(y), rows),
        lambda y, i, x, rows: lax.cond(y[0] > 0, lambda: rows.at[i].set(y), lambda: rows),
        lambda y, i, x, rows: lax.cond(y[0] > 0, lambda: rows.at[i].set(y), lambda: rows.at[i].add(y)),
        lambda y, i, x, rows: rows.at[jnp.array([3, 1, 3])].add(y),
        lambda y, i, x, rows: rows.at[jnp.array([3, 1]) + i].set(y),
    ],
)
def test_parts_of_what_is_carried_change(change):
    def step(y, i, x, rows):
        before = rows[i]
        rows = change(y, i, x, rows)
        return (y, rows), (before, rows.sum(0))

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(20, 8)))


def test_what_is_read_before_a_change_is_what_it_was():
    def step(y, i, x, rows):
        old, mirrored = rows[0], rows[::-1] * 2
        rows = lax.dynamic_update_slice(rows, (y + rows[1])[None], (i % 2, 0))
        return (y, rows), (old, mirrored, rows[0])

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(4, 8)))


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0), (2, 2)])
def test_later_changes_made_of_what_there_was_before_the_first(first, second):
    def step(y, i, x, rows):
        old = rows[first]
        rows = lax.dynamic_update_slice(rows, y[None], (first, 0))
        rows = lax.dynamic_update_slice(rows, 2 * old[None], (second, 0))
        return (y, rows), None

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(4, 8), length=6))


def test_products_see_what_was_changed_before_them():
    def step(y, i, x, rows):
        before = rows @ rows.T
        rows = lax.dynamic_update_slice(rows, y[None], (i % 4, 0))
        return (y, rows), before

    def after(y, i, x, rows):
        rows = lax.dynamic_update_slice(rows, y[None], (i % 4, 0))
        return (y, rows), (rows @ rows.T, rows.T @ rows @ y)

    for each in (step, after):
        assert_one_kernel_computes_what_xla_does(*looped(each, X, normal(4, 8)))


def test_what_is_read_after_a_change_keeps_both():
    def step(y, i, x, rows):
        changed = rows.at[i].set(y)
        return (y, changed), (rows * 2, changed - rows)

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(20, 8)))


def test_two_changes_of_one_array_are_two_arrays():
    def step(y, i, x, a, b):
        return (y, b.at[i].set(y), a.at[i].add(y)), a[i] + b[i]

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(20, 8), normal(20, 8, seed=1)))


def test_an_array_that_is_changed_in_place_takes_no_scratch():
    def step(y, i, x, rows):
        return (y, rows.at[i].set(y)), None

    loop, arguments = looped(step, X, np.zeros((20000, 8), np.float32))
    with kernels(1):
        _, rows = jax.jit(jax_nano.accelerate(loop))(*arguments)[0]
    assert not np.asarray(rows)[20:].any()
    (report,) = [r for r in jax_nano.inspect(loop, *arguments) if r.kernel]
    assert report.plan.local_bytes < 1 << 14


def changed_while(going):
    """A loop that changes a row of an array in some of its steps."""

    def loop(w, x, rows):
        def step(c):
            x, i, rows = c
            x = jnp.tanh(w @ x)
            return x, i + 1, jnp.where(x[0] > 0, rows.at[i].set(x), rows)

        return lax.while_loop(going, step, (x, 0, rows))

    return loop


def test_while_loops_change_arrays_in_place():
    loop = changed_while(lambda c: c[1] < 15)
    (report,) = [r for r in jax_nano.inspect(loop, W, X, np.zeros((20000, 8), np.float32)) if r.kernel]
    assert report.plan.local_bytes < 1 << 14


def test_a_product_is_not_written_over_its_operand():
    def step(y, i, x, rows):
        return (y, lax.dynamic_update_slice(rows, jnp.tanh(rows @ W), (0, 0))), None

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(20, 8)))


def test_changes_in_while_loops():
    loop = changed_while(lambda c: (c[1] < 15) & (c[2][4, 0] == 0))
    assert_one_kernel_computes_what_xla_does(loop, (W, X, np.zeros((20, 8), np.float32)))


def test_a_batch_of_changes():
    def step(y, i, x, rows):
        return (y, rows.at[i % 5].set(y)), rows[i % 3]

    loop, (w, _, numbers) = looped(step, X, normal(6, 8))
    batch = jax.vmap(loop, (None, 0, None))
    assert_one_kernel_computes_what_xla_does(batch, (w, (normal(16, 8), normal(16, 6, 8)), numbers))


TABLE = normal(12, 8, seed=5)
PLACES = jnp.array([3, -1, 40, 0])


@pytest.mark.parametrize(
    "read",
    [
        lambda t, i: jnp.take(t, i % 12, axis=0),
        lambda t, i: jnp.take(t, PLACES + i % 2, axis=0, fill_value=0.5).sum(0),
        lambda t, i: t[PLACES + i % 2].sum(0),
        lambda t, i: t.at[i].get(mode="fill", fill_value=7),
        lambda t, i: t[:8, :][PLACES % 3, PLACES % 2].sum() * t[0],
        lambda t, i: jnp.take_along_axis(t, jnp.full((12, 1), i % 8), axis=1)[:8, 0],
        lambda t, i: t[i % 12, ::-1],
        lambda t, i: lax.dynamic_slice(t, (i, 0), (2, 8))[1],
        lambda t, i: t[PLACES][:, None, :].sum((0, 1)),
    ],
)  # fmt: skip
def test_rows_are_read_where_indices_say(read):
    def with_table(w, carry, numbers, table):
        def step(c, i):
            return (jnp.tanh(w @ c[0] + read(table, i)),), None

        return lax.scan(step, carry, numbers)

    assert_one_kernel_computes_what_xla_does(with_table, (W, (X,), np.arange(20), TABLE))


@pytest.mark.parametrize(
    "f",
    [
        lambda y: y[jnp.argmax(y)] - y[jnp.argmin(y)] + jnp.argmax(y > 0) + y * jnp.argmin(y[::-1]),
        lambda y: jnp.argmax(y.reshape(2, 4), axis=0).sum() + jnp.argmax(y.reshape(2, 4), axis=1)[0] * y,
        lambda y: y + jnp.argmax(jnp.where(y < 0, jnp.nan, y)),
        jnp.cumsum, lambda y: jnp.cumsum(y.reshape(2, 4), axis=1, dtype=y.dtype).reshape(8),
        lambda y: jnp.cumprod(1 + y), lambda y: lax.cummax(y, reverse=True), lax.cummin,
        lax.cumlogsumexp, lambda y: jnp.cumsum((y > 0).astype(jnp.int32)) * y,
        lambda y: jnp.stack([y[:4], y[4:]], axis=1).reshape(8), lambda y: sum(jnp.unstack(y)) * y,
        lambda y: jnp.tile(y.reshape(2, 4), (3, 2))[1::3, ::2].reshape(8),
        lambda y: jnp.cosh(y) - jnp.sinh(3 * y) / 10 + jnp.tan(y), lambda y: lax.erf_inv(0.99 * y),
        lambda y: lax.bitcast_convert_type(lax.bitcast_convert_type(y, jnp.uint32) ^ 1, jnp.float32),
        lambda y: 0.9 ** jnp.arange(1, 9) * y, lambda y: jnp.clip(y, -0.1, y[0] + 1),
        lambda y: jnp.searchsorted(jnp.cumsum(jnp.abs(y)), jnp.arange(8) / 8.0) * y,
        lambda y: lax.cond(y[0] > 0, lambda y: y + 1, lambda y: y * 2, y),
        lambda y: lax.switch(jnp.argmax(y), [lambda y: y, lambda y: y + 1, lambda y: y * 2], y),
        lambda y: lax.cond(y[0] > 0, lambda y: jnp.asarray(W) @ y, lambda y: y, y),
        lambda y: lax.switch((4 * y[0]).astype(jnp.int32), [lambda y: jnp.asarray(W) @ y, lambda y: y * 2,
                                                            lambda y: jnp.asarray(W) @ (y + 1)], y),
        lambda y: lax.cond(y[0] > 0, lambda y: lax.fori_loop(0, 3, lambda i, y: y * 0.5 + i, y), lambda y: y, y),
        lambda y: jnp.where(lax.fori_loop(0, 3, lambda i, n: n * 3 + i, jnp.uint8(5)) > 7, y, -y),
    ],
)  # fmt: skip
def test_operations_beside_products(f):
    def step(y, i, x):
        return (jnp.tanh(f(y)),), y

    assert_one_kernel_computes_what_xla_does(*looped(step, X), tolerance=1e-4)


def test_functions_are_near_exact_where_their_parts_overflow():
    x = jnp.array([-88.9, -80.1, -1e-6, 0.0, 1e-20, 0.7, 79.9, 89.0])

    def loop(w, x):
        return lax.scan(lambda c, _: (w @ c, (jnp.cosh(x + c), jnp.sinh(x + c))), jnp.zeros(8), None, length=30)[1]

    cosh, sinh = (np.asarray(y, np.float64)[0] for y in jax.jit(jax_nano.accelerate(loop))(W, x))
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(cosh, np.cosh(exact), rtol=3e-6)
    np.testing.assert_allclose(sinh, np.sinh(exact), rtol=3e-6)


def test_branches_run_where_they_are_taken():
    """A branch with a loop is not computed where another is taken: it would not end."""

    def step(y, i, x):
        y = lax.cond(i >= 0, lambda: y, lambda: lax.while_loop(lambda z: z[0] < 10, lambda z: z * 0, y))
        return (y,), None

    assert_one_kernel_computes_what_xla_does(*looped(step, X))


@pytest.mark.parametrize("typed", [True, False])
def test_random_numbers_in_a_loop_are_those_of_jax(typed):
    key = jax.random.key(7) if typed else jax.random.PRNGKey(7)

    def loop(w, x, key):
        def step(c, i):
            x, key = c
            key, a, b = jax.random.split(key, 3)
            bits = jax.random.bits(jax.random.fold_in(b, i), (5, 3))
            noise = jax.random.normal(a, (8,))
            kept = jax.random.bernoulli(b, 0.5, (8,))
            which = jax.random.categorical(jax.random.split(b)[1], x)
            return (jnp.tanh(w @ x) + 0.1 * noise * kept, key), (bits, which, kept, noise)

        return lax.scan(step, (x, key), jnp.arange(20))

    with kernels(1):
        found = jax.jit(jax_nano.accelerate(loop))(W, X, key)
    expected = jax.jit(loop)(W, X, key)
    own, others = (jax.random.key_data(x[0][1]) if typed else x[0][1] for x in (found, expected))
    np.testing.assert_array_equal(own, others)
    for x, true in zip(found[1][:3], expected[1][:3], strict=True):
        np.testing.assert_array_equal(x, true)
    np.testing.assert_allclose(found[1][3], expected[1][3], rtol=2e-6, atol=2e-6)


def test_arrays_of_keys_are_gone_through():
    def loop(w, x, keys):
        def step(x, key):
            return jnp.tanh(w @ x) + jax.random.uniform(key, (8,)), jax.random.uniform(keys[3], ())

        return lax.scan(step, x, keys)

    arguments = W, X, jax.random.split(jax.random.key(0), 20)
    assert_one_kernel_computes_what_xla_does(loop, arguments)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32, np.int8, np.uint8])
def test_indices_of_any_type(dtype):
    places = np.array([-(1 << 40), 1 << 40, 3, -1, 200]).astype(dtype)

    def loop(w, x, table, places):
        def step(x, i):
            filled, clipped = (table.at[i].get(mode=mode) for mode in ("fill", "clip"))
            return jnp.tanh(w @ x), (filled, clipped, table.at[i].set(x, mode="drop"))

        return lax.scan(step, x, places)

    found = jax.jit(jax_nano.accelerate(loop))(W, X, TABLE, places)
    for x, true in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(loop)(W, X, TABLE, places)), strict=True):
        np.testing.assert_allclose(x, true, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-3, 9), min_size=1, max_size=4), st.sampled_from(["set", "add"]),
    st.sampled_from(["clip", "drop", "promise_in_bounds"]), st.booleans(),
)  # fmt: skip
def test_scatters_of_any_indices(places, how, mode, columns):
    if mode == "promise_in_bounds":
        places = [place % 6 for place in places]
    if how == "set":
        places = list(dict.fromkeys(min(max(place, -6), 5) for place in places))[:1]  # the order of others is not said

    def step(y, i, x, rows):
        at = rows.at[:, jnp.array(places)] if columns else rows.at[jnp.array(places)]
        return (y, getattr(at, how)(y[: rows.shape[0], None] if columns else y, mode=mode)), None

    assert_one_kernel_computes_what_xla_does(*looped(step, X, normal(6, 8), length=8))


def test_operations_of_other_libraries_are_what_they_say_they_are():
    """Equinox, and diffrax by it, have operations of their own."""
    double = Primitive("double_of_a_library")
    double.def_impl(lambda x, *, by: by * x)
    double.def_abstract_eval(lambda x, *, by: x)
    mlir.register_lowering(double, mlir.lower_fun(lambda x, *, by: by * x, multiple_results=False))
    assert_one_kernel_computes_what_xla_does(*looped(lambda y, i, x: ((double.bind(y, by=2.0),), None), X))


def test_numbers_of_bits():
    def step(y, i, x):
        words = jnp.arange(8, dtype=jnp.uint32) * 123456789 * i.astype(jnp.uint32)
        return (y,), [lax.population_count(words.astype(dtype)) for dtype in (jnp.uint32, jnp.uint8, jnp.int16)]

    assert_one_kernel_computes_what_xla_does(*looped(step, X))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cumulate", [lax.cumsum, lax.cumprod, lax.cummax, lax.cumlogsumexp])
def test_cumulative_operations_along_many_elements_go_in_blocks(cumulate, reverse):
    def step(y, i, x):
        whole = jnp.sin(jnp.arange(2 * 37.0).reshape(2, 37) + y[0]) * 0.3 + 1
        exact = jnp.arange(50, dtype=jnp.int32) * (i + 1) % 7
        return (y,), (cumulate(whole, axis=1, reverse=reverse), lax.cumsum(exact, reverse=reverse))

    assert_one_kernel_computes_what_xla_does(*looped(step, X), tolerance=1e-4)
