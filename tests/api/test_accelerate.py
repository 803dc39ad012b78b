"""Accelerated programs: the same results, derivatives and transformations, with kernels that do more than products."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal, primitives, run_python
from programs import FORWARD_ONLY, PROGRAMS, REVERSE_ONLY

import jax_nano
from jax_nano.machine import host
from jax_nano.runtime import compiler as runtime_compiler

X, W, V = normal(6, 8), normal(8, 8, seed=1), normal(8, 8, seed=2)
B, S = normal(8, seed=3), normal(8, 8, seed=4)


def attention(x, w, v, _):
    q, k, h = (t.reshape(2, 3, 2, 4) for t in (x @ w, x @ v, x))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 20
    scores = jnp.where(jnp.tril(jnp.ones((3, 3), bool)), scores, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), h).reshape(6, 8) @ v + x


# Functions of x, two square matrices and a row, and how many products they have.
MODELS = {
    "bias": (lambda x, w, v, b: x @ w + b, 1),
    "dense layers": (lambda x, w, v, b: jax.nn.gelu(x @ w + b) @ v + x, 2),
    "exact gelu": (lambda x, w, v, b: jax.nn.gelu(x @ w + b, approximate=False), 1),
    "custom derivatives": (lambda x, w, v, b: jax.nn.relu(x @ w - b) * jax.nn.silu(x @ v), 1),
    "a value used twice": (lambda x, w, v, b: (lambda h: h * jax.nn.sigmoid(h + b))(x @ w), 1),
    "results in between": (lambda x, w, v, b: (lambda h: (h, jnp.tanh(h) @ v))(x @ w + b), 2),
    "transposes": (lambda x, w, v, b: ((w.T @ x.T).T + b).reshape(2, 3, 8).transpose(2, 0, 1) * 2, 1),
    "rows and columns": (lambda x, w, v, b: x @ w * x[:, :1] + b[None] - x[0, 0], 1),
    "reductions": (lambda x, w, v, b: jax.nn.softmax(x @ w + b) - (x @ v).mean(), 2),
    "attention": (attention, 5),
    "a sum of products": (lambda x, w, v, b: x @ w + x @ v + b, 1),
    "a product of products": (lambda x, w, v, b: x @ w @ v @ w, 3),
    "rounding": (lambda x, w, v, b: jnp.round(x @ w) + jnp.floor(b), 1),
    "a batch": (lambda x, w, v, b: jnp.einsum("bik,bkj->bji", x.reshape(2, 3, 8), jnp.stack([w, v])) * 2, 1),
}


def exact(f, *operands):
    """What plain JAX makes of the operands in f64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*(np.asarray(x, np.float64) for x in operands)))


def assert_same(actual, wanted):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert x.shape == y.shape
        scale = np.abs(y).max(initial=1.0)
        np.testing.assert_allclose(np.asarray(x, np.float64) / scale, y / scale, atol=2e-5)


def scalar(f):
    """A function of which a gradient can be taken."""
    return lambda *x: sum((jnp.sin(part) * (1 + jnp.arange(part.size).reshape(part.shape))).sum()
                          for part in jax.tree.leaves(f(*x)))  # fmt: skip


gradient = functools.partial(jax.grad, argnums=(0, 1, 2, 3))


@pytest.mark.parametrize("name", MODELS)
def test_results(name):
    f, products = MODELS[name]
    with kernels(products):
        assert_same(jax.jit(jax_nano.accelerate(f))(X, W, V, B), exact(f, X, W, V, B))


