"""The oracle of numerical tests, NumPy in float64, and what it takes to say that kernels ran."""

import contextlib
import itertools
import math
import string
import subprocess
import sys
import time
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jax_nano


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def equation(lhs_ndim, rhs_ndim, dimension_numbers):
    """A dot_general as einsum writes it."""
    names = iter(string.ascii_letters)
    lhs, rhs = [None] * lhs_ndim, [None] * rhs_ndim
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    for i, j in (*zip(lhs_batch, rhs_batch, strict=True), *zip(lhs_contract, rhs_contract, strict=True)):
        lhs[i] = rhs[j] = next(names)
    batch = [lhs[i] for i in lhs_batch]
    lhs_free = [i for i, name in enumerate(lhs) if name is None]
    rhs_free = [j for j, name in enumerate(rhs) if name is None]
    for i in lhs_free:
        lhs[i] = next(names)
    for j in rhs_free:
        rhs[j] = next(names)
    out = [*batch, *(lhs[i] for i in lhs_free), *(rhs[j] for j in rhs_free)]
    return f"{''.join(lhs)},{''.join(rhs)}->{''.join(out)}"


def wide(x):
    """An array in the widest type of its kind."""
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.complexfloating):
        return x.astype(np.complex128)
    return x.astype(np.float64 if "float" in x.dtype.name else np.int64)


def assert_close(actual, subscripts, *operands, promised=True):
    """|actual - exact| <= K eps (|A| @ |B|) + ulp / 2, elementwise: the promise of docs/numerics.md.

    K is the number of terms in a sum, eps that of the accumulator, which is f64 for f64 and f32 for narrower floats.
    Near zero ulps are those of subnormal numbers. Integers wrap. What lax.dot_general computes has not been promised so
    much: eps is the result's there.
    """
    operands = [wide(x) for x in operands]
    exact = np.einsum(subscripts, *operands)
    actual = np.asarray(actual)
    assert actual.shape == exact.shape
    if actual.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, exact.astype(actual.dtype))
        return
    sizes = {}
    inputs, out = subscripts.split("->")
    for names, x in zip(inputs.split(","), operands, strict=True):
        sizes |= dict(zip(names, x.shape, strict=True))
    terms = math.prod(size for name, size in sizes.items() if name not in out)
    magnitude = np.einsum(subscripts, *map(np.abs, operands))
    finfo = ml_dtypes.finfo(actual.dtype)
    ulp = float(finfo.eps)
    eps = ulp if not promised or actual.dtype == np.float64 else float(np.finfo(np.float32).eps)
    bound = terms * eps * magnitude + ulp / 2 * np.abs(exact) + float(finfo.smallest_subnormal) / 2
    assert np.all(np.abs(wide(actual) - exact) <= bound)


def assert_dot_general(actual, lhs, rhs, dimension_numbers, *, promised=True):
    subscripts = equation(np.ndim(lhs), np.ndim(rhs), dimension_numbers)
    assert_close(actual, subscripts, lhs, rhs, promised=promised)


@contextlib.contextmanager
def kernels(count=None):
    """Asserts that the block runs `count` kernels; at least one where it is None.

    Devices whose shards were not read may still compute when the block has ended and their array is gone: what lacks
    is waited for.
    """
    before = jax_nano.executed_kernels()
    yield
    jax.block_until_ready(jax.live_arrays())
    deadline = time.monotonic() + 10
    while (ran := jax_nano.executed_kernels() - before) < (1 if count is None else count):
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    assert ran == count if count is not None else ran > 0, f"{ran} kernels ran"


def primitives(jaxpr):
    """The names of all primitives in a jaxpr, at any depth, one for each use."""
    found = []
    for eqn in jaxpr.eqns:
        found.append(eqn.primitive.name)
        found += itertools.chain(*map(primitives, jax.extend.core.jaxprs_in_params(eqn.params)))
    return found


def abstract(x):
    """The type of a value: shape, dtype, weak type."""
    return jnp.shape(x), jnp.asarray(x).dtype, jax.typeof(x).weak_type


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
