"""Microkernels: the loop over K on one register block.

The contract, for C of block.rows x block.cols:

    C  =  A * B          where `first`
    C  =  C + A * B      elsewhere

A, B and C are views; any strides serve for A, B and C have stride 1 along n. Nothing beyond the block's rows and
columns is read or written.
"""

from __future__ import annotations

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.build import Index, Values, View, add, either, for_range, index, load, store
from jax_nano.kernels.nano import Block, Nanokernel


def microkernel(
    nano: Nanokernel,
    a: View,
    b: View,
    c: View,
    block: Block,
    depth: Index,
    tail: int,
    unroll: int,
    first: bool | ir.Value,
) -> None:
    """Emits one block of C: `depth` steps of k, `unroll` at a time.

    `tail` is what `depth` leaves when divided by `unroll`, in every execution that leaves anything.
    """
    width = len(block.counts)
    places = [(i, j * block.lanes, count) for i in range(block.rows) for j, count in enumerate(block.counts)]
    acc = either(
        first,
        [nano.accumulator()] * (block.rows * width),
        lambda: nano.zero(block),
        lambda: [load(c.base, c.offset(i, j), nano.lanes, count) for i, j, count in places],
    )
    acc = accumulate(nano, acc, a, b, block, depth, tail, unroll)
    for value, (i, j, count) in zip(acc, places, strict=True):
        store(value, c.base, c.offset(i, j), count)


def accumulate(
    nano: Nanokernel, acc: Values, a: View, b: View, block: Block, depth: Index, tail: int, unroll: int
) -> Values:
    """The loop over K, with the accumulators in registers throughout."""
    whole = rounded_down(depth, unroll) if tail else depth
    if whole != 0:
        with for_range(0, whole, unroll, carry=acc) as loop:
            loop.next = loop.carry
            for step in range(unroll):
                loop.next = nano.update(loop.next, a, b, add(loop.i, step), block)
        acc = loop.results
    if tail:
        with for_range(whole, depth, 1, carry=acc) as loop:
            loop.next = nano.update(loop.carry, a, b, loop.i, block)
        acc = loop.results
    return acc


def rounded_down(count: Index, step: int) -> Index:
    """The largest multiple of `step` that is at most `count`."""
    if isinstance(count, int):
        return count // step * step
    return arith.subi(count, arith.remui(count, index(step)))
