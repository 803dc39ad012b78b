"""Which factor an axis of a mesh computes, by the bytes that devices have to exchange for it.

XLA has no rule of its own for some operations: it takes them apart first, into arrays that nobody sees here, and what
it does with axes that stand at odds follows from those. Then the cheapest way is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

from jax_nano.lowering.sharding import Axes, Factors, ShardingRule, axes_in, by_factor

Placed = Sequence[tuple[Factors, set[str], int]]  # arrays: their factors, those that an axis shards, and bytes


def cheapest(
    rule: ShardingRule,
    operands: Sequence[PartitionSpec],
    results: Sequence[PartitionSpec],
    sizes: Sequence[int],
    devices: Mapping[str, int],
) -> dict[str, Axes]:
    """Which axes each factor is computed by: an axis goes to the factor for which least is exchanged.

    Args:
      rule: how arrays may be sharded.
      operands: how they are sharded.
      results: how they are to be sharded.
      sizes: bytes of operands, then of results.
      devices: of each axis.
    """
    taken: dict[str, str] = {}
    pairs = [*axes_in(rule.results, results), *axes_in(rule.operands, operands)]
    arrays = [*zip((*rule.operands, *rule.results), (*operands, *results), sizes, strict=True)]
    for axis, count in devices.items():
        placed = [
            (factors, {factor for name, factor in axes_in([factors], [spec]) if name == axis}, size)
            for factors, spec, size in arrays
        ]
        known = [factor for name, factor in dict.fromkeys(pairs) if name == axis and factor not in rule.fixed]
        if known:
            at = len(operands)
            taken[axis] = min(known, key=lambda x: bytes_exchanged(x, placed[:at], placed[at:], count))
    return by_factor(taken, pairs)


def bytes_exchanged(factor: str, operands: Placed, results: Placed, count: int) -> float:
    """Bytes that a device gets from others where an axis of so many computes a factor."""
    moved = sum(_resharding(taken, {factor} & {*factors}, size, count) for factors, taken, size in operands)
    for factors, wanted, size in results:
        is_sum = factor not in factors
        all_reduced = size if wanted else 2 * size  # where devices keep parts, these do not come back
        moved += all_reduced if is_sum else _resharding({factor}, wanted, size, count)
    return moved


def _resharding(before: set[str], after: set[str], size: int, count: int) -> float:
    """Bytes for one array: whole where it is gathered, a share where dimensions change places, none for a slice."""
    if before <= after:
        return 0
    return size / count if after else size
