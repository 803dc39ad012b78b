"""Algorithms of products of f32 by components of bf16, in NumPy."""

import ml_dtypes
import numpy as np

BFLOAT16 = ml_dtypes.bfloat16
EPS = float(np.finfo(np.float32).eps)
# (of A, of B): which components are multiplied, beside the highest ones.
TERMS = {
    "BF16_BF16_F32": [],
    "BF16_BF16_F32_X3": [(1, 0), (0, 1)],
    "BF16_BF16_F32_X6": [(1, 1), (2, 0), (0, 2), (1, 0), (0, 1)],
    "BF16_BF16_F32_X9": [(2, 2), (1, 2), (2, 1), (1, 1), (2, 0), (0, 2), (1, 0), (0, 1)],
}
# What the algorithm leaves out, over |A| @ |B|; u = 2**-8 is the rounding error of bf16.
LEFT_OUT = {"BF16_BF16_F32_X3": 3 * 2**-16, "BF16_BF16_F32_X6": 2 * 2**-24, "BF16_BF16_F32_X9": 0}


def components(x, dtype=BFLOAT16):
    """An array as a sum of three of a narrower type, each rounded from what those before leave."""
    rest, found = np.asarray(x, np.float32), []
    for _ in range(3):
        found.append(rest.astype(dtype).astype(np.float32))
        rest = rest - found[-1]
    return [part.astype(np.float64) for part in found]


def assert_follows(name, actual, a, b):
    """The result is that of the products of components that the algorithm names, and of no others."""
    parts_a, parts_b = components(a), components(b)
    terms = [*TERMS[name], (0, 0)]
    exact = sum(parts_a[i] @ parts_b[j] for i, j in terms)
    magnitude = sum(np.abs(parts_a[i]) @ np.abs(parts_b[j]) for i, j in terms)
    ulp = float(ml_dtypes.finfo(actual.dtype).eps)
    bound = a.shape[1] * EPS * magnitude + ulp / 2 * np.abs(exact)
    assert np.all(np.abs(np.asarray(actual, np.float64) - exact) <= bound)


def assert_near_product(name, actual, a, b):
    """The result is that of the operands as they are, but for what the algorithm leaves out."""
    actual, a, b = (np.asarray(x, np.float64) for x in (actual, a, b))
    bound = (LEFT_OUT[name] + a.shape[1] * EPS) * (np.abs(a) @ np.abs(b))
    assert np.all(np.abs(actual - a @ b) <= bound)
    relative = np.linalg.norm(actual - a @ b) / np.linalg.norm(a @ b)
    assert relative < {"BF16_BF16_F32_X3": 2e-5, "BF16_BF16_F32_X6": 5e-7, "BF16_BF16_F32_X9": 5e-7}[name]


def with_special_rows(a):
    """A with infinities and NaN in its first rows but the third."""
    a[0, 1], a[1, 2], a[3, 0] = np.inf, np.nan, -np.inf
    return a


def with_exact_row(b):
    """B with numbers in its second row whose lower components are 0: 0 * inf is NaN."""
    b[1] = np.resize([1, 2, -4, 0.5, 1.25], b.shape[1])
    return b


def assert_special_rows(name, actual, a, b):
    """Infinities and NaN are where the product of the operands as they are has them."""
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(actual[infinite], expected[infinite])
    ordinary = np.isfinite(a).all(axis=1)
    assert_follows(name, actual[ordinary], a[ordinary], b)
