"""Factorizations of small matrices, triangular systems and sorts of a few elements, written out in JAX's operations.

XLA calls LAPACK for each, in 1 to 3 us; and a call in a loop keeps it from making one function of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun

from jax_nano.jaxpr.private import ClosedJaxpr

Params = Mapping[str, Any]
MOST_ROWS = 8  # of a matrix: as many steps are written out, each some stages
MOST_SORTED = 16  # elements, each of which is compared with each
MOST_CHOSEN = 8  # of lax.top_k: as many times all elements are gone through
REAL = ("float32", "float64")


class NotExpanded(Exception):
    """An operation is not written out: what it is of is too large, or of another type."""


def is_small(x: Array) -> bool:
    """Whether a matrix, or each of a batch, is real and small."""
    return x.dtype.name in REAL and 0 < x.shape[-1] <= MOST_ROWS and x.shape[-2] == x.shape[-1]


def row(x: Array, i: int) -> Array:
    """A matrix's i-th row, as a matrix."""
    return lax.slice_in_dim(x, i, i + 1, axis=x.ndim - 2)


def column(x: Array, j: int) -> Array:
    """A matrix's j-th column, as a matrix."""
    return lax.slice_in_dim(x, j, j + 1, axis=x.ndim - 1)


def numbers(x: Array, axis: int) -> Array:
    """The number of each row (axis -2) or column (-1) of a matrix."""
    return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim + axis)


def transposed(x: Array) -> Array:
    """The transpose of a matrix."""
    return jnp.swapaxes(x, -1, -2)


def triangular_solve(params: Params) -> Callable[[Array, Array], Array]:
    """lax.linalg.triangular_solve: rows of the solution one after the other."""

    def program(a: Array, b: Array) -> Array:
        if not is_small(a):
            raise NotExpanded
        is_lower = params["lower"] != params["transpose_a"]
        a = transposed(a) if params["transpose_a"] else a
        if not params["left_side"]:
            a, b, is_lower = transposed(a), transposed(b), not is_lower
        count, known = a.shape[-1], dict[int, Array]()
        for i in range(count) if is_lower else reversed(range(count)):
            x, coefficients = row(b, i), row(a, i)
            for j, other in known.items():
                x = x - column(coefficients, j) * other
            known[i] = x if params["unit_diagonal"] else x / column(coefficients, i)
        found = lax.concatenate([known[i] for i in range(count)], b.ndim - 2)
        return found if params["left_side"] else transposed(found)

    return program


def cholesky(_: Params) -> Callable[[Array], Array]:
    """lax.linalg.cholesky of the lower triangle, column by column; NaN where a square is not positive."""

    def program(a: Array) -> Array:
        if not is_small(a):
            raise NotExpanded
        a, columns = transposed(a), list[Array]()  # columns stand as rows
        is_positive = jnp.ones((*a.shape[:-2], 1, 1), bool)
        for j in range(a.shape[-1]):
            rest = row(a, j)
            for known in columns:
                rest = rest - column(known, j) * known
            square = column(rest, j)
            is_positive &= ~(square <= 0)
            below = jnp.where(numbers(rest, -1) > j, rest / jnp.sqrt(square), 0)
            columns.append(jnp.where(numbers(rest, -1) == j, jnp.sqrt(square), below))
        found = transposed(lax.concatenate(columns, a.ndim - 2))
        return jnp.where(is_positive, found, jnp.nan)

    return program


def lu(_: Params) -> Callable[[Array], tuple[Array, Array, Array]]:
    """lax.linalg.lu: the first row of those with the largest element in a column is the pivot's."""

    def program(a: Array) -> tuple[Array, Array, Array]:
        if not is_small(a):
            raise NotExpanded
        count, rows, columns = a.shape[-1], numbers(a, -2), numbers(a, -1)
        order = lax.broadcasted_iota(jnp.int32, (*a.shape[:-1], 1), a.ndim - 2)
        pivots = []
        for k in range(count):
            best = jnp.abs(column(row(a, k), k))
            pivot = jnp.full_like(best, k, jnp.int32)
            for i in range(k + 1, count):
                other = jnp.abs(column(row(a, i), k))
                pivot, best = jnp.where(other > best, i, pivot), jnp.maximum(other, best)
            pivots.append(pivot)
            a, order = exchanged(a, k, pivot), exchanged(order, k, pivot)
            top, divisor = row(a, k), column(row(a, k), k)
            factors = jnp.where(divisor == 0, 0, column(a, k) / divisor)
            changed = jnp.where(columns == k, factors, jnp.where(columns > k, a - factors * top, a))
            a = jnp.where(rows > k, changed, a)
        pivot = lax.concatenate(pivots, a.ndim - 2)
        return a, jnp.squeeze(pivot, -1), jnp.squeeze(order, -1)

    return program


