"""Coefficients of the cost model that no vendor publishes, fitted to measured products.

Those of ZEN5 were fitted by hand, one after the other, to products measured on 2 cores of an EPYC of Zen 5 (a virtual
machine), each chosen so that little else matters in them; `python -m benchmarks.regret` shows how well they do
together. The measurements were not kept, so there is no evidence of spread or count. Processors that are not in FITTED
are taken to be like Zen 5, and of Sapphire Rapids little is known so far.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How well a coefficient is known."""

    spread: float  # standard deviation of the coefficient
    count: int  # of the measured products that it was fitted to


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
    far_run_cycles: float  # of waiting for a run of bytes that neither L1 nor L2 keeps, however short it is
    conflict_miss_cycles: float  # for an element of A whose line other rows have pushed out since the last step
    aliasing_4k_cycles: float  # for a row of B that shares its set of L1 with all others
    out_row_cycles: float  # from a row of C that is stored to the next
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

    # Packing.
    packing_bandwidth_share: float  # of bandwidth, reached by copying, which waits for what it did not prefetch
    packing_exposed_share: float  # of fetching B for packing, left where it is prefetched
    lhs_prefetch_gap_share: float  # of the wait for a prefetched A, left as nothing prefetches while it is packed
    far_run_overhead_bytes: int  # as long as reading so many does a run take to begin where it comes from memory
    prefetched_run_share: float  # of that, left where the run is prefetched

    # Threads.
    wake_us: float  # from handing out a task until another thread begins it
    task_us: float  # of handing out one task, where several threads take part
    imbalance_share: float  # of a task, that a thread waits for the others at the end, on a machine with other work

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
        if unknown := [name for name, _ in self.evidence if name not in numbers]:
            raise ValueError(f"{self.processor}: there are no coefficients {unknown}")


ZEN5 = Fitted(
    processor="znver5",
    block_overhead_cycles=20,
    latency_slack=1.2,
    load_exposed_share=0.03,
    port_conflict_share=0.5,
    overlap_exposed_share=0.1,
    ragged_share=0.01,
    resident_share=0.67,
    l2_line_share=0.5,
    far_run_cycles=3.5,
    conflict_miss_cycles=1.5,
    aliasing_4k_cycles=10,
    out_row_cycles=6,
    out_conflict_cycles=60,
    prefetch_bytes=16 << 10,
    memory_share=0.75,
    rhs_evicted_share=0.5,
    lhs_evicted_share=0.25,
    row_change_bytes=32,
    stream_overhead_bytes=128,
    run_overhead_bytes=64,
    unpacked_lhs_wait=1.3,
    followed_lhs_wait_share=0.3,
    first_panel_wait_share=0.5,
    packing_bandwidth_share=0.72,
    packing_exposed_share=0.1,
    lhs_prefetch_gap_share=0.4,
    far_run_overhead_bytes=256,
    prefetched_run_share=0.6,
    wake_us=2.0,
    task_us=0.2,
    imbalance_share=0.06,
    call_us=0.11,
    piece_us=0.03,
    inline_products_per_cycle=0.8,
    inline_l1_bytes_per_cycle=60,
    inline_l2_bytes_per_cycle=33,
)
# Only the call was measured, in loops of 10,000 steps with one product of 3 x 3, on 2 virtual cores.
SAPPHIRE_RAPIDS = replace(ZEN5, processor="sapphirerapids", call_us=0.5)
FITTED = {fitted.processor: fitted for fitted in (ZEN5, SAPPHIRE_RAPIDS)}
FITTED |= dict.fromkeys(("emeraldrapids", "graniterapids"), SAPPHIRE_RAPIDS)  # cores of the same kind


def fitted_for(processor: str) -> Fitted:
    """The coefficients of a processor, by LLVM's name, or of the one that it is taken to be like."""
    return FITTED.get(processor, ZEN5)
