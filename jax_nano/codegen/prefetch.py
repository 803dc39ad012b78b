"""Software prefetch: the next panel of an operand is fetched while the microkernels of the current one run.

All blocks of C that go through the panel share its lines out, so that prefetches come at an even rate and the line-fill
buffers do not fill. Three blocks of C in turn, each by the same steps of k:

    rows of B, by rows                              one stream, in order
    block   of row k of the next panel              block   of all lines of the next panel
      0     [line 0][line 1]                          0     [0][1][2][3]
      1                     [line 2][line 3]          1                 [4][5][6][7]
      2                                     [4][5]    2                             [8][9][10][11]

By rows, a step k fetches lines of the next panel's row k, so that addresses follow from k and constants. In order,
lines are fetched as they lie in memory, which hardware prefetchers and pages favour where one row is all that is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.codegen.index import Index, add, divmod_, minimum, mul, times
from jax_nano.codegen.load_store import prefetch
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4, bytes_of
from jax_nano.schedule.plan import LINE_BYTES

WORD_BYTES = 4


@dataclass(frozen=True)
class PanelPrefetch:
    """Prefetches a panel, `depth` steps by `width` columns of B or rows of A, in the course of `blocks` blocks of C."""

    panel: MatrixRef  # element (k, j) of B, or (k, i) of A
    block: Index  # which of the blocks this is
    blocks: int
    depth: int
    width: int
    in_order: bool = False

    def emit(self, k: Index, steps: int) -> None:
        """Prefetches this block's share of lines at steps k to k + steps - 1 of its loop.

        Nothing is fetched of a matrix without contiguous rows or columns.
        """
        if self._has_rows and steps % self._rows_per_run == 0 and not self.in_order:
            self._emit_by_rows(k, steps)
        elif self._has_rows or self.panel.strides[0] == 1:
            self._emit_in_order(k, steps)

    @property
    def _has_rows(self) -> bool:
        """Whether rows, or groups of interleaved rows, are contiguous."""
        return self.panel.strides[1] == self.panel.vnni

    @property
    def _rows_per_run(self) -> int:
        """Rows that share a contiguous run: those that are interleaved, or that share words."""
        return INT4_PER_WORD if self.panel.dtype in PACKED_INT4 else self.panel.vnni

    @property
    def _line(self) -> int:
        """Elements in a cache line; of packed int4, words."""
        return LINE_BYTES // (WORD_BYTES if self.panel.dtype in PACKED_INT4 else bytes_of(self.panel.dtype))

    def _lines_of(self, elements: int) -> int:
        """Lines in a run of so many elements that begins with a line."""
        return -(-elements // self._line)

    def _emit_by_rows(self, k: Index, steps: int) -> None:
        """Prefetches a share of the rows k to k + steps - 1.

        Where these have fewer lines than there are blocks, several blocks take turns with a line, each in other rows.
        """
        lines_per_run = self._lines_of(self.width * self.panel.vnni)
        lines = steps // self._rows_per_run * lines_per_run
        share, turns = -(-lines // self.blocks), max(1, self.blocks // lines)
        number, turn = divmod_(self.block, turns)
        first = minimum(mul(number, share), lines - share)
        row = add(mul(divmod_(k, turns * steps)[0], turns * steps), mul(turn, steps))
        last = self._line - 1  # where a run begins within a line, the panel before it has fetched that one
        for i in range(share):
            run, line = divmod_(add(first, i), lines_per_run)
            begin = self.panel.offset(add(row, mul(run, self._rows_per_run)), 0)
            prefetch(self.panel.base, add(begin, add(mul(line, self._line), last)))

    def _emit_in_order(self, k: Index, steps: int) -> None:
        """Prefetches the lines whose turn it is when all lines of all runs are taken in order."""
        lines_per_run = self._lines_of(self.width * self.panel.vnni if self._has_rows else self.depth)
        lines = self._runs * lines_per_run
        turns_per_block = -(-self.depth // steps)
        turns = turns_per_block * self.blocks
        turn = add(times(self.block, turns_per_block), divmod_(k, steps)[0])
        share = -(-lines // turns)
        first = mul(turn, share) if lines >= turns else divmod_(turn, turns // lines)[0]
        for i in range(share):
            run, line = divmod_(add(first, i), lines_per_run)
            prefetch(self.panel.base, add(self._run_begin(run), mul(line, self._line)))

    @property
    def _runs(self) -> int:
        """Contiguous runs in the panel: rows, or groups of them, or columns."""
        return -(-self.depth // self._rows_per_run) if self._has_rows else self.width

    def _run_begin(self, run: Index) -> Index:
        return self.panel.offset(mul(run, self._rows_per_run), 0) if self._has_rows else self.panel.offset(0, run)
