"""Microkernels on register tiles: the loop over K by tile products, what comes after it by vectors.

Sums go from tiles to vectors through memory: through C where it takes whole tiles as they are, else through P or
scratch of the thread. Correction terms go to vectors, which look whether they are finite, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax_nano.codegen.index import Condition, Values, negation
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Depth, either, for_range, when
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import KBlock, Microkernel, Result, StepHook
from jax_nano.codegen.nanokernel import Block, PanelProduct, TileNanokernel

Corner = tuple[int, int]  # where a tile begins in the block: (row, column)


@dataclass(frozen=True, kw_only=True)
class TileMicrokernel(Microkernel):
    """The contract of microkernel.py, where A is packed by rows or has no edges in need of it, and B is packed.

    Tiles at an edge may hold rows and columns beyond the block: they are computed, and never leave scratch.
    """

    nano: TileNanokernel

    def emit(self, product: PanelProduct, k: KBlock, result: Result, hooks: Sequence[StepHook] = ()) -> None:
        """Emits one block of C."""
        block, rows = product.block, self.nano.instruction.shape[0]
        tiles = Block(-(-block.rows // rows), block.cols, block.lanes)
        corners = [(i * rows, j * block.lanes) for i in range(tiles.rows) for j in range(len(block.counts))]
        product = replace(product, block=tiles)
        stays = self.sums_stay(block, result)
        target = result.tiles if result.tiles and not stays else result.partial

        source, first = target, True if result.scales else k.first
        if len(self.terms) > 1:
            assert result.tiles, "every plan by tiles has scratch for them"
            self.correct(product, k.depth, corners, result.tiles)
            self.finish_corrections(result, block, first)
            source, first = result.tiles, False
        elif not stays and first is not True:
            with when(negation(first)):
                self.copy_rows(result.partial, target, block)
        acc = self.initial_tiles(source, corners, first)
        self.store_tiles(self.accumulate(acc, product, k.depth, hooks), target, corners)
        if not stays:
            self.finish_rows(target, k if result.scales else replace(k, first=True), result, block)
        elif result.padded:
            with when(k.last):
                self.finish_rows(target, replace(k, first=True, last=True), result, block)

    def sums_stay(self, block: Block, result: Result) -> bool:
        """Whether tiles are stored where sums belong between k blocks: that takes whole tiles, unscaled."""
        whole_rows = block.live_rows is None and block.rows % self.nano.instruction.shape[0] == 0
        are_whole = whole_rows and block.cols % block.lanes == 0
        are_final = result.epilogue is None and result.out.dtype == self.nano.instruction.acc
        return (result.padded or (are_whole and are_final)) and result.scales is None

    def initial_tiles(self, source: MatrixRef, corners: Sequence[Corner], first: Condition) -> Values:
        """The accumulators before the loop: zeros in the first k block, then the sums so far."""
        types = [self.nano.accumulator_tile()] * len(corners)

        def zeros() -> Values:
            return [self.nano.zero_tile() for _ in corners]

        return either(first, types, zeros, lambda: [self.nano.load_accumulator(source, i, j) for i, j in corners])

    def accumulate(self, acc: Values, product: PanelProduct, depth: Depth, hooks: Sequence[StepHook] = ()) -> Values:
        """The loop over K, with the accumulators in registers throughout; the last step may reach into padding."""
        step = self.nano.instruction.shape[2]
        with section("k loop"), for_range(0, depth.steps, step, carry=acc) as loop:
            for hook in hooks:
                hook(loop.i, step)
            loop.next = self.nano.update(loop.carry, product, loop.i, step)
        return loop.results

    def store_tiles(self, acc: Values, target: MatrixRef, corners: Sequence[Corner]) -> None:
        """Stores accumulators where their first elements belong."""
        for tile, (i, j) in zip(acc, corners, strict=True):
            self.nano.store_tile(tile, target, i, j)

    def correct(self, product: PanelProduct, depth: Depth, corners: Sequence[Corner], target: MatrixRef) -> None:
        """Stores the sums of correction terms."""
        zeros = self.initial_tiles(target, corners, first=True)
        self.store_tiles(self.sum_corrections(zeros, product, depth), target, corners)

    def finish_corrections(self, result: Result, block: Block, first: Condition) -> None:
        """Row by row: drops correction terms that are not finite, and adds P unless this is the `first` k block."""
        sums, partial, lanes = result.tiles, result.partial, block.lanes
        assert sums
        columns = list(zip(range(0, block.cols, lanes), block.counts, strict=True))
        with section("correction terms"), for_range(0, block.stored_rows) as row:
            terms = [self.nano.zero_unless_finite(load(sums.base, sums.offset(row.i, j), lanes)) for j, _ in columns]

            def with_partial(terms=terms, i=row.i) -> Values:
                before = [load(partial.base, partial.offset(i, j), lanes, count) for j, count in columns]
                return [self.nano.add(value, other) for value, other in zip(terms, before, strict=True)]

            types = [value.type for value in terms]
            values = either(first, types, lambda terms=terms: terms, with_partial)
            for value, (j, _) in zip(values, columns, strict=True):
                store(value, sums.base, sums.offset(row.i, j))

    def copy_rows(self, source: MatrixRef, target: MatrixRef, block: Block) -> None:
        """Copies the block's sums, row by row, to where tiles can be loaded from."""
        with section("partial sums to tiles"), for_range(0, block.stored_rows) as row:
            for j, count in zip(range(0, block.cols, block.lanes), block.counts, strict=True):
                value = load(source.base, source.offset(row.i, j), block.lanes, count)
                store(value, target.base, target.offset(row.i, j))

    def finish_rows(self, source: MatrixRef, k: KBlock, result: Result, block: Block) -> None:
        """Finishes the block row by row."""
        lanes = block.lanes
        with section("rows of the block"), for_range(0, block.stored_rows) as row:
            acc = [load(source.base, source.offset(row.i, j), lanes) for j in range(0, block.cols, lanes)]
            self.finish(acc, k, result.row(row.i), Block(1, block.cols, lanes))
