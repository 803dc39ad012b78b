"""Plan: how to compute a product on one target."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from jax_nano.ir.dot import Axis, Dot, extent
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.loop_nest import Runs, SharedSteps, shared_steps, window_runs, window_steps
from jax_nano.schedule.scratch import LINE_BYTES as LINE_BYTES
from jax_nano.schedule.scratch import Scratch

LhsMode = Literal["unpacked", "rows", "columns"]
"""How microkernels find A: where it stands, or packed by each task, row after row or in panels of columns."""
RhsMode = Literal["unpacked", "per_task", "per_round", "panels"]
"""How they find B: where it stands, packed by each task, packed by all in a phase before, or as dot.panels says."""
REDUCED_PER_TASK = 1 << 14  # elements of C: enough to outweigh the handing out of a task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that shapes the code of one product on one target, and nothing else.

    Sizes are in elements. The microkernel's loops run over `m`, `n` and `k`; the other axes are `outer` (a task has
    one element of them) and `k_outer`.
    """

    # The product, and what computes it.
    dot: Dot  # as computed: with the operands exchanged where `swapped`
    swapped: bool
    isa: str
    instruction: DotInstruction
    # Loops.
    m: Axis
    n: Axis
    k: Axis
    outer: tuple[Axis, ...] = ()
    outer_per_task: int = 1  # elements of them that a task computes
    k_outer: tuple[Axis, ...] = ()  # the k blocks of each element of them follow one another
    # The register block.
    mr: int
    nr: int
    lhs_stationary: bool = False
    unroll: int = 1
    accumulator_chains: int = 1  # sums side by side for an element of C, of every so many-th step, that are added up
    # Blocks for caches, rounds and tasks.
    mc: int
    kc: int
    nc: int  # columns in a round
    mt: int  # rows in a task
    nt: int  # columns in a task
    nb: int = 0  # columns of B that a task packs at a time; 0: all of its own
    # How microkernels find the operands.
    lhs: LhsMode = "unpacked"
    rhs: RhsMode = "unpacked"
    overlap_packing: bool = False  # panels of B are packed one by one, each beside the products of the one before
    channelwise: bool = False  # groups of channels stand side by side in the lanes: see schedule.channels
    placewise: bool = False  # neighbouring places stand in the lanes, of one channel: see schedule.places
    inner_product: bool = False  # parts of one sum stand in the lanes of an accumulator, not columns of C
    split_k: int = 1  # parts of the sum that different tasks make, and a phase of its own adds up in order
    pack_panels: int = 1  # panels in a task of the packing phase
    # Software prefetch.
    prefetch_lhs: bool = False  # A comes from beyond a core's own caches, by blocks of rows or of steps
    prefetch_rhs: bool = False  # B, unpacked, comes from there
    streamed: bool = False  # B, unpacked, is prefetched in the order in which its rows lie in memory
    prefetch_rows: int = 0  # of a panel of packed weights, that are there in time where they are prefetched
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)  # by the cost model, on all threads

    def replace(self, **changes: Any) -> Plan:
        """The plan with some fields changed: dataclasses.replace, four times as fast, as thousands are weighed.

        Raises:
          ValueError: such a plan cannot be.
        """
        plan = object.__new__(Plan)
        plan.__dict__.update({name: self.__dict__[name] for name in _FIELDS}, **changes)
        plan.__post_init__()
        return plan

    def __post_init__(self):
        self._check_blocks()
        self._check_sum()
        self._check_packing()

    def _check_blocks(self) -> None:
        for name, value, step, size in (
            ("mc", self.mc, self.lhs_panel, self.m.size), ("mt", self.mt, self.mc, self.m.size),
            ("nt", self.nt, self.nb or self.nr, 0), ("nb", self.nb, self.nr, 0),
            ("nc", self.nc, self.nr, 0), ("kc", self.kc, self.k_multiple, self.k.size),
        ):  # fmt: skip
            if value % step and (size == 0 or value < size):
                raise ValueError(f"{name} = {value} is not a multiple of {step}: panels would overlap")

    def _check_sum(self) -> None:
        if self.dot.panels and self.unroll * self.instruction.vnni % self.dot.panels.vnni:
            raise ValueError(f"iterations of {self.step} steps end within {self.dot.panels.vnni} interleaved rows")
        if self.split_k > 1 and (
            self.rhs == "per_round" or self.split_k * self.blocks_per_split - self.k_blocks >= self.blocks_per_split
        ):
            raise ValueError(f"{self.split_k} splits of {self.k_blocks} blocks: one would be empty, or B is shared")

    def _check_packing(self) -> None:
        if self.dot.prologue and self.lhs == "unpacked":
            raise ValueError("a prologue is done while A is packed: A cannot stay unpacked")
        if self.prefetch_lhs:
            as_it_lies = self.lhs == "unpacked" or (self.lhs == "columns" and not self.lhs_by_rows)
            if not as_it_lies or self.inner_product or self.nb:
                raise ValueError("A is prefetched where it is unpacked or packed out of columns, all of B at once")
        if self.overlap_packing:
            whole = self.mc >= self.mt and self.k.size % self.instruction.shape[2] == 0
            if self.rhs != "per_task" or self.nb or not whole:
                raise ValueError("packing of B is overlapped by each task, once for its rows, in whole steps")

    @property
    def problem(self) -> Dot:
        """What is computed, by the name that it has in every kind of plan."""
        return self.dot

    @property
    def step(self) -> int:
        """Steps of k in an iteration of the microkernel."""
        _, lanes, group = self.instruction.shape
        return self.unroll * group * (lanes if self.inner_product else 1)

    @property
    def block_columns(self) -> int:
        """Columns that a task goes through with one packed block of B."""
        return self.nb or self.nt

    @property
    def lhs_packings(self) -> int:
        """How many times a task packs each of its rows of A."""
        return 1 if self.mc >= self.mt else -(-min(self.nt, self.n.size) // self.block_columns)

    @property
    def lhs_panel(self) -> int:
        """Rows of a packed panel of A: by columns, those of as many microkernels as a register has lanes for."""
        wide = max(1, self.instruction.shape[1] // self.mr) if self.lhs == "columns" else 1
        return wide * self.mr

    @property
    def k_multiple(self) -> int:
        """Every block of k but the last is a multiple of this, so that only the last one leaves a rest.

        Microkernels go by whole iterations, packing by whole registers, windows in place by whole runs, and windows in
        panels by whole groups of steps that share masks.
        """
        by_registers = self.lhs != "unpacked" or (self.rhs != "unpacked" and not self.dot.has_window("rhs"))
        register = self.instruction.shape[1] * self.instruction.vnni if by_registers else 1
        shared = self.shared_steps.period if self.shared_steps else 1
        return math.lcm(self.step, register, self.window_runs.longest or 1, shared)

    @functools.cached_property
    def shared_steps(self) -> SharedSteps | None:
        """The steps that share what is known of their bounds, where a window is packed in panels."""
        in_panels = self.dot.has_window("rhs") or (self.dot.has_window("lhs") and self.lhs == "columns")
        return shared_steps(window_steps(self.dot), self.instruction.vnni) if in_panels else None

    @functools.cached_property
    def window_runs(self) -> Runs:
        """The runs of k in which a window is read in place: none where A is packed, or is no window."""
        reads_window = self.dot.has_window("lhs") and self.lhs == "unpacked"
        return window_runs(self.dot) if reads_window else Runs(0, 0)

    @property
    def lhs_by_rows(self) -> bool:
        """A's rows are contiguous."""
        return self.k.lhs == 1

    @property
    def lhs_by_steps(self) -> bool:
        """A task goes on in A by further steps of all of its rows, and not by further rows."""
        return not self.lhs_by_rows and self.inner_k_blocks > 1

    @property
    def rows_in_blocks(self) -> bool:
        """Tasks go through A by blocks of rows, which they pack or prefetch, whose windows overlap, or row by row."""
        prefetched = self.prefetch_lhs and not self.lhs_by_steps
        return self.lhs != "unpacked" or self.window_runs.longest > 0 or prefetched or self.mc < self.mt

    @property
    def row_by_row(self) -> bool:
        """Rows of a register block go through all columns before the next ones do: C is written from end to end."""
        return self.n.size <= (self.block_columns if self.mc <= self.mr else self.nr)

    @property
    def m_tasks(self) -> int:
        """Tasks along m."""
        return -(-self.m.size // self.mt)

    @property
    def n_tasks(self) -> int:
        """Tasks along n in a round."""
        return -(-min(self.nc, self.n.size) // self.nt)

    @property
    def rounds(self) -> int:
        """Rounds, each over nc columns."""
        return -(-self.n.size // self.nc)

    @property
    def inner_k_blocks(self) -> int:
        """Blocks of kc along k."""
        return -(-self.k.size // self.kc)

    @functools.cached_property
    def k_blocks(self) -> int:
        """Blocks of the whole sum."""
        return extent(self.k_outer) * self.inner_k_blocks

    @property
    def blocks_per_split(self) -> int:
        """Blocks of the sum that one task makes."""
        return -(-self.k_blocks // self.split_k)

    @functools.cached_property
    def outer_elements(self) -> int:
        """Elements of the outer axes."""
        return extent(self.outer)

    @functools.cached_property
    def sum_steps(self) -> int:
        """Steps of the whole sum."""
        return self.k.size * extent(self.k_outer)

    @property
    def outer_tasks(self) -> int:
        """Tasks along the outer axes."""
        return -(-self.outer_elements // self.outer_per_task)

    @functools.cached_property
    def tasks(self) -> dict[str, int]:
        """Phases in order, and how many tasks each has in a round."""
        phases = {"compute": self.split_k * self.outer_tasks * self.m_tasks * self.n_tasks}
        if self.rhs == "per_round":
            phases = {"pack": -(-self._columns(self.nc) // (self.pack_panels * self.nr)), **phases}
        if self.split_k > 1:
            phases["reduce"] = -(-self.outer_elements * self.m.size // self.reduced_rows)
        return phases

    @property
    def reduced_rows(self) -> int:
        """Rows of C that a task of the reducing phase adds up."""
        return max(1, REDUCED_PER_TASK // self.n.size)

    @property
    def results(self) -> int:
        """Elements of C."""
        b, m, n, _ = self.dot.sizes
        return b * m * n

    @property
    def prefetches_rhs(self) -> bool:
        """The next panel of B is prefetched while microkernels read one."""
        if self.inner_product:
            return False
        if self.rhs == "per_task":
            return self.overlap_packing or self.block_columns < self.nt
        return self.rhs == "panels" or (self.rhs == "unpacked" and (self.prefetch_rhs or self.streamed))

    @property
    def prefetch_distance(self) -> int:
        """How far ahead of a row of packed weights another one is prefetched.

        Panels follow one another: it is the next panel's while several panels of rows go through this one, and else one
        so far away that it is there in time.
        """
        panels = self.dot.panels
        return panels.rows if panels and self.mt > self.mr else self.prefetch_rows

    @property
    def has_partial(self) -> bool:
        """Sums stand in scratch between blocks of k, as C's type is too narrow for them."""
        narrow = self.dot.out != self.instruction.acc or self.dot.epilogue is not None
        return self.k_blocks > 1 and self.split_k == 1 and narrow and not (self.channelwise or self.placewise)

    def rounded_up(self, depth: int) -> int:
        """Steps of k in whole instructions."""
        steps = self.instruction.shape[2]
        return -(-depth // steps) * steps

    @property
    def packs_rhs(self) -> bool:
        """B is packed, by each task or in a phase before."""
        return self.rhs in ("per_task", "per_round")

    @property
    def reads_panels(self) -> bool:
        """Microkernels find B as the instruction wants it: in panels of its type."""
        return self.packs_rhs or (self.rhs == "panels" and self.instruction.rhs == self.dot.rhs)

    @property
    def terms(self) -> tuple[tuple[int, int], ...]:
        """How far behind bf16 split 0, in elements, those of A and B stand whose products are added up, in order."""
        if not self.dot.algorithm:
            return ((0, 0),)
        lhs = self.scratch.lhs_split_stride * (self.lhs_panel if self.lhs == "columns" else 1)
        return tuple((i * lhs, j * self.scratch.rhs_split_stride * self.nr) for i, j in self.dot.algorithm.terms)

    @functools.cached_property
    def scratch(self) -> Scratch:
        """Its memory map."""
        return Scratch(self)

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return self.scratch.local_bytes

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see."""
        return self.scratch.shared_bytes

    def _columns(self, columns: int) -> int:
        return min(columns, -(-self.n.size // self.nr) * self.nr)


_FIELDS = tuple(each.name for each in fields(Plan))
