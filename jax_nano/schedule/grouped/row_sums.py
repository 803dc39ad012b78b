"""Sums of a grouped product's rows: where rows of C stand until they are added up, and by which tasks.

Shared scratch, behind the table that schedule.grouped describes:

    | ends | order | rows of C, one behind the other |

`order` has the numbers of C's rows, sorted by the row of the result that they are added to, those of one in the order
in which they stand in C; in the end those that are added nowhere. List t begins where list t - 1 ends, and list 0 at
ends[0] = 0. Where rows of the result name those that they add up, there are no lists. Each element of the result is a
sum in one order, made by one task, whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.grouped import RowScatter

LINE_BYTES = 64
LISTS = "s32"
# Elements that a task reads or writes at least: some 5 us of one core of Zen 5, in which it could take 50 other tasks.
TASK_ELEMENTS = 1 << 15
REGISTERS = 8  # of sums, side by side: with 4 or 16, 1024 sums of 8 rows of 2048 took as long (Zen 5)


@dataclass(frozen=True)
class RowSums:
    """The memory and the tasks of the sums of C's rows.

    Attributes:
      scatter: which rows are added up.
      rows: of C.
      columns: of C and of the result.
      dtype: of C.
      begin: where in shared scratch there is room, in bytes.
    """

    scatter: RowScatter
    rows: int
    columns: int
    dtype: str
    begin: int

    @property
    def lists(self) -> int:
        """Lists of rows: of each row of the result, and of those that are added nowhere. Of choices, there are none."""
        return 0 if self.scatter.choices else self.scatter.stored + 1

    @property
    def ends_at(self) -> int:
        """The byte of the lists' ends; there is one number more than lists, and one more while they are made."""
        return lines(self.begin)

    @property
    def order_at(self) -> int:
        """The byte of the rows' order."""
        return lines(self.ends_at + bytes_of(LISTS, self.lists + 2 if self.lists else 0))

    @property
    def rows_at(self) -> int:
        """The byte of C's first row."""
        return lines(self.order_at + bytes_of(LISTS, self.rows if self.lists else 0))

    @property
    def end(self) -> int:
        """The byte behind all."""
        return self.rows_at + bytes_of(self.dtype, self.rows * self.columns)

    @property
    def task_rows(self) -> int:
        """Rows of the result in a task."""
        added = self.scatter.choices or self.rows / self.scatter.stored
        return max(1, min(self.scatter.stored, int(TASK_ELEMENTS / (self.columns * (1 + added)))))

    @property
    def tasks(self) -> int:
        """Tasks."""
        return -(-self.scatter.stored // self.task_rows)


def lines(size: int) -> int:
    """Bytes in whole cache lines."""
    return -(-size // LINE_BYTES) * LINE_BYTES
