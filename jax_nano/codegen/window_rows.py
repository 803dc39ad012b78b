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
from jax_nano.schedule.loop_nest import Runs
from jax_nano.schedule.plan import LINE_BYTES, Plan


@dataclass(frozen=True, kw_only=True)
class ScatteredRows(MatrixRef):
    """A matrix whose rows are each wherever they are; it passes for the first one."""

    rows: tuple[MatrixRef, ...]

    @classmethod
    def of(cls, rows: Sequence[MatrixRef]) -> ScatteredRows:
        """The matrix of those rows."""
        return cls(rows[0].base, rows[0].at, rows[0].strides, rows[0].dtype, rows=tuple(rows))

    def block(self, i: Index = 0, j: Index = 0) -> ScatteredRows:
        """The matrix that begins at element (i, j), whose row is known here."""
        assert isinstance(i, int)
        return ScatteredRows.of([row.block(0, j) for row in self.rows[i:]])

    def from_row(self, i: Index) -> MatrixRef:
        """A single row."""
        assert isinstance(i, int)
        return self.rows[i]


@dataclass(frozen=True, kw_only=True)
class WindowRows(MatrixRef):
    """A window's rows from `first` on: each run of steps of a row lies in memory as a whole, or is `nothing`."""

    window: WindowRef  # from the first step of a block of the sum on
    first: Index
    runs: Runs
    nothing: ir.Value  # as many zeros as a run has steps

    @classmethod
    def of(cls, window: WindowRef, first: Index, runs: Runs, nothing: ir.Value) -> WindowRows:
        """The rows of a window."""
        of_rows = {"first": first, "runs": runs, "nothing": nothing}
        return cls(window.base, window.cursor.at, (0, 1), window.dtype, window=window, **of_rows)

    def cursors(self, rows: int) -> list[Cursor]:
        """Where the rows begin, at the first step of the sum."""
        window = self.window
        return [window.cursor.within(window.places, add(self.first, i)) for i in range(rows)]

    def is_inside(self, cursors: Sequence[Cursor]) -> Condition:
        """Whether the rows are within all bounds that the innermost steps of the sum move along."""
        inner, inside = self.window.steps[-1], True
        for number, (bound, step) in enumerate(zip(self.window.window.bounds, inner.window, strict=True)):
            if step:
                for cursor in cursors:
                    inside = both(inside, within(cursor.positions[number], bound.size - inner.size + 1))
        return inside

    def at_run(self, cursors: Sequence[Cursor], number: Index, run: int) -> ScatteredRows:
        """A run of so many steps of the block of those rows: longer ones than the shortest are inside, if they are."""
        window = self.window
        number = add(divmod_(window.first, run)[0], number)
        origin = Cursor(0, (0,) * len(window.window.bounds))
        moved = origin.within(runs_of(window.steps, run), number)
        asked = [not (step and run > self.runs.shortest) for step in window.steps[-1].window]
        return ScatteredRows.of([self.run_of(cursor, moved, asked) for cursor in cursors])

    def run_of(self, cursor: Cursor, moved: Cursor, asked: Sequence[bool]) -> MatrixRef:
        """A row's run: where it is, or zeros where it is beyond one of the bounds that are asked for."""
        window, is_inside = self.window, True
        of_bounds = zip(cursor.positions, moved.positions, window.window.bounds, asked, strict=True)
        for position, step, bound, matters in of_bounds:
            if matters:
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
