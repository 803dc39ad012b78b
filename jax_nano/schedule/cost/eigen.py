"""The time of a convolution that XLA leaves to Eigen, as far as that is known to beat kernels: into one channel.

Eigen sums over each place's window as it lies. A kernel copies windows first, which here takes longer than the sums.
"""

from __future__ import annotations

from jax_nano.machine.isa import Machine

# Of one core. On Zen 5 with JAX 0.12, a core took 146 cycles for a place of 800 products, 118 for
# one of 576 and 88 for one of 144; this gives 150, 122 and 68.
PRODUCTS_PER_CYCLE = 8.0
PLACE_CYCLES = 50.0


def one_channel_seconds(places: int, steps: int, machine: Machine) -> float:
    """Predicts the time of a convolution of f32 into one channel, of so many places and products for each."""
    cycles = places * (steps / PRODUCTS_PER_CYCLE + PLACE_CYCLES)
    return cycles / (machine.threads * machine.ghz * 1e9)
