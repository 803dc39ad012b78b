"""Which loops of a product its microkernel runs over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jax_nano.ir.dot import Axis, Dot, UnsupportedDot

ONLY_AS_THEY_ARE = "panels hold numbers as they are, of a matrix of several columns"


@dataclass(frozen=True, kw_only=True)
class LoopNest:
    """A product as it is computed: microkernels run over `m`, `n` and `k`; the other axes are around them."""

    dot: Dot  # with the operands exchanged where `swapped`
    swapped: bool
    m: Axis
    n: Axis
    k: Axis
    outer: tuple[Axis, ...]
    k_outer: tuple[Axis, ...]

    @classmethod
    def of(cls, dot: Dot) -> LoopNest:
        """The longest axes of A's rows and of the sum, and C's innermost; a C of one column is computed as one row.

        Where C ends with rows, as a convolution of single places does, the operands are exchanged.

        Raises:
          UnsupportedDot: panels would have to be exchanged or rounded, or rows of C or of extras are not contiguous.
        """
        if dot.window:
            return cls._of_windows(dot)
        is_scattered = bool(dot.n) and dot.n[-1].out != 1
        if is_scattered and (dot.prologue or not dot.ends_with_rows):
            raise UnsupportedDot("C's last axis is not one of B's columns: the operands would have to be exchanged")
        swapped = is_scattered or (not dot.n and bool(dot.m) and not dot.prologue)
        if dot.panels and (swapped or dot.algorithm):
            raise UnsupportedDot(ONLY_AS_THEY_ARE)
        work = dot.swapped() if swapped else dot
        nothing = (0,) * len(work.extras)
        m = longest(work.m, Axis(size=1, extras=nothing))
        n = work.n[-1] if work.n else Axis(size=1, rhs=1, out=1, extras=nothing)
        k = longest(work.k, Axis(size=1, lhs=1, rhs=1, extras=nothing))
        if any(stride not in (0, 1) for stride in n.extras):
            raise UnsupportedDot("an array of the epilogue is neither contiguous along n nor the same for all of n")
        outer = work.b + others(work.m, m) + others(work.n, n)
        return cls(dot=work, swapped=swapped, m=m, n=n, k=k, outer=outer, k_outer=others(work.k, k))

    @classmethod
    def _of_windows(cls, dot: Dot) -> LoopNest:
        """As many axes joined as have one stride in all arrays but the window's: packing knows where that is.

        Where places are last in C, the operands are exchanged, and the window is B; not so where there is one output
        channel, and places are no neighbours in the image.

        Raises:
          UnsupportedDot: C's last axis is neither of places nor of columns, or rows of extras are not contiguous.
        """
        swapped = dot.ends_with_rows
        if dot.panels and (swapped or dot.algorithm or not dot.n):
            raise UnsupportedDot(ONLY_AS_THEY_ARE)
        work = dot.swapped() if swapped else dot
        assert work.window
        once = Axis(size=1, extras=(0,) * len(dot.extras), window=(0,) * len(work.window.bounds))
        n_axes = window_columns(work)
        n = one_loop(n_axes, replace(once, rhs=1, out=1))
        if any(stride not in (0, 1) for stride in n.extras):
            raise UnsupportedDot("an array of the epilogue is neither contiguous along n nor the same for all of n")
        m, k = window_rows(work), window_steps(work)
        return cls(
            dot=work,
            swapped=swapped,
            m=one_loop(m, once),
            n=n,
            k=one_loop(k, replace(once, lhs=1, rhs=1)),
            outer=work.b + work.m[: len(work.m) - len(m)] + work.n[: len(work.n) - len(n_axes)],
            k_outer=work.k[: len(work.k) - len(k)],
        )

    @property
    def is_one_matrix(self) -> bool:
        """There are no axes around the microkernel's loops."""
        return math.prod(self.dot.sizes) == self.m.size * self.n.size * self.k.size


