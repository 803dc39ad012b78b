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
            ("nt", self.nt, self.nr, 0), ("nc", self.nc, self.nr, 0), ("kc", self.kc, self.step, self.k.size),
        ):  # fmt: skip
            if value % step and (size == 0 or value < size):
                raise ValueError(f"{name} = {value} is not a multiple of {step}: panels would overlap")

    @property
    def step(self) -> int:
        """Steps of k in an iteration of the microkernel."""
        return self.unroll * self.instruction.shape[2]

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
    def has_partial(self) -> bool:
        """Whether sums stand in scratch between parts, as C's type is too narrow for them."""
        return self.k_blocks > 1 and self.dot.out != self.instruction.acc

    def rounded_up(self, depth: int) -> int:
        """Steps of k in whole groups."""
        group = self.instruction.shape[2]
        return -(-depth // group) * group

    def panel_rows(self, depth: int) -> int:
        """Elements of a packed panel of B over its width: its steps, and one group of starting values where A is moved."""
        return self.rounded_up(depth) + (self.instruction.shape[2] if self.instruction.lhs_offset else 0)

    @property
    def lhs_stride(self) -> int:
        """Elements between packed rows of A; of packed panels, elements over their rows."""
        line = LINE_BYTES // bytes_of(self.instruction.lhs)
        depth = self.rounded_up(self.kc)
        return depth if self.lhs == "columns" else -(-depth // line) * line + line

    @property
    def local_lhs_rows(self) -> int:
        """Rows of a packed block of A, in whole panels."""
        return 0 if self.lhs == "direct" else -(-self.mc // self.mr) * self.mr

    @property
    def local_rhs_at(self) -> int:
        """Where B's block begins in a thread's scratch, bytes: behind A's."""
        return lines(bytes_of(self.instruction.lhs, self.local_lhs_rows * self.lhs_stride))

    @property
    def local_partial_at(self) -> int:
        """Where sums stand, bytes: behind B's block."""
        size = bytes_of(self.instruction.rhs, self.nt * self.panel_rows(self.kc)) if self.rhs == "private" else 0
        return self.local_rhs_at + lines(size)

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return self.local_partial_at + (bytes_of(self.instruction.acc, self.mt * self.nt) if self.has_partial else 0)

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see."""
        return bytes_of(self.instruction.rhs, self.nc * self.panel_rows(self.k.size)) if self.rhs == "shared" else 0

    def _columns(self, columns: int) -> int:
        return min(columns, -(-self.n.size // self.nr) * self.nr)


def lines(size: int) -> int:
    """Bytes rounded up to whole cache lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES


# What each type can be turned into without loss, on the way into an instruction.
WIDENS = {
    "f32": ("f32",),
    "f64": ("f64",),
    "bf16": ("bf16", "f32"),
    "f16": ("f32",),
    "s8": ("s8", "s16", "bf16", "f32"),
    "u8": ("u8", "s16", "bf16", "f32"),
}


def instructions_for(isa: Isa, dot: Dot) -> list[DotInstruction]:
    """The instruction set's instructions that can serve the types of a product.

    Raises:
      UnsupportedDot: it has none.
    """
    found = [i for i in isa.dots if i.lhs in WIDENS[dot.lhs] and i.rhs in WIDENS[dot.rhs] and i.acc == dot.acc]
    if not found:
        raise UnsupportedDot(f"{isa.name} has no instruction that multiplies {dot.lhs} by {dot.rhs} into {dot.acc}")
    return found


def choose(dot: Dot, machine: Machine, isa: Isa) -> Plan:
    """The plan for a product."""
    core = machine.cores[isa.name]
    swapped = not dot.n and bool(dot.m)
    work = dot.swapped() if swapped else dot
    instruction = min(instructions_for(isa, work), key=lambda i: 1 / (i.shape[2] * core.rate(i.name)[0]))
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
    group = instruction.shape[2]
    plan = Plan(
        dot=work, swapped=swapped, isa=isa.name, instruction=instruction, m=m, n=n, k=k, outer=outer,
        k_outer=tuple(a for a in work.k if a is not k),
        mr=mr, nr=nr, hold_lhs=block.hold_lhs, unroll=max(1, min(4, 32 * 16 // (mr * nr), k.size)),
        mc=m.size, kc=k.size, nc=cols, mt=m.size, nt=cols,
    )  # fmt: skip
    if n.rhs != 1 or (m.size > 64 and k.size > 64) or group > 1 or work.rhs != instruction.rhs:
        plan = replace(plan, rhs="private")
    if work.lhs != instruction.lhs or instruction.lhs_offset or (m.size > 512 and k.size > 512) or (group > 1 and k.lhs != 1):
        plan = replace(plan, lhs="rows" if k.lhs == 1 else "columns", mc=min(plan.mc, 8 * mr))
    if flops > 2e6:
        plan = replace(plan, nt=min(cols, -(-cols // nr // machine.threads) * nr))
    return plan
