"""Masks of attention that say which blocks of queries and keys are never computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax_nano.jaxpr.attention.block_masks import BlockMask, read_mask

BLOCK = (128, 128)


def block_mask(
    visible: Callable[..., Any], shape: tuple[int, int, int, int], *, block: tuple[int, int] = BLOCK
) -> BlockMask:
    """Makes the mask of a function of places, and finds the blocks that it hides whole.

    What dot_product_attention is given as `block_mask` hides pairs as `mask` does, without memory for all of them: the
    function becomes part of the kernel, and blocks of which no pair is visible are skipped. Make it once for all
    layers that share it; it is a pytree of a few small arrays, and may go through jit and scan.

    Args:
      visible: whether a pair is visible: an elementwise function of (batch, head, query, key), int32 numbers, that
        may index arrays by them, as that of a score function may: `ids[batch, query] == ids[batch, key]`.
      shape: of the scores, (B, N, T, S): B and N are 1 where all elements of the batch or all heads share the mask.
      block: queries and keys of a block.

    Raises:
      TypeError: the function does not give a truth value for each pair.
      ValueError: a size is not positive.
    """
    if min(*shape, *block) < 1:
        raise ValueError(f"a mask of {shape} in blocks of {block} has nothing to hide; give positive sizes")
    b, n, t, s = map(int, shape)
    return read_mask(visible, (b, n, t, s), (int(block[0]), int(block[1])))
