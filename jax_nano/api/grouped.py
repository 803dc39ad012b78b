"""The grouped products that users call: jax.lax.ragged_dot and ragged_dot_general, by one kernel each."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jax_nano.api.products import compiled, hashable
from jax_nano.jaxpr.grouped import group_rows
from jax_nano.lowering import grouped as grouped  # the rules of what these become

_STATIC = ("precision", "preferred_element_type", "group_offset", "out_sharding")


def _positional(lhs: Any, rhs: Any, group_sizes: Any, **params: Any) -> Array:
    return lax.ragged_dot_general(lhs, rhs, group_sizes, **params)


def _of_gathered(tokens: Any, experts: Any, rows: Any, group_sizes: Any, **params: Any) -> Array:
    return lax.ragged_dot(jnp.asarray(tokens)[rows], experts, group_sizes, **params)


def _of_scattered(  # noqa: PLR0913  those of expert_combine
    hidden: Any, experts: Any, rows: Any, group_sizes: Any, weights: Any, residual: Any, *, tokens: int, **params: Any
) -> Array:
    product = lax.ragged_dot(hidden, experts, group_sizes, **params)
    added = product if weights is None else product * weights[:, None]
    base = jnp.zeros((tokens, product.shape[1]), product.dtype) if residual is None else residual
    return base.astype(added.dtype).at[rows].add(added).astype(base.dtype)


_expert_combine = compiled(_of_scattered, "tokens", "precision", "preferred_element_type", fused=True)
_expert_matmul = compiled(_of_gathered, "precision", "preferred_element_type", fused=True)
_ragged_dot = compiled(lax.ragged_dot, *_STATIC)
_ragged_dot_general = compiled(_positional, "ragged_dot_dimension_numbers", *_STATIC)


def ragged_dot(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    group_sizes: ArrayLike,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    group_offset: Array | None = None,
    out_sharding: Any = None,
) -> Array:
    """Multiplies rows by the matrix of their group: jax.lax.ragged_dot.

    The first group_sizes[0] rows are multiplied by rhs[0], those that follow by rhs[1], and so on. A group without rows
    takes no time, and its matrix is not read.

    Args:
      lhs: `(M, K)`, rows in the order of their groups.
      rhs: `(G, K, N)`, also as `pack` and `quantize` keep it.
      group_sizes: integers `(G,)`. Where they add up to less than M, the rows behind are zero; rows beyond M are none.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.
      group_offset: not supported by JAX.
      out_sharding: as in `dot_general`.

    Returns:
      `(M, N)`.

    Raises:
      TypeError: shapes or types do not go together.
    """
    return _ragged_dot(
        lhs, rhs, group_sizes, precision=hashable(precision), preferred_element_type=preferred_element_type,
        group_offset=group_offset, out_sharding=out_sharding,
    )  # fmt: skip


def ragged_dot_general(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    group_sizes: ArrayLike,
    ragged_dot_dimension_numbers: lax.RaggedDotDimensionNumbers,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    group_offset: Array | None = None,
    out_sharding: Any = None,
) -> Array:
    """Multiplies arrays of which one dimension is shared out among groups: jax.lax.ragged_dot_general.

    Args:
      lhs: an array with one ragged dimension: of rows, of the sum, or of the batch.
      rhs: an array; where rows are ragged, one of its dimensions is that of the groups.
      group_sizes: integers `(G,)`, or with the dimensions around the ragged one before those.
      ragged_dot_dimension_numbers: which dimension is what.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.
      group_offset: not supported by JAX.
      out_sharding: as in `dot_general`.

    Returns:
      The batch dimensions, then what is left of lhs, then what is left of rhs; before these the groups, where the sum
      is ragged: then there is a result for each.

    Raises:
      TypeError: shapes or types do not go together.
    """
    return _ragged_dot_general(
        lhs, rhs, group_sizes, ragged_dot_dimension_numbers=ragged_dot_dimension_numbers,
        precision=hashable(precision), preferred_element_type=preferred_element_type, group_offset=group_offset,
        out_sharding=out_sharding,
    )  # fmt: skip


def expert_matmul(  # noqa: PLR0913  those of ragged_dot, and rows
    tokens: ArrayLike,
    experts: ArrayLike,
    rows: ArrayLike,
    group_sizes: ArrayLike,
    *,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Multiplies tokens by the matrices of their experts: ragged_dot(tokens[rows], experts, group_sizes).

    The kernel finds each token where it is, so those that several experts have are not copied for each. Accelerated
    functions do so where they index the rows of a ragged_dot.

    Args:
      tokens: `(T, K)`.
      experts: `(G, K, N)`, also as `pack` and `quantize` keep it.
      rows: integers `(M,)`: tokens in the order of their experts, each as often as it has experts. They mean what they
        mean in `tokens[rows]`.
      group_sizes: integers `(G,)`, as in `ragged_dot`.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.

    Returns:
      `(M, N)`.

    Raises:
      TypeError: shapes or types do not go together.
    """
    return _expert_matmul(
        tokens, experts, jnp.asarray(rows), group_sizes,
        precision=hashable(precision), preferred_element_type=preferred_element_type,
    )  # fmt: skip


