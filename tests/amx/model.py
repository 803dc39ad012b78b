"""The tile products by their definitions, in NumPy.

A tile's rows are arrays of 32-bit elements, each of v numbers: a is [m, k, v], b is [k, n, v], c is [m, n].

Source: Intel SDM, volume 2, TDPBF16PS and TDPBSSD/TDPBSUD/TDPBUSD/TDPBUUD; for TDPFP16PS, Intel's instruction set
extensions reference.
"""

import numpy as np

# The numbers of a and of b, by their bits. bf16 has none of its own in NumPy: the upper half of a float32.
TYPES = {
    "tdpbf16ps": (np.uint16, np.uint16),
    "tdpfp16ps": (np.float16, np.float16),
    "tdpbssd": (np.int8, np.int8),
    "tdpbsud": (np.int8, np.uint8),
    "tdpbusd": (np.uint8, np.int8),
    "tdpbuud": (np.uint8, np.uint8),
}

MIN_NORMAL = float(np.finfo(np.float32).tiny)


def product(name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a @ b as the instruction `name` computes it."""
    if name in ("tdpbf16ps", "tdpfp16ps"):
        return product_of_pairs(widen(name, a), widen(name, b), c)
    sums = np.einsum("mkv,knv->mn", a.astype(np.int64), b.astype(np.int64))
    return (c + sums).astype(np.int32)


def widen(name: str, numbers: np.ndarray) -> np.ndarray:
    """bf16 or f16 as float32, exactly."""
    if name == "tdpbf16ps":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)


def product_of_pairs(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Two chains of fused operations from zero, over even and over odd depths; their sum is added to c."""
    sums = np.zeros((2, *c.shape), np.float32)
    for k in range(a.shape[1]):
        for v in range(2):
            sums[v] = fused_multiply_add(a[:, k, v, None], b[k, :, v], sums[v])
    return add(c, add(sums[0], sums[1]))


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y in the arithmetic of tile products."""
    return fused_multiply_add(x, np.ones((), np.float32), y)


def fused_multiply_add(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z of float32, rounded once to nearest even; denormals are zeros, both as operands and as results."""
    with np.errstate(all="ignore"):
        x, y, z = (flush(np.asarray(operand, np.float64), MIN_NORMAL) for operand in (x, y, z))
        exact = add_rounding_to_odd(x * y, z)  # float64 holds a product of two float32
        # Tiny is what stays below the normal numbers after rounding, were the exponent unbounded.
        return flush(exact, MIN_NORMAL * (1 - 2.0**-25)).astype(np.float32)


def flush(x: np.ndarray, least: float) -> np.ndarray:
    """Zeros of the same sign for what is nearer to zero than `least`."""
    return np.where(np.abs(x) < least, np.copysign(0.0, x), x)


def add_rounding_to_odd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y of float64, such that rounding it once more to a shorter format is as good as rounding the exact sum.

    Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd", IEEE Transactions on Computers 57(4), 2008.
    """
    total = x + y
    y_part = total - x
    error = (x - (total - y_part)) + (y - y_part)
    to_odd = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
    return np.where(to_odd, np.nextafter(total, np.copysign(np.inf, error)), total)
