"""Packed weights: the array they stand for to every function, and panels that kernels read to products."""

import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import assert_close, kernels, normal, primitives

import jax_nano

pack: Callable[..., Any] = jax_nano.pack  # a weight is an array to JAX's functions, but not to their annotations
X, W, BIAS = normal(6, 40), normal(40, 72, seed=1), normal(72, seed=2)
PACKED = pack(W)
TYPES = ("float64", "float32", "bfloat16", "float16")


def report(f, *operands):
    """What becomes of the one product in f; there may be a loop around it."""
    (only,) = (found for found in jax_nano.inspect(f, *operands) if not found.equation.startswith("scan"))
    return only


def reads_panels(f, *operands):
    found = report(f, *operands)
    return found.ran_as == "kernel" and found.problem and found.problem.panels is not None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (40, 72), (64, 128), (3, 17, 50), (2, 3, 8, 16)])
def test_unpacking_gives_the_weight(shape, dtype):
    with jax.enable_x64(True):
        w = jnp.asarray(normal(*shape), dtype)
        packed = pack(w)
        assert (packed.shape, packed.ndim, packed.size, packed.dtype) == (w.shape, w.ndim, w.size, w.dtype)
        np.testing.assert_array_equal(packed.unpack(), w)
        np.testing.assert_array_equal(np.asarray(packed), w)
        np.testing.assert_array_equal(jnp.asarray(packed), w)
        np.testing.assert_array_equal(packed.T, w.T)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(768, 3072), (3072, 768), (768, 50257), (4, 96, 256)])
