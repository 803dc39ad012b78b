"""Scans by parts of several steps: what all steps of a part make of constants and xs is one product, in the kernel.

    for each part: a = xs[part] @ w          one product for several steps, which stays in L2
        for each step of it: h = f(a[step], h)

Beside a product of all steps before the loop, its result need not go to memory and come back, nor be given pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import jaxpr_as_fun

from jax_nano.jaxpr.pipelines.loop_motion import EMPTY, MovedLoop
from jax_nano.jaxpr.pipelines.scans import Scan
from jax_nano.jaxpr.private import ClosedJaxpr

STEPS = 8
"""Of a part, at most: so many rows share what is read of weights."""


def steps_of(length: int) -> int:
    """How many steps a part has: the most that divide the length."""
    return max(steps for steps in range(1, STEPS + 1) if length % steps == 0)


def in_parts(moved: MovedLoop, avals: Sequence[Any]) -> MovedLoop | None:
    """The loop with the products before it in its parts; None where it has no parts or there are none.

    Args:
      moved: the loop.
      avals: the types of its operands, without those that are made before it.
    """
    steps = steps_of(moved.scan.length)
    if steps == 1 or steps == moved.scan.length or not moved.before.outvars:
        return None
    scan = moved.scan
    before, step = (jaxpr_as_fun(ClosedJaxpr(jaxpr, ())) for jaxpr in (moved.before, scan.jaxpr))

    def part(*arrays: Array) -> list[Array]:
        constants, start, xs = scan.split(arrays)
        axes = [None] * len(constants) + [0] * len(xs)
        more = jax.vmap(before, axes)(*constants, *xs)

        def one(carry: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
            results = step(*constants, *carry, *x)
            return list(results[: scan.carries]), list(results[scan.carries :])

        carry, ys = lax.scan(one, start, [*xs, *more], reverse=scan.reverse)
        return [*carry, *ys]

    constants, start, xs = scan.split(avals)
    elements = [ShapedArray((steps, *x.shape[1:]), x.dtype) for x in xs]
    jaxpr = jax.make_jaxpr(part)(*constants, *start, *elements)
    if jaxpr.consts:
        return None
    parts = replace(scan, jaxpr=jaxpr.jaxpr, length=scan.length // steps)
    return replace(moved, before=EMPTY, scan=parts)


def avals_in_parts(scan: Scan, avals: Sequence[Any], length: int) -> list[Any]:
    """The types of the operands of a loop by parts, of those of the loop, which has so many steps."""
    constants, start, xs = scan.split(avals)
    shapes = [(scan.length, length // scan.length, *x.shape[1:]) for x in xs]
    return [*constants, *start, *(ShapedArray(s, x.dtype) for s, x in zip(shapes, xs, strict=True))]


def by_parts(run: Callable[..., Sequence[Array]], scan: Scan, length: int) -> Callable[..., list[Array]]:
    """A loop by parts that takes and gives what the loop of so many steps does."""

    def whole(*arrays: Array) -> list[Array]:
        constants, start, xs = scan.split(arrays)
        found = run(*constants, *start, *(x.reshape(scan.length, -1, *x.shape[1:]) for x in xs))
        ys = [y.reshape(length, *y.shape[2:]) for y in found[scan.carries :]]
        return [*found[: scan.carries], *ys]

    return whole
