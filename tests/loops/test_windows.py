"""Convolutions and windows in the steps of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano

LAST = ("NHWC", "HWIO", "NHWC")


def assert_one_kernel_each(f, arguments, count=1, tolerance=1e-5):
    with kernels(count):
        found = jax.jit(jax_nano.accelerate(f))(*arguments)
    for x, expected in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(f)(*arguments)), strict=True):
        largest = max(1, float(jnp.abs(expected).max()))
        np.testing.assert_allclose(x, expected, rtol=tolerance, atol=tolerance * largest)


CASES = {
    "one channel": ((1, 1, 8, 9), (1, 1, 3, 3), {"padding": "SAME"}),
    "strides": ((2, 4, 9, 7), (6, 4, 3, 2), {"padding": ((1, 2), (0, 1)), "window_strides": (2, 1)}),
    "groups": ((2, 4, 9, 7), (6, 2, 3, 2), {"padding": "SAME", "feature_group_count": 2, "rhs_dilation": (2, 1)}),
    "groups of images": ((4, 4, 9, 7), (6, 4, 3, 2), {"padding": ((-1, 2), (0, -1)), "batch_group_count": 2}),
    "zeros in between": ((2, 4, 5, 7), (6, 4, 3, 2), {"padding": ((1, 2), (0, 1)), "lhs_dilation": (2, 3)}),
    "channels last": ((2, 9, 7, 4), (3, 2, 4, 8), {"padding": "VALID", "dimension_numbers": LAST}),
    "depthwise": ((2, 9, 7, 4), (3, 2, 1, 4), {"padding": "SAME", "dimension_numbers": LAST, "feature_group_count": 4}),
    "one dimension": ((2, 9, 4), (3, 4, 4), {"padding": "SAME", "dimension_numbers": ("NWC", "WIO", "NWC")}),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "_"))
def test_convolutions_and_their_gradients(case):
    shape, kernel, options = CASES[case]

    def loop(x, w):
        def step(x, _):
            options_ = {"window_strides": (1,) * (len(shape) - 2)} | options
            return 0.5 * x, jnp.tanh(lax.conv_general_dilated(x, w, **options_))

        return lax.scan(step, x, None, length=4)

    arguments = normal(*shape), normal(*kernel, seed=1)
    assert_one_kernel_each(loop, arguments)
    assert_one_kernel_each(jax.grad(lambda *a: loop(*a)[1].sum(), (0, 1)), arguments, count=2)


def test_an_automaton_of_two_bytes_a_cell():
    def loop(cells, kernel):
        def step(_, cells):
            near = lax.conv_general_dilated(cells, kernel, (1, 1), "SAME")
            return ((near == 3) | ((cells > 0) & (near == 2))).astype(cells.dtype)

        return lax.fori_loop(0, 10, step, cells)

    cells = (normal(2, 1, 20, 11) > 0).astype(jnp.bfloat16)
    kernel = jnp.ones((1, 1, 3, 3), jnp.bfloat16).at[0, 0, 1, 1].set(0)
    assert_one_kernel_each(loop, (cells, kernel))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("kind", ["max", "min", "add"])
def test_windows_are_reduced(dtype, kind):
    if kind == "add":
        first = np.zeros((), dtype)
    elif dtype == jnp.int32:
        first = np.int32(getattr(np.iinfo(np.int32), "min" if kind == "max" else "max"))
    else:
        first = np.asarray(-np.inf if kind == "max" else np.inf, dtype)

    def loop(w, x, image):
        def step(carry, _):
            x, image = carry
            window, strides, padding = (1, 3, 2), (1, 2, 1), ((0, 0), (1, 2), (0, 1))
            windows = lax.reduce_window(image, first, getattr(lax, kind), window, strides, padding)
            return (jnp.tanh(w @ x), -image), windows

        return lax.scan(step, (x, image), None, length=3)

    image = (8 * normal(3, 7, 6)).astype(dtype)
    tolerance = 1e-2 if dtype == jnp.bfloat16 and kind == "add" else 1e-5  # XLA rounds after each addition
    assert_one_kernel_each(loop, (0.3 * normal(8, 8), normal(8), image), tolerance=tolerance)
