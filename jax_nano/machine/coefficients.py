"""Coefficients of the cost model that no vendor publishes: which there are, and how well each is known.

Their values are in fitted.py, by processor; tools/fit_cost_model.py writes them out of measured products.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a coefficient is known."""

    spread: float  # standard deviation of the coefficient, among fits to resampled products
    count: int  # of the measured products whose predicted times depend on it


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Coefficients of the cost model for one processor. A `_share` is one of 1."""

    processor: str  # on which they were measured, by LLVM's name

    # Microkernels.
    block_overhead_cycles: float  # branches, addresses and the drained pipeline between one microkernel and the next
    latency_slack: float  # over the latency of multiply-accumulates, in blocks that are bound by it
    load_exposed_share: float  # of a load's time, not hidden by other work: of equal blocks, fewer loads win
    port_conflict_share: float  # of other vector instructions, waited for by multiply-accumulates on the same ports
    overlap_exposed_share: float  # of the shorter of computing and fetching, not hidden by the longer one
    ragged_share: float  # what another kind of block at the ragged end costs, beside its own cycles

    # Caches.
    resident_share: float  # of a cache, that a panel of B may fill and still be there when it is read again
    l2_line_share: float  # of a cycle, that a line takes from L2 where prefetchers follow its strides
    l2_run_cycles: float  # of waiting for a run of bytes that L2 keeps and L1 does not, however short it is
    far_run_cycles: float  # of waiting for a run of bytes that neither L1 nor L2 keeps, however short it is
    tile_conflict_cycles: float  # for a row of a tile of A that others push out of L1
    conflict_miss_cycles: float  # for an element of A whose line other rows have pushed out since the last step
    aliasing_4k_cycles: float  # for a row of B that shares its set of L1 with all others
    out_row_cycles: float  # from a row of C that is stored to the next
    followed_pages: int  # that are written in turn and that prefetchers follow, or caches keep
    lost_run_cycles: float  # of waiting for a run of C's bytes on another page, however short it is
    lost_line_cycles: float  # and for each of its lines
    out_conflict_cycles: float  # from a row of C to the next, where all rows compete for the same lines

    # Memory.
    prefetch_bytes: int  # on their way from memory, where they come in time
    memory_share: float  # of a core's bandwidth from memory, left to it while others read too
    rhs_evicted_share: float  # of a B that would fit the LLC, evicted by other work between two products
    lhs_evicted_share: float  # of such an A, which was just made
    row_change_bytes: int  # as long as reading so many does it take to go over to the next row of a streamed B
    stream_overhead_bytes: int  # so does a row of a task's columns, where several are gone through side by side
    run_overhead_bytes: int  # so does a run that ends before a page does: prefetchers begin again
    unpacked_lhs_wait: float  # how much longer the wait for A is where it is unpacked than where it is copied
    followed_lhs_wait_share: float  # of that wait, left where strides are short or runs are not
    first_panel_wait_share: float  # of the time that a task's first panel of B takes to come, which nothing prefetches
    # Measured on Zen 5: 63 MB of f32 with K of 2 to 7, by blocks of 4 x 4 lines in both orders. Not known of Intel.
    far_pieces_share: float  # that a C beyond the LLC takes longer where it is written by pieces of many rows

    # Packing.
    packing_bandwidth_share: float  # of bandwidth, reached by copying, which waits for what it did not prefetch
    lost_fetch_cycles: float  # for a run of B on one of more pages than are followed
    overlapped_fetch: float  # times the wait for B, where packing is overlapped: it holds up products as well
    overlapped_work: float  # times the work of packing, where that is overlapped
    packing_exposed_share: float  # of fetching B for packing, left where it is prefetched
    lhs_prefetch_gap_share: float  # of the wait for a prefetched A, left as nothing prefetches while it is packed
    far_run_overhead_bytes: int  # as long as reading so many does a run take to begin where it comes from memory
    prefetched_run_share: float  # of that, left where the run is prefetched

    # Windows, on Zen 5: in place, 49 runs of 3 steps and 9 runs of 8 took as much; packed, with K of 9 taps x 64
    # channels, 9 x 64 two places apart, and 49 x 3 two apart, a register took 5.5, 10 and 22 cycles with its lines.
    window_run_cycles: float  # of finding a row's run, where windows are read in place
    window_placing_cycles: float  # of finding a run's place and masks, where they are packed

    # Windows that end with places, packed in panels or transposed before: 30 convolutions of f32 with 3 to 256 channels
    # on a thread of Zen 5, beside their arithmetic. Of 16 bits, all of them take about half, and so do products.
    packed_place_cycles: float  # of an element that is packed
    strided_place_cycles: float  # where places are no neighbours
    transposed_cycles: float  # of an element that XLA transposes
    aliased_channel_cycles: float  # where all channels compete for the same lines, if XLA computes the image on the way
    short_run_cycles: float  # of a place, for each row of a kernel of few channels, read in place

    # Attention: fitted to 88 plans of 20 sizes on a thread of Zen 5, which they predict within 4 % (root mean square).
    softmax_wait: float  # times the cycles of a softmax's instructions, as each waits for the one before
    attention_line_cycles: float  # of a line of K or V that is loaded, converted or interleaved, and stored

    # Threads.
    wake_us: float  # from handing out a task until another thread begins it
    task_us: float  # of handing out one task, where several threads take part
    imbalance_share: float  # of a task, that a thread waits for the others at the end, on a machine with other work

    # Pipelines, measured on Zen 5.
    stage_cycles: float  # from one stage to the next: what was stored is loaded again
    pipeline_call_us: float  # of its custom call, and of what XLA does around it
    pipeline_wake_us: float  # until another thread takes part
    pipeline_block_share: float  # of the peak, that blocks reach whose weights L2 holds
    far_pipeline_block_share: float  # that others reach: sums are not made by blocks of k

    # XLA's way with loops, and that of kernels in them, measured on Zen 5.
    operation_us: float  # of each operation of a step, where XLA makes no function of a loop
    function_cycles: float  # that an operation in XLA's function takes longer than a stage
    library_us: float  # of calling one of XLA's products
    library_share: float  # of the peak, that these reach: 0.4 in recurrent networks of 256 with 32 rows
    kernel_us: float  # of a kernel's call among XLA's operations
    kernel_share: float  # of the peak, that kernels reach: in such a network, 0.8 with all steps at once
    fresh_byte_ns: float  # of a byte of a result that is given pages, written and read again
    interruption_us: float  # that a step takes longer around a call, which keeps XLA from making one function
    parallel_us: float  # of handing an operation to other threads, of which XLA takes 25 for a reduction of f32[32,64]

    # XLA's way.
    call_us: float  # of a kernel's custom call, without the kernel
    piece_us: float  # of an operation that XLA runs by itself, rather than inside of a function
    inline_products_per_cycle: float  # of small matrices, in code that XLA emits inline
    inline_l1_bytes_per_cycle: float  # that such code reads of a matrix beside a vector
    inline_l2_bytes_per_cycle: float

    evidence: tuple[tuple[str, Evidence], ...] = ()  # by coefficient, where measurements were kept

    def __post_init__(self):
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("processor", "evidence")}
        for name, number in numbers.items():
            if number < 0 or (name.endswith("_share") and number > 1):
                raise ValueError(f"{self.processor}: {name} is {number}, which cannot be")
        if min(self.resident_share, self.followed_pages) <= 0:
            raise ValueError(f"{self.processor}: resident_share and followed_pages must be above 0")
        if broken := [f.name for f in fields(self) if f.type == "int" and not isinstance(numbers[f.name], int)]:
            raise ValueError(f"{self.processor}: {', '.join(broken)} must be whole")
        if unknown := [name for name, _ in self.evidence if name not in numbers]:
            raise ValueError(f"{self.processor}: there are no coefficients {unknown}")


def known(processor: str, **coefficients: tuple[float, ...]) -> Fitted:
    """The coefficients of a processor, each as (value,) or, where it was fitted to products, (value, spread, count)."""
    values: dict[str, Any] = {name: found[0] for name, found in coefficients.items()}
    evidence = tuple(
        (name, Evidence(spread=found[1], count=int(found[2]))) for name, found in coefficients.items() if len(found) > 1
    )
    return Fitted(processor=processor, **values, evidence=evidence)