@pytest.mark.parametrize("name", MODELS)
def test_results_without_jit(name):
    f, products = MODELS[name]
    with kernels(products):
        assert_same(jax_nano.accelerate(f)(X, W, V, B), exact(f, X, W, V, B))


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    f, _ = MODELS[name]
    wanted = exact(gradient(scalar(f)), X, W, V, B)
    for accelerated in (gradient(jax_nano.accelerate(scalar(f))), jax_nano.accelerate(gradient(scalar(f)))):
        assert_same(jax.jit(accelerated)(X, W, V, B), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_tangents(name):
    f, _ = MODELS[name]

    def tangent(f):
        return lambda *x: jax.jvp(f, x[:4], x[4:])

    operands = X, W, V, B, X[::-1], V, W, -B
    wanted = exact(tangent(f), *operands)
    for accelerated in (tangent(jax_nano.accelerate(f)), jax_nano.accelerate(tangent(f))):
        with kernels():
            assert_same(jax.jit(accelerated)(*operands), wanted)


def test_tangents_that_are_numbers_of_python():
    def tangent(f):
        return jax.jvp(lambda s: f(X, W, s), (2.0,), (1.0,))[1]

    def f(x, w, s):
        return jnp.tanh(x @ w * s)

    with kernels():
        np.testing.assert_allclose(tangent(jax_nano.accelerate(f)), tangent(f), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dense layers", "custom derivatives", "attention"])
def test_second_derivatives(name):
    f, _ = MODELS[name]

    def curvature(f):
        return lambda *x: jax.jvp(jax.grad(f, 1), x, x)[1]

    wanted = exact(curvature(scalar(f)), X, W, V, B)
    for accelerated in (curvature(jax_nano.accelerate(scalar(f))), jax_nano.accelerate(curvature(scalar(f)))):
        assert_same(jax.jit(accelerated)(X, W, V, B), wanted)


@pytest.mark.parametrize("axes", [(0, None, None, None), (2, 0, None, 0), (1, 1, 2, 1), (None, None, None, 0)])
@pytest.mark.parametrize("name", MODELS)
def test_batches(name, axes):
    f, _ = MODELS[name]
    operands = [
        x if axis is None else np.stack([x, 2 * x, -x], axis) for x, axis in zip((X, W, V, B), axes, strict=True)
    ]
    wanted = exact(jax.vmap(f, axes), *operands)
    for accelerated in (jax.vmap(jax_nano.accelerate(f), axes), jax_nano.accelerate(jax.vmap(f, axes))):
        with kernels():
            assert_same(jax.jit(accelerated)(*operands), wanted)


@pytest.mark.parametrize("name", ["dense layers", "custom derivatives", "attention"])
def test_a_batch_of_gradients(name):
    f, _ = MODELS[name]
    x = np.stack([X, 2 * X])
    wanted = exact(jax.vmap(gradient(scalar(f)), (0, None, None, None)), x, W, V, B)
    accelerated = jax.vmap(gradient(jax_nano.accelerate(scalar(f))), (0, None, None, None))
    assert_same(jax.jit(accelerated)(x, W, V, B), wanted)


def test_linear_functions_transpose():
    def f(x):
        return (x @ W).T * 3 + V @ x.T

    (wanted,) = exact(lambda x, g: jax.linear_transpose(f, x)(g), X, (X @ W).T)
    (result,) = jax.linear_transpose(jax_nano.accelerate(f), X)((X @ W).T)
    assert_same(result, wanted)


def test_results_that_are_not_differentiable():
    def f(x, w):
        positive = x @ w > 0
        return jnp.where(positive, x @ w * 2, 0.0).sum() + (x @ w).astype(jnp.int32).sum()

    for accelerated in (jax.grad(jax_nano.accelerate(f), 1), jax_nano.accelerate(jax.grad(f, 1))):
        assert_same(jax.jit(accelerated)(X, W), exact(jax.grad(f, 1), X, W))


def test_a_gradient_recomputes_no_product():
    def loss(x, w):
        return jax.nn.gelu(x @ w + B).sum()

    for f in (jax.grad(jax_nano.accelerate(loss), 1), jax_nano.accelerate(jax.grad(loss, 1))):
        with kernels(2):
            jax.jit(f)(X, W)


@pytest.mark.parametrize("policy", [None, "dots_saveable", "everything_saveable", "dots_with_no_batch_dims_saveable"])
def test_checkpoints_keep_what_their_policy_says(policy):
    policy = policy and getattr(jax.checkpoint_policies, policy)

    @functools.partial(jax.checkpoint, policy=policy)
    def layer(x, w):
        return jnp.sin(jax.nn.gelu(x @ w + B))

    def loss(x, w):
        return layer(layer(x, w), w).sum()

    def products(f):
        names = primitives(jax.make_jaxpr(f)(X, W).jaxpr)
        return sum(name in ("dot_general", "nano_region", "nano_dot_general") for name in names)

    for f in (jax.grad(jax_nano.accelerate(loss), 1), jax_nano.accelerate(jax.grad(loss, 1))):
        assert products(f) == products(jax.grad(loss, 1))
        assert_same(jax.jit(f)(X, W), exact(jax.grad(loss, 1), X, W))


# Every product of a program, at any depth.


def assert_accelerated(transformation, program):
    """`program` has products, and each becomes jax_nano's, whether it is transformed after acceleration or before."""
    wanted = exact(transformation(program), S, S)
    for accelerated in (transformation(jax_nano.accelerate(program)), jax_nano.accelerate(transformation(program))):
        names = primitives(jax.make_jaxpr(accelerated)(S, S).jaxpr)
        assert {"nano_region", "nano_dot_general"} & set(names)
        assert "dot_general" not in names
        assert_same(accelerated(S, S), wanted)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_product_of_a_program(name):
    assert_accelerated(lambda f: f, PROGRAMS[name])


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - FORWARD_ONLY))
def test_every_product_of_a_gradient(name):
    assert_accelerated(jax.jacrev, PROGRAMS[name])


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - REVERSE_ONLY))
def test_every_product_of_a_tangent(name):
    assert_accelerated(jax.jacfwd, PROGRAMS[name])


