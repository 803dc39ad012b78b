"""Elementary functions that loops have beside those of all kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from oracle import kernels, normal

import jax_nano

pytestmark = pytest.mark.usefixtures("x64")
EDGES = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 1e30, -1e30, 0.5, -0.5, 2, 80, -80]
FUNCTIONS = {
    "cosh": (jnp.cosh, np.cosh, 80), "sinh": (jnp.sinh, np.sinh, 80), "atan": (jnp.arctan, np.arctan, 5),
    "asin": (jnp.arcsin, np.arcsin, 1), "acos": (jnp.arccos, np.arccos, 1), "asinh": (jnp.arcsinh, np.arcsinh, 9),
    "acosh": (jnp.arccosh, np.arccosh, 9), "atanh": (jnp.arctanh, np.arctanh, 1),
    "atan2": (lambda x: jnp.arctan2(x, x[::-1]), lambda x: np.arctan2(x, x[:, ::-1]), 3),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_within_4_ulp(name, dtype):
    function, oracle, most = FUNCTIONS[name]

    def loop(w, h, xs):
        return lax.scan(lambda h, x: (jnp.tanh(w @ h), function(x)), h, xs)

    xs = np.random.default_rng(0).uniform(-most, most, (100, 16)).astype(dtype)
    xs[0] = EDGES
    with kernels(1), np.errstate(all="ignore"):
        _, found = jax.jit(jax_nano.accelerate(loop))(0.1 * normal(8, 8).astype(dtype), normal(8).astype(dtype), xs)
        expected = oracle(xs.astype(np.longdouble))
    found, rounded = np.asarray(found), expected.astype(dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    error = np.abs(found[finite].astype(np.longdouble) - expected[finite]) / np.spacing(np.abs(rounded[finite]))
    assert error.max() <= 4


@pytest.mark.parametrize(("dtype", "y", "x"), [
    (np.float32, [3e38, 1.3e-38, -3e38], [2e38, 1.5e-38, 1e38]), (np.float64, [1.7e308, 2.3e-308], [1.2e308, 2.9e-308]),
])  # fmt: skip
def test_angles_of_very_large_and_very_small_numbers(dtype, y, x):
    def loop(w, h, ys, xs):
        return lax.scan(lambda h, yx: (jnp.tanh(w @ h), jnp.arctan2(*yx)), h, (ys, xs))

    y, x = np.asarray(y, dtype), np.asarray(x, dtype)
    with kernels(1):
        _, found = jax.jit(jax_nano.accelerate(loop))(normal(8, 8).astype(dtype), normal(8).astype(dtype), y, x)
    np.testing.assert_allclose(found, np.arctan2(y, x), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("function", [jnp.tan, lax.erf_inv])
def test_functions_of_f32_are_not_those_of_f64(function):
    def loop(w, x):
        return lax.scan(lambda x, _: (function(w @ x), None), x, None, length=1000)[0]

    arrays = (jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((16, 16), (16,)))
    (report,) = (r for r in jax_nano.inspect(loop, *arrays) if "scan" in r.equation)
    assert report.reason.endswith("is not elementwise, or has no vector code")
