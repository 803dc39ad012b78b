"""Programs over devices with products in them, installed: kernels everywhere, by the collectives of plain jit.

JAX's own tests of jit over devices and of shard_map are in no wheel of jax or jaxlib (those have a table of harnesses
alone, which tests/external/test_jax.py runs, and nothing in it is sharded). So these are programs of the kinds that
such tests hold: how arrays come to be sharded, which transformations surround a product, and which collectives.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives, whole_sums
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracle import normal

import jax_nano

DEVICES = 4
X, W, V = normal(32, 64), normal(64, 48, seed=1), normal(48, 64, seed=2)
SQUARE = normal(64, 64, seed=3) / 8
BATCHED = normal(8, 32, 64, seed=4)


def grid(kind=AxisType.Auto):
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)


def named(*spec):
    return NamedSharding(grid(), P(*spec))


def constrained(x, *spec):
    return lax.with_sharding_constraint(x, named(*spec))


def placed(*pairs):
    return [jax.device_put(x, NamedSharding(grid(), spec)) for x, spec in pairs]


def check(f, args, kernels, **jit):
    """Runs a program as JAX has it, and installed: so many kernels on each device, no other collectives."""
    plain = jax.jit(f, **jit).lower(*args).compile()
    expected = plain(*args)
    with jax_nano.installed():
        program = jax.jit(f, **jit).lower(*args).compile()
        before = jax_nano.executed_kernels()
        results = jax.block_until_ready(program(*args))
        ran = jax_nano.executed_kernels() - before
    assert ran == kernels * DEVICES, f"{ran} kernels ran"
    wanted = collectives(plain)
    assert whole_sums(collectives(program), wanted) <= wanted
    for x, y in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * (1 + np.abs(y).max()))


# Under jit


def mlp(x, w, v):
    hidden = constrained(jax.nn.relu(x @ w), "x", "y")
    return constrained(hidden @ v, "x")


def in_a_loop(x, w):
    return lax.fori_loop(0, 3, lambda _, x: constrained(jnp.tanh(x @ w), "x", "y"), x)


def in_a_scan_over_weights(x, stacked):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, stacked)


def in_a_while(x, w):
    return lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, jnp.tanh(state[1] @ w)), (0, x))


@jax.custom_vjp
def own_gradient(x, w):
    return x @ w


own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def solved(a, b):
    """Conjugate gradients: in two steps six products with a symmetric matrix, and six of vectors."""
    return jax.scipy.sparse.linalg.cg(lambda x: a @ (a.T @ x) + x, b, maxiter=2)[0]


ROWS, COLUMNS, BOTH, WHOLE = P("x"), P(None, "y"), P("x", "y"), P()
TALL = np.stack([SQUARE] * 3)
JIT = {
    "rows and columns": (jnp.matmul, 1, [(X, ROWS), (W, COLUMNS)]),
    "by its own transpose": (lambda x: x @ x.T, 1, [(X, BOTH)]),
    "a vector": (lambda x, v: x @ v, 1, [(X, BOTH), (V[0], P("y"))]),
    "one dimension over two axes": (jnp.matmul, 1, [(X, P(("x", "y"))), (W, WHOLE)]),
    "three in a row": (lambda x, w, v: x @ w @ v @ w, 3, [(X, ROWS), (W, COLUMNS), (V, P("y"))]),
    "constraints between": (mlp, 2, [(X, ROWS), (W, COLUMNS), (V, P("y"))]),
    "a constant": (lambda x: x @ W, 1, [(X, ROWS)]),
    "nested": (lambda x, w: jax.jit(jnp.matmul, out_shardings=named("x"))(x, w) * 2, 1, [(X, ROWS), (W, WHOLE)]),
    "einsum over batch": (partial(jnp.einsum, "bij,jk->bik"), 1, [(BATCHED, P("x", None, "y")), (W, P("y"))]),
    "einsum of a batch of both": (partial(jnp.einsum, "bij,bkj->bik"), 1, [(BATCHED, BOTH), (BATCHED, ROWS)]),
    "tensordot": (partial(jnp.tensordot, axes=([2], [0])), 1, [(BATCHED, ROWS), (W, COLUMNS)]),
    "vmap over a sharded axis": (
        lambda x, w: jax.vmap(lambda a: constrained(a @ w, "y"), spmd_axis_name="x")(x),
        1, [(BATCHED, ROWS), (W, WHOLE)],
    ),
    "gradient": (jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1)), 3, [(X, ROWS), (W, COLUMNS)]),
    "gradient of its own": (jax.grad(lambda x, w: own_gradient(x, w).sum(), (0, 1)), 2, [(X, ROWS), (W, COLUMNS)]),
    "gradient through constraints": (
        jax.grad(lambda w, x, v: (mlp(x, w, v) ** 2).sum()), 4, [(W, COLUMNS), (X, ROWS), (V, P("y"))],
    ),
    "rematerialized": (
        jax.grad(lambda x, w: jax.checkpoint(lambda x: jnp.sin(x @ w) @ w.T)(x).sum()), 3, [(X, ROWS), (W, COLUMNS)],
    ),
    "forward derivative": (
        lambda x, w: jax.jvp(lambda x: jnp.sin(x @ w), (x,), (jnp.cos(x),)), 2, [(X, ROWS), (W, COLUMNS)],
    ),
    "linearized": (lambda x, w: jax.linearize(lambda x: jnp.sin(x @ w), x)[1](x), 1, [(X, ROWS), (W, COLUMNS)]),
    "fori_loop": (in_a_loop, 3, [(X, BOTH), (SQUARE, P("y"))]),
    "scan over weights": (in_a_scan_over_weights, 3, [(X, ROWS), (TALL, P(None, None, "y"))]),
    "while_loop": (in_a_while, 3, [(X, ROWS), (SQUARE, WHOLE)]),
    "cond": (lambda x, w: lax.cond(x[0, 0] > 9, lambda: x @ w, lambda: (2 * x) @ w), 1, [(X, ROWS), (W, WHOLE)]),
    "conjugate gradients": (solved, 12, [(SQUARE, ROWS), (SQUARE[:, :8], WHOLE)]),
}  # fmt: skip


@pytest.mark.parametrize("name", JIT)
def test_jit(name):
    f, kernels, operands = JIT[name]
    check(f, placed(*operands), kernels)


def test_shardings_of_arguments_and_results():
    check(jnp.matmul, [X, W], 1, in_shardings=(named("x"), named(None, "y")), out_shardings=named("x", "y"))


def test_a_pytree():
    params = dict(zip("xwb", placed((X, ROWS), (W, COLUMNS), (W[0], P("y"))), strict=True))
    check(lambda p: {"y": p["x"] @ p["w"] + p["b"]}, [params], 1)


# Explicit axes


EXPLICIT = {
    "rows and columns": (jnp.matmul, 1, (ROWS, COLUMNS)),
    "a sum": (partial(jnp.matmul, out_sharding=P("x", None)), 1, (BOTH, P("y"))),
    "a sum that is scattered": (partial(jnp.matmul, out_sharding=BOTH), 1, (BOTH, P("y"))),
    "einsum": (partial(jnp.einsum, "ij,jk->ki", out_sharding=P(None, "x")), 1, (BOTH, P("y"))),
    "resharded between": (
        lambda x, w: jax.sharding.reshard(x, P("x", None)) @ jax.sharding.reshard(w, P(None, "y")), 1, (BOTH, P("y")),
    ),
    "automatic within": (partial(jax.sharding.auto_axes, out_sharding=BOTH)(lambda x, w: x @ w), 1, (ROWS, COLUMNS)),
    "gradient": (jax.grad(lambda x, w: jnp.sum(x @ w * 2), (0, 1)), 2, (ROWS, P(None, None))),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit_axes(name):
    f, kernels, specs = EXPLICIT[name]
    with jax.set_mesh(grid(AxisType.Explicit)):
        check(f, [jax.device_put(x, spec) for x, spec in zip((X, W), specs, strict=True)], kernels)


# Under shard_map


def mapped(f, ins, out, **how):
    return jax.shard_map(f, mesh=grid(), in_specs=ins, out_specs=out, **how)


def around_a_ring(x, w):
    """A product by columns of which each device has some: they go around while it computes."""
    own, count = lax.axis_index("y"), lax.axis_size("y")

    def step(i, state):
        w, out = state
        out = lax.dynamic_update_slice(out, (x @ w)[:, None], (0, (own + i) % count, 0))
        return lax.ppermute(w, "y", [(j, (j - 1) % count) for j in range(count)]), out

    empty = jnp.zeros((x.shape[0], count, w.shape[1]), x.dtype)
    return lax.fori_loop(0, count, step, (w, empty))[1].reshape(x.shape[0], -1)


def stages(x, w):
    """Two layers on the devices of an axis, of which the first hands its result on."""
    return jnp.tanh(lax.ppermute(jnp.tanh(x @ w[0]), "y", [(0, 1)]) @ w[0])


def gathered(x, w):
    return x @ lax.all_gather(w, "y", axis=1, tiled=True)


def scattered(x, w):
    return lax.psum_scatter(x @ w, "y", scatter_dimension=1, tiled=True)


def exchanged(x, w):
    return lax.all_to_all(x @ w, "y", 0, 1, tiled=True)


def layers(x, w):
    return lax.scan(lambda x, _: (jnp.tanh(x @ w @ w.T), None), lax.pcast(x, "y", to="varying"), None, 2)[0]


def gradient_within(x, w):
    return lax.psum(jax.grad(lambda w: jnp.sin(x @ w).sum())(lax.pcast(w, "x", to="varying")), "x")


def gradients(f):
    return jax.grad(lambda x, w: jnp.sin(f(x, w)).sum(), (0, 1))


PLACED, SUMMED = (ROWS, COLUMNS), (BOTH, P("y"))
product = mapped(lambda x, w: x @ w, PLACED, BOTH)
sine = mapped(lambda x, w: jnp.sin(x @ w), PLACED, BOTH)
summed = mapped(lambda x, w: lax.psum(x @ w, "y"), SUMMED, ROWS)
gathering = mapped(gathered, PLACED, ROWS, check_vma=False)
SHARD_MAP = {
    "rows and columns": (product, 1),
    "psum": (summed, 1),
    "psum_scatter": (mapped(scattered, SUMMED, BOTH), 1),
    "all_gather": (gathering, 1),
    "all_to_all": (mapped(exchanged, PLACED, P(("x", "y"))), 1),
    "a ring of ppermute": (mapped(around_a_ring, PLACED, ROWS, check_vma=False), 2),
    "gradient of psum": (gradients(summed), 3),
    "gradient of all_gather": (gradients(gathering), 3),
    "gradient within": (mapped(gradient_within, PLACED, COLUMNS), 2),
    "rematerialized": (jax.grad(lambda x, w: jax.checkpoint(sine)(x, w).sum(), (0, 1)), 3),
    "vmap": (lambda x, w: jax.vmap(product, (None, 0))(x, jnp.stack([w, 2 * w])), 1),
    "scan within": (mapped(layers, PLACED, P(("x", "y"))), 1),
    "jit within": (mapped(jax.jit(jnp.matmul), PLACED, BOTH), 1),
    "loop around": (lambda x, w: lax.fori_loop(0, 2, lambda _, x: product(x, w @ w.T), x), 3),
}


@pytest.mark.parametrize("name", SHARD_MAP)
def test_shard_map(name):
    f, kernels = SHARD_MAP[name]
    check(f, [X, W], kernels)


def test_a_pipeline():
    check(mapped(stages, (ROWS, P("y")), ROWS, check_vma=False), [X, np.stack([SQUARE, -SQUARE])], 2)
