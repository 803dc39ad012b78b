"""Sums that several devices share: each adds up its terms, and then all exchange what they have.

Where the result is to be sharded by the axes that share the sum, each device keeps its part of it: a reduce-scatter in
place of an all-reduce, which moves half as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from jax_nano.lowering.sharding import Axes, Factors, axes_of, fitting


def without_padding(x: jax.Array, dims: Factors, sums: Mapping[str, Axes], sizes: Mapping[str, int]) -> jax.Array:
    """A shard with zeros where devices share a sum that they do not divide, and it ends beyond the whole array."""
    for place, name in enumerate(dims):
        length = x.shape[place]
        if name in sums and sizes[name] % length:
            there = jax.lax.axis_index(sums[name]) * length + jax.lax.broadcasted_iota(jnp.int32, x.shape, place)
            x = jnp.where(there < sizes[name], x, jnp.zeros((), x.dtype))
    return x


class Sums(dict[str, Axes]):
    """The axes that each sum is spread over.

    Attributes:
      part: the dimension of the result of which each device is to have a part, and the axes that have these; None where
        each is to have all.
    """

    part: tuple[int, Axes] | None = None


def part_of(
    made: PartitionSpec, wanted: PartitionSpec, sums: Sums, result: Any, mesh: AbstractMesh
) -> tuple[int, Axes] | None:
    """Where devices that share a sum are to have parts of its result: a dimension, and the axes in their order.

    Args:
      made: how partial sums are sharded.
      wanted: how the result is to be sharded.
      sums: what is summed.
      result: the whole result.
      mesh: that of the shardings.
    """
    axes, sizes = {axis for axes in sums.values() for axis in axes}, result.dimensions()
    pairs = zip(axes_of(made, len(sizes)), axes_of(wanted, len(sizes)), strict=True)
    others = [i for i, (before, after) in enumerate(pairs) if before != after]
    if len(others) != 1:
        return None
    (place,) = others
    before, after = (axes_of(spec, len(sizes))[place] for spec in (made, wanted))
    rest = after[len(before) :]
    is_part = after[: len(before)] == before and {*rest} == axes and fitting(after, mesh.shape, [sizes[place]]) == after
    return (place, rest) if is_part else None


def sum_over(x: jax.Array, sums: Mapping[str, Axes]) -> jax.Array:
    """The sum of partial sums on several devices, or this device's part of it."""
    if isinstance(sums, Sums) and sums.part:
        place, axes = sums.part
        return jax.lax.psum_scatter(x, axes, scatter_dimension=place, tiled=True)
    axes = tuple(axis for axes in sums.values() for axis in axes)
    return jax.lax.psum(x, axes) if axes else x
