"""Products as tests see them: operands in any layout, the exact result, and how far a kernel's may be from it."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from oracle import equation

from jax_nano.ir.dot import Dot, Operand

DTYPES = {
    "f64": np.float64, "f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16,
    "f8e4m3fn": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2,
    "s32": np.int32, "s16": np.int16, "s8": np.int8, "u8": np.uint8, "s4": ml_dtypes.int4, "u4": ml_dtypes.uint4,
}  # fmt: skip
INTEGERS = ("s32", "s16", "s8", "u8", "s4", "u4")
MATRICES = (((1,), (0,)), ((), ()))


@dataclass(frozen=True, kw_only=True)
class Product:
    """lax.dot_general of two arrays with strides, in elements."""

    lhs: Operand
    rhs: Operand
    dimension_numbers: tuple = MATRICES
    out: str

    @property
    def dot(self):
        return Dot.of(self.lhs, self.rhs, self.dimension_numbers, self.out)

    @property
    def equation(self):
        return equation(len(self.lhs.shape), len(self.rhs.shape), self.dimension_numbers)

    def operands(self, seed=0):
        """Arrays of these strides: of normal floats, or of integers from the whole range of their type."""
        rng = np.random.default_rng(seed)
        return [laid_out(random(rng, operand.shape, operand.dtype), operand) for operand in (self.lhs, self.rhs)]

    def exact(self, lhs, rhs):
        """The result: of floats before it is rounded to its type, of integers as it is."""
        lhs, rhs = (widened(x, self.dot.acc) for x in (lhs, rhs))
        result = np.einsum(self.equation, lhs, rhs)
        if self.dot.acc != "s32":
            return result
        return result.astype(np.int32).astype(DTYPES[self.out] if self.out in INTEGERS else np.int32)

    def bound(self, lhs, rhs, exact):
        """K eps (|A| |B|) + ulp / 2, elementwise: docs/numerics.md."""
        acc = self.dot.acc
        if acc == "s32":
            return rounding(exact, self.out)
        magnitude = np.einsum(self.equation, *(np.abs(widened(x, acc)) for x in (lhs, rhs)))
        return self.dot.sizes[3] * float(ml_dtypes.finfo(DTYPES[acc]).eps) * magnitude + rounding(exact, self.out)

    def check(self, result, lhs, rhs):
        """Asserts that a result, flat or not, is within the bound."""
        exact = self.exact(lhs, rhs)
        assert result.size == exact.size
        error = np.abs(widened(result, self.dot.acc).reshape(exact.shape) - exact)
        wrong = ~(error <= self.bound(lhs, rhs, exact))
        assert not wrong.any(), (
            f"{wrong.sum()} of {wrong.size} elements are wrong, the first at {np.argwhere(wrong)[0]}: {self}"
        )


def rounding(exact, out):
    """Half an ulp of values in a type."""
    if out in INTEGERS:
        return np.zeros(exact.shape)
    facts = ml_dtypes.finfo(DTYPES[out])
    return np.maximum(np.abs(exact) * float(facts.eps), float(facts.smallest_subnormal)) / 2


def widened(x, acc):
    """In a type that holds sums of products without rounding to speak of."""
    if acc == "s32":
        return x.astype(np.int64)
    return x.astype(np.float64).astype(np.longdouble if acc == "f64" else np.float64)


def laid_out(array, operand):
    """An array with the strides of an operand."""
    last = sum((size - 1) * stride for size, stride in zip(operand.shape, operand.strides, strict=True))
    memory = np.zeros(last + 1, array.dtype)
    result = np.ndarray(operand.shape, array.dtype, memory, strides=[s * array.itemsize for s in operand.strides])
    result[...] = array
    return result


def random(rng, shape, dtype):
    numpy_type = DTYPES[dtype]
    if dtype in INTEGERS:
        range_ = ml_dtypes.iinfo(numpy_type)
        return rng.integers(range_.min, range_.max, shape, endpoint=True).astype(numpy_type)
    return rng.standard_normal(shape).astype(numpy_type)


def matrix(rows, cols, along, dtype):
    """A matrix in memory, contiguous along its rows ("rows"), its columns ("columns"), or neither ("apart")."""
    strides = {"rows": (cols, 1), "columns": (1, rows), "apart": (2 * cols, 2)}[along]
    return Operand(shape=(rows, cols), strides=strides, dtype=dtype)


def f32_product(m, n, k):
    """C = A B of f32, all row-major."""
    return Dot.of(Operand.row_major((m, k), "f32"), Operand.row_major((k, n), "f32"), MATRICES, "f32")
