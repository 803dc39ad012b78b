"""Coefficients of the cost model, by processor."""

from __future__ import annotations

from dataclasses import replace

from jax_nano.machine.coefficients import Fitted

ZNVER5 = Fitted(
    processor="znver5",
    block_overhead_cycles=20,
    latency_slack=1.2,
    load_exposed_share=0.03,
    port_conflict_share=0.5,
    overlap_exposed_share=0.1,
    ragged_share=0.01,
    resident_share=0.67,
    l2_line_share=0.5,
    l2_run_cycles=0,
    far_run_cycles=3.5,
    tile_conflict_cycles=0,
    conflict_miss_cycles=1.5,
    aliasing_4k_cycles=10,
    out_row_cycles=6,
    followed_pages=64,
    lost_run_cycles=0,
    lost_line_cycles=0,
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
    lost_fetch_cycles=0,
    overlapped_fetch=1,
    overlapped_work=1,
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
SAPPHIRERAPIDS = replace(ZNVER5, processor="sapphirerapids", call_us=0.5)
FITTED = {fitted.processor: fitted for fitted in (ZNVER5, SAPPHIRERAPIDS)}


def fitted_for(processor: str, like: str) -> Fitted:
    """The coefficients of a processor, by LLVM's name, or those of the one that it is like."""
    return FITTED.get(processor) or FITTED[like]