def test_loops_around_it():
    f = jax_nano.accelerate(lambda x, w: jnp.tanh(x @ w + B))
    with kernels(1):
        result, _ = lax.scan(lambda x, _: (f(x, S), None), jnp.asarray(X), None, length=3)
    assert_same(result, np.tanh(np.tanh(np.tanh(X @ S + B) @ S + B) @ S + B))
    result = lax.fori_loop(0, 2, lambda _, x: f(x, S), X)
    assert_same(result, np.tanh(np.tanh(X @ S + B) @ S + B))


def test_signatures_pytrees_and_static_arguments():
    @functools.partial(jax.jit, static_argnames=("times", "activation"))
    @jax_nano.accelerate
    def f(tree, *, times, activation="tanh"):
        """Says what it does."""
        x = tree["x"]
        for _ in range(times):
            x = getattr(jnp, activation)(x @ tree["layers"][0] + tree["layers"][1])
        return {"x": x, "shape": x.shape}

    result = f({"x": X, "layers": (S, B)}, times=2, activation="sin")
    assert_same(result["x"], np.sin(np.sin(X @ S + B) @ S + B))
    assert jax_nano.accelerate(f).__doc__ == "Says what it does."


def test_weak_types_and_numbers():
    f = jax_nano.accelerate(lambda x, scale: x @ S * scale)
    assert f(X.astype(jnp.bfloat16), 2.0).dtype == jnp.float32
    assert f(X, 2).dtype == jnp.float32
    assert_same(f(X, 2), 2 * X @ S)


def test_sizes_of_zero_and_one():
    f = jax_nano.accelerate(lambda x, w, b: jax.nn.relu(x @ w + b))
    for m, k, n in ((0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (1, 5, 1), (4, 1, 4), (1, 3, 4), (4, 3, 1)):
        x, w, b = normal(m, k), normal(k, n), normal(n)
        assert_same(jax.jit(f)(x, w, b), np.maximum(np.float64(x) @ w + b, 0))


@pytest.mark.parametrize("number", [0.0, -0.0, np.nan])
def test_programs_that_differ_in_a_number_are_different_programs(number):
    f = jax.jit(jax_nano.accelerate(lambda x, w: jnp.where(x @ w > 0, number, x @ w)))
    np.testing.assert_array_equal(np.signbit(f(X * X, W * W)), np.signbit(np.full((6, 8), np.float32(number))))


@pytest.mark.parametrize("f", [
    lambda x, w, one: (x @ w + one) * one.reshape(()),
    lambda x, w, one: (x * one.reshape(())) @ w * one.reshape(()) + one,
])  # fmt: skip
def test_an_element_that_is_read_as_a_number_and_as_a_row(f):
    one = normal(1, seed=5)
    with kernels(1):
        np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(X, W, one), f(X, W, one), rtol=1e-5, atol=1e-5)


def test_sizes_that_are_not_known():
    f = jax.jit(jax_nano.accelerate(lambda x, w: jnp.tanh(x @ w)))
    (m,) = jax.export.symbolic_shape("m")
    exported = jax.export.export(f)(jax.ShapeDtypeStruct((m, 8), jnp.float32), W)
    assert_same(exported.call(X, W), np.tanh(X @ W))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_round_as_often_as_the_program_does(dtype):
    x, w, b = (jnp.asarray(t, dtype) for t in (X, W, B))

    def f(x, w, b):
        return (x @ w + b) * b

    product = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    summed = np.asarray(jnp.asarray(product, dtype) + b)
    wanted = np.asarray(jnp.asarray(summed) * b, np.float64)
    result = np.asarray(jax.jit(jax_nano.accelerate(f))(x, w, b), np.float64)
    ulp = float(jnp.finfo(dtype).eps)
    assert np.abs(result - wanted).max() <= 4 * ulp * np.abs(wanted).max()


def test_operands_are_read_in_their_own_type():
    x, w = jnp.asarray(X, jnp.bfloat16), jnp.asarray(W, jnp.int8)
    f = jax_nano.accelerate(lambda x, w: x.astype(jnp.float32) @ w.astype(jnp.float32))
    (report,) = jax_nano.inspect(f, x, w)
    assert report.problem
    assert (report.problem.lhs, report.problem.rhs, report.problem.out) == ("bf16", "s8", "f32")
    assert_same(jax.jit(f)(x, w), np.asarray(x, np.float64) @ np.asarray(w, np.float64))


