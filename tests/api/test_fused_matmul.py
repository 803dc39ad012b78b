"""fused_matmul: any elementwise function of the sums, in their type, inside the kernel that makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import assert_close, kernels, normal

import jax_nano

X, W = normal(6, 16), normal(16, 10, seed=1)
ROW, COLUMN, MATRIX = normal(10, seed=2), normal(6, 1, seed=3), normal(6, 10, seed=4)


def exact(f, *arrays):
    """What plain JAX makes of the arrays in f64."""
    with jax.enable_x64(True):
        return np.asarray(f(*(np.asarray(x, np.float64) for x in arrays)))


EPILOGUES = {
    "nothing": (lambda acc: acc, ()),
    "a scalar": (lambda acc, a: acc * a, (np.float32(3),)),
    "a row": (lambda acc, row: jax.nn.gelu(acc + row), (ROW,)),
    "a column": (lambda acc, column: jnp.tanh(acc * column), (COLUMN,)),
    "a matrix": (lambda acc, matrix: jnp.where(matrix > 0, acc, matrix), (MATRIX,)),
    "all of them": (lambda acc, row, column, matrix: jax.nn.silu(acc * column + row) + matrix, (ROW, COLUMN, MATRIX)),
    "work on an extra": (lambda acc, row: acc * jnp.exp(row - row.max()), (ROW,)),
    "a view of an extra": (lambda acc, column: acc + column.T.reshape(6, 1), (COLUMN,)),
    "a jitted function": (jax.jit(lambda acc, row: acc - row), (ROW,)),
    "a checkpoint": (jax.checkpoint(lambda acc, row: jnp.sin(acc) * row), (ROW,)),
    "views there and back": (lambda acc: (acc.T * 2).reshape(10, 2, 3).reshape(10, 6).T, ()),
    "no vector code": (lambda acc, row: lax.digamma(2 + acc**2) + row, (ROW,)),
}


@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_result_is_the_epilogue_of_the_product(name, wrap):
    epilogue, extras = EPILOGUES[name]
    with kernels(1):
        result = wrap(lambda *arrays: jax_nano.fused_matmul(*arrays, epilogue=epilogue))(X, W, *extras)
    wanted = exact(lambda x, w, *extras: epilogue(x @ w, *extras), X, W, *extras)
    np.testing.assert_allclose(result, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(EPILOGUES.keys() - {"no vector code", "a checkpoint"}))
def test_the_whole_epilogue_is_in_the_kernel(name):
    epilogue, extras = EPILOGUES[name]
    (report,) = jax_nano.inspect(lambda *arrays: jax_nano.fused_matmul(*arrays, epilogue=epilogue), X, W, *extras)
    assert report.ran_as == "kernel"
    assert report.stopped == "used by the caller"


@pytest.mark.parametrize(
    ("lhs", "rhs", "summed"),
    [
        ("float32", "float32", "float32"), ("bfloat16", "bfloat16", "float32"), ("float16", "float16", "float32"),
        ("float8_e4m3fn", "float8_e4m3fn", "float32"), ("bfloat16", "float32", "float32"), ("int8", "int8", "int32"),
        ("uint8", "int8", "int32"), ("int8", "bfloat16", "float32"),
    ],
)  # fmt: skip
def test_the_epilogue_sees_the_sums_and_gives_the_result_its_type(lhs, rhs, summed):
    x, w = jnp.asarray(np.round(3 * X), lhs), jnp.asarray(np.round(3 * W), rhs)
    if lhs == "uint8":
        x = jnp.asarray(np.abs(np.round(3 * X)), lhs)

    def epilogue(acc, scale):
        assert acc.dtype == summed
        assert acc.shape == (6, 10)
        return (acc * scale).astype(jnp.float16)

    with kernels(1):
        result = jax_nano.fused_matmul(x, w, np.float32(0.5), epilogue=epilogue)
    assert result.dtype == jnp.float16
    assert_close(result, "mk,kn->mn", np.asarray(x, np.float64) * 0.5, np.asarray(w, np.float64))


@pytest.mark.parametrize(
    ("x", "w", "extras"),
    [
        ((16,), (16, 10), [(10,), ()]),
        ((6, 16), (16,), [(6,), ()]),
        ((16,), (16,), [()]),
        ((2, 3, 6, 16), (16, 10), [(10,), (6, 1), (3, 1, 1), (2, 3, 6, 10)]),
        ((3, 6, 16), (3, 16, 10), [(10,), (6, 10), (3, 6, 1)]),
        ((2, 1, 6, 16), (3, 16, 10), [(2, 1, 1, 10)]),
        ((6, 0), (0, 10), [(10,)]),
        ((0, 16), (16, 10), [(10,)]),
    ],
)
def test_shapes_are_those_of_matmul_and_extras_broadcast(x, w, extras):
    arrays = [normal(*shape, seed=i) for i, shape in enumerate((x, w, *extras))]
    result = jax_nano.fused_matmul(*arrays, epilogue=lambda acc, *extras: 3 * acc + sum(extras))
    wanted = exact(lambda x, w, *extras: sum(extras, start=3 * (x @ w)), *arrays)
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result, wanted, atol=1e-4)


def fused(x, w, row, column):
    return jax_nano.fused_matmul(x, w, row, column, epilogue=lambda acc, r, c: jax.nn.gelu(acc + r) * c)


def plain(x, w, row, column):
    return jax.nn.gelu(x @ w + row) * column


ARRAYS = X, W, ROW, COLUMN


def test_gradients():
    wanted = [exact(jax.grad(lambda *x: jnp.sin(plain(*x)).sum(), i), *ARRAYS) for i in range(4)]
    found = jax.jit(jax.grad(lambda *x: jnp.sin(fused(*x)).sum(), (0, 1, 2, 3)))(*ARRAYS)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_gradients_of_what_the_epilogue_closes_over():
    def loss(row):
        return jax_nano.fused_matmul(X, W, epilogue=lambda acc: jnp.sin(acc + row)).sum()

    np.testing.assert_allclose(jax.grad(loss)(ROW), exact(lambda row: jnp.cos(X @ W + row).sum(0), ROW), atol=1e-4)


def test_batches():
    x = np.stack([X, -X])
    with kernels():
        result = jax.vmap(fused, (0, None, None, None))(x, *ARRAYS[1:])
    np.testing.assert_allclose(result, exact(plain, x, *ARRAYS[1:]), atol=1e-4)


def test_loops():
    square = normal(16, 16) / 8

    def step(x, _):
        return jax_nano.fused_matmul(x, square, X[0], epilogue=lambda acc, row: jnp.tanh(acc + row)), None

    def plain_step(x):
        for _ in range(3):
            x = jnp.tanh(x @ square + X[0])
        return x

    with kernels(1):  # the whole loop
        result = jax.jit(lambda x: lax.scan(step, x, length=3)[0])(X)
    np.testing.assert_allclose(result, exact(plain_step, X), atol=1e-4)


NOT_ELEMENTWISE = {
    "a softmax": (jax.nn.softmax, "reduce_max is no elementwise operation"),
    "a scan": (lambda acc: jnp.cumsum(acc, 0), "cumsum is no elementwise operation"),
    "a reversal": (lambda acc: acc[::-1], "rev is no elementwise operation"),
    "a product": (lambda acc: acc @ acc, "dot_general is no elementwise operation"),
    "a neighbour": (lambda acc: acc + acc.T, "add combines elements from different places of the product"),
    "a transposition": (lambda acc: acc.T, "elements of the product change their places"),
    "a broadcast": (lambda acc: (acc + jnp.ones((2, 1, 1))).max(0), "add broadcasts the product"),
    "a condition": (lambda acc: lax.cond(True, jnp.sin, jnp.cos, acc), "cond is no elementwise operation"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ELEMENTWISE)
def test_epilogues_that_are_not_elementwise(name):
    epilogue, reason = NOT_ELEMENTWISE[name]
    with kernels(0), pytest.raises(ValueError, match=f"^the epilogue is not elementwise: {reason}; do that to the"):
        jax_nano.fused_matmul(X[:, :6], W[:6, :6], epilogue=epilogue)


@pytest.mark.parametrize(
    ("epilogue", "given"),
    [
        (lambda acc: acc.sum(0), r"an array of the shape \(10,\)"),
        (lambda acc: (acc, acc), "a tuple"),
    ],
)
def test_epilogues_that_return_something_else(epilogue, given):
    with pytest.raises(ValueError, match=rf"^the epilogue returns {given}; it has to return one"):
        jax_nano.fused_matmul(X, W, epilogue=epilogue)


@pytest.mark.parametrize("shape", [(9,), (10, 1), (1, 6, 10), (6,)])
def test_extras_that_do_not_broadcast(shape):
    extra = np.zeros(shape, np.float32)
    with kernels(0), pytest.raises(ValueError, match=r"^extra 1 has the shape .* which does not broadcast"):
        jax_nano.fused_matmul(X, W, ROW, extra, epilogue=lambda acc, row, extra: acc + row + extra)


def test_contracted_sizes_that_differ():
    with pytest.raises(TypeError, match="contracting"):
        jax_nano.fused_matmul(X, X, epilogue=jnp.sin)
