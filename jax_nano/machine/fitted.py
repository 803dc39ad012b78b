"""Coefficients of the cost model, by processor: written by tools/fit_cost_model.py, not by hand.

Each is a value; its spread among fits to resampled products; and the number of products that depend on it, of those in
benchmarks/data that were not held out. Those without a spread were measured apart, or taken from a processor where they
were.
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
    stream_overhead_bytes=(834, 3.6e02, 13),
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
    window_run_cycles=(1.2,),
    window_placing_cycles=(40,),
    softmax_wait=(1.5,),
    attention_line_cycles=(2,),
    call_us=(0.5,),
    piece_us=(0.03,),
    inline_products_per_cycle=(0.8,),
    inline_l1_bytes_per_cycle=(60,),
    inline_l2_bytes_per_cycle=(33,),
)

ZNVER5 = known(
    "znver5",
    block_overhead_cycles=(16.5, 6, 135),
    latency_slack=(1.24, 0.37, 40),
    load_exposed_share=(0.18, 0.15, 135),
    port_conflict_share=(0.849, 0.29, 77),
    overlap_exposed_share=(0.198, 0.093, 114),
    ragged_share=(0.01, 0, 0),
    resident_share=(0.535, 0.088, 19),
    l2_line_share=(0.38, 0.068, 13),
    l2_run_cycles=(0.803, 0.23, 27),
    far_run_cycles=(3.42, 0, 2),
    tile_conflict_cycles=(2, 0, 0),
    conflict_miss_cycles=(1.5, 0, 0),
    aliasing_4k_cycles=(10.2, 0.88, 4),
    out_row_cycles=(4.79, 3.9, 103),
    followed_pages=(816, 2.1e02, 7),
    lost_run_cycles=(19, 0, 7),
    lost_line_cycles=(14, 2.1, 7),
    out_conflict_cycles=(28.9, 6.6, 28),
    prefetch_bytes=(16384, 0, 0),
    memory_share=(0.626, 0.21, 59),
    rhs_evicted_share=(0.458, 0.12, 57),
    lhs_evicted_share=(0.249, 0.1, 55),
    row_change_bytes=(33, 0, 2),
    stream_overhead_bytes=(112, 13, 15),
    run_overhead_bytes=(130, 48, 59),
    unpacked_lhs_wait=(1.3, 0, 42),
    followed_lhs_wait_share=(0.315, 0, 7),
    first_panel_wait_share=(0.491, 0, 13),
    packing_bandwidth_share=(0.734, 0.11, 59),
    lost_fetch_cycles=(5.09, 0, 1),
    overlapped_fetch=(1.5, 0, 0),
    overlapped_work=(1.5, 0, 0),
    packing_exposed_share=(0.0913, 0, 28),
    lhs_prefetch_gap_share=(0.4, 0, 2),
    far_run_overhead_bytes=(257, 0, 2),
    prefetched_run_share=(0.6, 0, 1),
    wake_us=(2.53, 0.9, 98),
    task_us=(0.704, 0.24, 98),
    imbalance_share=(0.00677, 0.0056, 98),
    window_run_cycles=(1.2,),
    window_placing_cycles=(40,),
    softmax_wait=(1.5,),
    attention_line_cycles=(2,),
    call_us=(0.11,),
    piece_us=(0.03,),
    inline_products_per_cycle=(0.8,),
    inline_l1_bytes_per_cycle=(60,),
    inline_l2_bytes_per_cycle=(33,),
)

FITTED = {
    fitted.processor: fitted
    for fitted in (
        SAPPHIRERAPIDS,
        ZNVER5,
    )
}


def fitted_for(processor: str, like: str) -> Fitted:
    """The coefficients of a processor, by LLVM's name, or those of the one that it is like."""
    return FITTED.get(processor) or FITTED[like]
