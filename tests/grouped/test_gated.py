"""Gated layers of experts, act(x @ w1) * (x @ w3): one kernel with the bits of two, in guarded memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gated import TYPES, apart, check, grouped, operands, plan_of
from grouped import GroupedRunner, fused_kernel
from jax import lax
from oracle import kernels, normal

import jax_nano
from jax_nano.ir.gated import Gated

FILLED = {
    "some": [20, 0, 33, 2], "too_few": [5, 1, 0, 4], "none": [0] * 4, "too_many": [50] * 4, "one_row_each": [1] * 4,
    "around_a_block": [15, 16, 17, 12],
}  # fmt: skip
each_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
pack: Any = jax_nano.pack
quantize: Any = jax_nano.quantize


def sizes_of(filled):
    return jnp.asarray(filled, jnp.int32)


@each_type
def test_groups_that_are_filled_in_every_way(dtype):
    x, w, v = operands(60, 24, 40, groups=(4,), dtype=dtype)
    problem, arrays = fused_kernel(grouped, x, w, v, sizes_of(FILLED["some"]))
    one = GroupedRunner(plan_of(problem))
    two = {product: GroupedRunner(plan_of(product)) for product in (problem.first, problem.second)}
    place = [x.role for x in problem.arrays].index("sizes")
    for sizes in FILLED.values():
        arrays[place] = sizes_of(sizes)
        expected = apart(problem, arrays, lambda product, given: two[product](*given))
        for before in (False, True):
            np.testing.assert_array_equal(one(*arrays, before=before, seed=before), expected)


@each_type
@pytest.mark.parametrize("rows", [1, 2, 200], ids=str)
def test_few_rows_and_many(dtype, rows):
    x, w, v = operands(rows, 40, 53, groups=(3,), dtype=dtype)
    check(grouped, x, w, v, sizes_of([0, rows, 0]))


def test_tokens_are_gathered_for_both():
    tokens, w, v = operands(12, 24, 40, groups=(4,))
    order, sizes = jnp.arange(30)[:, None] * 7 % 12, sizes_of([9, 0, 20, 1])
    by_rows = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

    def f(tokens, order, w, v, sizes):
        rows = lax.gather(tokens, order, by_rows, (1, 24), mode=lax.GatherScatterMode.CLIP)
        return grouped(rows, w, v, sizes)

    result = check(f, tokens, order, w, v, sizes)
    expected = grouped(tokens[order[:, 0]], w, v, sizes)
    np.testing.assert_allclose(result.reshape(30, 40), expected, rtol=1e-4, atol=1e-4)


def test_what_belongs_to_groups_is_read_in_both():
    x, w, v = operands(60, 24, 40, groups=(4,))
    bias, scale = jnp.asarray(normal(4, 40, seed=5)), jnp.asarray(normal(4, 1, seed=6))

    def f(x, w, v, sizes, bias, scale):
        repeated = [jax_nano.repeat_by_group(values, sizes, 60) for values in (bias, scale)]
        return jax.nn.gelu(lax.ragged_dot(x, w, sizes) + repeated[0]) * (lax.ragged_dot(x, v, sizes) * repeated[1])

    arguments = x, w, v, sizes_of([20, 0, 33, 2]), bias, scale
    np.testing.assert_allclose(check(f, *arguments).reshape(60, 40), f(*arguments), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "kept", [pack, quantize, lambda w: quantize(w, bits=4, group=32, symmetric=False)], ids=["packed", "int8", "int4"]
)
def test_weights_as_they_are_kept(kept):
    x, w, v = operands(60, 64, 45, groups=(4,), dtype=jnp.bfloat16)
    check(grouped, x, kept(w), kept(v), sizes_of([20, 0, 33, 2]))


@pytest.mark.parametrize("filled", [FILLED["some"], FILLED["too_few"]], ids=["some", "too_few"])
def test_it_is_one_kernel(filled):
    arguments: Any = *operands(60, 24, 40, groups=(4,)), sizes_of(filled)
    (report,) = jax_nano.inspect(jax_nano.accelerate(grouped), *arguments)
    assert "two products of one A, gated; 4 groups that share out M" in str(report)
    with kernels(1):
        actual = jax.block_until_ready(jax.jit(jax_nano.accelerate(grouped))(*arguments))
    np.testing.assert_allclose(actual, grouped(*arguments), rtol=1e-4, atol=1e-4)


def test_gradients():
    x, w, v = operands(60, 24, 40, groups=(4,))
    sizes = sizes_of(FILLED["some"])
    loss = lambda x, w, v: jnp.sum(jnp.sin(grouped(x, w, v, sizes)))  # noqa: E731
    expected = jax.grad(loss, (0, 1, 2))(x, w, v)
    actual = jax.jit(jax.grad(jax_nano.accelerate(loss), (0, 1, 2)))(x, w, v)
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_vmap():
    x, w, v = operands(30, 24, 40, groups=(2, 4))
    sizes = sizes_of([9, 0, 20, 1])
    f = lambda w, v: grouped(x, w, v, sizes)  # noqa: E731
    expected = [f(w[i], v[i]) for i in range(2)]
    np.testing.assert_allclose(jax.vmap(jax_nano.accelerate(f))(w, v), expected, rtol=1e-4, atol=1e-4)


def test_other_sizes_are_another_product():
    x, w, v = operands(60, 24, 40, groups=(4,))
    f = lambda x, w, v, g, h: jnp.tanh(lax.ragged_dot(x, w, g)) * lax.ragged_dot(x, v, h)  # noqa: E731
    arguments = x, w, v, sizes_of(FILLED["some"]), sizes_of(FILLED["around_a_block"])
    with kernels(2):
        actual = jax.block_until_ready(jax.jit(jax_nano.accelerate(f))(*arguments))
    np.testing.assert_allclose(actual, f(*arguments), rtol=1e-4, atol=1e-4)


def test_a_gated_product_says_what_it_reads():
    problem, _ = fused_kernel(grouped, *operands(60, 24, 40, groups=(4,)), sizes_of(FILLED["some"]))
    assert isinstance(problem, Gated)
    assert [x.role for x in problem.arrays] == ["lhs", "rhs", "sizes", "rhs", "out"]
    assert problem.bytes == 4 * (60 * 24 + 2 * 4 * 24 * 40 + 4 + 4 + 60 * 40)
