"""Coefficients of the cost model, by processor: written by tools/fit_cost_model.py, not by hand.

Each is a value; its spread among fits to resampled products; and the number of products that depend on it, of those in
benchmarks/data that were not held out. Those of XLA's way were measured apart.
"""

from __future__ import annotations

from jax_nano.machine.coefficients import Fitted, known

SAPPHIRERAPIDS = known(
    "sapphirerapids",
    block_overhead_cycles=(9.76, 1.1, 78),
    latency_slack=(1, 0, 50),
    load_exposed_share=(1, 0.086, 78),
    port_conflict_share=(0.488, 0, 5),
    overlap_exposed_share=(0.369, 0.13, 71),
    ragged_share=(0.01, 0, 0),
    resident_share=(0.783, 0.068, 0),
    l2_line_share=(0.469, 0, 0),
    l2_run_cycles=(4.76, 4.9, 16),
    far_run_cycles=(4.27, 0.88, 1),
    tile_conflict_cycles=(2, 0, 1),
    conflict_miss_cycles=(1.5, 0, 0),
    aliasing_4k_cycles=(10.6, 4.4, 6),
    out_row_cycles=(5.64, 1.6, 64),
    followed_pages=(59, 13, 21),
    lost_run_cycles=(24.2, 7.2, 21),
    lost_line_cycles=(30.2, 7.3, 21),
    out_conflict_cycles=(79.2, 31, 44),
    prefetch_bytes=(16384, 0, 0),
    memory_share=(0.516, 0.076, 39),
    rhs_evicted_share=(0.598, 0.069, 38),
    lhs_evicted_share=(0.229, 0.066, 36),
    row_change_bytes=(31, 0, 3),
    stream_overhead_bytes=(834, 3.6e+02, 13),
    run_overhead_bytes=(184, 71, 39),
    unpacked_lhs_wait=(0.901, 0.33, 29),
    followed_lhs_wait_share=(0.309, 0.023, 7),
    first_panel_wait_share=(0.597, 0.19, 10),
    packing_bandwidth_share=(0.405, 0.2, 39),
    lost_fetch_cycles=(6.19, 2.1, 21),
    overlapped_fetch=(1.77, 0.42, 8),
    overlapped_work=(3, 0.26, 17),
    packing_exposed_share=(0.131, 0.022, 22),
    lhs_prefetch_gap_share=(0.497, 0.13, 3),
    far_run_overhead_bytes=(256, 0, 0),
    prefetched_run_share=(0.6, 0, 0),
    wake_us=(8.08, 2.3, 76),
    task_us=(1.49, 0.76, 76),
    imbalance_share=(0.0236, 0.025, 76),
    call_us=(0.5,),
    piece_us=(0.03,),
    inline_products_per_cycle=(0.8,),
    inline_l1_bytes_per_cycle=(60,),
    inline_l2_bytes_per_cycle=(33,),
)

ZNVER5 = known(
    "znver5",
    block_overhead_cycles=(20,),
    latency_slack=(1.2,),
    load_exposed_share=(0.03,),
    port_conflict_share=(0.5,),
    overlap_exposed_share=(0.1,),
    ragged_share=(0.01,),
    resident_share=(0.67,),
    l2_line_share=(0.5,),
    l2_run_cycles=(0,),
    far_run_cycles=(3.5,),
    tile_conflict_cycles=(0,),
    conflict_miss_cycles=(1.5,),
    aliasing_4k_cycles=(10,),
    out_row_cycles=(6,),
    followed_pages=(64,),
    lost_run_cycles=(0,),
    lost_line_cycles=(0,),
    out_conflict_cycles=(60,),
    prefetch_bytes=(16384,),
    memory_share=(0.75,),
    rhs_evicted_share=(0.5,),
    lhs_evicted_share=(0.25,),
    row_change_bytes=(32,),
    stream_overhead_bytes=(128,),
    run_overhead_bytes=(64,),
    unpacked_lhs_wait=(1.3,),
    followed_lhs_wait_share=(0.3,),
    first_panel_wait_share=(0.5,),
    packing_bandwidth_share=(0.72,),
    lost_fetch_cycles=(0,),
    overlapped_fetch=(1,),
    overlapped_work=(1,),
    packing_exposed_share=(0.1,),
    lhs_prefetch_gap_share=(0.4,),
    far_run_overhead_bytes=(256,),
    prefetched_run_share=(0.6,),
    wake_us=(2,),
    task_us=(0.2,),
    imbalance_share=(0.06,),
    call_us=(0.11,),
    piece_us=(0.03,),
    inline_products_per_cycle=(0.8,),
    inline_l1_bytes_per_cycle=(60,),
    inline_l2_bytes_per_cycle=(33,),
)

FITTED = {fitted.processor: fitted for fitted in (SAPPHIRERAPIDS, ZNVER5,)}


def fitted_for(processor: str, like: str) -> Fitted:
    """The coefficients of a processor, by LLVM's name, or those of the one that it is like."""
    return FITTED.get(processor) or FITTED[like]
