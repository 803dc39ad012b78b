"""Where the elements of packed weights are."""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.ir.dtypes import WORD_STEPS


def step_bit(step: int) -> int:
    """Where in a word of WORDS a step's 4 bits begin: two steps that instructions take at once are 16 bits apart."""
    return 16 * (step % 2) + 4 * (step % WORD_STEPS // 2)


@dataclass(frozen=True, kw_only=True)
class Panels:
    """How matrices of K x N lie in memory that microkernels read from end to end.

    A matrix is cut into panels of `width` columns, which follow one another. In each, `group` rows are interleaved
    (the VNNI layout): element (k, j) stands at k // group * width * group + j * group + k % group. What panels hold
    beyond the matrix is zero.

    Strides say which matrix, column and row is meant: a step along K counts 1, one along N `rows`.
    """

    matrices: int
    rows: int  # of a panel: K in whole steps of an instruction
    columns: int  # of a matrix: N in whole panels
    width: int
    group: int

    @property
    def elements(self) -> int:
        """How many elements there are in memory."""
        return self.matrices * self.rows * self.columns
