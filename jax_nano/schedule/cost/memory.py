"""Cores wait for caches and memory: misses, conflicts, bandwidth."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax_nano.ir.dot import Axis, Dot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Cache, Machine
from jax_nano.schedule.loop_nest import LoopNest
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.scratch import LINE_BYTES

# With so few rows of A, B is gone through as fast as it comes.
FEW_ROWS = 2


class UnpackedRhs(NamedTuple):
    """B that is read where it stands."""

    bytes: int = 0
    element_bytes: float = 0
    stride_bytes: int = 0  # from row to row
    prefetched: bool = False  # from beyond a core's own caches, while all rows go through the panel before

    @classmethod
    def of(cls, nest: LoopNest | Plan, *, prefetched: bool) -> UnpackedRhs:
        """The B of a product."""
        dtype, n, k = nest.dot.rhs, nest.n, nest.k
        return cls(bytes_of(dtype, k.size * n.size), bytes_of(dtype, 8) / 8, bytes_of(dtype, k.rhs), prefetched)


PACKED = UnpackedRhs()  # B that is not


def fits(cache: Cache, pieces: int, piece_bytes: int, stride_bytes: int) -> bool:
    """A cache holds `pieces` runs of bytes, a stride apart, together.

    Strides that share a large power of two with the size of a way leave most of the cache's sets unused.
    """
    piece = max(piece_bytes, LINE_BYTES)
    places = max(1, cache.way_bytes // max(math.gcd(stride_bytes, cache.way_bytes), piece))
    return pieces * piece <= cache.bytes and pieces <= places * cache.ways


def misses(machine: Machine, pieces: int, piece_bytes: int, stride_bytes: int) -> float:
    """Cycles of waiting for one of some runs of bytes, a stride apart, that are gone through again and again."""
    fitted = machine.fitted
    if fits(machine.l1, pieces, piece_bytes, stride_bytes):
        return 0.0
    lines = piece_bytes / LINE_BYTES
    if fits(machine.l2, math.ceil(pieces / fitted.resident_share), piece_bytes, stride_bytes):
        return max(fitted.l2_run_cycles, lines * (fitted.l2_line_share if stride_bytes < machine.page_bytes else 1))
    return max(2 * lines, fitted.far_run_cycles)


def lhs_stalls(plan: Plan, machine: Machine, rows: int) -> float:
    """Cycles that a step of k waits for lines of A that strides have pushed out of the nearest caches."""
    if plan.lhs != "unpacked":
        return 0.0
    stride = bytes_of(plan.dot.lhs, plan.m.lhs)
    if plan.instruction.tiles:  # which take whole lines at once
        conflicts = not fits(machine.l1, plan.instruction.shape[0], LINE_BYTES, stride)
        waits = machine.fitted.tile_conflict_cycles * rows * conflicts
    else:
        waits = conflict_miss_cycles(machine, rows, stride)
    if plan.k.lhs != 1 and plan.m.size > plan.mr:
        waits += misses(machine, plan.kc, bytes_of(plan.dot.lhs, plan.mr), bytes_of(plan.dot.lhs, plan.k.lhs))
    return waits


def conflict_miss_cycles(machine: Machine, rows: int, stride_bytes: int) -> float:
    """Cycles that a step of k waits, as L1 misses on elements of so many rows of A whose addresses conflict."""
    if rows == 1 or stride_bytes == 0 or fits(machine.l1, rows + 2, LINE_BYTES, stride_bytes):
        return 0.0
    return machine.fitted.conflict_miss_cycles * rows


def rhs_stalls(machine: Machine, rhs: UnpackedRhs, rows: int, row_bytes: int, *, again: bool) -> float:
    """Cycles that a step of k waits for its row of an unpacked B, one of `rows` that are in hand.

    Args:
      machine: the processor.
      rhs: B.
      rows: steps of k in a block.
      row_bytes: of a microkernel's columns.
      again: whether further rows of A go through them.
    """
    if not rhs.bytes:
        return 0.0
    l1 = machine.l1
    if rhs.prefetched and rhs.stride_bytes % l1.way_bytes == 0 and rows > l1.ways:
        return machine.fitted.aliasing_4k_cycles
    return misses(machine, rows, row_bytes, rhs.stride_bytes) if again else 0.0


def fetch_cycles(machine: Machine, held_bytes: int, step_bytes: float) -> float:
    """Cycles that a step of k takes to bring `step_bytes` of B, out of `held_bytes` that are gone through in turn."""
    fitted = machine.fitted
    for cache, bytes_per_cycle in zip(machine.caches[:-1], (math.inf, machine.l2_bytes_per_cycle), strict=False):
        if held_bytes <= cache.bytes * fitted.resident_share:
            return step_bytes / bytes_per_cycle
    far = held_bytes > machine.llc.bytes
    bandwidth = machine.memory_gb_per_s[0] * fitted.memory_share if far else machine.l3_gb_per_s
    return step_bytes * machine.ghz / bandwidth


def stream_cycles(machine: Machine, held_bytes: int, piece: tuple[int, float], m: int) -> float:
    """Cycles that a step takes to bring a piece of B, which is read where it stands and prefetched.

    Args:
      machine: the processor.
      held_bytes: of all of B.
      piece: how many runs of bytes, and how long each is.
      m: rows of A.
    """
    if held_bytes <= machine.l2.bytes:
        return 0.0
    runs, run_bytes = piece
    run_bytes = max(run_bytes, LINE_BYTES) + (machine.fitted.row_change_bytes if m <= FEW_ROWS else 0)
    return runs * run_bytes * stream_rate(machine, held_bytes, machine.fitted.rhs_evicted_share)


def stream_rate(machine: Machine, held_bytes: int, evicted_share: float = 0.0) -> float:
    """Cycles for a byte of what is prefetched; of `held_bytes` that fit the LLC, a share may have been evicted."""
    share = 1.0 if held_bytes > machine.llc.bytes * machine.fitted.resident_share else evicted_share
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
    return max(machine.fitted.out_row_cycles, machine.fitted.out_conflict_cycles / places)


def lost_out_cycles(plan: Plan, machine: Machine, cols: int) -> float:
    """Cycles that a row of a block of C waits for its lines, where a task writes more pages in turn than are followed.

    With every panel of columns, microkernels write all rows of a block of A anew; of one panel, each page once.
    """
    if plan.n.size <= plan.nr:
        return 0.0
    pages = min(plan.mc, plan.m.size) * min(1.0, bytes_of(plan.dot.out, plan.m.out) / machine.page_bytes)
    share = lost_share(machine, pages)
    if not share or 2 * bytes_of(plan.dot.out, plan.results) <= machine.l2.bytes:
        return 0.0
    fitted, lines = machine.fitted, bytes_of(plan.dot.out, cols) / LINE_BYTES
    return share * (fitted.lost_run_cycles + fitted.lost_line_cycles * lines)


def lost_share(machine: Machine, pages: float) -> float:
    """The share of runs of bytes that come late, of those on so many pages that are gone through in turn."""
    return min(1.0, max(0.0, 1.5 * pages / machine.fitted.followed_pages - 1))


def lhs_refetch_cycles(plan: Plan, machine: Machine, tall: int) -> float:
    """Cycles that a step of k takes to bring its tiles of A again, or rows that were packed out of windows.

    Of other vectors, rows are too few to count.
    """
    if not plan.instruction.tiles and not plan.dot.has_window("lhs"):
        return 0.0
    rows, _, depth = plan.instruction.shape
    if plan.window_runs.longest:
        block = bytes_of(plan.dot.lhs, plan.dot.lhs_elements * min(plan.mc, plan.m.size) // plan.m.size)
    else:
        block = bytes_of(plan.instruction.lhs, min(plan.mc, plan.m.size) * plan.kc * plan.dot.bf16_splits[0])
    return fetch_cycles(machine, block, bytes_of(plan.instruction.lhs, tall * rows * depth))


def rhs_block_bytes(plan: Plan) -> int:
    """Bytes of B that a task goes through for every block of A."""
    dtype = plan.instruction.rhs if plan.packs_rhs else plan.dot.rhs
    if not plan.packs_rhs:
        return bytes_of(dtype, plan.n.size * plan.k.size)
    columns = plan.scratch.rhs_columns or plan.nc  # what others packed is not in this core's caches
    return bytes_of(dtype, min(columns, plan.n.size) * plan.kc * plan.dot.bf16_splits[1])


def lhs_wait_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of waiting for A, beside products, where it is unpacked or prefetched.

    An unpacked A comes by as many runs side by side as a block has rows.
    """
    fitted, dtype = machine.fitted, plan.dot.lhs
    size = plan.m.size * plan.sum_steps * plan.outer_elements
    if prefetched_in_time(plan, machine):
        rows = plan.mt if plan.lhs_by_steps else plan.mc
        more = 0.0 if plan.lhs_by_rows else fitted.stream_overhead_bytes / bytes_of(dtype, rows)
        return (1 + more) * bytes_of(dtype, size) * stream_rate(machine, plan.dot.bytes)
    if plan.lhs != "unpacked":
        return 0.0
    if plan.window_runs.longest:  # runs that overlap are fetched once
        size = min(size, plan.dot.lhs_elements)
    waiting = fitted.unpacked_lhs_wait * line_count(size, dtype) * line_fetch_cycles(plan, machine)
    if plan.k.lhs == 1:
        return waiting
    stride, run = bytes_of(dtype, plan.k.lhs), bytes_of(dtype, plan.mr)
    followed = stride < machine.page_bytes or run >= 2 * LINE_BYTES
    return waiting * (fitted.followed_lhs_wait_share if followed else 1 + fitted.run_overhead_bytes / run)


