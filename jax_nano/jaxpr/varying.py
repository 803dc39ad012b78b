"""Types inside of a shard_map: over which axes of the mesh values vary from device to device.

JAX makes the operands of its own operations vary over the same axes; whoever binds a primitive does that here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.core import ShapedArray


def varying_alike(arrays: Sequence[Array]) -> list[Array]:
    """The arrays, each of which varies over all axes that one of them varies over."""
    axes = [_axes(x) for x in arrays]
    every = frozenset[str]().union(*axes)
    return [
        lax.pcast(x, tuple(sorted(every - own)), to="varying") if every - own else x
        for x, own in zip(arrays, axes, strict=True)
    ]


def like(aval: Any, shape: Sequence[int], dtype: Any) -> ShapedArray:
    """The type of an array that varies as another does, on the same mesh, and is not sharded otherwise."""
    spec = jax.sharding.PartitionSpec(*[None] * len(shape))
    sharding = jax.NamedSharding(aval.sharding.mesh, spec)
    return aval.update(shape=tuple(shape), dtype=dtype, weak_type=False, sharding=sharding)


def _axes(x: Array) -> frozenset[str]:
    return jax.typeof(x).mat.varying
