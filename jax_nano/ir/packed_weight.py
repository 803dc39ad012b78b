"""Where the elements of packed weights are."""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.ir.dtypes import INT4_PER_WORD


def step_bit(step: int) -> int:
    """The bit at which a step of k begins in a word of packed int4.

    Two steps that instructions take at once are 16 bits apart.
    """
    return 16 * (step % 2) + 4 * (step % INT4_PER_WORD // 2)


@dataclass(frozen=True, kw_only=True)
class Panels:
    """How matrices of K x N lie in memory that microkernels read from end to end.

    A matrix is cut into panels of `width` columns, which follow one another. In each, `vnni` rows are interleaved
    (the VNNI layout): element (k, j) stands at k // vnni * width * vnni + j * vnni + k % vnni. What panels hold
    beyond the matrix is zero.

    Strides say which matrix, column and row is meant: a step along K counts 1, one along N `rows`.
    """

    matrices: int
    rows: int  # of a panel: K in whole steps of an instruction
    columns: int  # of a matrix: N in whole panels
    width: int
    vnni: int

    @property
    def elements(self) -> int:
        """How many elements there are in memory."""
        return self.matrices * self.rows * self.columns
