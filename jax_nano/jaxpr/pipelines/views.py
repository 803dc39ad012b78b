"""Values while a pipeline is read: nodes, which are in memory or are still to be computed, and views of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jax_nano.ir.pipeline import Access, IndexInput, Place, UnsupportedPipeline
from jax_nano.ir.program import INSTRUCTIONS, Constant, Operation


@dataclass(eq=False)
class Node:
    """An array of a program.

    It is in memory (`access`), or a constant in every element, or an index, or made by an operation of other views of
    its shape, or another array of which a part is changed.

    Attributes:
      shape: its dimensions.
      dtype: its short name.
      access: where it is in memory, by its own axes.
      leaf: what it is, where it is never in memory.
      operation: what makes it; its operands are numbers in `operands`.
      operands: what it is made of.
      users: how many equations read it.
      update: the change that makes it.
    """

    shape: tuple[int, ...]
    dtype: str
    access: Access | None = None
    leaf: Constant | IndexInput | None = None
    operation: Operation | None = None
    operands: tuple[View, ...] = ()
    users: int = 0
    update: Update | None = None

    @property
    def weight(self) -> int:
        """Vector instructions that it takes to compute it of what is in memory."""
        seen: set[int] = set()
        waiting, total = [self], 0
        while waiting:
            node = waiting.pop()
            if node.operation and node.access is None and id(node) not in seen:
                seen.add(id(node))
                total += INSTRUCTIONS.get(node.operation.name, 1)
                waiting += [x.node for x in node.operands]
        return total


@dataclass(frozen=True, eq=False)
class View:
    """A node's elements in another order, repeated, or some of them: `places` says which, by the view's axes."""

    node: Node
    shape: tuple[int, ...]
    places: tuple[Place, ...]

    @classmethod
    def of(cls, node: Node) -> View:
        """All of a node."""
        return cls(node, node.shape, identity(len(node.shape)))

    @property
    def is_whole(self) -> bool:
        """Whether it is the node as it is."""
        return self.shape == self.node.shape and self.places == identity(len(self.shape))

    @property
    def repeats(self) -> bool:
        """Whether elements of the node are there more than once."""
        return math.prod(self.shape) > self.node_elements

    @property
    def node_elements(self) -> int:
        """How many elements the node has."""
        return math.prod(self.node.shape)

    def through(self, axes: Sequence[Place], shape: Sequence[int]) -> View:
        """The view of a shape whose axes say where along this one's each of its own is."""
        return View(self.node, tuple(shape), tuple(place.substituted(axes) for place in self.places))


@dataclass(frozen=True, eq=False)
class Update:
    """A part of an array changed: `part`, at `places` by its axes."""

    base: View
    part: View
    places: tuple[Place, ...]


def identity(rank: int, start: int = 0) -> tuple[Place, ...]:
    """Places that are the axes themselves."""
    return tuple(axis_place(axis) for axis in range(start, start + rank))


def axis_place(axis: int, offset: int = 0, step: int = 1) -> Place:
    """offset + step * axis."""
    return Place(offset, ((axis, step),))


def transposed(x: View, permutation: Sequence[int]) -> View:
    """lax.transpose."""
    axes = [axis_place(permutation.index(axis)) for axis in range(len(permutation))]
    return x.through(axes, [x.shape[axis] for axis in permutation])


def broadcast(x: View, shape: Sequence[int], dimensions: Sequence[int]) -> View:
    """lax.broadcast_in_dim."""
    axes = [Place() if size == 1 else axis_place(to) for size, to in zip(x.shape, dimensions, strict=True)]
    return x.through(axes, shape)


def sliced(x: View, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int] | None) -> View:
    """lax.slice."""
    each = zip(starts, limits, strides or [1] * len(starts), strict=True)
    spans = [(int(start), int(limit), int(step)) for start, limit, step in each]  # JAX makes some of NumPy's integers
    axes = [axis_place(axis, start, step) for axis, (start, _, step) in enumerate(spans)]
    shape = [-(-(limit - start) // step) for start, limit, step in spans]
    return x.through(axes, shape)


def squeezed(x: View, dimensions: Sequence[int]) -> View:
    """lax.squeeze."""
    kept = [axis for axis in range(len(x.shape)) if axis not in dimensions]
    axes = [axis_place(kept.index(axis)) if axis in kept else Place() for axis in range(len(x.shape))]
    return x.through(axes, [x.shape[axis] for axis in kept])


def reversed_(x: View, dimensions: Sequence[int]) -> View:
    """lax.rev."""
    axes = [
        axis_place(axis, size - 1, -1) if axis in dimensions else axis_place(axis) for axis, size in enumerate(x.shape)
    ]
    return x.through(axes, x.shape)


def split_axes(old: Sequence[int], new: Sequence[int]) -> list[Place] | None:
    """Where each axis of a shape is along those of another that has as many elements in row-major order.

    None where an axis of the new shape runs over more than one of the old.
    """
    axes: list[Place] = []
    at = 0
    for size in old:
        terms: list[int] = []
        product = 1
        while size > 1 and product < size and at < len(new):
            product *= new[at]
            terms.append(at)
            at += 1
        if size > 1 and product != size:
            return None
        strides = [math.prod(new[i] for i in terms[number + 1 :]) for number in range(len(terms))]
        axes.append(Place(0, tuple((a, s) for a, s in zip(terms, strides, strict=True) if new[a] > 1)))
        while size == 1 and at < len(new) and new[at] == 1:
            at += 1
    return axes


def reshaped(x: View, shape: Sequence[int]) -> View | None:
    """lax.reshape, where it is a view."""
    axes = split_axes(x.shape, shape)
    return None if axes is None else x.through(axes, shape)


def index_node(shape: Sequence[int], dimension: int, dtype: str) -> View:
    """lax.iota."""
    return View.of(Node(tuple(shape), dtype, leaf=IndexInput(axis_place(dimension))))


def constant_node(constant: Constant, shape: Sequence[int]) -> View:
    """A number in every element."""
    return View.of(Node(tuple(shape), constant.dtype, leaf=constant))


def check_size(shape: Sequence[object]) -> None:
    """Checks that sizes are known, and none is 0.

    Raises:
      UnsupportedPipeline: one is.
    """
    if not all(isinstance(size, int) for size in shape):
        raise UnsupportedPipeline("a size is symbolic")
    if 0 in shape:
        raise UnsupportedPipeline("an array is empty")
