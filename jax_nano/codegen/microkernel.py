"""Microkernels: the loop over K on one register block.

The contract, for C of block.rows x block.cols:

    C  =  A * B          where `first`
    C  =  P + A * B      elsewhere, P being where earlier parts of the sum stand

and the sum goes to P unless this is the `last` part, when it goes to C in C's type. A, B, C and P are views; any
strides serve for A; B, C and P have stride 1 along n unless B is packed. Nothing beyond the block's rows and columns,
and nothing beyond `depth` where an operand is not packed, is read or written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Index, Values, add, index, negation, one_of
from jax_nano.codegen.load_store import load, prefetch, store
from jax_nano.codegen.loops import either, for_range, when
from jax_nano.codegen.matrix_ref import View
from jax_nano.codegen.nanokernel import Block, Nanokernel
from jax_nano.codegen.registers import bitcast
from jax_nano.codegen.vector.convert import convert
from jax_nano.schedule.plan import LINE_BYTES


@dataclass(frozen=True)
class Part:
    """A part of the sum over K: how much, and where it stands among the parts."""

    depth: Index
    size: int  # the whole extent of k: where `depth` is not a multiple of something, this leaves the same rest
    first: bool | ir.Value
    last: bool | ir.Value


Finishing = Callable[[Values, Sequence[tuple[int, int, int]]], Values]  # as Epilogue is called


class Epilogue(Protocol):
    """What is made of sums before they go to C."""

    def __call__(self, acc: Values, places: Sequence[tuple[int, int, int]]) -> Values:
        """Registers of C's type out of accumulators; places are (row, column, columns) in the block."""
        ...

    def row(self, i: Index) -> Epilogue:
        """The epilogue of the rows from i on."""
        ...


@dataclass(frozen=True)
class Result:
    """Where a block goes: C, and P, which may be C itself; and `compensation`, a row of starting values for
    `compensated` parts.

    P may be `padded` to whole tiles. Other tiles that C cannot take go to `tiles`.
    """

    out: View
    partial: View
    compensation: View
    compensated: bool | ir.Value
    epilogue: Epilogue | None = None
    scales: View | None = None  # of the columns: what sums are multiplied by before they are added to others
    padded: bool = False
    tiles: View | None = None

    def row(self, i: Index) -> Result:
        """Where the block's rows from i on go."""
        epilogue = self.epilogue and self.epilogue.row(i)
        return replace(self, out=self.out.block(i), partial=self.partial.block(i), epilogue=epilogue)


Beside = Callable[[Index, int], None]  # what is done for another piece of A or B at steps k to k + group - 1


