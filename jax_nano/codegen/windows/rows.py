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
from jax_nano.codegen.windows.reference import Cursor, WindowRef
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
    """A window's rows from `first` on: each run of steps of a row lies in memory as a whole, or is `nothing`.

    Rows that are neighbours along one dimension, within its bounds, have long runs, which are a matrix of one stride.
    """

    window: WindowRef  # from the first step of a block of the sum on
    first: Index
    runs: Runs
    nothing: ir.Value  # as many zeros as a run has steps: a short one, unless zeros count

    @classmethod
    def of(cls, window: WindowRef, first: Index, runs: Runs, nothing: ir.Value) -> WindowRows:
        """The rows of a window."""
        of_rows = {"first": first, "runs": runs, "nothing": nothing}
        return cls(window.base, window.cursor.at, (0, 1), window.dtype, window=window, **of_rows)

    def cursor(self, i: int) -> Cursor:
        """Where a row begins, at the first step of the sum."""
        return self.window.cursor.within(self.window.places, add(self.first, i))

    def is_strided(self, rows: int) -> Condition:
        """Whether so many rows are one matrix: neighbours along a dimension, of which no step is beyond its bounds."""
        window, position = self.window, self.cursor(0).positions
        steps, places = window.steps, window.places[-1:]
        strided: Condition = True
        if len(window.places) > 1:
            size = places[0].size
            strided = size >= rows and within(divmod_(self.first, size)[1], size - rows + 1)
        for number, bound in enumerate(window.window.bounds):
            apart = sum(axis.window[number] for axis in places)
            if apart or steps[-1].window[number]:
                reach = sum((axis.size - 1) * axis.window[number] for axis in steps) + (rows - 1) * apart
                strided = both(strided, within(position[number], bound.size - reach))
        return strided

    def strided_run(self, number: Index) -> tuple[Condition, MatrixRef]:
        """A long run of rows that are one matrix, and whether it is in memory at all."""
        here, there = self.cursor(0), self.moved(number, self.runs.longest)
        stride = sum(axis.lhs for axis in self.window.places[-1:])
        matrix = MatrixRef(self.window.base, add(here.at, there.at), (stride, 1), self.window.dtype)
        return self.is_inside(here, there), matrix

    @property
    def zeros(self) -> MatrixRef:
        """A run of rows that are beyond the bounds."""
        return MatrixRef(self.nothing, 0, (0, 1), self.window.dtype)

    def scattered_run(self, number: Index, rows: int) -> ScatteredRows:
        """A short run of so many rows: each where it is, or zeros."""
        there = self.moved(number, self.runs.shortest)
        found = []
        for here in map(self.cursor, range(rows)):
            base, at = self.select(self.is_inside(here, there), add(here.at, there.at))
            found.append(MatrixRef(base, at, (0, 1), self.window.dtype))
        return ScatteredRows.of(found)

    def moved(self, number: Index, run: int) -> Cursor:
        """How far runs of so many steps have gone on, of the window's steps and of positions."""
        origin = Cursor(0, (0,) * len(self.window.window.bounds))
        return origin.within(runs_of(self.window.steps, run), add(divmod_(self.window.first, run)[0], number))

    def is_inside(self, here: Cursor, there: Cursor) -> Condition:
        """Whether a run of a row is within all bounds."""
        inside: Condition = True
        for position, moved, bound in zip(here.positions, there.positions, self.window.window.bounds, strict=True):
            inside = both(inside, within(add(position, moved), bound.size))
        return inside

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