def prefetched_in_time(plan: Plan, machine: Machine) -> bool:
    """A is prefetched and stays in L2 until it is read: of columns, those in hand and the next."""
    if not plan.prefetch_lhs or plan.lhs_by_rows:
        return plan.prefetch_lhs
    columns, rows = (2 * plan.kc, plan.mt) if plan.lhs_by_steps else (plan.kc, 2 * plan.mc)
    run, stride = bytes_of(plan.dot.lhs, min(rows, plan.m.size)), bytes_of(plan.dot.lhs, plan.k.lhs)
    return fits(machine.l2, columns, run, stride)


def line_fetch_cycles(plan: Plan, machine: Machine, evicted_share: float = 0.0) -> float:
    """Cycles until a line of an operand is there, for packing, which does nothing else meanwhile.

    Of an operand that fits the LLC, a share may have been evicted.
    """
    size, fitted = plan.dot.bytes, machine.fitted
    if size <= machine.l2.bytes:
        return 0.0
    share = 1.0 if size > machine.llc.bytes else evicted_share
    per_gb = share / (machine.memory_gb_per_s[0] * fitted.memory_share) + (1 - share) / machine.l3_gb_per_s
    return LINE_BYTES * per_gb * machine.ghz / fitted.packing_bandwidth_share


def memory_seconds(plan: Plan, machine: Machine, workers: int) -> float:
    """How long the arrays take on their way to the cores: each task along m reads B again, each along n reads A.

    A result that leaves the caches goes to memory, and takes longer where it is written by pieces of many rows.
    """
    size = plan.dot.bytes
    again = (plan.m_tasks - 1) * (plan.rhs != "per_round") * bytes_of(plan.dot.rhs, plan.dot.rhs_elements)
    again += (plan.n_tasks * plan.rounds - 1) * bytes_of(plan.dot.lhs, plan.dot.lhs_elements)
    inner = sum(cache.bytes * (1 if cache.shared else workers) for cache in machine.caches[:-1])
    if size <= inner:
        return 0.0
    one, every = machine.memory_gb_per_s
    from_memory, from_cache = 1e9 * min(one * workers, every), 1e9 * machine.l3_gb_per_s * workers
    out = bytes_of(plan.dot.out, plan.results) if result_leaves(plan.dot, machine) else 0
    pieces = 0.0 if plan.row_by_row else machine.fitted.far_pieces_share * out / from_memory
    if size <= machine.llc.bytes:
        return (size - out + again) / from_cache + out / from_memory + pieces
    return (size + again) / from_memory + pieces


def result_leaves(dot: Dot, machine: Machine) -> bool:
    """A result leaves the caches: the LLC does not hold it beside the one before, which callers keep until then."""
    return 2 * bytes_of(dot.out, math.prod(dot.sizes[:3])) > machine.llc.bytes


def line_count(count: int, dtype: str) -> float:
    """Cache lines of packed elements."""
    return bytes_of(dtype, count) / LINE_BYTES
