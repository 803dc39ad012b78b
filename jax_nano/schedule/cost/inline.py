"""The time of a product that XLA emits inline, in the code of the function that it is part of.

That code has no call and packs nothing, runs on one thread, and computes in the type of the sums: narrower operands
were widened before.
"""

from __future__ import annotations

from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Machine

VECTOR_ROW_BYTES = 64  # XLA's code over shorter rows is as slow as without vectors, as measured on Zen 5


def inline_seconds(sizes: tuple[int, int, int, int], acc: str, machine: Machine) -> float:
    """Predicts the time of a product that XLA emits inline.

    Args:
      sizes: B, M, N and K.
      acc: the type of the sums.
      machine: where it runs.
    """
    b, m, n, k = sizes
    shorter, _ = sorted((m, n, k))[1:]  # sizes of the largest matrix
    if 1 not in (m, n, k) or bytes_of(acc, shorter) < VECTOR_ROW_BYTES:
        return b * m * n * k / (machine.fitted.inline_products_per_cycle * machine.ghz * 1e9)
    return reading_seconds(bytes_of(acc, b * (m * k + k * n + m * n)), machine)


def reading_seconds(size: int, machine: Machine) -> float:
    """How long one thread takes to read so many bytes again and again, at the speed of a matrix times a vector."""
    fitted, hertz = machine.fitted, machine.ghz * 1e9
    if size <= machine.l1.bytes:
        return size / (fitted.inline_l1_bytes_per_cycle * hertz)
    from_l2 = size / (fitted.inline_l2_bytes_per_cycle * hertz)
    if size <= machine.l2.bytes:
        return from_l2
    return max(
        from_l2, 1e-9 * size / (machine.l3_gb_per_s if size <= machine.llc.bytes else machine.memory_gb_per_s[0])
    )
