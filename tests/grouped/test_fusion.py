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


# What belongs to groups.


def by_group(values, sizes):
    return jax_nano.repeat_by_group(values, sizes, ROWS)


OF_GROUPS = {
    "bias": ((4, N), lambda y, values, sizes: y + by_group(values, sizes)),
    "scale": ((4, 1), lambda y, values, sizes: y * by_group(values, sizes)),
    "scalar": ((4,), lambda y, values, sizes: jnp.tanh(y * by_group(values, sizes)[:, None])),
    "bf16": ((4, N), lambda y, values, sizes: y + by_group(values.astype(jnp.bfloat16), sizes).astype(jnp.float32)),
    "reshaped": ((4, 5, 8), lambda y, values, sizes: y.reshape(ROWS, 5, 8) + by_group(values, sizes)),
}
each_of_groups = pytest.mark.parametrize(("shape", "work"), OF_GROUPS.values(), ids=OF_GROUPS)


def groups_arguments(sizes, shape):
    x, w, sizes, *_ = operands(sizes)
    return x, w, sizes, jnp.asarray(normal(*shape, seed=3))


@each_filling
@each_of_groups
def test_what_belongs_to_groups_is_read_in_place(shape, work, sizes):
    arguments = groups_arguments(sizes, shape)
    f = lambda x, w, sizes, values: work(lax.ragged_dot(x, w, sizes), values, sizes)  # noqa: E731
    expected = np.asarray(f(*arguments))
    values = arguments[3].astype(jnp.bfloat16) if work is OF_GROUPS["bf16"][1] else arguments[3]
    actual = run_fused(f, *arguments[:3], values).reshape(expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@each_of_groups
def test_what_belongs_to_groups_has_its_gradient(shape, work):
    x, w, sizes, values = groups_arguments(FILLED["some"], shape)
    loss = lambda x, w, values: jnp.sum(jnp.sin(work(lax.ragged_dot(x, w, sizes), values, sizes)))  # noqa: E731
    expected = jax.grad(loss, (0, 1, 2))(x, w, values)
    actual = jax.jit(jax.grad(jax_nano.accelerate(loss), (0, 1, 2)))(x, w, values)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_one_group():
    x, w, bias = jnp.asarray(normal(9, K)), jnp.asarray(normal(1, K, N)), jnp.asarray(normal(1, N))
    sizes = jnp.array([7], jnp.int32)
    f = lambda x, w, g, b: lax.ragged_dot(x, w, g) + jax_nano.repeat_by_group(b, g, 9)  # noqa: E731
    np.testing.assert_allclose(run_fused(f, x, w, sizes, bias).reshape(9, N), f(x, w, sizes, bias), rtol=1e-4)


def test_repeat_by_group_is_jnp_repeat():
    for sizes in FILLED.values():
        values = jnp.asarray(normal(4, 3))
        actual = jax_nano.repeat_by_group(values, jnp.asarray(sizes), ROWS)
        np.testing.assert_array_equal(actual, jnp.repeat(values, jnp.asarray(sizes), 0, total_repeat_length=ROWS))


def square(columns):
    """Operands whose result has as many rows as columns."""
    return jnp.asarray(normal(columns, K)), jnp.asarray(normal(4, K, columns)), jnp.asarray([9, 0, 20, 11], jnp.int32)


def test_groups_along_the_columns_are_not_the_rows():
    x, w, sizes = square(40)
    values = jnp.asarray(normal(4))
    f = lambda x, w, g, v: lax.ragged_dot(x, w, g) + jax_nano.repeat_by_group(v, g, 40)[None, :]  # noqa: E731
    actual = jax_nano.accelerate(f)(x, w, sizes, values)
    np.testing.assert_allclose(actual, f(x, w, sizes, values), rtol=1e-4, atol=1e-4)
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), x, w, sizes, values)
    assert "what belongs to groups does not go along their rows" in str(report)


def test_other_groups_are_not_the_products():
    x, w, sizes, values = groups_arguments(FILLED["some"], (4, N))
    others = sizes[::-1]
    f = lambda x, w, g, h, v: lax.ragged_dot(x, w, g) + jax_nano.repeat_by_group(v, h, ROWS)  # noqa: E731
    actual = jax_nano.accelerate(f)(x, w, sizes, others, values)
    np.testing.assert_allclose(actual, f(x, w, sizes, others, values), rtol=1e-4, atol=1e-4)
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), x, w, sizes, others, values)
    assert "what belongs to other groups than the product's" in str(report)


def test_it_may_be_mapped_over():
    x, w, sizes, values = groups_arguments(FILLED["some"], (4, 4, N))
    f = lambda v: lax.ragged_dot(x, w, sizes) * jax_nano.repeat_by_group(v, sizes, ROWS)  # noqa: E731
    actual = jax.vmap(jax_nano.accelerate(f))(values)
    np.testing.assert_allclose(actual, jnp.stack([f(v) for v in values]), rtol=1e-4, atol=1e-4)