@dataclass(frozen=True)
class Microkernel:
    """Writes register blocks of one kind."""

    nano: Nanokernel
    unroll: int  # updates in an iteration
    packed: tuple[bool, bool]  # whether A and B are in panels
    terms: tuple[tuple[int, int], ...] = ((0, 0),)  # where the components stand whose products are added up, in order
    accumulator_chains: int = 1  # sums side by side, one for each of as many updates, that are added up after the loop

    def emit(self, a: View, b: View, result: Result, block: Block, part: Part, beside: Sequence[Beside] = ()) -> None:
        """Emits one block of C."""
        if part.first is not True:
            for i in range(block.rows):
                for j in range(0, block.cols, LINE_BYTES // 4):
                    prefetch(result.partial.base, result.partial.offset(i, j), write=True)
        acc = self.small_terms(self.start(result, block), a, b, block, part)
        self.finish(self.accumulate(acc, a, b, block, part, beside), result, block, part)

    def finish(self, acc: Values, result: Result, block: Block, part: Part) -> None:
        """Adds what stood in P, and stores."""
        places = [(i, j * block.lanes, count) for i in range(block.rows) for j, count in enumerate(block.counts)]
        types = [self.nano.accumulator()] * len(places)
        partial, out = result.partial, result.out

        def with_partial() -> Values:
            return [
                self.nano.plus(value, load(partial.base, partial.offset(i, j), self.nano.lanes, count))
                for value, (i, j, count) in zip(acc, places, strict=True)
            ]

        def put(target: View, finish: Finishing) -> None:
            for value, (i, j, count) in zip(finish(total, places), places, strict=True):
                store(value, target.base, target.offset(i, j), count)

        def rounded(acc: Values, _: Sequence[tuple[int, int, int]]) -> Values:
            return [convert(value, self.nano.instruction.acc, out.dtype, self.nano.native_bf16) for value in acc]

        def as_they_are(acc: Values, _: Sequence[tuple[int, int, int]]) -> Values:
            return acc

        acc = self.scaled(acc, result.scales, places)
        total = either(part.first, types, lambda: acc, with_partial)
        if result.epilogue is None and out.dtype == self.nano.instruction.acc:
            put(out, as_they_are)
            return
        with when(part.last):
            put(out, result.epilogue or rounded)
        if not isinstance(part.last, bool):
            with when(negation(part.last)):
                put(partial, as_they_are)

    def scaled(self, acc: Values, scales: View | None, places: Sequence[tuple[int, int, int]]) -> Values:
        """Sums times the scales of their columns."""
        if scales is None:
            return acc
        row = {
            j: convert(load(scales.base, scales.offset(0, j), self.nano.lanes, count), scales.dtype, "f32")
            for _, j, count in places
        }
        return [arith.mulf(value, row[j]) for value, (_, j, _) in zip(acc, places, strict=True)]

    def start(self, result: Result, block: Block) -> Values:
        """The accumulators before the loop."""
        lanes, accumulator = self.nano.lanes, ir.VectorType(self.nano.accumulator())

        def row() -> Values:
            parts = [
                load(result.compensation.base, result.compensation.offset(0, j * lanes), lanes * self.nano.vnni)
                for j in columns
            ]
            return [bitcast(part, lanes, accumulator.element_type) for part in parts]

        columns = range(len(block.counts))
        return (
            either(result.compensated, [accumulator] * len(columns), row, lambda: [self.nano.zero()] * len(columns))
            * block.rows
        )

    def small_terms(self, acc: Values, a: View, b: View, block: Block, part: Part) -> Values:
        """The products of components before the last, as far as they are finite: 0 * inf may be among the others."""
        if len(self.terms) == 1:
            return acc
        return [self.nano.finite(value) for value in self.small_sums(acc, a, b, block, part)]

    def small_sums(self, acc: Values, a: View, b: View, block: Block, part: Part) -> Values:
        """The accumulators with the products of components before the last."""
        lhs, rhs = ([places[i] for places in self.terms[:-1]] for i in (0, 1))
        with for_range(0, len(lhs), carry=acc) as term:
            at_a, at_b = a.moved(one_of(lhs, term.i)), b.moved(one_of(rhs, term.i))
            term.next = self.accumulate(term.carry, at_a, at_b, block, part)
        return term.results

    def accumulate(
        self, acc: Values, a: View, b: View, block: Block, part: Part, beside: Sequence[Beside] = ()
    ) -> Values:
        """The loop over K, with the accumulators in registers throughout."""
        group, step = self.nano.vnni, self.nano.vnni * self.unroll
        unrolled, whole = rounded_down(part.depth, part.size, step), rounded_down(part.depth, part.size, group)
        if unrolled != 0:
            others = [self.nano.zero()] * (len(acc) * (self.accumulator_chains - 1))
            with for_range(0, unrolled, step, carry=[*acc, *others]) as loop:
                chains = chunks(loop.carry, self.accumulator_chains)
                for number, k in enumerate(range(0, step, group)):
                    for other in beside:
                        other(add(loop.i, k), group)
                    at_a, at_b = a.block(0, loop.i), b.block(loop.i, 0)
                    chain = number % self.accumulator_chains
                    chains[chain] = self.nano.update(chains[chain], at_a, at_b, k, block, group, self.packed)
                loop.next = [value for chain in chains for value in chain]
            chains = chunks(loop.results, self.accumulator_chains)
            acc = [functools.reduce(self.nano.plus, sums) for sums in zip(*chains, strict=True)]
        if part.size % step >= group:
            with for_range(unrolled, whole, group, carry=acc) as loop:
                loop.next = self.nano.update(loop.carry, a, b, loop.i, block, group, self.packed)
            acc = loop.results
        if rest := part.size % group:
            with for_range(whole, part.depth, group, carry=acc) as loop:
                loop.next = self.nano.update(loop.carry, a, b, loop.i, block, rest, self.packed)
            acc = loop.results
        return acc


def chunks(values: Sequence[ir.Value], count: int) -> list[Values]:
    """The values in `count` parts of the same length."""
    size = len(values) // count
    return [list(values[i * size : (i + 1) * size]) for i in range(count)]


def rounded_down(depth: Index, size: int, step: int) -> Index:
    """The largest multiple of `step` that is at most `depth`, which is a multiple itself where `size` is."""
    if isinstance(depth, int):
        return depth // step * step
    if size % step == 0:
        return depth
    return arith.subi(depth, arith.remui(depth, index(step)))
