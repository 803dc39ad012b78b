"""How to compute a product: a Plan, and the choice of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jax_nano import model
from jax_nano.isa import DotInstruction, Isa, Machine
from jax_nano.problem import Axis, Dot, UnsupportedDot, bytes_of, extent

ONE = Axis(size=1)
LINE_BYTES = 64


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
    k_outer: tuple[Axis, ...] = ()  # the k blocks of each element of them follow one another
    mr: int
    nr: int
    hold_lhs: bool = False
    unroll: int = 1
    mc: int
    kc: int
    nc: int  # columns in a round
    mt: int  # rows in a task
    nt: int  # columns in a task
    lhs: str = "direct"  # or "rows", "columns": packed per task
    rhs: str = "direct"  # or "private": packed per task; or "shared": packed in a phase before
    pack_panels: int = 1  # panels in a task of the packing phase
    why: str = field(default="", compare=False)

    def __post_init__(self):
        for name, value, step, size in (
            ("mc", self.mc, self.mr, self.m.size), ("mt", self.mt, self.mc, self.m.size),
            ("nt", self.nt, self.nr, 0), ("nc", self.nc, self.nr, 0), ("kc", self.kc, self.unroll, self.k.size),
        ):  # fmt: skip
            if value % step and (size == 0 or value < size):
                raise ValueError(f"{name} = {value} is not a multiple of {step}: panels would overlap")

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
    def tasks(self) -> dict[str, int]:
        """Phases in order, and how many tasks each has in a round."""
        compute = extent(self.outer) * self.m_tasks * self.n_tasks
        if self.rhs != "shared":
            return {"compute": compute}
        return {"pack": -(-self._columns(self.nc) // (self.pack_panels * self.nr)), "compute": compute}

    @property
    def lhs_stride(self) -> int:
        """Elements between packed rows of A (by rows), or rows of a panel times its width over that width (by columns)."""
        line = LINE_BYTES // bytes_of(self.dot.lhs)
        return self.kc if self.lhs == "columns" else -(-self.kc // line) * line + line

    @property
    def local_rhs_at(self) -> int:
        """Where B's block begins in a thread's scratch, bytes: behind A's."""
        return 0 if self.lhs == "direct" else lines(bytes_of(self.dot.lhs, self.mc * self.lhs_stride))

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return self.local_rhs_at + (lines(bytes_of(self.dot.rhs, self.kc * self.nt)) if self.rhs == "private" else 0)

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see."""
        return lines(bytes_of(self.dot.rhs, self.k.size * self.nc)) if self.rhs == "shared" else 0

    def _columns(self, columns: int) -> int:
        return min(columns, -(-self.n.size // self.nr) * self.nr)


def lines(size: int) -> int:
    """Bytes rounded up to whole cache lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES


def instruction_for(isa: Isa, dot: Dot) -> DotInstruction:
    """The instruction set's instruction for the types of a product.

    Raises:
      UnsupportedDot: it has none.
    """
    for instruction in isa.dots:
        if (instruction.lhs, instruction.rhs, instruction.acc) == (dot.lhs, dot.rhs, dot.acc):
            return instruction
    raise UnsupportedDot(f"{isa.name} has no instruction that multiplies {dot.lhs} by {dot.rhs} into {dot.acc}")


def choose(dot: Dot, machine: Machine, isa: Isa) -> Plan:
    """The plan for a product."""
    core = machine.cores[isa.name]
    swapped = not dot.n and bool(dot.m)
    work = dot.swapped() if swapped else dot
    instruction = instruction_for(isa, work)
    m = max(work.m, key=lambda axis: axis.size, default=ONE)
    n = work.n[-1] if work.n else ONE
    if not work.n:
        n = replace(ONE, out=1, rhs=1)
    k = max(work.k, key=lambda axis: axis.size, default=ONE)
    outer = work.b + tuple(a for a in work.m if a is not m) + tuple(a for a in work.n if a is not n)
    block = model.register_block(isa, core, instruction, m.size, n.size, k.size)
    mr, nr = block.rows, block.cols
    cols = -(-n.size // nr) * nr
    flops = 2 * m.size * n.size * k.size * extent(outer)
    plan = Plan(
        dot=work, swapped=swapped, isa=isa.name, instruction=instruction, m=m, n=n, k=k, outer=outer, k_outer=tuple(a for a in work.k if a is not k),
        mr=mr, nr=nr, hold_lhs=block.hold_lhs, unroll=max(1, min(4, 32 * 16 // (mr * nr), k.size)),
        mc=m.size, kc=k.size, nc=cols, mt=m.size, nt=cols,
    )
    if n.rhs != 1 or (m.size > 64 and k.size>64):
        plan = replace(plan, rhs="private")
    if flops > 2e6:
        plan = replace(plan, nt=min(cols, -(-cols // nr // machine.threads) * nr))
    return plan
