"""The memory map of a plan: where packed operands and sums stand in scratch, and how far apart their parts are.

A thread's own scratch, from its beginning on:

    | A's block, packed | B's block, packed | sums of a task between blocks of k | zeros | a microkernel's tiles |

each where the plan has it, and all but the tiles in whole cache lines. Zeros stand for runs of a window that are beyond
its bounds. What all tasks see holds either the panels of B of a round, or the partial sums of split-K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jax_nano.ir.dtypes import bytes_of

if TYPE_CHECKING:
    from jax_nano.schedule.plan import Plan

LINE_BYTES = 64


@dataclass(frozen=True)
class Scratch:
    """Where a plan's operands and sums stand. Strides are in elements, places in bytes."""

    plan: Plan

    # Strides within packed operands.

    @property
    def lhs_split_stride(self) -> int:
        """Elements between bf16 splits of A, in packed rows; in packed panels, elements over their rows."""
        plan, line = self.plan, LINE_BYTES // bytes_of(self.plan.instruction.lhs)
        depth = plan.rounded_up(plan.kc)
        return depth if plan.lhs == "columns" else -(-depth // line) * line

    @property
    def lhs_stride(self) -> int:
        """Elements between packed rows of A; of packed panels, elements over their rows."""
        plan = self.plan
        stride = plan.dot.bf16_splits[0] * self.lhs_split_stride
        return stride if plan.lhs == "columns" else apart(stride, plan.instruction.lhs)

    @property
    def rhs_split_stride(self) -> int:
        """Elements between bf16 splits of B in a packed panel, over its width."""
        plan = self.plan
        return plan.rounded_up(plan.k.size if plan.rhs == "per_round" else plan.kc)

    def panel_rows(self, depth: int) -> int:
        """Elements of a packed panel of B over its width.

        Those are the steps of each bf16 split, and one group of compensation where A is moved. Of an inner product, a
        panel is a column, in whole registers.
        """
        plan, instruction = self.plan, self.plan.instruction
        if plan.inner_product:
            register = instruction.shape[1] * instruction.vnni
            return apart(-(-depth // register) * register, instruction.rhs)
        steps = plan.dot.bf16_splits[1] * plan.rounded_up(depth)
        return steps + (instruction.vnni if instruction.lhs_offset else 0)

    # A thread's own scratch.

    @property
    def lhs_rows(self) -> int:
        """Rows of a packed block of A, in whole panels."""
        plan = self.plan
        return 0 if plan.lhs == "unpacked" else -(-plan.mc // plan.lhs_panel) * plan.lhs_panel

    @property
    def rhs_at(self) -> int:
        """Where B's block begins: behind A's."""
        return whole_lines(bytes_of(self.plan.instruction.lhs, self.lhs_rows * self.lhs_stride))

    @property
    def rhs_columns(self) -> int:
        """Columns of a packed block of B: those of two panels that take turns, where packing them is overlapped."""
        plan = self.plan
        if plan.rhs != "per_task":
            return 0
        return 2 * plan.nr if plan.overlap_packing else plan.block_columns

    @property
    def partial_at(self) -> int:
        """Where sums between blocks of k stand: behind B's block."""
        plan = self.plan
        size = bytes_of(plan.instruction.rhs, self.rhs_columns * self.panel_rows(plan.kc))
        return self.rhs_at + whole_lines(size)

    @property
    def zeros_at(self) -> int:
        """Where zeros stand: behind the sums."""
        plan = self.plan
        rows = -(-plan.mt // plan.mr) * plan.mr  # whole tiles reach beyond the last row
        size = bytes_of(plan.instruction.acc, rows * plan.nt) if plan.has_partial else 0
        return self.partial_at + whole_lines(size)

    @property
    def zeros(self) -> int:
        """How many zeros, in whole lines: a run of a window that is read in place, where it has bounds."""
        plan = self.plan
        if not (plan.window_runs.shortest and plan.dot.window and plan.dot.window.bounds):
            return 0
        line, runs = LINE_BYTES // bytes_of(plan.dot.lhs), plan.window_runs
        run = runs.longest if plan.instruction.lhs_offset else runs.shortest
        return -(-run // line) * line

    @property
    def tiles_at(self) -> int:
        """Where a block's tiles stand between registers of tiles and of vectors: behind the zeros."""
        return self.zeros_at + bytes_of(self.plan.dot.lhs, self.zeros)

    @property
    def local_bytes(self) -> int:
        """All of a thread's own scratch."""
        instruction = self.plan.instruction
        tiles = bytes_of(instruction.acc, self.plan.mr * self.plan.nr) if instruction.tiles else 0
        return self.tiles_at + tiles

    # What all tasks see.

    @property
    def shared_bytes(self) -> int:
        """Partial sums, or a round's panels of B."""
        plan = self.plan
        if plan.split_k > 1:
            return bytes_of(plan.instruction.acc, plan.split_k * plan.results)
        if plan.rhs != "per_round":
            return 0
        return bytes_of(plan.instruction.rhs, plan.nc * self.panel_rows(plan.k.size))


def whole_lines(size: int) -> int:
    """Bytes rounded up to whole cache lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES


def apart(elements: int, dtype: str) -> int:
    """Elements from row to row, in an odd number of lines: so rows do not compete for the same ones."""
    line = LINE_BYTES // bytes_of(dtype)
    return (-(-elements // line) | 1) * line
