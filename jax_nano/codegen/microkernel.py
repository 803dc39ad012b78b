"""Microkernels: the loop over K on one register block.

The contract, for C of block.rows x block.cols:

    C  =  A @ B          where `first`
    C  =  P + A @ B      elsewhere, P being the partial sums of the k blocks before

and the sum goes to P unless this is the `last` k block, when it goes to C in C's type. A, B, C and P are MatrixRefs;
any strides serve for A; B, C and P have stride 1 along n unless B is packed. Nothing beyond the block's rows and
columns, and nothing beyond `depth` where an operand is not packed, is read or written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.index import Condition, Index, Values, add, divmod_, mul, negation, one_of
from jax_nano.codegen.load_store import load, prefetch, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, either, for_range, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.nanokernel import Block, Nanokernel, PanelProduct, Place
from jax_nano.codegen.registers import bitcast
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.windows.rows import WindowRows
from jax_nano.schedule.plan import LINE_BYTES


@dataclass(frozen=True)
class KBlock:
    """A block of the sum over K, and where it stands among those that a task adds up."""

    begin: Index
    depth: Depth
    first: Condition
    last: Condition


class Epilogue(Protocol):
    """What is done to sums before they are stored in C."""

    def __call__(self, acc: Values, places: Sequence[Place]) -> Values:
        """Registers of C's type out of accumulators, which stand for these places of the block."""
        ...

    def row(self, i: Index) -> Epilogue:
        """The epilogue of the block's rows from i on."""
        ...


@dataclass(frozen=True)
class Result:
    """Where a block's sums go: to `partial` between k blocks, to `out` after the last one. These may be the same.

    Accumulators of `compensated` k blocks begin with `compensation`, a row. `partial` may be `padded` to whole tiles.
    """

    out: MatrixRef
    partial: MatrixRef
    compensation: MatrixRef
    compensated: Condition
    epilogue: Epilogue | None = None
    scales: MatrixRef | None = None  # of the columns: factors of this k block's sums
    padded: bool = False
    tiles: MatrixRef | None = None  # where tiles are stored that neither C nor partial sums can take

    def row(self, i: Index) -> Result:
        """Where the block's rows from i on go."""
        epilogue = self.epilogue and self.epilogue.row(i)
        return replace(self, out=self.out.block(i), partial=self.partial.block(i), epilogue=epilogue)


StepHook = Callable[
    [Index, int], None
]  # emits other work, a prefetch or packing, at (k, steps) of a microkernel's loop


