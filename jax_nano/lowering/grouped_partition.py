"""Grouped products that XLA partitions: every device computes what its rows, columns, groups and sums make.

Sizes of groups are whole on every device. A device that has some of the rows finds how many of each group are among
them. One that has some of the groups rolls their rows to the beginning, where a kernel expects the first group, and the
result back to where they belong; its other rows are zero, so that those of all devices add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jax_nano.jaxpr.grouped.dimensions import GroupedDimensions
from jax_nano.jaxpr.primitives import nano_ragged_dot_general_p
from jax_nano.lowering.dot_general import partial_sum_type
from jax_nano.lowering.partition import Shards, sum_over
from jax_nano.lowering.sharding import Axes, Factors, ShardingRule

RAGGED, GROUPS = "rows", "groups"  # factors: what groups share out, and the groups of B or of the result
NOWHERE: Mapping[str, Axes] = MappingProxyType({})
COUNTS = "counts"  # the groups of sizes, of which every device has all


def partition_grouped(dims: GroupedDimensions, avals: Sequence[Any], out: Any, params: dict[str, Any]) -> Shards:
    """What a grouped product computes of shards.

    Args:
      dims: its dimensions.
      avals: the types of A, B and the sizes.
      out: that of the result.
      params: of its equation.
    """
    rule = rule_of(dims, *(len(x.shape) for x in avals))
    known = params | {"out_sharding": None}

    def product(lhs: Array, rhs: Array, sizes: Array, dtype: Any) -> Array:
        return nano_ragged_dot_general_p.bind(lhs, rhs, sizes, **(known | {"preferred_element_type": dtype}))

    def of_own_groups(lhs: Array, rhs: Array, sizes: Array, dtype: Any, axes: Axes) -> Array:
        """The product of this device's groups, whose rows stand first meanwhile."""
        own, first = groups_within(sizes, axes)
        lhs, rhs = (rolled(x, dims, -first) for x, dims in zip((lhs, rhs), rule.operands[:2], strict=True))
        return rolled(product(lhs, rhs, own, dtype), rule.results[0], first)

    def body(
        lhs: Array, rhs: Array, sizes: Array, *, sums: dict[str, Axes], places: Mapping[str, Axes] = NOWHERE
    ) -> list[Array]:
        if rule.places:
            sizes = rows_within(sizes.astype(jnp.int32), places[RAGGED], lhs.shape[dims.ragged])
        dtype = partial_sum_type(out.dtype) if sums else params["preferred_element_type"]
        own = places.get(GROUPS, ())
        result = of_own_groups(lhs, rhs, sizes, dtype, own) if own else product(lhs, rhs, sizes, dtype)
        return [sum_over(result, sums).astype(out.dtype)]

    text = f"grouped {sorted(map(str, params.items()))} {out.dtype}"
    return Shards(rule, body, text, scatters=True, is_cheapest=True)


def rule_of(dims: GroupedDimensions, lhs_rank: int, rhs_rank: int, sizes_rank: int) -> ShardingRule:
    """How a grouped product may be sharded.

    Groups with sizes for each element of a batch are shared out by the batch alone.
    """
    lhs, rhs = [""] * lhs_rank, [""] * rhs_rank
    for i, (a, b) in enumerate(zip(dims.lhs_batch, dims.rhs_batch, strict=True)):
        lhs[a] = rhs[b] = f"b{i}"
    for i, (a, b) in enumerate(zip(dims.lhs_contract, dims.rhs_contract, strict=True)):
        lhs[a] = rhs[b] = RAGGED if a == dims.ragged else f"k{i}"
    for name, own, places in (("m", lhs, dims.lhs_free), ("n", rhs, dims.rhs_free)):
        for i in places:
            own[i] = RAGGED if name == "m" and i == dims.ragged else f"{name}{i}"
    if dims.group is not None:
        rhs[dims.group] = GROUPS
    before = [lhs[i] for i in dims.sizes_dimensions] if sizes_rank > 1 else []
    free: Factors = (*(lhs[i] for i in dims.lhs_batch), *(lhs[i] for i in dims.lhs_free))
    columns: Factors = tuple(rhs[i] for i in dims.rhs_free)
    result: Factors = (GROUPS, *free, *columns) if dims.mode == "k" else (*free, *columns)
    shared = RAGGED if dims.mode == "k" else GROUPS
    sums = (shared, *(lhs[i] for i in dims.lhs_contract if i != dims.ragged))
    whole = (RAGGED, GROUPS) if sizes_rank > 1 else ()
    return ShardingRule(
        operands=(tuple(lhs), tuple(rhs), (*before, COUNTS)), results=(result,),
        sums=tuple(x for x in sums if x not in whole),
        fixed=(COUNTS, *whole), even=(GROUPS,),
        places=() if whole else (RAGGED, GROUPS),
    )  # fmt: skip


def rows_within(sizes: Array, axes: Axes, rows: int) -> Array:
    """How many rows each group has among those of this device.

    Args:
      sizes: of all groups.
      axes: those that rows are sharded over.
      rows: how many this device has.
    """
    first = lax.axis_index(axes) * rows if axes else jnp.int32(0)
    ends = jnp.cumsum(sizes)
    return jnp.clip(ends - first, 0, rows) - jnp.clip(ends - sizes - first, 0, rows)


def groups_within(sizes: Array, axes: Axes) -> tuple[Array, Array]:
    """The sizes of the groups of this device, and the first row of these.

    Args:
      sizes: of all groups.
      axes: those that groups are sharded over, by which they are divisible.
    """
    groups = sizes.shape[0] // lax.axis_size(axes)
    first = lax.axis_index(axes) * groups
    before = jnp.where(jnp.arange(sizes.shape[0]) < first, sizes, 0).sum(dtype=jnp.int32)
    return lax.dynamic_slice(sizes, (first,), (groups,)), before


def rolled(x: Array, dims: Factors, shift: Array) -> Array:
    """An array whose rows, if it has any that groups share out, are so many places further behind."""
    return jnp.roll(x, shift, dims.index(RAGGED)) if RAGGED in dims else x