def exchanged(x: Array, k: int, pivot: Array) -> Array:
    """A matrix whose k-th row and a later one, `pivot`, have changed places."""
    old = chosen = row(x, k)
    for i in range(k + 1, x.shape[-2]):
        chosen = jnp.where(pivot == i, row(x, i), chosen)
    here = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 2)
    return jnp.where(here == k, chosen, jnp.where(here == pivot, old, x))


def linear_solve(params: Params) -> Callable[..., list[Array]]:
    """lax.custom_linear_solve: what it solves by, the third of its four functions."""
    lengths, solve = params["const_lengths"], params["jaxprs"][2]
    begin, end = sum(lengths[:2]), sum(lengths)

    def program(*operands: Array) -> list[Array]:
        closed = solve if hasattr(solve, "consts") else ClosedJaxpr(solve, ())
        return jaxpr_as_fun(closed)(*operands[begin : begin + lengths[2]], *operands[end:])

    return program


# Orders of elements


def is_before(a: Array, b: Array) -> Array:
    """The order of lax.sort: 0 is -0, and NaN the last."""
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a < b
    return (a < b) | ((b != b) & (a == a))


def total_order_key(x: Array) -> Array:
    """Integers in the order -NaN, numbers from -inf to -0, then from 0 to inf, NaN; integers are themselves."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    word = lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    return jnp.where(word < 0, word ^ jnp.iinfo(word.dtype).max, word)


def sort(params: Params) -> Callable[..., list[Array]]:
    """lax.sort of a few elements by one key: each goes to the place that is the number of those before it."""
    axis = params["dimension"]

    def program(*operands: Array) -> list[Array]:
        keys, size = operands[0], operands[0].shape[axis]
        is_complex = any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in operands)
        if params["num_keys"] != 1 or not 0 < size <= MOST_SORTED or keys.dtype == bool or is_complex:
            raise NotExpanded
        moved = [jnp.moveaxis(x, axis, -1) for x in operands]
        mine, other = moved[0][..., :, None], moved[0][..., None, :]
        shape = (*moved[0].shape, size)
        i, j = (lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2 + d) for d in range(2))
        comes_first = is_before(other, mine) | (~is_before(mine, other) & (j < i))
        place = jnp.sum(comes_first.astype(jnp.int32), -1)
        is_there = place[..., None, :] == i  # the element j of all is the i-th of the result
        return [jnp.moveaxis(chosen(is_there, x[..., None, :]), -1, axis) for x in moved]

    return program


def chosen(where: Array, x: Array) -> Array:
    """Along the last axis, the only element where `where` holds, bit for bit."""
    if x.dtype == bool:
        return jnp.any(where & x, -1)
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return jnp.max(jnp.where(where, x, jnp.asarray(lowest, x.dtype)), -1)


def top_k(params: Params) -> Callable[[Array], Sequence[Array]] | None:
    """lax.top_k along the last axis: the largest of those that are left, again and again."""
    count = params["k"]
    if not 0 < count <= MOST_CHOSEN or params.get("axis", -1) < 0:
        return None

    def program(x: Array) -> Sequence[Array]:
        if params.get("axis", x.ndim - 1) != x.ndim - 1 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise NotExpanded
        places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        keys = total_order_key(x.astype(jnp.float32) if x.dtype.itemsize == 2 else x)
        left, lowest = jnp.ones(x.shape, bool), jnp.asarray(jnp.iinfo(keys.dtype).min)
        values, indices = [], []
        for _ in range(count):
            best = jnp.max(jnp.where(left, keys, lowest), -1, keepdims=True)
            found = left & (keys == best)
            index = jnp.min(jnp.where(found, places, x.shape[-1] - 1), -1, keepdims=True)
            values.append(jnp.max(jnp.where(places == index, x, -jnp.inf), -1, keepdims=True))
            indices.append(index)
            left &= places != index
        return lax.concatenate(values, x.ndim - 1), lax.concatenate(indices, x.ndim - 1)

    return program


EXPANSIONS: dict[str, Callable[[Params], Callable[..., Any] | None]] = {
    "triangular_solve": triangular_solve,
    "cholesky": cholesky,
    "lu": lu,
    "custom_linear_solve": linear_solve,
    "sort": sort,
    "top_k": top_k,
}
