"""Steps: the runs of steps that all arrays of a product have in common, and how far apart they are in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax_nano.ir.dot import Operand
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4
from jax_nano.ir.packed_weight import Panels
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.operands import Array
from jax_nano.jaxpr.strided_views import View, together


@dataclass(frozen=True)
class Run:
    """Steps through C, `at` elements apart in a row-major C, `stride` elements apart in another array."""

    size: int
    at: int
    stride: int


Runs = tuple[Run, ...]


@dataclass(frozen=True)
class Step:
    """One run of steps that all arrays have in common, and how far apart they are in each, in elements."""

    size: int
    lhs: int
    rhs: int
    result: int = 0
    extras: tuple[int, ...] = ()  # of C's steps, all of Layout.sources beside A and B; of k's, those beside an operand

    def exchanged(self) -> Step:
        """The step with A and B in each other's place."""
        return replace(self, lhs=self.rhs, rhs=self.lhs)


def paired(
    lhs: View, rhs: View, dimensions, beside_lhs: Sequence[Array] = (), beside_rhs: Sequence[Array] = ()
) -> list[Step]:
    """The steps of dimensions that both operands have, and of the arrays beside them."""
    steps = []
    for i, j in zip(*dimensions, strict=True):
        others = [x.view.dims[i] for x in beside_lhs] + [x.view.dims[j] for x in beside_rhs]
        for size, left, right, *extras in together(lhs.dims[i], rhs.dims[j], *others):
            steps.append(Step(size, left, right, extras=tuple(extras)))
    return steps


def runs_along(place: View, array: View) -> Runs:
    """An array's strides over the elements of C at a place."""
    return tuple(Run(*step) for dims in zip(place.dims, array.dims, strict=True) for step in together(*dims))


def stride_along(runs: Sequence[Run], low: int, high: int) -> int:
    """How far apart steps of `low` elements of C, up to `high` of them, are in an array; 0 where it repeats itself."""
    return next((run.stride * (low // run.at) for run in runs if run.at <= low and high <= run.at * run.size), 0)


def as_operand(steps: Sequence[Step], strides: Sequence[int], dtype: str, panels: Panels | None = None) -> Operand:
    """An operand that has one dimension for each step."""
    return Operand(shape=tuple(step.size for step in steps), strides=tuple(strides), dtype=dtype, panels=panels)


def in_words(rhs: Array, steps: list[Step]) -> list[Step]:
    """Steps with those from matrix to matrix of B in words, where B's rows share them."""
    if not rhs.weight or rhs.weight.dtype not in PACKED_INT4:
        return steps
    rows, columns = type_of(rhs.weight.eqn.outvars[0]).shape[-2:]
    stored = -(-rows // INT4_PER_WORD)
    return [replace(x, rhs=x.rhs // rows * stored) if x.rhs % (rows * columns) == 0 else x for x in steps]
