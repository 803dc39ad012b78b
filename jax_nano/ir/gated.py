"""Gated products: two products of one A, the result of the first an array of the second one's epilogue.

    H  =  A @ B1, and the epilogue of the first
    C  =  A @ B2, and the epilogue of the second, which reads H where it has C's element

as in silu(x @ w1) * (x @ w3). Both are dense, or both are grouped by the same sizes. H is never an array in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jax_nano.ir.axes import Axis
from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.grouped import Grouped

T = TypeVar("T")
COMMON = ("lhs", "sizes", "places")  # roles of arrays that both products read


@dataclass(frozen=True, kw_only=True)
class Gated:
    """Two products that one kernel computes.

    Attributes:
      first: gives H.
      second: gives C; H is one of its arrays.
      gate: which array of its epilogue that is.
    """

    first: Dot | Grouped
    second: Dot | Grouped
    gate: int

    def __post_init__(self):
        """Sees to it that both go through A, B and C in the same loops.

        Raises:
          UnsupportedDot: they do not.
        """
        first, second = dot_of(self.first), dot_of(self.second)
        if isinstance(self.first, Grouped) and isinstance(self.second, Grouped):
            check_groups(self.first, self.second)
        elif isinstance(self.first, Grouped) or isinstance(self.second, Grouped):
            raise UnsupportedDot("one product is grouped, and the other one is not")
        if [operands_of(dot) for dot in (first, second)].count(operands_of(first)) < 2:
            raise UnsupportedDot("the second product's operands have other types, or lie otherwise in memory")
        if first.window or first.prologue:
            raise UnsupportedDot("work on A, and windows, are read for one product")
        number = self.gate_stride
        for one, two in pairs_of_axes(first, second):
            if (one.size, one.lhs, one.rhs, one.out) != (two.size, two.lhs, two.rhs, two.extras[number]):
                raise UnsupportedDot("the first product's result is read in another order than it is made in")

    def replace(self, **changes: Any) -> Gated:
        """The gated product with some fields changed."""
        return replace(self, **changes)

    @property
    def gate_stride(self) -> int:
        """Which of the second product's Axis.extras leads through H."""
        array = dot_of(self.second).arrays_for("epilogue")[self.gate]
        return array.stride - 3

    def arrays_of_both(self, first: Sequence[T], second: Sequence[T]) -> list[T]:
        """Of lists along the arrays of both products, what belongs to those that a kernel is given, in order."""
        return [*first[:-1], *(x for x, (_, is_own) in zip(second, self._roles(), strict=True) if is_own)]

    def arrays_of_each(self, values: Sequence[T], held: T) -> tuple[list[T], list[T]]:
        """The arrays of each product, of those that a kernel is given and what stands for H."""
        count = len(self.first.arrays) - 1
        first, own = [*values[:count], held], iter(values[count:])
        common = {x.role: value for x, value in zip(self.first.arrays, first, strict=True) if x.role in COMMON}
        second = [next(own) if is_own else common.get(role, held) for role, is_own in self._roles()]
        return first, second

    def _roles(self) -> list[tuple[str, bool]]:
        """The roles of the second product's arrays, and whether each is neither the first one's nor H."""
        roles = [x.role for x in self.second.arrays]
        place = roles.index("epilogue") + self.gate
        return [(role, role not in COMMON and i != place) for i, role in enumerate(roles)]

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays in the order in which kernels take them: of the first, H aside, and of the second."""
        return tuple(self.arrays_of_both(self.first.arrays, self.second.arrays))

    @property
    def dot(self) -> Dot:
        """The second product, of a group if it is grouped."""
        return dot_of(self.second)

    @property
    def gate_type(self) -> str:
        """The type of H."""
        return dot_of(self.first).out

    @property
    def label(self) -> str:
        """Sizes and types, as names of kernels have them."""
        if isinstance(self.second, Grouped):
            return f"gated_{self.second.label}"
        b, m, n, k = self.dot.sizes
        types = self.dot.lhs if self.dot.lhs == self.dot.rhs == self.dot.out else "_".join(operand_types(self.dot))
        batch = f"b{b}" if b > 1 else ""
        return f"gated_{types}_{batch}m{m}n{n}k{k}" + ("_panels" if self.dot.panels else "")

    @property
    def acc(self) -> str:
        """The type of the sums."""
        return self.dot.acc

    @property
    def bytes(self) -> int:
        """Of what is read and written, as both products count that; of A once, and not of H."""
        b, m, n, k = self.dot.sizes
        counted = 2 if isinstance(self.first, Grouped) else 1  # times that H is: as a result, and as an array
        held, rows = bytes_of(self.gate_type, b * m * n), bytes_of(self.dot.lhs, b * m * k)
        lhs = min(rows, bytes_of(self.dot.lhs, self.first.arrays[0].elements))
        return self.first.bytes + self.second.bytes - lhs - counted * held


def dot_of(product: Dot | Grouped) -> Dot:
    """A product, or that of a group."""
    return product.dot if isinstance(product, Grouped) else product


def operands_of(dot: Dot) -> tuple[Any, ...]:
    """All that says how A and B are read, but for their strides."""
    return dot.lhs, dot.rhs, dot.acc, dot.algorithm, dot.panels, dot.scaling, dot.window, dot.prologue


def operand_types(dot: Dot) -> tuple[str, str]:
    """The types of both operands behind one another, and of C."""
    return f"{dot.lhs}{dot.rhs}", dot.out


def pairs_of_axes(first: Dot, second: Dot) -> list[tuple[Axis, Axis]]:
    """The axes of both products side by side.

    Raises:
      UnsupportedDot: they have different ones.
    """
    pairs = []
    for name in "bmnk":
        one, two = getattr(first, name), getattr(second, name)
        if len(one) != len(two):
            raise UnsupportedDot("the products go through their operands in different loops")
        pairs += zip(one, two, strict=True)
    return pairs


def check_groups(first: Grouped, second: Grouped) -> None:
    """Sees to it that the same rows belong to the same groups, whose matrices lie alike.

    Raises:
      UnsupportedDot: they do not, or groups share out something else than rows.
    """
    if {first.ragged, second.ragged} != {"m"} or first.batch.size * second.batch.size > 1:
        raise UnsupportedDot("groups share out the rows of one gated product")
    if first.scatter or second.scatter:
        raise UnsupportedDot("rows of a gated product are not added up")
    alike = [(x.groups, x.group.lhs, x.group.rhs, x.sizes, x.sizes_stride, x.gather) for x in (first, second)]
    if alike[0] != alike[1]:
        raise UnsupportedDot("the second product has other groups, or other rows of A")
