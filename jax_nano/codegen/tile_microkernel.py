"""Microkernels on register tiles: the loop over K by tile products, what comes after it by vectors.

Sums go from tiles to vectors through memory: through C where it takes whole tiles as they are, else through P or
scratch of the thread. Those of small terms go to vectors, which look at them, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.extend.mlir import ir

from jax_nano.codegen.index import Values, negation
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import either, for_range, when
from jax_nano.codegen.matrix_ref import View
from jax_nano.codegen.microkernel import Beside, Microkernel, Part, Result
from jax_nano.codegen.nanokernel import Block, TileNanokernel


@dataclass(frozen=True)
class TileMicrokernel(Microkernel):
    """The contract of micro.py, where A is packed by rows or has no edges in need of it, and B is packed.

    Tiles at an edge may hold rows and columns beyond the block: they are computed, and never leave scratch.
    """

    nano: TileNanokernel

    def emit(self, a: View, b: View, result: Result, block: Block, part: Part, beside: Sequence[Beside] = ()) -> None:
        """Emits one block of C."""
        rows = self.nano.instruction.shape[0]
        tiles = Block(-(-block.rows // rows), block.cols, block.lanes)
        whole = block.rows % rows == 0 and block.cols % block.lanes == 0
        as_sums = result.epilogue is None and result.out.dtype == self.nano.instruction.acc
        carried = (result.padded or (whole and as_sums)) and result.scales is None
        target = result.tiles if result.tiles and not carried else result.partial
        places = [(i * rows, j * block.lanes) for i in range(tiles.rows) for j in range(len(block.counts))]

        source, first = target, True if result.scales else part.first
        if len(self.terms) > 1:
            assert result.tiles, "every plan by tiles has scratch for them"
            small = self.small_sums(self.start_tiles(target, places, first=True), a, b, tiles, part)
            self.store_tiles(small, result.tiles, places)
            self.finish_small_terms(result.tiles, result.partial, block, first)
            source, first = result.tiles, False
        elif not carried and first is not True:
            with when(negation(first)):
                self.copy_rows(result.partial, target, block)
        acc = self.start_tiles(source, places, first)
        self.store_tiles(self.accumulate(acc, a, b, tiles, part, beside), target, places)
        if not carried:
            self.finish_rows(target, result, block, part if result.scales else replace(part, first=True))
        elif result.padded:
            with when(part.last):
                self.finish_rows(target, result, block, replace(part, first=True, last=True))

    def start_tiles(self, source: View, places: list[tuple[int, int]], first) -> Values:
        """The accumulators before the loop: zeros for the first part, then the sums so far."""
        types = [self.nano.accumulator_tile()] * len(places)

        def zeros() -> Values:
            return [self.nano.zero_tile() for _ in places]

        return either(first, types, zeros, lambda: [self.nano.load_accumulator(source, i, j) for i, j in places])

    def accumulate(
        self, acc: Values, a: View, b: View, block: Block, part: Part, beside: Sequence[Beside] = ()
    ) -> Values:
        """The loop over K, with the accumulators in registers throughout; the last step may reach into padding."""
        depth = self.nano.instruction.shape[2]
        with for_range(0, part.depth, depth, carry=acc) as loop:
            for other in beside:
                other(loop.i, depth)
            loop.next = self.nano.update(loop.carry, a, b, loop.i, block, depth, self.packed)
        return loop.results

    def store_tiles(self, acc: Values, target: View, places: list[tuple[int, int]]) -> None:
        """Stores accumulators where their first elements belong."""
        for tile, (i, j) in zip(acc, places, strict=True):
            self.nano.store_tile(tile, target, i, j)

    def finish_small_terms(self, sums: View, partial: View, block: Block, first: bool | ir.Value) -> None:
        """Row by row: what is not finite counts for nothing, and what stood in P is added, unless this is `first`."""
        lanes = block.lanes
        columns = list(zip(range(0, block.cols, lanes), block.counts, strict=True))
        with for_range(0, block.rows) as row:
            small = [self.nano.finite(load(sums.base, sums.offset(row.i, j), lanes)) for j, _ in columns]

            def with_partial(small=small, i=row.i) -> Values:
                before = [load(partial.base, partial.offset(i, j), lanes, count) for j, count in columns]
                return [self.nano.plus(value, other) for value, other in zip(small, before, strict=True)]

            types = [value.type for value in small]
            values = either(first, types, lambda small=small: small, with_partial)
            for value, (j, _) in zip(values, columns, strict=True):
                store(value, sums.base, sums.offset(row.i, j))

    def copy_rows(self, source: View, target: View, block: Block) -> None:
        """Copies the block's sums, row by row, to where tiles can be loaded from."""
        with for_range(0, block.rows) as row:
            for j, count in zip(range(0, block.cols, block.lanes), block.counts, strict=True):
                value = load(source.base, source.offset(row.i, j), block.lanes, count)
                store(value, target.base, target.offset(row.i, j))

    def finish_rows(self, source: View, result: Result, block: Block, part: Part) -> None:
        """Row by row: scales, and adds what stood in P where that is not among the sums, and stores."""
        lanes = block.lanes
        with for_range(0, block.rows) as row:
            acc = [load(source.base, source.offset(row.i, j), lanes) for j in range(0, block.cols, lanes)]
            self.finish(acc, result.row(row.i), Block(1, block.cols, lanes), part)
