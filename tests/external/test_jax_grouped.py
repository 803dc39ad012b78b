"""ragged_dot in every type that JAX multiplies, against JAX's own reference in NumPy, with each outcome stated.

JAX's test harnesses have no cases of ragged_dot as of 0.12: shapes, types of sizes and precisions are crossed here.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax._src.internal_test_util import test_harnesses
from jax._src.lax_reference import ragged_dot as reference
from oracle import kernels

import jax_nano

ragged_dot: Any = jax_nano.ragged_dot
KERNEL = "kernel"
NO_TYPE = "no kernel multiplies"
OUTCOMES = {
    **dict.fromkeys(("float64", "float32", "bfloat16", "float16"), KERNEL),
    **dict.fromkeys(("int8", "uint8"), KERNEL),
    **dict.fromkeys(("int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64", "complex128"), NO_TYPE),
}
SHAPES = [(5, 4, 3, 1), (10, 9, 8, 2), (1, 2, 3, 4), (64, 33, 17, 5)]  # M, K, N, groups
SIZES = ["int32", "int64", "uint8"]
cases = pytest.mark.parametrize(("m", "k", "n", "groups"), SHAPES)


def operands(m, k, n, groups, dtype, sizes_type="int32"):
    rng = np.random.default_rng([m, k, n, groups])
    ends = np.sort(rng.integers(0, m + 1, groups))
    sizes = np.diff(ends, prepend=0).astype(sizes_type)
    low = 0 if np.dtype(dtype).kind == "u" else -3
    lhs, rhs = (rng.integers(low, 4, shape).astype(dtype) for shape in ((m, k), (groups, k, n)))
    return lhs, rhs, sizes


def outcome(*arrays):
    (report,) = jax_nano.inspect(ragged_dot, *arrays)
    return KERNEL if report.ran_as == KERNEL else " ".join(report.reason.split()[:3])


def test_the_harnesses_have_no_cases():
    """If they ever have, these belong here."""
    assert not [x.fullname for x in test_harnesses.all_harnesses if "ragged" in x.fullname]


@pytest.mark.parametrize(("name", "expected"), OUTCOMES.items())
def test_every_type_has_its_outcome(x64, name, expected):
    arrays = operands(10, 9, 8, 2, ml_dtypes.bfloat16 if name == "bfloat16" else name)
    found = outcome(*arrays)
    with kernels(int(found == KERNEL)):
        result = ragged_dot(*arrays)
    assert found == expected
    lhs, rhs, sizes = map(jnp.asarray, arrays)
    np.testing.assert_array_equal(result, lax.ragged_dot(lhs, rhs, sizes))
    if np.dtype(arrays[0].dtype).kind not in "iu":
        np.testing.assert_array_equal(np.asarray(result), reference(*arrays))


@cases
@pytest.mark.parametrize(("name", "sizes_type"), [*itertools.product(["float32", "float64", "int8"], SIZES)])
def test_shapes_and_types_of_sizes(x64, m, k, n, groups, name, sizes_type):
    arrays = operands(m, k, n, groups, name, sizes_type)
    assert outcome(*arrays) == KERNEL
    result = ragged_dot(*arrays, preferred_element_type=jnp.int32 if name == "int8" else None)
    lhs, rhs = (x.astype(np.float64) for x in arrays[:2])
    np.testing.assert_array_equal(np.asarray(result, np.float64), reference(lhs, rhs, arrays[2].astype(np.int64)))


@cases
@pytest.mark.parametrize("precision", [None, "default", "high", "highest", "BF16_BF16_F32_X3"])
def test_precisions(m, k, n, groups, precision):
    arrays = operands(m, k, n, groups, "float32")
    np.testing.assert_array_equal(ragged_dot(*arrays, precision), reference(*arrays))


# A ragged dimension of rows, of the sum, and of the batch: numbers, and shapes by m, k, n, groups.
MODES: dict[str, Any] = {
    "rows": (lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0]), lambda m, k, n, g: ((m, k), (g, k, n))),
    "sum": (lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], []), lambda m, k, n, g: ((m, k), (m, n))),
    "batch": (
        lax.RaggedDotDimensionNumbers((((2,), (1,)), ((0,), (0,))), [0], []),
        lambda m, k, n, g: ((m, 2, k), (m, k, n)),
    ),
}


@pytest.mark.parametrize(("mode", "dtype"), itertools.product(MODES, ["float32", "bfloat16", "int8", "int32"]))
def test_every_mode_has_its_outcome(mode, dtype):
    numbers, shapes = MODES[mode]
    _, _, sizes = operands(10, 9, 8, 2, "float32")
    rng = np.random.default_rng(0)
    lhs, rhs = (jnp.asarray(rng.integers(-3, 4, shape), dtype) for shape in shapes(10, 9, 8, 2))
    f = lambda *arrays: jax_nano.ragged_dot_general(*arrays, ragged_dot_dimension_numbers=numbers)  # noqa: E731
    (report,) = jax_nano.inspect(f, lhs, rhs, sizes)
    assert (report.ran_as == KERNEL) == (dtype != "int32")
    np.testing.assert_array_equal(f(lhs, rhs, sizes), lax.ragged_dot_general(lhs, rhs, jnp.asarray(sizes), numbers))
