"""Rows of a grouped product that are added up: their lists by rows of the result, and the sums in their order.

group:    a second task sorts the numbers of C's rows by their targets, into the lists that row_sums describes
combine:  a task, a block of rows of the result: each begins as zeros or as a row of the base, to which the rows of
          its list are added in registers, one after the other, and is rounded once
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.grouped.gathered_rows import read_integer
from jax_nano.codegen.index import Index, Values, add, index, maximum, minimum, mul, select, times, within
from jax_nano.codegen.load_store import load, load_scalar, store
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Span, for_range, panels
from jax_nano.codegen.matrix_ref import scratch
from jax_nano.codegen.registers import broadcast, splat, zeros
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.schedule.grouped.row_sums import LISTS, REGISTERS, RowSums


@dataclass(frozen=True)
class AddedRows:
    """The rows of C in shared scratch, and where they go.

    Attributes:
      sums: the memory map.
      shared: shared scratch.
      places: the array of the rows' places in the result, or in C.
      weights: the arrays that the work on rows reads.
      base: the array that they are added to, if there is one.
      out: the result.
      lanes: of a register of sums.
      native_bf16: whether the target converts f32 to bf16 itself.
    """

    sums: RowSums
    shared: ir.Value
    places: ir.Value
    weights: tuple[ir.Value, ...]
    base: ir.Value | None
    out: ir.Value
    lanes: int
    native_bf16: bool

    @property
    def rows(self) -> ir.Value:
        """C."""
        sums = self.sums
        return scratch(self.shared, sums.rows_at, sums.rows * sums.columns, sums.dtype)

    @property
    def ends(self) -> ir.Value:
        """Where the lists end, behind where the first one begins; while they are made, a number further back."""
        return scratch(self.shared, self.sums.ends_at, self.sums.lists + 2, LISTS)

    @property
    def order(self) -> ir.Value:
        """The lists: the numbers of C's rows."""
        return scratch(self.shared, self.sums.order_at, self.sums.rows, LISTS)

    def sort(self) -> None:
        """The one task: counts the rows of each list, finds out where it begins, and writes it."""
        sums, ends, order = self.sums, self.ends, self.order
        with section("clear"), for_range(0, sums.lists + 2) as number:
            write(ends, number.i, 0)
        with section("count"), for_range(0, sums.rows) as row:
            at = add(self.target(row.i), 2)
            write(ends, at, add(read(ends, at), 1))
        with section("begin"), for_range(2, sums.lists + 1, carry=[index(0)]) as number:
            begin = index(add(number.carry[0], read(ends, number.i)))
            write(ends, number.i, begin)
            number.next = [begin]
        with section("fill"), for_range(0, sums.rows) as row:
            at = add(self.target(row.i), 1)
            place = read(ends, at)
            write(order, place, row.i)
            write(ends, at, add(place, 1))

    def target(self, row: Index) -> Index:
        """The list of a row of C."""
        scatter = self.sums.scatter
        target = read_integer(self.places, row, scatter.places)
        if scatter.beyond == "nearest":
            return minimum(maximum(target, 0), scatter.stored - 1)
        return select(within(target, scatter.stored), target, scatter.stored)

    def combine(self, task: Index) -> None:
        """One task: a block of rows of the result."""
        sums, columns, choices = self.sums, self.sums.columns, self.sums.scatter.choices
        begin = mul(task, sums.task_rows)
        with section("rows"), for_range(begin, minimum(add(begin, sums.task_rows), sums.scatter.stored)) as row:
            if choices:
                first, end = (mul(add(row.i, i), choices) for i in range(2))
            else:
                first, end = (read(self.ends, add(row.i, i)) for i in range(2))
            at = mul(row.i, columns)
            for j, count in panels(Span(0, columns, columns), REGISTERS * self.lanes, "registers of columns"):
                values = self.start(add(at, j), count)
                with section("rows of the list"), for_range(first, end, carry=values) as number:
                    added = self.chosen(number.i, j, count) if choices else self.listed(number.i, j, count)
                    number.next = [v.add(total, x) for total, x in zip(number.carry, added, strict=True)]
                self.finish(number.results, add(at, j), count)

    def listed(self, number: Index, j: Index, count: int) -> Values:
        """Columns of a row of C that stands in a list."""
        at = add(times(read(self.order, number), self.sums.columns), j)
        return [self.load(self.rows, add(at, i), live, self.sums.dtype) for i, live in self.registers(count)]

    def chosen(self, number: Index, j: Index, count: int) -> Values:
        """Columns of a row of C that is named, with the work on them."""
        sums, work = self.sums, self.sums.scatter.work
        place = read_integer(self.places, number, sums.scatter.places)
        row = minimum(maximum(place, 0), sums.rows - 1)
        at = add(times(row, sums.columns), j)
        values = [load(self.rows, add(at, i), self.lanes, live) for i, live in self.registers(count)]
        if sums.scatter.beyond != "nearest":
            fill = splat(math.nan if sums.scatter.beyond == "nan" else 0, self.lanes, element_type(sums.dtype))
            values = [arith.select(within(place, sums.rows), value, fill) for value in values]
        if not work:
            return [convert(value, sums.dtype, sums.scatter.sum) for value in values]
        weights = [broadcast(load_scalar(array, number), self.lanes) for array in self.weights]
        made = work.program.dtype(work.program.results[0])
        worked = [evaluate(work.program, [value, *weights], native_bf16=self.native_bf16) for value in values]
        return [convert(value, made, sums.scatter.sum) for (value,) in worked]

    def registers(self, count: int) -> list[tuple[int, int]]:
        """Where each register of a run of columns begins, and how many of its lanes there are."""
        return [(i, min(self.lanes, count - i)) for i in range(0, count, self.lanes)]

    def start(self, at: Index, count: int) -> Values:
        """What sums of columns begin with."""
        scatter = self.sums.scatter
        if self.base is None:
            return [zeros(self.lanes, element_type(scatter.sum)) for _ in self.registers(count)]
        assert scatter.base
        return [self.load(self.base, add(at, i), live, scatter.base) for i, live in self.registers(count)]

    def load(self, source: ir.Value, at: Index, live: int, dtype: str) -> ir.Value:
        """A register of elements, in the type of the sums."""
        return convert(load(source, at, self.lanes, live), dtype, self.sums.scatter.sum)

    def finish(self, values: Values, at: Index, count: int) -> None:
        """Rounds sums of columns, and stores them."""
        scatter = self.sums.scatter
        for value, (i, live) in zip(values, self.registers(count), strict=True):
            result = convert(value, scatter.sum, scatter.out, native_bf16=self.native_bf16)
            store(result, self.out, add(at, i), live)


def read(numbers: ir.Value, at: Index) -> Index:
    """A number of a list."""
    return arith.index_cast(ir.IndexType.get(), load_scalar(numbers, at))


def write(numbers: ir.Value, at: Index, number: Index) -> None:
    """Puts a number into a list."""
    value = arith.index_cast(element_type(LISTS), index(number))
    store(broadcast(value, 1), numbers, at)