def expert_combine(  # noqa: PLR0913  those of ragged_dot, and where rows go
    hidden: ArrayLike,
    experts: ArrayLike,
    rows: ArrayLike,
    group_sizes: ArrayLike,
    *,
    tokens: int,
    weights: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Multiplies rows by the matrices of their experts, and adds up for each token what its experts make.

    It is `residual.at[rows].add(weights[:, None] * ragged_dot(hidden, experts, group_sizes))`, over zeros where there
    is no residual. Rows are added by the kernel, in their order, and bits do not depend on threads. The result has the
    type of the residual, or of the product, and is rounded to it once. Accelerated functions do so where they add the
    rows of a ragged_dot at an array of places.

    Args:
      hidden: `(M, K)`, rows in the order of their experts.
      experts: `(G, K, N)`, also as `pack` and `quantize` keep it.
      rows: integers `(M,)`: which token each row belongs to. What is no token is left out, as in `.at[rows].add`.
      group_sizes: integers `(G,)`, as in `ragged_dot`.
      tokens: how many tokens there are.
      weights: `(M,)`, how much each row counts; 1 where there are none.
      residual: `(tokens, N)`, which the rows are added to.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.

    Returns:
      `(tokens, N)`.

    Raises:
      TypeError: shapes or types do not go together.
      ValueError: the residual has another number of tokens.
    """
    weights, residual = (None if x is None else jnp.asarray(x) for x in (weights, residual))
    if residual is not None and len(residual) != tokens:
        raise ValueError(f"the residual has {len(residual)} rows, for {tokens} tokens; give one row for each token")
    return _expert_combine(
        hidden, experts, jnp.asarray(rows), group_sizes, weights, residual,
        tokens=tokens, precision=hashable(precision), preferred_element_type=preferred_element_type,
    )  # fmt: skip


def repeat_by_group(values: ArrayLike, group_sizes: ArrayLike, rows: int) -> Array:
    """Gives each row what its group has: a bias or a scale of each expert, as it is added to a grouped product.

    It is jax.numpy.repeat(values, group_sizes, 0, total_repeat_length=rows). In accelerated functions that add it to a
    ragged_dot of the same sizes, or multiply by it, the kernel reads `values` in place, once for each group.

    Args:
      values: `(G, ...)`.
      group_sizes: integers `(G,)`.
      rows: how many rows all groups have; rows behind the last group's are given what that has.

    Returns:
      `(rows, ...)`.
    """
    return group_rows.repeat_by_group(jnp.asarray(values), jnp.asarray(group_sizes), rows=rows)
