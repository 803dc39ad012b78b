"""Software prefetches beside microkernels."""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.codegen.index import Index, add, divmod_, minimum, mul, times
from jax_nano.codegen.load_store import prefetch
from jax_nano.codegen.matrix_ref import View
from jax_nano.ir.dtypes import INT4_PER_WORD, PACKED_INT4, bytes_of
from jax_nano.schedule.plan import LINE_BYTES

WORD_BYTES = 4


@dataclass(frozen=True)
class Ahead:
    """What to ask for while a piece of B, or of A, is gone through: the piece that comes in its place.

    Blocks of C go through it in turn. What is asked for faster than memory gives it would hold up the loop, so each
    asks for a share, evenly over all steps. Of rows it is the same lines of each, whose addresses are known before the
    loop, unless all lines are wanted `in_order`. Where runs begin within lines, those that they end in are meant: the
    first one came with the piece before.
    """

    source: View  # element (k, j) of B, or (k, i) of A, of what is wanted
    number: Index  # of the block of C
    blocks: int
    depth: int  # steps of k
    width: int  # columns of B, or rows of A, of what is wanted
    in_order: bool = False

    def ask(self, k: Index, group: int) -> None:
        """Asks for the lines whose turn is at steps k to k + group - 1."""
        by_rows = self.source.strides[1] == self.source.interleaved
        if by_rows and group % self._together == 0 and not self.in_order:
            self._ask_of_rows(k, group)
        elif by_rows or self.source.strides[0] == 1:
            self._ask_in_order(k, group, by_rows)

    @property
    def _together(self) -> int:
        """Rows that stand together."""
        return INT4_PER_WORD if self.source.dtype in PACKED_INT4 else self.source.interleaved

    @property
    def _line(self) -> int:
        """Elements, or words of them, in a line."""
        return LINE_BYTES // (WORD_BYTES if self.source.dtype in PACKED_INT4 else bytes_of(self.source.dtype))

    def _ask_of_rows(self, k: Index, group: int) -> None:
        """Asks for a share of the rows that a step goes through; several blocks may take turns with one line."""
        in_a_run = -(-self.width * self.source.interleaved // self._line)
        lines = group // self._together * in_a_run
        at_once, sharing = -(-lines // self.blocks), max(1, self.blocks // lines)
        number, turn = divmod_(self.number, sharing)
        first = minimum(mul(number, at_once), lines - at_once)
        row = add(mul(divmod_(k, sharing * group)[0], sharing * group), mul(turn, group))
        for i in range(at_once):
            run, within = divmod_(add(first, i), in_a_run)
            begin = self.source.offset(add(row, mul(run, self._together)), 0)
            prefetch(self.source.base, add(begin, add(mul(within, self._line), self._line - 1)))

    def _ask_in_order(self, k: Index, group: int, by_rows: bool) -> None:
        """Asks for the next of all lines, of runs along rows or columns."""
        together = self._together if by_rows else 1
        steps, runs = -(-self.depth // group), -(-self.depth // together) if by_rows else self.width
        in_a_run = -(-(self.width * self.source.interleaved if by_rows else self.depth) // self._line)
        lines, turns = runs * in_a_run, steps * self.blocks
        turn = add(times(self.number, steps), divmod_(k, group)[0])
        at_once = -(-lines // turns)
        first = mul(turn, at_once) if lines >= turns else divmod_(turn, turns // lines)[0]
        for i in range(at_once):
            run, within = divmod_(add(first, i), in_a_run)
            begin = self.source.offset(mul(run, together), 0) if by_rows else self.source.offset(0, run)
            prefetch(self.source.base, add(begin, mul(within, self._line)))
