"""Transformations of grouped products: batching in which no operand is copied, and derivatives of sums over groups.

JAX maps over leading dimensions that all operands have; here operands that are not mapped over stay as they are: one
more dimension of rows before the ragged one, or of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.interpreters import ad

from jax_nano.jaxpr.grouped.dimensions import GroupedDimensions

Numbers = lax.RaggedDotDimensionNumbers
Params = dict[str, Any]


def product(lhs: Any, rhs: Any, params: Params) -> Array:
    """The product that one with a ragged batch is, by itself or its operands mapped over."""
    (contract, batch) = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return lax.dot_general(lhs, rhs, (contract, batch), params["precision"], params["preferred_element_type"])


def batch_rule(arrays: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    """Maps a grouped product over dimensions of its operands; gives the result and its mapped dimension."""
    lhs, rhs, sizes = (x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True))
    of_lhs, of_rhs, of_sizes = (axis is not None for axis in axes)
    ranks = lhs.ndim - of_lhs, rhs.ndim - of_rhs
    dims = GroupedDimensions.of(params["ragged_dot_dimension_numbers"], *ranks)
    if dims.mode == "b":
        if not (of_lhs or of_rhs):
            lhs = jnp.broadcast_to(lhs, (sizes.shape[0], *lhs.shape))
        in_axes = 0 if of_lhs or not of_rhs else None, 0 if of_rhs else None
        return jax.vmap(lambda lhs, rhs: product(lhs, rhs, params), in_axes)(lhs, rhs), 0
    size = next(x.shape[0] for x, mapped in ((lhs, of_lhs), (rhs, of_rhs), (sizes, of_sizes)) if mapped)
    if of_sizes and not of_lhs:
        lhs, of_lhs = jnp.broadcast_to(lhs, (size, *lhs.shape)), True
    if of_sizes and not of_rhs and dims.mode == "k":
        rhs, of_rhs = jnp.broadcast_to(rhs, (size, *rhs.shape)), True
    prefix = tuple(lhs.shape[d + of_lhs] for d in dims.sizes_dimensions)
    place = len(dims.lhs_batch) if of_lhs and not of_rhs else 0
    if not (of_rhs and not of_lhs) and not (dims.mode == "k" and not of_rhs):
        sizes = sizes_of(sizes, prefix, size, place, is_mapped=of_sizes)
    params["ragged_dot_dimension_numbers"] = mapped_numbers(dims, of_lhs=of_lhs, of_rhs=of_rhs)
    before = () if of_lhs and of_rhs else dims.lhs_batch if of_lhs else dims.lhs_batch + dims.lhs_free
    return lax.ragged_dot_general(lhs, rhs, sizes, **params), len(before) + (dims.mode == "k")


def sizes_of(sizes: Array, prefix: tuple[int, ...], size: int, place: int, *, is_mapped: bool) -> Array:
    """Sizes of groups with the mapped dimension at a place, or those that all share."""
    if not is_mapped and sizes.ndim == 1:
        return sizes
    mapped = sizes if is_mapped else jnp.broadcast_to(sizes, (size, *sizes.shape))
    if mapped.ndim == 2 and prefix:
        ones = (1,) * len(prefix)
        mapped = jnp.broadcast_to(mapped.reshape(size, *ones, -1), (size, *prefix, mapped.shape[-1]))
    return jnp.moveaxis(mapped, 0, place)


def mapped_numbers(dims: GroupedDimensions, *, of_lhs: bool, of_rhs: bool) -> Numbers:
    """The dimension numbers where operands have one more dimension before all others."""

    def shifted(dimensions: Sequence[int], *, is_mapped: bool) -> tuple[int, ...]:
        return tuple(d + is_mapped for d in dimensions)

    both = (0,) if of_lhs and of_rhs else ()
    lhs_contract, lhs_batch = (shifted(x, is_mapped=of_lhs) for x in (dims.lhs_contract, dims.lhs_batch))
    rhs_contract, rhs_batch = (shifted(x, is_mapped=of_rhs) for x in (dims.rhs_contract, dims.rhs_batch))
    group = () if dims.group is None else (dims.group,)
    return Numbers(
        ((lhs_contract, rhs_contract), (both + lhs_batch, both + rhs_batch)),
        shifted((dims.ragged,), is_mapped=of_lhs),
        shifted(group, is_mapped=of_rhs),
    )


def transpose_sums(cotangent: Array, lhs: Any, rhs: Any, sizes: Array, **params: Any) -> list[Array | None]:
    """The transpose of a grouped product whose sum is ragged: products whose rows are, by the groups' cotangents."""
    ranks = [x.aval.ndim if ad.is_undefined_primal(x) else np.ndim(x) for x in (lhs, rhs)]
    dims = GroupedDimensions.of(params["ragged_dot_dimension_numbers"], *ranks)
    if len(dims.lhs_contract) > 1:
        raise NotImplementedError("grouped products that sum over several dimensions have no transpose, as in JAX")
    count = 1 + len(dims.lhs_batch)
    batch = tuple(range(1, count))
    rows = tuple(range(count, count + len(dims.lhs_free)))
    columns = tuple(range(count + len(dims.lhs_free), cotangent.ndim))
    params = {name: params[name] for name in ("precision", "preferred_element_type")}

    def gradient(operand: Array, of: Any, kept: Sequence[Sequence[int]], own: Sequence[Sequence[int]]) -> Array:
        """By the other operand, whose dimensions are `kept`: batch, sum, and free; `own` are those of the result."""
        operand_batch, (ragged,), free = kept
        numbers = Numbers(((free, rows if operand is lhs else columns), (operand_batch, batch)), [ragged], [0])
        result = lax.ragged_dot_general(operand, cotangent, sizes, numbers, **params)
        order = [d for dimensions in own for d in dimensions]
        return jnp.transpose(result, np.argsort(order).tolist()).astype(of.aval.dtype)

    of_lhs = dims.lhs_batch, dims.lhs_contract, dims.lhs_free
    of_rhs = dims.rhs_batch, dims.rhs_contract, dims.rhs_free
    return [
        gradient(rhs, lhs, of_rhs, of_lhs) if ad.is_undefined_primal(lhs) else None,
        gradient(lhs, rhs, of_lhs, of_rhs) if ad.is_undefined_primal(rhs) else None,
        None,
    ]
