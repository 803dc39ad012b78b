"""Attention of few columns, which stand along rows: K and V are read in place, each line once, by whole registers.

    S^T [keys, columns]  = K @ Q^T, a register for each sum, whose lanes are added up in the end
    O   [columns, dv]   += P @ V

Scores have lanes to spare then: those behind the last column are cleared once, and stay finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import vector

from jax_nano.codegen.attention.softmax import broadcast_zero
from jax_nano.codegen.dot_product_microkernel import DotProductMicrokernel
from jax_nano.codegen.index import Index, Values, add
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import Depth, Span, for_range, panels
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.microkernel import KBlock, Microkernel, Result, StepHook
from jax_nano.codegen.nanokernel import Block, Nanokernel, PanelProduct
from jax_nano.codegen.operand_loader import OperandLoader, rounds_to_bf16
from jax_nano.codegen.pack import Destination, Packer
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.vector import arithmetic as v
from jax_nano.codegen.vector.convert import convert
from jax_nano.schedule.attention.plan import AttentionPlan

Hooks = Callable[[Index, int], list[StepHook]]  # of so many values from one on


def clear(plan: AttentionPlan, out: MatrixRef, scores: MatrixRef) -> None:
    """Sets sums and scores to zero."""
    zero = broadcast_zero(plan)
    with for_range(0, plan.key_block) as row:
        store(zero, scores.base, scores.offset(row.i, 0))
    with for_range(0, plan.out_stride, plan.lanes) as column:
        for i in range(plan.columns):
            store(zero, out.base, out.offset(column.i, i))


def pack_queries(plan: AttentionPlan, sources: Sequence[MatrixRef], to: MatrixRef) -> None:
    """Copies queries, (columns, d) of each source, to rows that follow one another."""
    count, depth = plan.columns // len(sources), plan.problem.depth
    packer = Packer(OperandLoader(plan.instruction, "rhs"), count)
    for number, source in enumerate(sources):
        rows = to.transposed.block(number * count, 0)
        target = Destination(Span(0, count, count), 1, lambda i, rows=rows: rows.block(i, 0))
        packer.pack_rows(target, source, Depth(depth, depth))


def key_products(
    plan: AttentionPlan, keys: MatrixRef, queries: MatrixRef, scores: MatrixRef, span: Span
) -> Iterator[tuple[Index, Callable[[Index, Sequence[StepHook]], None]]]:
    """Emits the loop over register blocks of keys: (first key of one, what emits it)."""
    nano = Nanokernel(instruction=plan.instruction, lhs_is_packed=False, rhs_is_packed=False)
    micro = DotProductMicrokernel(nano=nano, unroll=plan.unroll)
    k = KBlock(0, Depth(plan.problem.depth, plan.problem.depth), first=True, last=True)
    for i, rows in panels(span, plan.mr, "panels of keys"):

        def emit(row: Index, hooks: Sequence[StepHook], rows: int = rows) -> None:
            product = PanelProduct(keys.block(row, 0), queries, Block(rows, plan.columns, plan.lanes))
            micro.emit(product, k, result_in(scores.block(row, 0)), hooks)

        yield i, emit


def value_registers(plan: AttentionPlan) -> int:
    """Registers of values whose sums, for all columns, stay in registers: as many of those as scores have at a time."""
    return max(1, min(4, plan.mr, plan.out_stride // plan.lanes))


def add_values(
    plan: AttentionPlan, factors: tuple[MatrixRef, MatrixRef], out: MatrixRef, depth: Depth, hooks: Hooks
) -> None:
    """O += P @ V, of exponentials and values."""
    exponentials, values = factors
    nano = Nanokernel(instruction=plan.instruction, lhs_is_packed=True, rhs_is_packed=False)
    micro = Microkernel(nano=nano, unroll=plan.unroll)
    i, size = plan.instruction, plan.problem.value_depth
    p = MatrixRef(exponentials.base, exponentials.at, (i.vnni, plan.nr), i.rhs)
    width = value_registers(plan) * plan.lanes
    k = KBlock(0, depth, first=False, last=True)
    for j, columns in panels(Span(0, size, size), width, "panels of values"):
        product = PanelProduct(p, values.block(0, j), Block(plan.columns, columns, plan.lanes))
        micro.emit(product, k, result_in(out.transposed.block(0, j)), hooks(j, columns))


def result_in(out: MatrixRef) -> Result:
    """Where a register block goes."""
    return Result(out=out, partial=out, compensation=out, compensated=False)


def lane_of(plan: AttentionPlan, values: Values, column: int) -> ir.Value:
    """What a column has, in every lane."""
    return broadcast(vector.extract(values[column // plan.lanes], [], [column % plan.lanes]), plan.lanes)


def rescale(plan: AttentionPlan, out: MatrixRef, factors: Values) -> None:
    """Multiplies the sums of each column by its factor."""
    by_column = [lane_of(plan, factors, i) for i in range(plan.columns)]
    with for_range(0, plan.out_stride, plan.lanes) as column:
        for i, factor in enumerate(by_column):
            at = out.offset(column.i, i)
            store(v.mul(load(out.base, at, plan.lanes), factor), out.base, at)


def combine(plan: AttentionPlan, out: MatrixRef, more: MatrixRef, factors: Values, weights: Values) -> None:
    """Multiplies the sums of each column by its factor, and adds other ones by their weights."""
    pairs = [(lane_of(plan, factors, i), lane_of(plan, weights, i)) for i in range(plan.columns)]
    with for_range(0, plan.out_stride, plan.lanes) as column:
        for i, (factor, weight) in enumerate(pairs):
            at = out.offset(column.i, i)
            mine = v.mul(load(out.base, at, plan.lanes), factor)
            store(v.fma(load(more.base, more.offset(column.i, i), plan.lanes), weight, mine), out.base, at)


def store_results(plan: AttentionPlan, out: MatrixRef, total: ir.Value, to: tuple[ir.Value, Sequence[Index]]) -> None:
    """Stores the rows of the result, of sums divided by those of exponentials, at their places in an array."""
    (base, places), depth = to, plan.problem.value_depth
    native_bf16 = rounds_to_bf16(plan.instruction)
    by_column = [lane_of(plan, [total], i) for i in range(plan.columns)]
    for j, count in panels(Span(0, depth, depth), plan.lanes, "columns of the result"):
        for i, (one, place) in enumerate(zip(by_column, places, strict=True)):
            value = v.div(load(out.base, out.offset(j, i), plan.lanes), one)
            rounded = convert(value, plan.instruction.acc, plan.problem.dtype, native_bf16=native_bf16)
            store(rounded, base, add(place, j), count)
