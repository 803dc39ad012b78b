"""Rows of a window as microkernels read them in place: run by run of the sum, and zeros for runs beyond the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref

from jax_nano.codegen.index import Condition, Index, add, both, divmod_, select, within
from jax_nano.codegen.load_store import store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import MatrixRef, scratch
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.codegen.window_ref import Cursor, WindowRef
from jax_nano.ir.axes import Axis
from jax_nano.ir.dtypes import bytes_of
from jax_nano.schedule.plan import LINE_BYTES, Plan


@dataclass(frozen=True)
class RowRefs:
    """Rows of A, each wherever it is."""

    rows: tuple[MatrixRef, ...]

    def block(self, i: int, k: Index) -> RowRefs:
        """The rows from row i on, from step k on."""
        return RowRefs(tuple(row.block(0, k) for row in self.rows[i:]))

    def row(self, i: int) -> MatrixRef:
        """One of them."""
        return self.rows[i]


@dataclass(frozen=True)
class WindowRows:
    """A window's rows from `first` on. A run of steps of a row lies in memory as a whole, or is `nothing` as a whole."""

    window: WindowRef  # from the first step of a block of the sum on
    first: Index
    run: int  # steps
    nothing: ir.Value  # as many zeros

    def cursors(self, rows: int) -> list[Cursor]:
        """Where the rows begin, at the first step of the sum."""
        window = self.window
        return [window.cursor.within(window.places, add(self.first, i)) for i in range(rows)]

    def at_run(self, cursors: Sequence[Cursor], number: Index) -> RowRefs:
        """A run of the block of those rows."""
        window = self.window
        number = add(divmod_(window.first, self.run)[0], number)
        origin = Cursor(0, (0,) * len(window.window.bounds))
        moved = origin.within(runs_of(window.steps, self.run), number)
        return RowRefs(tuple(self.row(cursor, moved) for cursor in cursors))

    def row(self, cursor: Cursor, moved: Cursor) -> MatrixRef:
        """A row's run: where it is, or zeros."""
        window, is_inside = self.window, True
        for position, step, bound in zip(cursor.positions, moved.positions, window.window.bounds, strict=True):
            is_inside = both(is_inside, within(add(position, step), bound.size))
        base, at = self.select(is_inside, add(cursor.at, moved.at))
        return MatrixRef(base, at, (0, 1), window.dtype)

    def select(self, is_inside: Condition, at: Index) -> tuple[ir.Value, Index]:
        """An element of the array, or of the zeros."""
        if isinstance(is_inside, bool):
            return (self.window.base, at) if is_inside else (self.nothing, 0)
        kind = ir.MemRefType.get([ir.ShapedType.get_dynamic_size()], element_type(self.window.dtype))
        array, nothing = memref.cast(kind, self.window.base), memref.cast(kind, self.nothing)
        return arith.select(is_inside, array, nothing), select(is_inside, at, 0)


def runs_of(steps: Sequence[Axis], run: int) -> tuple[Axis, ...]:
    """The axes of the sum by runs of so many steps of the innermost one."""
    *outer, inner = steps
    window = tuple(run * step for step in inner.window)
    return *outer, replace(inner, size=inner.size // run, lhs=inner.lhs * run, window=window)


def zeros_of_runs(plan: Plan, local: ir.Value) -> ir.Value:
    """What stands for a run beyond the bounds, in a thread's own scratch."""
    return scratch(local, plan.scratch.zeros_at, plan.scratch.zeros, plan.dot.lhs)


def clear_zeros(plan: Plan, local: ir.Value) -> None:
    """Writes it."""
    dtype = plan.dot.lhs
    lanes = LINE_BYTES // bytes_of(dtype)
    with for_range(0, plan.scratch.zeros, lanes) as loop:
        store(zeros(lanes, element_type(dtype)), zeros_of_runs(plan, local), loop.i)
