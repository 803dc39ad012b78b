"""Which processors tests of plans go through."""

from dataclasses import replace

from jax_nano.machine import x86
from jax_nano.machine.fitted import ZNVER5

# One of those with the same cores: others differ in caches and bandwidth only.
KINDS = tuple({tuple(machine.cores.items()): machine for machine in reversed(x86.MACHINES)}.values())[::-1]

# Coefficients of the cost model for tests that say what it makes of them: those that are fitted change.
FIXED = replace(
    ZNVER5,
    block_overhead_cycles=20.0,
    latency_slack=1.2,
    load_exposed_share=0.03,
    port_conflict_share=0.5,
    overlap_exposed_share=0.1,
    wake_us=2.0,
)