def longest(axes: Sequence[Axis], default: Axis) -> Axis:
    """The first axis of the largest size."""
    return max(axes, key=lambda axis: axis.size, default=default)


def window_rows(dot: Dot) -> tuple[Axis, ...]:
    """The axes of M that are one loop, of a product with a window."""
    return joined(dot.m, LHS if dot.has_window("lhs") else None)


def window_columns(dot: Dot) -> tuple[Axis, ...]:
    """The axes of N that are one loop, of a product with a window."""
    return joined(dot.n, RHS if dot.has_window("rhs") else None)


def window_steps(dot: Dot) -> tuple[Axis, ...]:
    """The axes of K that are one loop, of a product with a window."""
    return joined(dot.k, LHS if dot.has_window("lhs") else RHS)


class Runs(NamedTuple):
    """Steps of the sum that a row of A, a window, has in one run of memory."""

    shortest: int  # as many are all within the bounds or all beyond them; 0 where neighbours are not so in memory
    longest: int  # of rows that are within the bounds that these steps move along


def window_runs(dot: Dot) -> Runs:
    """The runs in which A's rows can be read where they lie."""
    assert dot.window
    steps = window_steps(dot)
    if not steps or steps[-1].lhs != 1:
        return Runs(0, 0)
    inner, run = steps[-1], steps[-1].size
    others = [axis for axes in (dot.b, dot.m, dot.n, dot.k) for axis in axes if axis is not inner]
    for number, bound in enumerate(dot.window.bounds):
        if inner.window[number]:  # positions along it are elements
            run = math.gcd(run, bound.begin, bound.size, *(axis.window[number] for axis in others))
    return Runs(run, inner.size)


class SharedSteps(NamedTuple):
    """Steps of a sum along an axis that moves along no bound: a place's are all within the bounds, or none is."""

    axis: int  # its number: 0 where it is outermost of several, else -1
    taps: int  # steps of the axes inside of it
    period: int  # steps until whole VNNI groups begin with the same tap again


MOST_SHARED_TAPS = 128  # blocks of the sum are whole numbers of them


def shared_steps(steps: Sequence[Axis], vnni: int) -> SharedSteps | None:
    """The steps that are within bounds together, of an axis that whole VNNI groups go along."""
    if not steps:
        return None
    inner, outer, taps = steps[-1], steps[0], math.prod(axis.size for axis in steps[1:])
    each = vnni // math.gcd(taps, vnni)
    can_inner = not any(inner.window) and inner.size % vnni == 0
    can_outer = not any(outer.window) and outer.size % each == 0 and each * taps <= MOST_SHARED_TAPS
    if can_outer and len(steps) > 1 and not (can_inner and inner.size >= outer.size):
        return SharedSteps(0, taps, each * taps)
    return SharedSteps(-1, 1, vnni) if can_inner else None


LHS, RHS = 0, 1  # in Axis.strides()


def joined(axes: tuple[Axis, ...], window: int | None) -> tuple[Axis, ...]:
    """The innermost axes that are one loop to all arrays but the window."""

    def strides(axis: Axis) -> list[int]:
        return [stride for i, stride in enumerate(axis.strides()) if i != window]

    count = 1
    while count < len(axes):
        outer, inner = axes[-count - 1], axes[-count]
        if any(o != i * inner.size for o, i in zip(strides(outer), strides(inner), strict=True)):
            break
        count += 1
    return axes[len(axes) - count :] if axes else ()


def one_loop(axes: tuple[Axis, ...], default: Axis) -> Axis:
    """The loop that joined axes are: in the window, its steps are those of the innermost axis, as far as that goes."""
    return replace(axes[-1], size=math.prod(axis.size for axis in axes)) if axes else default


def others(axes: tuple[Axis, ...], chosen: Axis) -> tuple[Axis, ...]:
    """All axes but the one chosen."""
    return tuple(axis for axis in axes if axis is not chosen)
