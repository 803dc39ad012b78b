"""How what has kernels may be sharded: by factors, as an einsum names dimensions, and which axes of a mesh take which.

XLA propagates shardings by Shardy's rules, which know factors alone. What then stands at the operands and the result
may still be at odds: two factors may want one axis. XLA itself resolves that for its own products, and so that no
other collectives come of it than those, this does as XLA does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jax.experimental.custom_partitioning import ArrayMapping, CompoundFactor, SdyShardingRule
from jax.sharding import PartitionSpec

Axes = tuple[str, ...]
Factors = tuple[str, ...]  # of an array, one a dimension
GROUPED = "*"  # "k*g": a dimension in which each index of k has as many neighbours as g; sharded by k alone


@dataclass(frozen=True)
class ShardingRule:
    """The factors of operands and results.

    Attributes:
      operands: of each operand.
      results: of each result.
      sums: those that are summed over; they are in no result, and each is in two operands, or in more of which two
        are multiplied.
      fixed: those whose dimensions no axis may take: devices get all of them.
      sizes: of factors that stand in no dimension by themselves.
      even: sums that only axes take which divide them; where others do, shards end with zeros.
      places: of which shards have to know which they are.
    """

    operands: tuple[Factors, ...]
    results: tuple[Factors, ...]
    sums: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    even: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def for_shardy(self) -> SdyShardingRule:
        """The rule as Shardy knows it."""

        def known(dims: Factors) -> ArrayMapping:
            return ArrayMapping(*(CompoundFactor(*x.split(GROUPED)) if GROUPED in x else x for x in dims))

        return SdyShardingRule(
            tuple(map(known, self.operands)), tuple(map(known, self.results)),
            reduction_factors=self._in_order(self.sums), need_replication_factors=self._in_order(self.fixed),
            **cast(dict[str, Any], dict(self.sizes)),
        )  # fmt: skip

    def _in_order(self, factors: Factors) -> Factors:
        """Some factors, as they first appear: Shardy wants them so."""
        dims = (part for array in (*self.operands, *self.results) for name in array for part in name.split(GROUPED))
        return tuple(name for name in dict.fromkeys(dims) if name in factors)


def axes_of(spec: PartitionSpec, ndim: int) -> tuple[Axes, ...]:
    """The axes that each dimension is sharded by."""
    named = (axes if isinstance(axes, tuple) else () if axes is None else (axes,) for axes in spec)
    return (*named, *[()] * ndim)[:ndim]


def assign(rule: ShardingRule, operands: Sequence[PartitionSpec], results: Sequence[PartitionSpec]) -> dict[str, Axes]:
    """Which axes each factor is computed by, of the shardings that operands have and results are to have.

    An axis goes to the sum if all operands have it there; else to the factor that has it in the result, else to that
    which has it in the first operand, and so on. Nothing is computed by an axis that only some operands have for a sum.
    """
    taken: dict[str, str] = {}
    paired = paired_sums(rule, operands)
    for axis, factor in [*paired, *axes_in(rule.results, results), *axes_in(rule.operands, operands)]:
        if factor not in (*rule.sums, *rule.fixed) or (axis, factor) in paired:
            taken.setdefault(axis, factor)
    return by_factor(taken, [*axes_in(rule.results, results), *axes_in(rule.operands, operands)])


def by_factor(taken: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> dict[str, Axes]:
    """The axes of each factor, of the factor that took each axis, in the order in which arrays have them."""
    found: dict[str, list[str]] = {}
    for axis, factor in dict.fromkeys(pairs):
        if taken.get(axis) == factor:
            found.setdefault(factor, []).append(axis)
    return {factor: tuple(axes) for factor, axes in found.items()}


def axes_in(arrays: Sequence[Factors], specs: Sequence[PartitionSpec]) -> list[tuple[str, str]]:
    """The axes of some arrays, each with the factor that has it."""
    return [
        (axis, sharded(factor))
        for factors, spec in zip(arrays, specs, strict=True)
        for factor, axes in zip(factors, axes_of(spec, len(factors)), strict=True)
        for axis in axes
    ]


def paired_sums(rule: ShardingRule, operands: Sequence[PartitionSpec]) -> list[tuple[str, str]]:
    """The axes that both operands of a product have for a factor that is summed over."""
    pairs = [set(axes_in([factors], [spec])) for factors, spec in zip(rule.operands, operands, strict=True)]
    return [
        (axis, factor)
        for axis, factor in dict.fromkeys(axes_in(rule.operands, operands))
        if factor in rule.sums and sum((axis, factor) in known for known in pairs) > 1
    ]


def spec_by(factors: Factors, assigned: Mapping[str, Axes]) -> PartitionSpec:
    """How an array is sharded where its factors are computed by these axes."""
    return PartitionSpec(*(assigned.get(sharded(factor)) or None for factor in factors))


def sharded(factor: str) -> str:
    """The factor by which a dimension is sharded."""
    return factor.split(GROUPED)[0]


def fitting(axes: Axes, axis_sizes: Mapping[str, int], sizes: Sequence[int]) -> Axes:
    """The first of some axes, as many as divide all of these sizes together."""
    while axes and any(size % math.prod(axis_sizes[axis] for axis in axes) for size in sizes):
        axes = axes[:-1]
    return axes
