"""Where the elements of packed weights are: in panels, and in words of 4-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.ir.dtypes import INT4_PER_WORD


def step_bit(step: int) -> int:
    """The bit at which a step of k begins in its word of packed int4.

    Two steps that instructions take at once are 16 bits apart.
    """
    return 16 * (step % 2) + 4 * (step % INT4_PER_WORD // 2)


def rows_of_words(rows: int) -> int:
    """How many rows of words hold so many rows of packed int4: step k is in row k // INT4_PER_WORD of them."""
    return -(-rows // INT4_PER_WORD)


@dataclass(frozen=True, kw_only=True)
class Panels:
    """How matrices of K x N lie in memory that microkernels read from end to end.

    A matrix is cut into panels of `width` columns, which follow one another. In each, `vnni` rows are interleaved
    (the VNNI layout). What panels hold beyond the matrix is zero.

    No stride leads from one element to the next. Operands and axes that read panels therefore count as if each matrix
    were stored by columns, `rows` apart: `strides`. `place` turns what they count into an offset in memory.
    """

    matrices: int
    rows: int  # of a panel: K in whole steps of an instruction
    columns: int  # of a matrix: N in whole panels
    width: int
    vnni: int

    def __post_init__(self):
        if self.columns % self.width or self.rows % self.vnni:
            raise ValueError(
                f"{self.rows} x {self.columns} is not cut into panels of {self.width} columns and {self.vnni} rows"
            )

    @property
    def matrix_elements(self) -> int:
        """Elements from matrix to matrix."""
        return self.rows * self.columns

    @property
    def panel_elements(self) -> int:
        """Elements from panel to panel."""
        return self.rows * self.width

    @property
    def elements(self) -> int:
        """How many elements there are in memory."""
        return self.matrices * self.matrix_elements

    @property
    def strides(self) -> tuple[int, int, int]:
        """(from matrix to matrix, along K, along N): how much a step adds to the count that `place` takes."""
        return self.matrix_elements, 1, self.rows

    def place(self, count: int) -> int:
        """Where the element is, in elements of memory, that so many others precede where matrices lie by columns."""
        matrix, within = divmod(count, self.matrix_elements)
        j, k = divmod(within, self.rows)
        panel, column = divmod(j, self.width)
        group, row = divmod(k, self.vnni)
        in_panel = (group * self.width + column) * self.vnni + row
        return matrix * self.matrix_elements + panel * self.panel_elements + in_panel
