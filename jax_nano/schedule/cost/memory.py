"""What memory and caches make cores wait for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax_nano.ir.dot import Axis, Dot, extent
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Cache, Machine
from jax_nano.schedule.plan import LINE_BYTES, Plan

# What a line of B takes that comes from the second cache and not the first, where prefetchers follow its strides.
FOLLOWED_MISS = 0.5
# What an element of A takes whose line other rows have pushed out since the last step.
THRASHED_CYCLES = 1.5
# What a row of B takes that shares its place in the nearest cache with all others.
ALIASED_CYCLES = 10
# The share of a B that would fit the last cache and yet comes from memory, as programs do other work in between.
PUSHED_OUT = 0.5
# What a run of bytes that neither of the nearest caches keeps takes, however short it is.
FAR_MISS_CYCLES = 3.5
# The share of a cache that a panel of B may fill and still be there when it is read again.
PANEL_SHARE = 0.67
# With so few rows of A, B is gone through as fast as it comes. Going over to its next row then costs as much time as
# reading so many bytes.
FEW_ROWS = 2
ROW_BYTES = 32
# The share of a core's bandwidth from memory that is left to it while others read too.
MEMORY_SHARE = 0.75
# How much longer the wait for A is where it is read in place than where it is copied.
IN_PLACE = 1.3
# The share of that wait that is left where strides are short or runs are not, which prefetchers follow.
FOLLOWED = 0.3
# The share of bandwidth that copying reaches, which waits for what it has not asked for ahead.
PACKING_RATE = 0.72
# What a row of a task's columns costs beside its own length where several are gone through side by side.
STREAM_BYTES = 128
# What a run of bytes that ends before a page does costs beside its own length: prefetchers begin again.
RUN_BYTES = 64


@dataclass(frozen=True)
class InPlace:
    """B that is read where it stands."""

    bytes: int = 0
    element_bytes: float = 0
    stride_bytes: int = 0  # from row to row
    far: bool = False  # beyond a core's own caches: what comes next is asked for while all rows go through a panel

    @classmethod
    def of(cls, dot: Dot, n: Axis, k: Axis, far: bool) -> InPlace:
        """The B of a product."""
        return cls(bytes_of(dot.rhs, k.size * n.size), bytes_of(dot.rhs, 8) / 8, bytes_of(dot.rhs, k.rhs), far)


PACKED = InPlace()  # B that is not


def fits(cache: Cache, pieces: int, piece_bytes: int, stride_bytes: int) -> bool:
    """Whether `pieces` runs of bytes, a stride apart, stay in a cache together.

    Strides that share a large power of two with the size of a way leave most of the cache's sets unused.
    """
    piece = max(piece_bytes, LINE_BYTES)
    places = max(1, cache.way_bytes // max(math.gcd(stride_bytes, cache.way_bytes), piece))
    return pieces * piece <= cache.bytes and pieces <= places * cache.ways


def misses(machine: Machine, pieces: int, piece_bytes: int, stride_bytes: int) -> float:
    """Cycles of waiting for one of some runs of bytes, a stride apart, that are gone through again and again."""
    if fits(machine.l1, pieces, piece_bytes, stride_bytes):
        return 0.0
    lines = piece_bytes / LINE_BYTES
    if fits(machine.l2, pieces, piece_bytes, stride_bytes):
        return lines * (FOLLOWED_MISS if stride_bytes < machine.page_bytes else 1)
    return max(2 * lines, FAR_MISS_CYCLES)


def lhs_stalls(plan: Plan, machine: Machine, rows: int) -> float:
    """Cycles that a step of k waits for lines of A that strides have pushed out of the nearest caches."""
    if plan.lhs != "unpacked":
        return 0.0
    by_elements = not plan.instruction.tiles  # tiles take whole lines at once
    waits = thrashed(machine, rows, bytes_of(plan.dot.lhs, plan.m.lhs)) if by_elements else 0.0
    if plan.k.lhs != 1 and plan.m.size > plan.mr:
        waits += misses(machine, plan.kc, bytes_of(plan.dot.lhs, plan.mr), bytes_of(plan.dot.lhs, plan.k.lhs))
    return waits


def thrashed(machine: Machine, rows: int, stride_bytes: int) -> float:
    """The same of elements of so many rows side by side."""
    near = rows == 1 or stride_bytes == 0 or fits(machine.l1, rows + 2, LINE_BYTES, stride_bytes)
    return 0.0 if near else THRASHED_CYCLES * rows


def rhs_stalls(machine: Machine, rhs: InPlace, rows: int, row_bytes: int, again: bool) -> float:
    """The same of one of `rows` rows of B in place, which rows of A may go through `again`."""
    if not rhs.bytes:
        return 0.0
    l1 = machine.l1
    if rhs.far and rhs.stride_bytes % l1.way_bytes == 0 and rows > l1.ways:
        return ALIASED_CYCLES
    return misses(machine, rows, row_bytes, rhs.stride_bytes) if again else 0.0


def fetch_cycles(machine: Machine, held_bytes: int, step_bytes: float) -> float:
    """Cycles that a step of k takes to bring `step_bytes` of B, out of `held_bytes` that are gone through in turn."""
    for cache, bytes_per_cycle in zip(machine.caches[:-1], (math.inf, machine.l2_bytes_per_cycle), strict=False):
        if held_bytes <= cache.bytes * PANEL_SHARE:
            return step_bytes / bytes_per_cycle
    far = held_bytes > machine.llc.bytes
    bandwidth = machine.memory_gb_per_s[0] * MEMORY_SHARE if far else machine.l3_gb_per_s
    return step_bytes * machine.ghz / bandwidth


def stream_cycles(machine: Machine, held_bytes: int, row_bytes: float, rows: int, m: int) -> float:
    """The same where B is read in place and asked for ahead, by pieces of `rows` of its rows, for `m` rows of A."""
    if held_bytes <= machine.l2.bytes:
        return 0.0
    row_bytes = max(row_bytes, LINE_BYTES) + (ROW_BYTES if m <= FEW_ROWS else 0)
    return rows * row_bytes * stream_rate(machine, held_bytes, PUSHED_OUT)


def stream_rate(machine: Machine, held_bytes: int, pushed_out: float = 0.0) -> float:
    """Cycles for a byte of what is asked for ahead; of `held_bytes` that fit the last cache, a share may have gone."""
    share = 1.0 if held_bytes > machine.llc.bytes * PANEL_SHARE else pushed_out
    from_memory, from_cache = machine.memory_gb_per_s[0] / machine.ghz, machine.l3_stream_bytes_per_cycle
    return share / from_memory + (1 - share) / from_cache


def run_cycles(machine: Machine, dot: Dot, m: Axis) -> float:
    """Cycles from a row of C that is stored to the next.

    Rows whose stride shares a large power of two with the size of a way push each other out of the caches.
    """
    _, rows, cols, _ = dot.sizes
    l1 = machine.l1
    if m.size == 1 or bytes_of(dot.out, rows * cols) <= l1.bytes:
        return 0.0
    places = l1.way_bytes // math.gcd(bytes_of(dot.out, m.out), l1.way_bytes)
    return max(machine.row_cycles, machine.conflict_cycles / places)


def lhs_refetch_cycles(plan: Plan, machine: Machine, tall: int) -> float:
    """Cycles that a step of k takes to bring its tiles of A again; rows of vectors are too few to count."""
    if not plan.instruction.tiles:
        return 0.0
    rows, _, depth = plan.instruction.shape
    block = bytes_of(plan.instruction.lhs, min(plan.mc, plan.m.size) * plan.kc * plan.dot.bf16_splits[0])
    return fetch_cycles(machine, block, bytes_of(plan.instruction.lhs, tall * rows * depth))


def rhs_block_bytes(plan: Plan) -> int:
    """Bytes of B that a task goes through for every block of A."""
    dtype = plan.instruction.rhs if plan.packs_rhs else plan.dot.rhs
    if not plan.packs_rhs:
        return bytes_of(dtype, plan.n.size * plan.k.size)
    columns = plan.local_rhs_columns or plan.nc  # what others packed is not in this core's caches
    return bytes_of(dtype, min(columns, plan.n.size) * plan.kc * plan.dot.bf16_splits[1])


def lhs_wait_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of waiting for A, beside products, where they read it in place or it was asked for meanwhile.

    In place it comes by as many runs side by side as a block has rows.
    """
    size = plan.m.size * plan.k.size * extent(plan.k_outer) * extent(plan.outer)
    if asked_in_time(plan, machine):
        rows = plan.mt if plan.lhs_by_steps else plan.mc
        beside = 0.0 if plan.lhs_by_rows else STREAM_BYTES / bytes_of(plan.dot.lhs, rows)
        return (1 + beside) * bytes_of(plan.dot.lhs, size) * stream_rate(machine, footprint(plan))
    if plan.lhs != "unpacked":
        return 0.0
    waiting = IN_PLACE * lines(size, plan.dot.lhs) * line_fetch_cycles(plan, machine)
    if plan.k.lhs == 1:
        return waiting
    stride, run = bytes_of(plan.dot.lhs, plan.k.lhs), bytes_of(plan.dot.lhs, plan.mr)
    followed = stride < machine.page_bytes or run >= 2 * LINE_BYTES
    return waiting * (FOLLOWED if followed else 1 + RUN_BYTES / run)


