"""Where operands and results lie: matrices in the arguments of a kernel's entry points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.extend.mlir import ir

from jax_nano.codegen.dequantize import QuantizedMatrixRef
from jax_nano.codegen.index import Index, add, divmod_, mul
from jax_nano.codegen.loops import Span
from jax_nano.codegen.matrix_ref import MatrixRef, Split, scratch
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.prologue import PrologueView
from jax_nano.codegen.windows.reference import Cursor, WindowRef
from jax_nano.ir.axes import Axis, Role
from jax_nano.ir.dtypes import PACKED_INT4
from jax_nano.ir.window import Window
from jax_nano.schedule.loop_nest import window_columns, window_rows, window_steps
from jax_nano.schedule.plan import Plan

Offsets = tuple[Index, ...]  # in A, B, C and Dot.extras, elements; then positions along the bounds of A's window
BEFORE_EXTRAS = 3  # arrays whose strides an Axis has before theirs: A, B and C


@dataclass(frozen=True)
class Arguments:
    """What an entry point is given: the number of its round and task, scratch memory, and arrays."""

    round: Index
    task: Index
    shared: ir.Value
    local: ir.Value
    lhs: ir.Value
    rhs: ir.Value
    out: ir.Value
    extras: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class Area:
    """The rows and columns of C that a task computes."""

    rows: Span
    columns: Span


@dataclass(frozen=True)
class Operands:
    """The matrices of a plan. `at` says where the element of the outer axes begins in every array."""

    plan: Plan
    arguments: Arguments

    def lhs(self, at: Offsets) -> MatrixRef | WindowRef:
        """A over m and k, with its prologue if it has one."""
        m, k, dot = self.plan.m, self.plan.k, self.plan.dot
        if dot.window and dot.window.operand == "lhs":
            return self._window(dot.window, at[0], at, window_rows(dot))
        base, strides, split = self.arguments.lhs, (m.lhs, k.lhs), bf16_split(self.plan, 0)
        if not dot.prologue:
            return MatrixRef(base, at[0], strides, dot.lhs, split)
        extras = tuple(self._extras("prologue", at, m, k))
        program, native_bf16 = dot.prologue.program, rounds_to_bf16(self.plan.instruction)
        return PrologueView(
            base, at[0], strides, dot.lhs, split, program=program, extras=extras, native_bf16=native_bf16
        )

    def _window(self, window: Window, here: Index, at: Offsets, places: tuple[Axis, ...]) -> WindowRef:
        """A window over the joined axes of its places and of k."""
        plan = self.plan
        positions = tuple(
            add(bound.begin, position)
            for bound, position in zip(window.bounds, at[len(plan.dot.arrays) :], strict=True)
        )
        cursor = Cursor(add(window.begin, here), positions)
        base, dtype = getattr(self.arguments, window.operand), getattr(plan.dot, window.operand)
        places, steps = (
            tuple(replace(axis, lhs=getattr(axis, window.operand)) for axis in axes)
            for axes in (places, window_steps(plan.dot))
        )
        return WindowRef(base, cursor, dtype, window, places=places, steps=steps, bf16_split=bf16_split(plan, 0))

    def rhs(self, at: Offsets) -> MatrixRef | WindowRef:
        """B over k and n, with its zero points if it has any."""
        plan, dot = self.plan, self.plan.dot
        if dot.window and dot.window.operand == "rhs":
            return self._window(dot.window, at[1], at, window_columns(dot))
        base, strides = self.arguments.rhs, (plan.k.rhs, plan.n.rhs)
        zeros = self._scaling(at)[1:]
        if not zeros and dot.rhs not in PACKED_INT4:
            return MatrixRef(base, at[1], strides, dot.rhs, bf16_split(plan, 0))
        group_size = dot.scaling.group_size if dot.scaling else 1
        zero_points = zeros[0] if zeros else None
        return QuantizedMatrixRef(base, at[1], strides, dot.rhs, group_size=group_size, zeros=zero_points)

    def scales(self, at: Offsets) -> MatrixRef | None:
        """The scales of B over groups of k and n."""
        scaling = self._scaling(at)
        return scaling[0] if scaling else None

    def epilogue_extras(self, at: Offsets) -> list[MatrixRef]:
        """The epilogue's arrays over m and n."""
        return self._extras("epilogue", at, self.plan.m, self.plan.n)

    def out(self, at: Offsets) -> MatrixRef:
        """C over m and n."""
        return MatrixRef(self.arguments.out, at[2], (self.plan.m.out, self.plan.n.out), self.plan.dot.out)

    def sums(self, at: Offsets, split: Index) -> MatrixRef:
        """Where the compute phase puts its sums: in C or, with split-K, in the split's own copy of it."""
        plan = self.plan
        if plan.split_k == 1:
            return self.out(at)
        base = scratch(self.arguments.shared, 0, plan.split_k * plan.results, plan.instruction.acc)
        begin = add(mul(split, plan.results), at[2])
        return MatrixRef(base, begin, (plan.m.out, plan.n.out), plan.instruction.acc)

    def partial_sums(self) -> MatrixRef | None:
        """Where a task's sums stand between k blocks, if C's type is too narrow for them."""
        plan = self.plan
        if not plan.has_partial:
            return None
        base = scratch(self.arguments.local, plan.scratch.partial_at, plan.mt * plan.nt, plan.instruction.acc)
        return MatrixRef(base, 0, (plan.nt, 1), plan.instruction.acc)

    def tiles(self) -> MatrixRef | None:
        """Where a block's tiles stand that neither C nor partial sums take."""
        plan = self.plan
        if not plan.instruction.tiles:
            return None
        base = scratch(self.arguments.local, plan.scratch.tiles_at, plan.mr * plan.nr, plan.instruction.acc)
        return MatrixRef(base, 0, (plan.nr, 1), plan.instruction.acc)

    def _scaling(self, at: Offsets) -> list[MatrixRef]:
        """The scales of B's integers, and the zero points if any, over groups of k and n."""
        scaling = self.plan.dot.scaling
        scales = self._extras("scaling", at, self.plan.k, self.plan.n)
        return [replace(x, strides=(scaling.stride, x.strides[1])) for x in scales] if scaling else []

    def _extras(self, role: Role, at: Offsets, rows: Axis, columns: Axis) -> list[MatrixRef]:
        """The arrays of a role over two axes."""
        return [
            MatrixRef(
                self.arguments.extras[array.stride - BEFORE_EXTRAS],
                at[array.stride],
                (rows.strides()[array.stride], columns.strides()[array.stride]),
                array.dtype,
            )
            for array in self.plan.dot.arrays_for(role)
        ]


def bf16_split(plan: Plan, number: int) -> Split | None:
    """Which number an operand's elements are read as, where the product's algorithm splits them."""
    return Split(plan.dot.algorithm.dtype, number) if plan.dot.algorithm else None


def offsets(plan: Plan, axes: Sequence[Axis], number: Index) -> Offsets:
    """Where the element `number` of a row-major grid of axes begins in each array, and its positions in A's bounds."""
    bounds = plan.dot.window.bounds if plan.dot.window else ()
    at: list[Index] = [0] * (len(plan.dot.arrays) + len(bounds))
    for position, axis in reversed(list(enumerate(axes))):
        number, i = divmod_(number, axis.size) if position else (0, number)
        at = [add(begin, mul(i, stride)) for begin, stride in zip(at, axis.steps(), strict=True)]
    return tuple(at)
