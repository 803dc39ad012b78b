"""Elementwise work behind convolutions that are computed as several, or transposed: done on their parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano

NHWC: Any = ("NHWC", "HWIO", "NHWC")
NCHW: Any = ("NCHW", "HWIO", "NCHW")
X, W = normal(2, 6, 7, 8), normal(4, 3, 8, 16, seed=1)
VECTORS = [normal(16, seed=i) for i in range(2, 6)]


def spread(x, w, numbers=NHWC, strides=(2, 2)):
    return lax.conv_transpose(x, w, strides, "SAME", dimension_numbers=numbers)


def moved(x, w, numbers=NCHW):
    """Whose places are too few to stand in lanes."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def along(vector, numbers):
    """A vector along the channels of a result."""
    shape = [1, 1, 1, 1]
    shape[numbers[2].index("C")] = -1
    return vector.reshape(shape)


def normalized(y, numbers):
    mean, var, scale, bias = (along(v, numbers) for v in VECTORS)
    return (y - mean) * (lax.rsqrt(var * var + 1e-5) * scale) + bias


WORK = {
    "bias": (lambda y, n: y + along(VECTORS[0], n), {"add"}),
    "bias, relu": (lambda y, n: jax.nn.relu(y + along(VECTORS[0], n)), {"add", "max"}),
    "gelu": (lambda y, n: jax.nn.gelu(y + along(VECTORS[0], n)), {"add", "tanh"}),
    "silu": (lambda y, _: jax.nn.silu(y), {"logistic"}),
    "batch norm, relu": (lambda y, n: jax.nn.relu(normalized(y, n)), {"sub", "mul", "add", "max"}),
    "to bf16": (lambda y, n: jnp.tanh(y + along(VECTORS[0], n)).astype("bfloat16"), {"tanh", "conversion to bfloat16"}),
    "by its batch": (lambda y, _: y * normal(2, 1, 1, 1), {"mul"}),
    "twice": (lambda y, _: y * jnp.tanh(y), {"mul", "tanh"}),
}  # fmt: skip
CONVOLUTIONS = {
    "transposed": (spread, NHWC, 4), "transposed, NCHW": (spread, NCHW, 4), "NCHW": (moved, NCHW, 1),
    "transposed, 3": (lambda x, w, n: spread(x, w, n, (3, 1)), NHWC, 3),
}  # fmt: skip


def image(numbers):
    return X.transpose(["NHWC".index(d) for d in numbers[0]])


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("work", WORK)
def test_each_part_has_the_epilogue(name, work):
    (convolve, numbers, parts), (each, fused) = CONVOLUTIONS[name], WORK[work]
    x = image(numbers)

    def f(x, w):
        return each(convolve(x, w, numbers), numbers)

    fast = jax.jit(jax_nano.accelerate(f))
    with kernels(parts):
        actual = fast(x, W)
    wanted = f(x, W)
    assert actual.dtype == wanted.dtype
    tolerance = 1e-2 if actual.dtype == jnp.bfloat16 else 2e-4
    np.testing.assert_allclose(np.float32(actual), np.float32(wanted), rtol=tolerance, atol=tolerance)
    reports = jax_nano.inspect(fast, x, W)
    assert len(reports) == parts
    for report in reports:
        assert fused <= set(report.fused)


TRANSFORMED = {
    "grad inside": lambda f, fast: fast(jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))),
    "grad outside": lambda f, fast: jax.grad(lambda x, w: (fast(f)(x, w) ** 2).sum(), (0, 1)),
    "jvp": lambda f, fast: lambda x, w: jax.jvp(fast(f), (x, w), (x, w)),
    "vmap": lambda f, fast: lambda x, w: jax.vmap(fast(f), (0, None))(jnp.stack([x, 2 * x]), w),
    "remat": lambda f, fast: fast(jax.grad(lambda x, w: (jax.checkpoint(f)(x, w) ** 2).sum(), (0, 1))),
    "second derivative": lambda f, fast: lambda x, w: jax.jvp(
        jax.grad(lambda x: (fast(f)(x, w) ** 2).sum()), (x,), (x,)
    ),
    "scan": lambda f, fast: fast(lambda x, w: lax.scan(lambda c, _: (c, f(c, w).sum()), x, None, length=2)[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("numbers", [NHWC, NCHW])
@pytest.mark.parametrize("work", ["bias, relu", "gelu"])
def test_transformations(name, numbers, work):
    def f(x, w):
        return WORK[work][0](spread(x, w, numbers), numbers)

    x = image(numbers)
    wanted = jax.tree.leaves(TRANSFORMED[name](f, lambda f: f)(x, W))
    actual = jax.tree.leaves(jax.jit(TRANSFORMED[name](f, jax_nano.accelerate))(x, W))
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("how", ["inside", "outside"])
def test_derivatives_of_functions_are_their_own(how):
    def f(x):
        return jax.nn.relu(spread(x, W) * 0).sum() + spread(x, W)[0, 0, 0, 0]

    wanted = jax.grad(f)(X)  # of relu at 0
    fast = jax_nano.accelerate(jax.grad(f)) if how == "inside" else jax.grad(jax_nano.accelerate(f))
    np.testing.assert_allclose(jax.jit(fast)(X), wanted, atol=1e-5)


def reports_of(f, *operands):
    return [set(report.fused) for report in jax_nano.inspect(jax_nano.accelerate(f), *operands)]


def test_work_stops_at_what_differs_from_place_to_place():
    r = normal(2, 12, 14, 16)

    def f(x, w):
        return jnp.tanh(spread(x, w) * 2 + r)

    assert reports_of(f, X, W) == [{"mul"}] * 4
    np.testing.assert_allclose(jax_nano.accelerate(f)(X, W), f(X, W), atol=2e-4)


def test_work_stops_at_a_value_that_has_other_uses():
    def f(x, w):
        y = spread(x, w) * 2
        return jnp.tanh(y), jnp.cos(y)

    assert reports_of(f, X, W) == [{"mul"}] * 4
    for a, b in zip(jax_nano.accelerate(f)(X, W), f(X, W), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_wider_type_is_read_as_it_is_kept_all_the_same():
    def f(x, w):
        return jax.nn.relu(spread(x.astype(jnp.float32), w.astype(jnp.float32)) * 2)

    reports = jax_nano.inspect(jax_nano.accelerate(f), jnp.asarray(X, jnp.bfloat16), jnp.asarray(W, jnp.bfloat16))
    assert [report.problem and report.problem.lhs for report in reports] == ["bf16"] * 4


def test_work_behind_packed_kernels():
    packed: Any = jax_nano.pack(W, kernel="HWIO")

    def f(x, w):
        return jax.nn.silu(moved(x, jnp.asarray(w)) + VECTORS[0][:, None, None])

    (fused,) = reports_of(f, image(NCHW), packed)
    assert {"packed weight", "add", "logistic"} <= fused
    np.testing.assert_allclose(jax_nano.accelerate(f)(image(NCHW), packed), f(image(NCHW), W), atol=2e-4)
