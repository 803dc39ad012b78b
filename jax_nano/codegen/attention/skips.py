"""Blocks that a block mask hides whole, and that a kernel does not visit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention.operands import AttentionOperands, Head
from jax_nano.codegen.index import Condition, Index, add, divmod_, minimum, subtract
from jax_nano.codegen.load_store import load_scalar
from jax_nano.codegen.location import section
from jax_nano.codegen.loops import Loop, for_range

Range = tuple[Index, Index]  # first, end


def sees(operands: AttentionOperands, head: Head, columns: Range, keys: Range) -> Condition:
    """Whether any block that has pairs of these columns and keys is visited.

    Args:
      operands: where everything lies.
      head: whose queries they are.
      columns: queries, or folded heads; those behind the last one count for nothing.
      keys: likewise.
    """
    plan, blocks = operands.plan, operands.plan.problem.blocks
    table = operands.blocks(head)
    if blocks is None or table is None:
        return True
    rows = in_blocks(columns, 1 if plan.folds_heads else blocks.queries, plan.columns)
    if not table.strides[0]:
        rows = 0, 1
    found = arith.constant(ir.IntegerType.get_signless(1), 0)
    with section("visited blocks"), loop_over(rows, found) as outer:
        with loop_over(in_blocks(keys, blocks.keys, plan.problem.keys), outer.carry[0]) as inner:
            byte = load_scalar(table.base, table.offset(outer.i, inner.i))
            is_visited = arith.cmpi(arith.CmpIPredicate.ne, byte, arith.constant(byte.type, 0))
            inner.next = [arith.ori(inner.carry[0], is_visited)]
        outer.next = inner.results
    return outer.results[0]


def in_blocks(places: Range, size: int, count: int) -> Range:
    """The blocks of a size that have some of the places, of which there are so many."""
    first, end = places
    last = subtract(minimum(end, count), 1)
    return divmod_(first, size)[0], add(divmod_(last, size)[0], 1)


@contextmanager
def loop_over(places: Range, carry: ir.Value) -> Iterator[Loop]:
    """Emits a loop that carries one value."""
    with for_range(*places, carry=[carry]) as loop:
        yield loop
