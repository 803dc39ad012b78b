"""The devices that XLA spreads a call over, and the meshes by which its shardings are read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.interpreters import mlir
from jax.sharding import AbstractMesh, PartitionSpec

from jax_nano.jaxpr import private

BEFORE, BEHIND = "before", "behind"  # the axes of a whole mesh that stand around those of a call


@dataclass(frozen=True)
class Spread:
    """The devices that XLA spreads a call over, among those of its program.

    Devices of a program stand in order: `before` rows, of `count` rows of `behind` devices each. There is one call for
    each pair of the first and the last, which shard_map has made, and XLA spreads it over `count` devices.

    Attributes:
      count: over how many XLA spreads one call.
      before: how many of the program's rows there are.
      behind: how many devices stand between neighbours of a call.
      axes: how many axes of a mesh these devices are, where there is more than one call.
    """

    count: int = 1
    before: int = 1
    behind: int = 1
    axes: int = 1

    @classmethod
    def of(cls, context: Any) -> Spread:
        """That of what stands in a program: over one device where all axes are manual, or there is but one."""
        match context:
            case mlir.ShardingContext():
                return cls(context.num_devices)
            case mlir.SPMDAxisContext():
                return cls.over_automatic_axes(context.mesh.shape, context.manual_axes)
        return cls()

    @classmethod
    def over_automatic_axes(cls, shape: Any, manual: Any) -> Spread:
        """That over the axes of a mesh that are not manual."""
        sizes = list(shape.values())
        free = [i for i, (name, size) in enumerate(shape.items()) if name not in manual and size > 1]
        count = math.prod(sizes[i] for i in free)
        if count in (1, math.prod(sizes)):
            return cls(count)
        return cls(count, math.prod(sizes[: free[0]]), math.prod(sizes[free[-1] + 1 :]), len(free))

    @property
    def devices(self) -> int:
        """All of the program's."""
        return self.before * self.count * self.behind

    @property
    def is_ordered(self) -> bool:
        """Whether XLA numbers the devices of a call as they stand in the program.

        Beside manual axes it numbers them as the shardings of a call's results name them, which does not show in those.
        Devices of a prime number are one axis, which has one order.
        """
        return self.devices == self.count or len(prime_factors(self.count)) == 1

    def whole(self, mesh: AbstractMesh) -> AbstractMesh:
        """The mesh of all devices of the program, of one over which XLA spreads a call."""
        if self.devices == self.count:
            return mesh
        sizes = (self.before, *mesh.axis_sizes, self.behind)
        return AbstractMesh(sizes, (BEFORE, *mesh.axis_names, BEHIND))


def mesh_of(devices: int, shardings: Sequence[Any]) -> tuple[AbstractMesh, list[PartitionSpec]]:
    """A mesh on which shardings are by whole axes, whatever mesh they come from, and how each is.

    Its axes have prime numbers of devices. Where shardings divide the devices in ways that do not go together, arrays
    count as replicated, and are gathered.
    """
    factors = prime_factors(devices)
    names = tuple(f"axis{i}" for i in range(len(factors)))
    for sizes in orders(factors):
        mesh = AbstractMesh(sizes, names)
        with contextlib.suppress(ValueError):
            return mesh, [private.spec_of(x, mesh) for x in shardings]
    return AbstractMesh(tuple(factors), names), [PartitionSpec()] * len(shardings)


def prime_factors(n: int) -> list[int]:
    """The prime factors of a number, in order."""
    factor = next((i for i in range(2, math.isqrt(n) + 1) if n % i == 0), n)
    return [] if n == 1 else [factor, *prime_factors(n // factor)]


def orders(numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All orders of numbers, each once."""
    if not numbers:
        yield ()
    for number in dict.fromkeys(numbers):
        rest = list(numbers)
        rest.remove(number)
        yield from ((number, *order) for order in orders(rest))
