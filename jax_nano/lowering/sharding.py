"""How what has kernels may be sharded: by factors, as an einsum names dimensions, and which axes of a mesh take which.

XLA propagates shardings by Shardy's rules, which know factors alone. What then stands at the operands and the result
may still be at odds: two factors may want one axis. XLA itself resolves that for its own products, and so that no
other collectives come of it than those, this does as XLA does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule
from jax.sharding import PartitionSpec

Axes = tuple[str, ...]
Factors = tuple[str, ...]  # of an array, one a dimension


@dataclass(frozen=True)
class ShardingRule:
    """The factors of operands and results.

    Attributes:
      operands: of each operand.
      results: of each result.
      sums: those that are summed over; they are in no result, and each is in two operands or more.
      fixed: those whose dimensions no axis may take: devices get all of them.
    """

    operands: tuple[Factors, ...]
    results: tuple[Factors, ...]
    sums: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def for_shardy(self) -> SdyShardingRule:
        """The rule as Shardy knows it."""
        operands, results = ([ArrayMapping(*dims) for dims in arrays] for arrays in (self.operands, self.results))
        return SdyShardingRule(
            tuple(operands), tuple(results), reduction_factors=self.sums, need_replication_factors=self.fixed
        )


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
    for axis, factor in [*_in_sums(rule, operands), *_in(rule.results, results), *_in(rule.operands, operands)]:
        is_free = factor not in (*rule.sums, *rule.fixed) or (axis, factor) in _in_sums(rule, operands)
        if is_free:
            taken.setdefault(axis, factor)
    order = [pair for pair in (*_in(rule.results, results), *_in(rule.operands, operands)) if taken.get(pair[0])]
    found: dict[str, list[str]] = {}
    for axis, factor in order:
        if taken[axis] == factor and axis not in found.setdefault(factor, []):
            found[factor].append(axis)
    return {factor: tuple(axes) for factor, axes in found.items()}


def _in(arrays: Sequence[Factors], specs: Sequence[PartitionSpec]) -> list[tuple[str, str]]:
    """The axes of some arrays, each with the factor that has it."""
    return [
        (axis, factor)
        for factors, spec in zip(arrays, specs, strict=True)
        for factor, axes in zip(factors, axes_of(spec, len(factors)), strict=True)
        for axis in axes
    ]


def _in_sums(rule: ShardingRule, operands: Sequence[PartitionSpec]) -> list[tuple[str, str]]:
    """The axes that all operands with a factor have for it, of factors that are summed over."""
    pairs = [set(_in([factors], [spec])) for factors, spec in zip(rule.operands, operands, strict=True)]
    return [
        (axis, factor)
        for axis, factor in dict.fromkeys(_in(rule.operands, operands))
        if factor in rule.sums
        and all((axis, factor) in known for known, dims in zip(pairs, rule.operands, strict=True) if factor in dims)
    ]


def spec_by(factors: Factors, assigned: Mapping[str, Axes]) -> PartitionSpec:
    """How an array is sharded where its factors are computed by these axes."""
    return PartitionSpec(*(assigned.get(factor) or None for factor in factors))
