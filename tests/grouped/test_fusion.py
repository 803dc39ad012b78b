"""Work on the results of grouped products: one kernel, in guarded memory and under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import run_fused
from jax import lax
from oracle import kernels, normal

import jax_nano

ROWS, K, N = 60, 24, 40
FILLED = {"some": [20, 0, 33, 2], "too_few": [5, 1, 0, 4], "none": [0, 0, 0, 0], "too_many": [50, 50, 50, 50]}
each_filling = pytest.mark.parametrize("sizes", FILLED.values(), ids=FILLED)

EPILOGUES = {
    "bias": lambda y, bias, residual, scale: y + bias,
    "activation": lambda y, bias, residual, scale: jax.nn.silu(y),
    "residual": lambda y, bias, residual, scale: y + residual,
    "scale_of_rows": lambda y, bias, residual, scale: y * scale[:, None],
    "conversion": lambda y, bias, residual, scale: y.astype(jnp.bfloat16),
    "all": lambda y, bias, residual, scale: (jax.nn.gelu(y + bias) * scale[:, None] + residual).astype(jnp.bfloat16),
    "columns_apart": lambda y, bias, residual, scale: (y + bias).reshape(ROWS, 4, 10) * 2.0,
}
each_epilogue = pytest.mark.parametrize("epilogue", EPILOGUES.values(), ids=EPILOGUES)


def operands(sizes, dtype=jnp.float32):
    x, w = jnp.asarray(normal(ROWS, K), dtype), jnp.asarray(normal(4, K, N), dtype)
    others = [jnp.asarray(normal(*shape, seed=2)) for shape in ((N,), (ROWS, N), (ROWS,))]
    return x, w, jnp.asarray(sizes, jnp.int32), *others


def with_epilogue(epilogue):
    return lambda x, w, sizes, *others: epilogue(
        lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.float32), *others
    )


@each_filling
@each_epilogue
def test_work_on_the_result_is_the_kernels(epilogue, sizes):
    arguments = operands(sizes)
    f = with_epilogue(epilogue)
    expected = np.asarray(f(*arguments), np.float32)
    actual = run_fused(f, *arguments).astype(np.float32).reshape(expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2 if epilogue is EPILOGUES["all"] else 4e-2)


def test_bf16_operands():
    arguments = operands(FILLED["some"], jnp.bfloat16)
    f = with_epilogue(EPILOGUES["all"])
    actual = run_fused(f, *arguments).astype(np.float32).reshape(ROWS, N)
    np.testing.assert_allclose(actual, np.asarray(f(*arguments), np.float32), rtol=2e-2, atol=2e-2)


def test_rows_of_no_group_are_what_the_work_makes_of_zero():
    x, w, sizes, bias, *_ = operands(FILLED["too_few"])
    result = jax_nano.accelerate(lambda x, w, g, b: lax.ragged_dot(x, w, g) + b)(x, w, sizes, bias)
    np.testing.assert_array_equal(result[10:], jnp.broadcast_to(bias, (ROWS - 10, N)))


@each_epilogue
def test_it_is_one_kernel(epilogue):
    arguments = operands(FILLED["some"])
    f = with_epilogue(epilogue)
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *arguments)
    assert report.ran_as == "kernel"
    with kernels(1):
        jax.block_until_ready(jax.jit(jax_nano.accelerate(f))(*arguments))


def test_gradients():
    x, w, sizes, bias, residual, scale = operands(FILLED["some"])

    def loss(x, w, bias, residual, scale):
        y = jax.nn.silu(lax.ragged_dot(x, w, sizes) + bias) * scale[:, None] + residual
        return jnp.sum(jnp.sin(y))

    arguments = x, w, bias, residual, scale
    expected = jax.grad(loss, range(5))(*arguments)
    actual = jax.jit(jax.grad(jax_nano.accelerate(loss), range(5)))(*arguments)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axes", [(0, None, 0), (None, 0, None), (0, 0, None), (None, None, 0)], ids=str)
def test_vmap(axes):
    x, w, sizes, bias, *_ = operands(FILLED["some"])
    stacked = [jnp.stack([a, a[::-1]]) if axis == 0 else a for a, axis in zip((x, w, sizes), axes, strict=True)]
    f = lambda x, w, g: jnp.tanh(lax.ragged_dot(x, w, g) + bias)  # noqa: E731
    expected = [f(*(a if x is None else a[i] for a, x in zip(stacked, axes, strict=True))) for i in range(2)]
    np.testing.assert_allclose(jax.vmap(jax_nano.accelerate(f), axes)(*stacked), expected, rtol=1e-4, atol=1e-4)


def test_remat_and_scan():
    x, w, sizes, *_ = operands(FILLED["some"])
    square = w[:, :, :K] / 4
    f = jax.checkpoint(lambda x, w: jnp.tanh(lax.ragged_dot(x, w, sizes)) + x)

    def loss(x, w):
        out, _ = lax.scan(lambda x, _: (f(x, w), None), x, length=3)
        return jnp.sum(out)

    expected = jax.grad(loss, (0, 1))(x, square)
    for found, wanted in zip(jax.jit(jax.grad(jax_nano.accelerate(loss), (0, 1)))(x, square), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_transposed_result_is_not_fused_but_right():
    x, w, sizes, bias, *_ = operands(FILLED["some"])
    f = lambda x, w, g, b: (lax.ragged_dot(x, w, g) + b).T * 2  # noqa: E731
    expected = f(x, w, sizes, bias)
    np.testing.assert_allclose(jax_nano.accelerate(f)(x, w, sizes, bias), expected, rtol=1e-4, atol=1e-4)


def test_batches_of_groups_are_kernels_of_their_own():
    x, w = jnp.asarray(normal(2, 30, K)), jnp.asarray(normal(4, K, N))
    sizes = jnp.array([[5, 0, 17, 6], [1, 20, 0, 9]], jnp.int32)
    numbers = lax.RaggedDotDimensionNumbers((((2,), (1,)), ((), ())), [1], [0])
    f = lambda x, w, g: jnp.tanh(lax.ragged_dot_general(x, w, g, numbers))  # noqa: E731
    with kernels(1):
        result = jax.block_until_ready(jax.jit(jax_nano.accelerate(f))(x, w, sizes))
    np.testing.assert_allclose(result, f(x, w, sizes), rtol=1e-4, atol=1e-4)
