"""The collectives of compiled programs: kinds, counts, and how many elements of which types they move."""

import math
import re
from collections import Counter

import jax
import numpy as np

import jax_nano

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
OPERATION = re.compile(rf"= (.*?) ({KINDS})(?:-start)?\(")
ARRAY = re.compile(r"([a-z]+\d+\w*)\[([\d,]*)\]")


def collectives(compiled) -> Counter:
    """How often there is each."""
    return Counter(
        (kind, *((dtype, math.prod(map(int, filter(None, sizes.split(","))))) for dtype, sizes in ARRAY.findall(types)))
        for types, kind in OPERATION.findall(compiled.as_text())
    )


def compare(plain, ours, args, *, kernels, **jit):
    """Compiles and runs both; the collectives, shardings and results are the same, and so many kernels run."""
    programs = [jax.jit(f, **jit).lower(*args).compile() for f in (plain, ours)]
    expected_collectives, found = map(collectives, programs)
    assert whole_sums(found, expected_collectives) == expected_collectives
    expected = programs[0](*args)
    before = jax_nano.executed_kernels()
    result = jax.block_until_ready(programs[1](*args))
    ran = jax_nano.executed_kernels() - before
    assert ran == kernels, f"{ran} kernels ran"
    for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert x.dtype == y.dtype
        a, b = (np.asarray(z).astype(np.float64) for z in (x, y))
        np.testing.assert_allclose(a, b, rtol=2e-2 if x.dtype.itemsize < 4 else 1e-4, atol=1e-3 * (np.abs(b).max() + 1))
    return result


def whole_sums(found: Counter, expected: Counter) -> Counter:
    """Collectives with those all-reduces that are expected for reduce-scatters, of which devices keep a part."""
    result = Counter()
    for (kind, *arrays), count in found.items():
        wholes = [("all-reduce", *((dtype, n * elements) for dtype, elements in arrays)) for n in (2, 3, 4, 6, 8)]
        whole = next((x for x in wholes if x in expected), None) if kind == "reduce-scatter" else None
        result[whole or (kind, *arrays)] += count
    return result


def exchanged(compiled, devices: int) -> int:
    """Elements that a device exchanges; those of an all-reduce count twice, as they go out and come back."""
    weights = {"all-reduce": 2, "reduce-scatter": devices}
    return sum(
        count * weights.get(kind, 1) * sum(elements for _, elements in arrays)
        for (kind, *arrays), count in collectives(compiled).items()
    )