def asked_in_time(plan: Plan, machine: Machine) -> bool:
    """Whether A is asked for ahead and stays near a core until it is read: of columns, those in hand and the next."""
    if not plan.prefetch_lhs or plan.lhs_by_rows:
        return plan.prefetch_lhs
    columns, rows = (2 * plan.kc, plan.mt) if plan.lhs_by_steps else (plan.kc, 2 * plan.mc)
    run, stride = bytes_of(plan.dot.lhs, min(rows, plan.m.size)), bytes_of(plan.dot.lhs, plan.k.lhs)
    return fits(machine.l2, columns, run, stride)


def line_fetch_cycles(plan: Plan, machine: Machine, pushed_out: float = 0.0) -> float:
    """Cycles until a line of an operand is there, for packing, which does nothing else meanwhile.

    Of an operand that fits the last cache, a share may have been pushed out.
    """
    size = footprint(plan)
    if size <= machine.l2.bytes:
        return 0.0
    share = 1.0 if size > machine.llc.bytes else pushed_out
    per_gb = share / (machine.memory_gb_per_s[0] * MEMORY_SHARE) + (1 - share) / machine.l3_gb_per_s
    return LINE_BYTES * per_gb * machine.ghz / PACKING_RATE


def memory_seconds(plan: Plan, machine: Machine, workers: int) -> float:
    """How long the arrays take on their way to the cores: each task along m reads B again, each along n reads A."""
    size = footprint(plan)
    b, m, n, k = plan.dot.sizes
    again = (plan.m_tasks - 1) * (plan.rhs != "per_round") * bytes_of(plan.dot.rhs, b * k * n)
    again += (plan.n_tasks * plan.rounds - 1) * bytes_of(plan.dot.lhs, b * m * k)
    inner = sum(cache.bytes * (1 if cache.shared else workers) for cache in machine.caches[:-1])
    if size <= inner:
        return 0.0
    one, every = machine.memory_gb_per_s
    if size <= machine.llc.bytes:
        return (size + again) / (machine.l3_gb_per_s * workers * 1e9)
    return (size + again) / (min(one * workers, every) * 1e9)


def footprint(plan: Plan) -> int:
    """Bytes of the operands and the result."""
    b, m, n, k = plan.dot.sizes
    return bytes_of(plan.dot.lhs, b * m * k) + bytes_of(plan.dot.rhs, b * k * n) + bytes_of(plan.dot.out, b * m * n)


def lines(count: int, dtype: str) -> float:
    """Cache lines of packed elements."""
    return bytes_of(dtype, count) / LINE_BYTES