def test_a_number_of_devices():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def f(x, w, b):
        return jax.nn.gelu(x @ w + b)

    x = normal(16, 8)
    wanted = exact(f, x, W, B)
    with kernels(4):
        shard = jax.shard_map(
            jax_nano.accelerate(f), mesh=mesh, in_specs=(spec("x"), spec(), spec()), out_specs=spec("x")
        )
        assert_same(jax.jit(shard)(x, W, B), wanted)
    with kernels(4):
        shard = jax.shard_map(f, mesh=mesh, in_specs=(spec("x"), spec(), spec()), out_specs=spec("x"))
        assert_same(jax.jit(jax_nano.accelerate(shard))(x, W, B), wanted)
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec("x")))
    assert_same(jax.jit(jax_nano.accelerate(f))(sharded, W, B), wanted)


def test_gradients_of_shards():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def loss(f):
        def mean(x, w, b):
            return lax.pmean(jnp.sin(f(x, w, b)).mean(), "x")

        return jax.shard_map(mean, mesh=mesh, in_specs=(spec("x"), spec(), spec()), out_specs=spec())

    def f(x, w, b):
        return jax.nn.gelu(x @ w + b)

    x = normal(16, 8)
    wanted = exact(jax.grad(lambda x, w, b: jnp.sin(f(x, w, b)).mean(), (0, 1, 2)), x, W, B)
    for accelerated in (
        jax.grad(loss(jax_nano.accelerate(f)), (0, 1, 2)),
        jax_nano.accelerate(jax.grad(loss(f), (0, 1, 2))),
    ):
        assert_same(jax.jit(accelerated)(x, W, B), wanted)


def test_equal_products_share_a_kernel_and_others_are_compiled_beside_each_other(monkeypatch):
    composed, beside = [], threading.Barrier(min(2, host.machine().threads))

    def compose(plan, module=runtime_compiler.build_module):
        composed.append(plan)
        beside.wait(timeout=60)
        return module(plan)

    monkeypatch.setenv("JAX_NANO_CACHE", "0")
    monkeypatch.setattr(runtime_compiler, "build_module", compose)
    x, w, v = normal(5, 11), normal(11, 11), normal(11, 7)

    def f(x):
        for _ in range(3):
            x = jnp.tanh(x @ w)
        return x @ v

    jax.jit(jax_nano.accelerate(f)).lower(x)
    assert len(composed) == 2
    assert_same(jax.jit(jax_nano.accelerate(f))(x), exact(f, x))


PROGRAM = """
import os, queue, signal, threading
import jax, jax.numpy as jnp
import jax_nano
from jax_nano.machine import host
from jax_nano.runtime import compiler, kernels

os.environ["JAX_NANO_CACHE"] = "0"
x = jnp.ones((8, 8))
program = jax.jit(jax_nano.accelerate(lambda x: (jnp.tanh(x @ x), jnp.exp(x @ x), (x @ x).sum(), x[:3] @ x)))
"""


def test_a_program_is_compiled_after_the_main_thread_has_ended():
    late = """
def late():
    threading.main_thread().join()
    print(program(x)[2])

threading.Thread(target=late).start()
"""
    assert run_python(PROGRAM + late) == "512.0\n"


def test_a_process_forked_while_kernels_are_compiled_compiles_them_itself():
    forks = """
begun, forked, module = queue.Queue(), threading.Event(), compiler.build_module

def compose(plan):
    begun.put(plan.dot)
    forked.wait()
    return module(plan)

compiler.build_module = compose
lowering = threading.Thread(target=program.lower, args=(x,))
lowering.start()
dots = [begun.get() for _ in range(min(2, host.machine().threads))]
if not os.fork():
    signal.alarm(60)
    compiler.build_module = module
    print({len(kernels.kernel_for(dot).object) > 0 for dot in dots}, flush=True)
    os._exit(0)
os.wait()
forked.set()
lowering.join()
"""
    assert run_python(PROGRAM + forks) == "{True}\n"


def test_what_has_no_kernel_does_not_hold_up_the_others():
    def f(x):
        return jnp.real((x + 1j) @ (x.T + 1j)) + x @ x.T

    with kernels(1):
        np.testing.assert_allclose(jax.jit(jax_nano.accelerate(f))(X), f(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_a_conversion_that_a_program_asks_for_rounds(narrow):
    """So a sum can be taken apart into a narrow number and what is left."""

    def rest(x, w):
        y = x @ w
        return y - y.astype(narrow).astype(y.dtype)

    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(8, 32), (32, 48)]))
    y = np.asarray(jax_nano.matmul(x, w))
    expected = y - y.astype(narrow).astype(np.float32)
    assert np.abs(expected).max() > 1e-4
    assert np.array_equal(jax.jit(jax_nano.accelerate(rest))(x, w), expected)


def test_a_product_that_is_written_twice_is_computed_once():
    def f(a, v):
        return (a @ v) / jnp.linalg.norm(a @ v), a.T @ v, a.T @ v * 2

    a, v = normal(24, 24), normal(24)
    with kernels(2):
        found = jax.jit(jax_nano.accelerate(f))(a, v)
    for ours, plain in zip(found, f(a, v), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