@dataclass(frozen=True, kw_only=True)
class Microkernel:
    """Writes register blocks of one kind."""

    nano: Nanokernel
    unroll: int  # updates in an iteration
    terms: tuple[tuple[int, int], ...] = ((0, 0),)  # how far into A and B the bf16 splits stand that are multiplied
    accumulator_chains: int = 1  # sums of every so many-th update, side by side, that are added up after the loop

    def emit(self, product: PanelProduct, k: KBlock, result: Result, hooks: Sequence[StepHook] = ()) -> None:
        """Emits one block of C."""
        block = product.block
        if k.first is not True:
            self.prefetch_partial(result.partial, block)
        acc = self.initial_accumulators(result, block)
        if len(self.terms) > 1:
            corrections = self.sum_corrections(acc, product, k.depth)
            acc = [self.nano.zero_unless_finite(value) for value in corrections]  # 0 * inf may be among them
        self.finish(self.accumulate(acc, product, k.depth, hooks), k, result, block)

    def prefetch_partial(self, partial: MatrixRef, block: Block) -> None:
        """Prefetches the sums so far, which are wanted after the loop."""
        for i in range(block.rows):
            for j in range(0, block.cols, LINE_BYTES // 4):
                prefetch(partial.base, partial.offset(i, j), write=True)

    def initial_accumulators(self, result: Result, block: Block) -> Values:
        """Zeros, or the compensation of the columns, in each row."""
        lanes, accumulator = self.nano.lanes, ir.VectorType(self.nano.accumulator())
        columns = range(0, len(block.counts) * lanes, lanes)

        def compensation() -> Values:
            row = result.compensation
            loaded = [load(row.base, row.offset(0, j), lanes * self.nano.vnni) for j in columns]
            return [bitcast(value, lanes, accumulator.element_type) for value in loaded]

        def zeros() -> Values:
            return [self.nano.zero()] * len(columns)

        return either(result.compensated, [accumulator] * len(columns), compensation, zeros) * block.rows

    def sum_corrections(self, acc: Values, product: PanelProduct, depth: Depth) -> Values:
        """The accumulators with the products of bf16 splits before the last term, the smallest first."""
        lhs, rhs = ([offsets[i] for offsets in self.terms[:-1]] for i in (0, 1))
        with section("correction terms"), for_range(0, len(lhs), carry=acc) as term:
            a, b = product.a.advance(one_of(lhs, term.i)), product.b.advance(one_of(rhs, term.i))
            term.next = self.accumulate(term.carry, PanelProduct(a, b, product.block), depth)
        return term.results

    def accumulate(self, acc: Values, product: PanelProduct, depth: Depth, hooks: Sequence[StepHook] = ()) -> Values:
        """The loop over K, with the accumulators in registers throughout."""
        if isinstance(product.a, WindowRows):
            return self.accumulate_runs(acc, product.a, product, depth, hooks)
        return self.accumulate_run(acc, product, depth, hooks)

    def accumulate_runs(
        self, acc: Values, a: WindowRows, product: PanelProduct, depth: Depth, hooks: Sequence[StepHook]
    ) -> Values:
        """The loop over runs of K, in each of which A's rows are elsewhere."""
        block, types = product.block, [value.type for value in acc]

        def run_from(begin: Index, acc: Values, rows: MatrixRef, steps: int) -> Values:
            run = PanelProduct(rows, product.b.block(begin, 0), block)
            return self.accumulate_run(acc, run, Depth(steps, steps), [partial(hook_from, begin, x) for x in hooks])

        def strided() -> Values:
            steps = a.runs.longest
            with section("long runs"), for_range(0, divmod_(depth.steps, steps)[0], carry=acc) as run:
                is_there, rows = a.strided_run(run.i)
                multiply = partial(run_from, mul(run.i, steps), run.carry, steps=steps)
                zeros_count = self.nano.instruction.lhs_offset != 0  # where they are moved, as all of A is
                otherwise = partial(multiply, rows=a.zeros) if zeros_count else lambda: run.carry
                run.next = either(is_there, types, partial(multiply, rows=rows), otherwise)
            return run.results

        def scattered() -> Values:
            steps = a.runs.shortest
            with section("short runs"), for_range(0, divmod_(depth.steps, steps)[0], carry=acc) as run:
                rows = a.scattered_run(run.i, block.rows)
                run.next = run_from(mul(run.i, steps), run.carry, rows, steps)
            return run.results

        return either(a.is_strided(block.rows), types, strided, scattered)

    def accumulate_run(
        self, acc: Values, product: PanelProduct, depth: Depth, hooks: Sequence[StepHook] = ()
    ) -> Values:
        """The loop over steps that follow one another: unrolled, by single updates, and a rest."""
        vnni, step = self.nano.vnni, self.nano.vnni * self.unroll
        unrolled, whole = depth.whole(step), depth.whole(vnni)
        with section("k loop"):
            if unrolled != 0:
                acc = self.accumulate_unrolled(acc, product, unrolled, hooks)
            if depth.size % step >= vnni:
                acc = self.accumulate_steps(acc, product, (unrolled, whole), vnni)
            if rest := depth.size % vnni:
                acc = self.accumulate_steps(acc, product, (whole, depth.steps), rest)
        return acc

    def accumulate_unrolled(self, acc: Values, product: PanelProduct, end: Index, hooks: Sequence[StepHook]) -> Values:
        """Iterations of `unroll` updates, which go to the accumulator chains in turn."""
        vnni, step, count = self.nano.vnni, self.nano.vnni * self.unroll, self.accumulator_chains
        others = [self.nano.zero()] * (len(acc) * (count - 1))
        with for_range(0, end, step, carry=[*acc, *others]) as loop:
            chains = chunks(loop.carry, count)
            for number, k in enumerate(range(0, step, vnni)):
                for hook in hooks:
                    hook(add(loop.i, k), vnni)
                chain = number % count
                chains[chain] = self.nano.update(chains[chain], product.from_step(loop.i), k, vnni)
            loop.next = [value for chain in chains for value in chain]
        return [functools.reduce(self.nano.add, sums) for sums in zip(*chunks(loop.results, count), strict=True)]

    def accumulate_steps(self, acc: Values, product: PanelProduct, span: tuple[Index, Index], live: int) -> Values:
        """Iterations of one update over the steps [begin, end), of `live` steps each."""
        with for_range(*span, self.nano.vnni, carry=acc) as loop:
            loop.next = self.nano.update(loop.carry, product, loop.i, live)
        return loop.results

    def finish(self, acc: Values, k: KBlock, result: Result, block: Block) -> None:
        """Scales the sums, adds the partial ones, and stores: in C through the epilogue, or as partial sums again."""
        with section("epilogue"):
            places, out = block.places, result.out
            acc = self.apply_scales(acc, result.scales, places)
            types = [self.nano.accumulator()] * len(places)
            total = either(k.first, types, lambda: acc, lambda: self.add_partial(acc, result.partial, places))
            if result.epilogue is None and out.dtype == self.nano.instruction.acc:
                store_registers(total, out, places)
                return
            with when(k.last):
                finish = result.epilogue or functools.partial(self.convert_sums, dtype=out.dtype)
                store_registers(finish(total, places), out, places)
            if not isinstance(k.last, bool):
                with when(negation(k.last)):
                    store_registers(total, result.partial, places)

    def add_partial(self, acc: Values, partial: MatrixRef, places: Sequence[Place]) -> Values:
        """The sums plus those of the k blocks before."""
        return [
            self.nano.add(value, load(partial.base, partial.offset(i, j), self.nano.lanes, count))
            for value, (i, j, count) in zip(acc, places, strict=True)
        ]

    def convert_sums(self, acc: Values, _: Sequence[Place], dtype: str) -> Values:
        """The epilogue of a product that has none: its sums in C's type."""
        source = self.nano.instruction.acc
        return [convert(value, source, dtype, native_bf16=self.nano.native_bf16) for value in acc]

    def apply_scales(self, acc: Values, scales: MatrixRef | None, places: Sequence[Place]) -> Values:
        """Sums times the scales of their columns."""
        if scales is None:
            return acc
        row = {
            j: convert(load(scales.base, scales.offset(0, j), self.nano.lanes, count), scales.dtype, "f32")
            for _, j, count in places
        }
        return [arith.mulf(value, row[j]) for value, (_, j, _) in zip(acc, places, strict=True)]


def hook_from(begin: Index, hook: StepHook, k: Index, steps: int) -> None:
    """Other work of a loop that begins at step `begin`."""
    hook(add(begin, k), steps)


def store_registers(values: Values, target: MatrixRef, places: Sequence[Place]) -> None:
    """Stores registers at their places of a block."""
    for value, (i, j, count) in zip(values, places, strict=True):
        store(value, target.base, target.offset(i, j), count)


def chunks(values: Sequence[ir.Value], count: int) -> list[Values]:
    """The values in `count` lists of the same length."""
    size = len(values) // count
    return [list(values[i * size : (i + 1) * size]) for i in range(count)]
