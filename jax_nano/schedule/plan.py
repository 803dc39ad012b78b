"""Plan: how to compute a product on one target."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jax_nano.ir.dot import Axis, Dot, extent
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import DotInstruction

LINE_BYTES = 64
REDUCED_PER_TASK = 1 << 14  # elements of C: enough to outweigh the handing out of a task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that shapes the code of one product on one target, and nothing else.

    Sizes are in elements. The microkernel's loops run over `m`, `n` and `k`; the other axes are `outer` (a task has
    one element of them) and `k_outer`.
    """

    dot: Dot  # as computed: with the operands exchanged where `swapped`
    swapped: bool
    isa: str
    instruction: DotInstruction
    m: Axis
    n: Axis
    k: Axis
    outer: tuple[Axis, ...] = ()
    outer_per_task: int = 1  # elements of them that a task computes
    k_outer: tuple[Axis, ...] = ()  # the k blocks of each element of them follow one another
    mr: int
    nr: int
    lhs_stationary: bool = False
    unroll: int = 1
    accumulator_chains: int = 1  # sums side by side for an element of C, of every so many-th step, that are added up
    mc: int
    kc: int
    nc: int  # columns in a round
    mt: int  # rows in a task
    nt: int  # columns in a task
    nb: int = 0  # columns of B that a task packs at a time; 0: all of its own
    lhs: str = "unpacked"  # or "rows", "columns": packed per task
    rhs: str = (
        "unpacked"  # or "per_task": packed per task, "per_round": in a phase before; "panels": as dot.panels says
    )
    overlap_packing: bool = False  # panels of B are packed one by one, each beside the products of the one before
    inner_product: bool = False  # parts of one sum stand in the lanes of an accumulator, not columns of C
    split_k: int = 1  # parts of the sum that different tasks make, and a phase of its own adds up in order
    pack_panels: int = 1  # panels in a task of the packing phase
    prefetch_lhs: bool = (
        False  # A comes from beyond a core's own caches, and is asked for by blocks of rows or of steps
    )
    prefetch_rhs: bool = False  # B, read in place, comes from there
    streamed: bool = False  # B, read in place, is asked for in the order in which its rows lie in memory
    prefetch_rows: int = 0  # of a panel of packed weights, that are there in time where they are asked for
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)  # by the cost model, on all threads

    def __post_init__(self):
        for name, value, step, size in (
            ("mc", self.mc, self.lhs_panel, self.m.size), ("mt", self.mt, self.mc, self.m.size),
            ("nt", self.nt, self.nb or self.nr, 0), ("nb", self.nb, self.nr, 0),
            ("nc", self.nc, self.nr, 0), ("kc", self.kc, self.k_multiple, self.k.size),
        ):  # fmt: skip
            if value % step and (size == 0 or value < size):
                raise ValueError(f"{name} = {value} is not a multiple of {step}: panels would overlap")
        if self.dot.prologue and self.lhs == "unpacked":
            raise ValueError("a prologue is done while A is packed: A cannot be read in place")
        if self.dot.panels and self.unroll * self.instruction.vnni % self.dot.panels.vnni:
            raise ValueError(f"iterations of {self.step} steps end within {self.dot.panels.vnni} interleaved rows")
        if self.split_k > 1 and (
            self.rhs == "per_round" or self.split_k * self.blocks_per_split - self.k_blocks >= self.blocks_per_split
        ):
            raise ValueError(f"{self.split_k} splits of {self.k_blocks} blocks: one would be empty, or B is shared")
        as_it_lies = self.lhs == "unpacked" or (self.lhs == "columns" and not self.lhs_by_rows)
        if self.prefetch_lhs and (not as_it_lies or self.inner_product or self.nb):
            raise ValueError("A is asked for where it is read in place or packed out of columns, all of B at once")
        whole = self.mc >= self.mt and self.k.size % self.instruction.shape[2] == 0
        if self.overlap_packing and (self.rhs != "per_task" or self.nb or not whole):
            raise ValueError("panels of B are packed beside products by each task, once for its rows, in whole steps")

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
        """What every block of k but the last is a multiple of, so that only the last one leaves a rest.

        Microkernels go by whole iterations, packing by whole registers.
        """
        packed = self.lhs != "unpacked" or self.rhs != "unpacked"
        return math.lcm(self.step, self.instruction.shape[1] * self.instruction.vnni if packed else 1)

    @property
    def lhs_by_rows(self) -> bool:
        """Whether A's rows are contiguous."""
        return self.k.lhs == 1

    @property
    def lhs_by_steps(self) -> bool:
        """Whether what comes next of A is further steps of all of a task's rows, and not further rows."""
        return not self.lhs_by_rows and self.inner_k_blocks > 1

    @property
    def rows_in_blocks(self) -> bool:
        """Whether tasks go through A by blocks of rows, which they pack or ask for."""
        return self.lhs != "unpacked" or (self.prefetch_lhs and not self.lhs_by_steps)

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

    @property
    def k_blocks(self) -> int:
        """Blocks of the whole sum."""
        return extent(self.k_outer) * self.inner_k_blocks

    @property
    def blocks_per_split(self) -> int:
        """Blocks of the sum that one task makes."""
        return -(-self.k_blocks // self.split_k)

    @property
    def outer_tasks(self) -> int:
        """Tasks along the outer axes."""
        return -(-extent(self.outer) // self.outer_per_task)

    @property
    def tasks(self) -> dict[str, int]:
        """Phases in order, and how many tasks each has in a round."""
        phases = {"compute": self.split_k * self.outer_tasks * self.m_tasks * self.n_tasks}
        if self.rhs == "per_round":
            phases = {"pack": -(-self._columns(self.nc) // (self.pack_panels * self.nr)), **phases}
        if self.split_k > 1:
            phases["reduce"] = -(-extent(self.outer) * self.m.size // self.reduced_rows)
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
        """Whether what comes next of B is asked for while a panel of it is gone through."""
        if self.inner_product:
            return False
        if self.rhs == "per_task":
            return self.overlap_packing or self.block_columns < self.nt
        return self.rhs == "panels" or (self.rhs == "unpacked" and (self.prefetch_rhs or self.streamed))

    @property
    def prefetch_distance(self) -> int:
        """How far ahead of a row of packed weights another one is asked for.

        Panels follow one another: it is the next panel's while several panels of rows go through this one, and else one
        so far away that it is there in time.
        """
        panels = self.dot.panels
        return panels.rows if panels and self.mt > self.mr else self.prefetch_rows

    @property
    def has_partial(self) -> bool:
        """Whether sums stand in scratch between parts, as C's type is too narrow for them."""
        narrow = self.dot.out != self.instruction.acc or self.dot.epilogue is not None
        return self.k_blocks > 1 and self.split_k == 1 and narrow

    def rounded_up(self, depth: int) -> int:
        """Steps of k in whole instructions."""
        steps = self.instruction.shape[2]
        return -(-depth // steps) * steps

    @property
    def packs_rhs(self) -> bool:
        """Whether tasks pack B."""
        return self.rhs in ("per_task", "per_round")

    @property
    def reads_panels(self) -> bool:
        """Whether microkernels find B as the instruction wants it: in panels of its type."""
        return self.packs_rhs or (self.rhs == "panels" and self.instruction.rhs == self.dot.rhs)

    def panel_rows(self, depth: int) -> int:
        """Elements of a packed panel of B over its width.

        Those are the steps of each component, and one group of starting values where A is moved. With K along the
        lanes, a panel is a column, in whole registers.
        """
        if self.inner_product:
            register = self.instruction.shape[1] * self.instruction.vnni
            return apart(-(-depth // register) * register, self.instruction.rhs)
        steps = self.dot.bf16_splits[1] * self.rounded_up(depth)
        return steps + (self.instruction.vnni if self.instruction.lhs_offset else 0)

    @property
    def rhs_component_stride(self) -> int:
        """Elements between components of B in a packed panel, over its width."""
        return self.rounded_up(self.k.size if self.rhs == "per_round" else self.kc)

    @property
    def lhs_component_stride(self) -> int:
        """Elements between components of A, in packed rows; in packed panels, elements over their rows."""
        line = LINE_BYTES // bytes_of(self.instruction.lhs)
        depth = self.rounded_up(self.kc)
        return depth if self.lhs == "columns" else -(-depth // line) * line

    @property
    def lhs_stride(self) -> int:
        """Elements between packed rows of A; of packed panels, elements over their rows."""
        stride = self.dot.bf16_splits[0] * self.lhs_component_stride
        return stride if self.lhs == "columns" else apart(stride, self.instruction.lhs)

    @property
    def terms(self) -> tuple[tuple[int, int], ...]:
        """How far behind component 0, in elements, those of A and B stand whose products are added up, in order."""
        if not self.dot.algorithm:
            return ((0, 0),)
        lhs = self.lhs_component_stride * (self.lhs_panel if self.lhs == "columns" else 1)
        return tuple((i * lhs, j * self.rhs_component_stride * self.nr) for i, j in self.dot.algorithm.terms)

    @property
    def local_lhs_rows(self) -> int:
        """Rows of a packed block of A, in whole panels."""
        return 0 if self.lhs == "unpacked" else -(-self.mc // self.lhs_panel) * self.lhs_panel

    @property
    def local_rhs_at(self) -> int:
        """Where B's block begins in a thread's scratch, bytes: behind A's."""
        return lines(bytes_of(self.instruction.lhs, self.local_lhs_rows * self.lhs_stride))

    @property
    def local_rhs_columns(self) -> int:
        """Columns of a thread's packed block of B: those of two panels that take turns, where they are interleaved."""
        if self.rhs != "per_task":
            return 0
        return 2 * self.nr if self.overlap_packing else self.block_columns

    @property
    def local_partial_at(self) -> int:
        """Where sums stand, bytes: behind B's block."""
        size = bytes_of(self.instruction.rhs, self.local_rhs_columns * self.panel_rows(self.kc))
        return self.local_rhs_at + lines(size)

    @property
    def local_tiles_at(self) -> int:
        """Where a block's tiles stand between registers of tiles and of vectors, bytes: behind the sums."""
        rows = -(-self.mt // self.mr) * self.mr  # whole tiles reach beyond the last row
        return self.local_partial_at + (bytes_of(self.instruction.acc, rows * self.nt) if self.has_partial else 0)

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return self.local_tiles_at + (
            bytes_of(self.instruction.acc, self.mr * self.nr) if self.instruction.tiles else 0
        )

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see."""
        if self.split_k > 1:
            return bytes_of(self.instruction.acc, self.split_k * self.results)
        return bytes_of(self.instruction.rhs, self.nc * self.panel_rows(self.k.size)) if self.rhs == "per_round" else 0

    def _columns(self, columns: int) -> int:
        return min(columns, -(-self.n.size // self.nr) * self.nr)


def lines(size: int) -> int:
    """Bytes rounded up to whole cache lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES


def apart(elements: int, dtype: str) -> int:
    """Elements from row to row, in an odd number of lines: so rows do not compete for the same ones."""
    line = LINE_BYTES // bytes_of(dtype)
    return (-(-elements // line) | 1) * line