def test_a_packed_weight_takes_no_more_memory_than_the_weight_and_its_padding(shape, dtype):
    with jax.enable_x64(True):
        (panels,) = jax.tree.leaves(jax.eval_shape(jax_nano.pack, jax.ShapeDtypeStruct(shape, dtype)))
    assert panels.dtype == dtype
    assert np.prod(panels.shape) <= np.prod(shape) + 32 * np.prod(shape[:-1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("n", [2, 70])
@pytest.mark.parametrize("k", [1, 33, 256])
def test_products_read_the_panels(m, n, k, dtype):
    with jax.enable_x64(True):
        x, w = jnp.asarray(normal(m, k), dtype), jnp.asarray(normal(k, n, seed=1), dtype)
        packed = pack(w)
        with kernels(1):
            assert_close(jax_nano.matmul(x, packed), "mk,kn->mn", x, w)
        assert reads_panels(jax_nano.matmul, x, packed)


MATRICES = ((1,), (0,)), ((), ())
CALLS = {
    "matmul": jax_nano.matmul,
    "dot_general": lambda x, w: jax_nano.dot_general(x, w, MATRICES),
    "accelerate, weight first": jax_nano.accelerate(
        lambda x, w: lax.dot_general(w.unpack(), x, (((0,), (1,)), ((), ()))).T
    ),
    "dot": jax_nano.dot,
    "tensordot": lambda x, w: jax_nano.tensordot(x, w, 1),
    "einsum": lambda x, w: jax_nano.einsum("mk,kn->mn", x, w),
    "einsum, weight first": lambda x, w: jax_nano.einsum("kn,mk->mn", w, x),
    "einsum by numbers": lambda x, w: jax_nano.einsum(x, (0, 1), w, (1, 2), (0, 2)),
    "accelerate": jax_nano.accelerate(lambda x, w: x @ w),
    "accelerate, einsum": jax_nano.accelerate(lambda x, w: jnp.einsum("mk,kn->mn", x, w)),
    "accelerate, lax": jax_nano.accelerate(lambda x, w: lax.dot_general(x, w.unpack(), MATRICES)),
    "fused_matmul": lambda x, w: jax_nano.fused_matmul(x, w, epilogue=lambda acc: acc),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_every_product_takes_them(name, wrap):
    with kernels(1):
        assert_close(wrap(CALLS[name])(X, PACKED), "mk,kn->mn", X, W)


@pytest.mark.parametrize("name", CALLS)
def test_every_product_reads_the_panels(name):
    assert reads_panels(CALLS[name], X, PACKED)


def test_a_packed_weight_is_an_argument_or_a_constant():
    layer = jax.jit(jax_nano.accelerate(lambda x, w: jax.nn.gelu(x @ w["kernel"] + w["bias"])))
    wanted = jax.nn.gelu(X @ W + BIAS)
    np.testing.assert_allclose(layer(X, {"kernel": PACKED, "bias": BIAS}), wanted, atol=1e-4)
    closed = jax.jit(jax_nano.accelerate(lambda x: jax.nn.gelu(x @ PACKED + BIAS)))
    np.testing.assert_allclose(closed(X), wanted, atol=1e-4)
    assert reads_panels(closed, X)


def test_work_around_a_packed_product_is_fused():
    found = report(jax_nano.accelerate(lambda x, w, bias: jnp.tanh(x @ w + bias)), X, PACKED, BIAS)
    assert found.problem and found.problem.panels
    assert "tanh" in found.fused


RESHAPED = {
    "a batch of rows": (lambda x, w: x.reshape(2, 3, 40) @ w, True),
    "heads of whole panels": (lambda x, w: jnp.einsum("mk,khd->hmd", x, w.unpack()[:, :64].reshape(40, 2, 32)), False),
    "heads": (lambda x, w: jnp.einsum("mk,khd->mhd", x, w.unpack().reshape(40, 9, 8)), True),
    "heads apart": (lambda x, w: jnp.einsum("mk,khd->hmd", x, w.unpack().reshape(40, 9, 8)), False),
    "summed heads": (lambda x, w: jnp.einsum("mhd,hdn->mn", x.reshape(6, 5, 8), w.unpack().reshape(5, 8, 72)), True),
    "the transposed weight": (lambda x, w: jnp.ones((6, 72)) @ w.T, False),
    "the transposed result": (lambda x, w: (x @ w).T, True),
    "other uses": (lambda x, w: x @ w.unpack() + w.unpack()[0], True),
}  # fmt: skip


@pytest.mark.parametrize("name", RESHAPED)
def test_products_are_right_whether_panels_can_be_read_or_not(name):
    f, read = RESHAPED[name]
    fast = jax.jit(jax_nano.accelerate(f))
    with kernels(1):
        result = fast(X, PACKED)
    np.testing.assert_allclose(result, f(X, pack(W)), atol=1e-4)
    assert reads_panels(fast, X, PACKED) == read


def test_whole_panels_of_heads_are_read():
    w = normal(40, 128, seed=3)

    def heads(x, w):
        return jnp.einsum("mk,khd->hmd", x, jnp.reshape(w, (40, 2, 64)))

    packed = pack(w)
    fast = jax.jit(jax_nano.accelerate(lambda x, w: heads(x, w.unpack())))
    np.testing.assert_allclose(fast(X, packed), heads(X, w), atol=1e-4)
    assert reads_panels(fast, X, packed)


def test_a_stack_of_weights():
    w = normal(3, 40, 40, seed=5)
    packed = pack(w)
    batched = jax.jit(jax_nano.matmul)
    assert_close(batched(normal(3, 6, 40), packed), "bmk,bkn->bmn", normal(3, 6, 40), w)
    assert reads_panels(batched, normal(3, 6, 40), packed)
    assert_close(jax.vmap(jax_nano.matmul)(normal(3, 6, 40), packed), "bmk,bkn->bmn", normal(3, 6, 40), w)
    assert_close(jax.vmap(jax_nano.matmul, (None, 0))(X, packed), "mk,bkn->bmn", X, w)

    @jax_nano.accelerate
    def layers(x, packed):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, packed)[0]

    wanted = functools.reduce(lambda x, layer: np.tanh(x @ layer), w, X.astype(np.float64))
    assert reads_panels(layers, X, packed)
    with kernels(3):
        np.testing.assert_allclose(jax.jit(layers)(X, packed), wanted, atol=1e-3)


def test_other_functions_get_the_array():
    np.testing.assert_array_equal(jnp.sin(PACKED), jnp.sin(W))
    np.testing.assert_allclose(X @ PACKED, X @ W, atol=1e-4)
    np.testing.assert_allclose(jnp.asarray(X) @ PACKED, X @ W, atol=1e-4)
    np.testing.assert_allclose(PACKED @ BIAS, W @ BIAS, atol=1e-4)
    np.testing.assert_array_equal(PACKED.astype(jnp.bfloat16), jnp.asarray(W, jnp.bfloat16))


def test_gradients_of_other_arguments():
    def loss(x, w):
        return jnp.sin(jax_nano.matmul(x, w)).sum()

    np.testing.assert_allclose(jax.grad(loss)(X, PACKED), np.cos(X @ W) @ W.T, atol=1e-3)
    np.testing.assert_allclose(
        jax.jit(jax.grad(jax_nano.accelerate(lambda x, w: jnp.sin(x @ w).sum())))(X, PACKED),
        np.cos(X @ W) @ W.T, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("f", [jax_nano.matmul, jax_nano.accelerate(lambda x, w: x @ w)], ids=["matmul", "accelerate"])
def test_a_gradient_with_respect_to_it_says_how_to_unpack(f):
    with pytest.raises(TypeError, match=r"^a PackedWeight has no derivative; .*unpack\(\) gives, and pack the outcome"):
        jax.grad(lambda w: f(X, w).sum())(PACKED)


def test_it_is_a_pytree_of_one_array():
    (panels,) = jax.tree.leaves(PACKED)
    assert panels is PACKED.panels
    twice = jax.tree.map(lambda x: 2 * x, PACKED)
    assert_close(jax_nano.matmul(X, twice), "mk,kn->mn", X, 2 * W)
    moved = jax.device_put(PACKED, jax.devices()[0])
    np.testing.assert_array_equal(moved.unpack(), W)
    assert jax.eval_shape(jax_nano.matmul, X, PACKED).shape == (6, 72)
    assert jax.tree.structure(moved) == jax.tree.structure(PACKED)


def test_it_can_be_pickled():
    again = pickle.loads(pickle.dumps(PACKED))
    assert (again.target, again.shape) == (PACKED.target, PACKED.shape)
    np.testing.assert_array_equal(again.unpack(), W)


def test_it_can_be_kept_by_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    state = {"kernel": PACKED, "bias": jnp.asarray(BIAS)}
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "state", state)
        keeper.wait_until_finished()
        again = keeper.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    assert again["kernel"].target == PACKED.target
    np.testing.assert_array_equal(again["kernel"].unpack(), W)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("there", ["avx2", "avx512"])
@pytest.mark.parametrize("here", ["avx2", "avx512"])
def test_it_is_right_on_every_target(monkeypatch, dtype, there, here):
    x, w = jnp.asarray(X, dtype), jnp.asarray(W, dtype)
    monkeypatch.setenv("JAX_NANO_TARGET", there)
    packed = pack(w)
    assert packed.target == there
    monkeypatch.setenv("JAX_NANO_TARGET", here)
    product = jax.jit(jax_nano.accelerate(lambda x, w: x @ w))
    with kernels(1):
        assert_close(product(x, packed), "mk,kn->mn", x, w)


@pytest.mark.parametrize("m", [1, 30])
@pytest.mark.parametrize("k", [1, 2, 33, 300])
def test_wider_operands_read_the_panels_of_bf16(m, k):
    x, w = normal(m, k), jnp.asarray(normal(k, 64), jnp.bfloat16)
    packed = pack(w)
    assert reads_panels(jax_nano.matmul, x, packed)
    assert_close(jax_nano.matmul(x, packed), "mk,kn->mn", x, w)


def test_a_product_that_cannot_read_the_panels_unpacks_them_and_says_why(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "avx2")
    packed = pack(W)  # 72 columns: 9 panels of 8
    monkeypatch.setenv("JAX_NANO_TARGET", "avx512")
    found = report(jax_nano.matmul, X, packed)
    assert found.ran_as == "kernel"
    assert found.problem and found.problem.panels is None
    assert found.stopped == (
        "unpacked: avx512 has no instruction that multiplies f32 by f32 into f32 where B lies in panels of 8 columns, "
        "rows by groups of 1"
    )


def test_precision_that_asks_for_components_unpacks():
    found = report(functools.partial(jax_nano.matmul, precision="BF16_BF16_F32_X3"), X, PACKED)
    assert found.stopped.startswith("unpacked: ")
    assert found.problem and found.problem.algorithm


def test_packing_is_part_of_a_program():
    names = primitives(jax.make_jaxpr(jax.jit(lambda w: pack(w).unpack()))(W).jaxpr)
    assert "nano_unpack" in names
    np.testing.assert_array_equal(jax.jit(lambda w: pack(w).unpack())(W), W)


@pytest.mark.parametrize("dtype", ["int8", "complex64", "float8_e4m3fn", "bool"])
def test_types_that_cannot_be_packed(dtype):
    with pytest.raises(TypeError, match=f"^a weight of {dtype} cannot be packed; kernels read panels of float64, "):
        pack(jnp.zeros((4, 4), dtype))


@pytest.mark.parametrize("shape", [(), (4,), (0, 4), (4, 0), (0, 4, 4)])
def test_shapes_that_cannot_be_packed(shape):
    with pytest.raises(
        ValueError, match=r"^a weight of the shape .* cannot be packed; its last two dimensions have to"
    ):
        pack(jnp.zeros(shape))
