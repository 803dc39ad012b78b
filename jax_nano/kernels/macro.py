"""Macrokernels: cache blocks, phases and tasks around the microkernels.

A task computes a block of C, `plan.mt` x `plan.nt`, of one element of the outer axes:

    for each k block (KC):                     in order: the sum over K is the same for any number of threads
        pack B's block                         where the plan packs per task; in a phase before, where it shares
        for each block of rows (MC):
            pack A's block                     where the plan packs it
            for each panel of columns (NR):    B's panel stays in the nearest cache
                for each panel of rows (MR):   A's block streams from the next
                    microkernel
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.extend.mlir import ir

from jax_nano.build import Index, View, add, divmod_, equal, for_range, minimum, mul, scratch, subtract, when
from jax_nano.kernels import pack
from jax_nano.kernels.micro import microkernel
from jax_nano.kernels.nano import Block, Nanokernel
from jax_nano.problem import Axis
from jax_nano.schedule import Plan


@dataclass(frozen=True)
class Frame:
    """What an entry point is given: the number of its round and task, and memory."""

    round: Index
    task: Index
    shared: ir.Value
    local: ir.Value
    lhs: ir.Value
    rhs: ir.Value
    out: ir.Value


class Macrokernel:
    """Writes the phases of one plan."""

    def __init__(self, plan: Plan):
        """Lays out the scratch."""
        self.plan, self.dot = plan, plan.dot
        self.nano = Nanokernel(plan.instruction, hold_lhs=plan.hold_lhs)

    def pack_phase(self, frame: Frame) -> None:
        """One task: a run of B's panels into shared scratch. Rounds advance along n."""
        plan, n, width = self.plan, self.plan.n, self.plan.nr
        begin = add(mul(frame.round, plan.nc), mul(frame.task, plan.pack_panels * width))
        end = minimum(minimum(add(begin, plan.pack_panels * width), mul(add(frame.round, 1), plan.nc)), n.size)
        source = View(frame.rhs, 0, (plan.k.rhs, n.rhs))
        base = scratch(frame.shared, 0, plan.k.size * plan.nc, self.dot.rhs)

        def pack_panel(j: Index, cols: int) -> None:
            at = mul(subtract(j, mul(frame.round, plan.nc)), plan.k.size)
            self._pack_rhs(source.block(0, j), View(base, at, (width, 1)), plan.k.size, cols)

        along(begin, end, n.size, width, pack_panel)

    def compute_phase(self, frame: Frame) -> None:
        """One task: a block of C."""
        plan, dot = self.plan, self.dot
        rest, ni = divmod_(frame.task, plan.n_tasks) if plan.n_tasks > 1 else (frame.task, 0)
        outer, mi = divmod_(rest, plan.m_tasks) if plan.m_tasks > 1 else (rest, 0)
        at = offsets(plan.outer, outer)
        m0, round_begin = mul(mi, plan.mt), mul(frame.round, plan.nc)
        n0 = add(round_begin, mul(ni, plan.nt))
        m1 = minimum(add(m0, plan.mt), plan.m.size)
        n1 = minimum(minimum(add(n0, plan.nt), add(round_begin, plan.nc)), plan.n.size)
        lhs = View(frame.lhs, at[0], (plan.m.lhs, plan.k.lhs))
        rhs = View(frame.rhs, at[1], (plan.k.rhs, plan.n.rhs))
        out = View(frame.out, at[2], (plan.m.out, plan.n.out))

        with for_range(0, plan.k_blocks) as block:
            rest, kb = divmod_(block.i, plan.inner_k_blocks) if plan.inner_k_blocks > 1 else (block.i, 0)
            at_k = offsets(plan.k_outer, rest)
            k0 = mul(kb, plan.kc)
            depth = self._depth(k0)
            first = equal(block.i, 0)
            panels = self._rhs_panels(frame, rhs.moved(at_k[1]), k0, depth, n0, n1)
            with for_range(m0, m1, plan.mc) as rows:
                end = minimum(add(rows.i, plan.mc), m1)
                lhs_panel = self._lhs_panels(frame, lhs.moved(at_k[0]).block(0, k0), rows.i, end, depth)

                def column_panel(j: Index, cols: int, end=end, rows=rows, lhs_panel=lhs_panel) -> None:
                    b = panels(j)

                    def row_panel(i: Index, count: int) -> None:
                        block = Block(count, cols, self.nano.lanes)
                        a, c = lhs_panel(i), out.block(i, j)
                        microkernel(self.nano, a, b, c, block, depth, plan.k.size % plan.unroll, plan.unroll, first)

                    along(rows.i, end, plan.m.size, plan.mr, row_panel)

                along(n0, n1, plan.n.size, plan.nr, column_panel)

    def _depth(self, k0: Index) -> Index:
        """Steps in the k block that begins at k0."""
        size, kc = self.plan.k.size, self.plan.kc
        return minimum(kc, subtract(size, k0)) if size % kc else kc

    def _pack_rhs(self, source: View, target: View, depth: Index, cols: int) -> None:
        tail = self.plan.k.size % self.nano.lanes
        pack.pack_rhs_panel(source, target, depth, tail, cols, self.plan.nr, self.nano.lanes)

    def _rhs_panels(self, frame: Frame, rhs: View, k0: Index, depth: Index, n0: Index, n1: Index) -> Callable[[Index], View]:
        """Sees to it that B's block is where microkernels read it; gives the panel that begins at column j."""
        plan, width = self.plan, self.plan.nr
        if plan.rhs == "direct":
            return lambda j: rhs.block(k0, j)
        if plan.rhs == "shared":
            base = scratch(frame.shared, 0, plan.k.size * plan.nc, self.dot.rhs)
            begin = mul(frame.round, plan.nc)
            return lambda j: View(base, add(mul(subtract(j, begin), plan.k.size), mul(k0, width)), (width, 1))
        base = scratch(frame.local, plan.local_rhs_at, plan.kc * plan.nt, self.dot.rhs)
        
        def panel(j: Index) -> View:
            return View(base, mul(subtract(j, n0), plan.kc), (width, 1))

        along(n0, n1, plan.n.size, width, lambda j, cols: self._pack_rhs(rhs.block(k0, j), panel(j), depth, cols))
        return panel

    def _lhs_panels(self, frame: Frame, lhs: View, begin: Index, end: Index, depth: Index) -> Callable[[Index], View]:
        """The same for A: gives the panel that begins at row i."""
        plan = self.plan
        if plan.lhs == "direct":
            return lambda i: lhs.block(i, 0)
        base = scratch(frame.local, 0, plan.mc * plan.lhs_stride, self.dot.lhs)
        if plan.lhs == "rows":
            tail = plan.k.size % self.nano.lanes
            target = View(base, 0, (plan.lhs_stride, 1))
            rows = subtract(end, begin)
            pack.pack_lhs_rows(lhs.block(begin, 0), target, rows, depth, tail, self.nano.lanes)
            return lambda i: target.block(subtract(i, begin), 0)

        def panel(i: Index) -> View:
            return View(base, mul(subtract(i, begin), plan.lhs_stride), (1, plan.mr))

        def pack_panel(i: Index, rows: int) -> None:
            pack.pack_lhs_columns(lhs.block(i, 0), panel(i), rows, depth, self.nano.lanes)

        along(begin, end, plan.m.size, plan.mr, pack_panel)
        return panel


def offsets(axes: Sequence[Axis], number: Index) -> tuple[Index, Index, Index]:
    """Where the element `number` of a row-major grid of axes begins in A, B and C."""
    lhs: Index = 0
    rhs: Index = 0
    out: Index = 0
    for position, axis in reversed(list(enumerate(axes))):
        number, i = divmod_(number, axis.size) if position else (0, number)
        lhs, rhs, out = add(lhs, mul(i, axis.lhs)), add(rhs, mul(i, axis.rhs)), add(out, mul(i, axis.out))
    return lhs, rhs, out


def along(begin: Index, end: Index, size: int, step: int, body: Callable[[Index, int], None]) -> None:
    """Runs `body(i, step)` for the whole steps of [begin, end), and `body(i, rest)` where the end is a ragged `size`.

    `begin` is a multiple of `step`, and so is `end` unless it is `size`.
    """
    rest = size % step
    whole = minimum(end, size - rest)
    if not (isinstance(begin, int) and isinstance(whole, int) and begin >= whole):
        with for_range(begin, whole, step) as loop:
            body(loop.i, step)
    if rest:
        last = equal(end, size)
        if last is not False:
            with when(last):
                body(size - rest, rest)
