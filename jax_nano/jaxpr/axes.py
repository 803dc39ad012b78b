"""The axes of a product: the runs of steps that all of its arrays have in common, and their strides in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from jax_nano.ir.dot import Axis
from jax_nano.jaxpr.strided_views import NoView, StridedView, common_runs


@dataclass(frozen=True)
class Run:
    """Steps through C, `at` elements apart in a row-major C, `stride` elements apart in another array."""

    size: int
    at: int
    stride: int


Runs = tuple[Run, ...]


class Axes(NamedTuple):
    """The axes of a product, the outermost of each kind first; of a grouped one also over the groups' matrices."""

    b: list[Axis]
    m: list[Axis]
    n: list[Axis]
    k: list[Axis]
    g: list[Axis]

    def transposed(self) -> Axes:
        """The axes of C transposed = B transposed times A transposed."""
        b, n, m, k, g = ([replace(axis, lhs=axis.rhs, rhs=axis.lhs) for axis in axes] for axes in self)
        return Axes(b, m, n, k, g)


class Cuts:
    """Where the runs of all arrays begin and end, in elements of a row-major C."""

    def __init__(self, places: Iterable[int] = (1,)):
        self._places = set(places)

    def copy(self) -> Cuts:
        """Cuts that can be added to without changing these."""
        return Cuts(self._places)

    def add(self, runs: Iterable[Run]) -> None:
        """Cuts C where runs begin and end.

        Raises:
          NoView: a cut falls into a run of another array.
        """
        for cut in {place for run in runs for place in (run.at, run.at * run.size)} - self._places:
            if any(cut % other and other % cut for other in self._places):
                raise NoView("reshapes divide the product's dimensions in ways that do not fit into each other")
            self._places.add(cut)

    def pieces(self) -> Iterable[tuple[int, int]]:
        """Neighbouring cuts, the innermost first."""
        return pairwise(sorted(self._places))


def paired_axes(
    lhs: StridedView, rhs: StridedView, dimensions: Sequence[Sequence[int]], extras: Sequence[Sequence[StridedView]]
) -> list[Axis]:
    """The axes of dimensions that both operands have.

    Args:
      lhs: an operand.
      rhs: the other one.
      dimensions: those of lhs, and those of rhs.
      extras: arrays that are seen like lhs, and arrays that are seen like rhs.
    """
    axes = []
    for i, j in zip(*dimensions, strict=True):
        others = [x.dims[i] for x in extras[0]] + [x.dims[j] for x in extras[1]]
        for size, left, right, *strides in common_runs(lhs.dims[i], rhs.dims[j], *others):
            axes.append(Axis(size=size, lhs=left, rhs=right, extras=tuple(strides)))
    return axes


def runs_along(place: StridedView, array: StridedView) -> Runs:
    """The runs of an array over the elements of C at a place of the same shape."""
    return tuple(Run(*run) for dims in zip(place.dims, array.dims, strict=True) for run in common_runs(*dims))


def stride_along(runs: Sequence[Run], low: int, high: int) -> int:
    """The stride in an array of steps of `low` elements of C, up to `high` of them; 0 where it repeats itself."""
    return next((run.stride * (low // run.at) for run in runs if run.at <= low and high <= run.at * run.size), 0)
