"""The score function of an attention on a panel: its program on registers of scores, with keys along rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention.operands import AttentionOperands, Head
from jax_nano.codegen.attention.pair_arrays import PairRows, PanelPairs, Rows
from jax_nano.codegen.index import Index, Values, add, index
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.vector.cast import cast
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.score_function import FIRST_ARRAY, KEY, QUERY, SCORE
from jax_nano.schedule.attention.plan import AttentionPlan


@dataclass(frozen=True)
class PanelScore:
    """Writes program(score, query, key, arrays...) on the rows of a panel.

    Attributes:
      plan: the plan.
      queries: the numbers of the panel's queries, by registers.
      key: the first of the block's keys.
      arrays: each array's elements of a row.
    """

    plan: AttentionPlan
    queries: Values
    key: Index
    arrays: tuple[Rows, ...]

    def __call__(self, scores: Values, i: Index) -> Values:
        """What becomes of the scores of a row."""
        function = self.plan.problem.score
        assert function
        key = broadcast(arith.index_cast(ir.IntegerType.get_signless(32), index(add(self.key, i))), self.plan.lanes)
        given = {SCORE: scores, QUERY: self.queries, KEY: [key] * len(scores)}
        numbers = [source.argument for source in function.program.inputs]
        given |= {number: self.arrays[number - FIRST_ARRAY](i) for number in numbers if number >= FIRST_ARRAY}
        native_bf16 = rounds_to_bf16(self.plan.instruction)
        results: Values = []
        for register in range(len(scores)):
            inputs = [given[number][register] for number in numbers]
            results += evaluate(function.program, inputs, native_bf16=native_bf16)
        return results


@dataclass(frozen=True)
class ScoreArrays:
    """Where the elements of the score function's arrays come from, for a panel of queries and a block of keys.

    Attributes:
      operands: where everything lies.
      head: whose queries they are.
      pairs: which pairs.
    """

    operands: AttentionOperands
    head: Head
    pairs: PanelPairs

    def rows(self) -> tuple[Rows, ...]:
        """The elements of each array, in its type."""
        found: list[Rows] = []
        copies = itertools.count()
        for number, array in enumerate(self.operands.plan.problem.score_arrays):
            source = self.operands.score_array(self.head, number)
            rows = self.pairs.rows(source, lambda: self.operands.packed_score_array(next(copies)))
            found.append(converted(rows, "u8" if array.dtype == "pred" else array.dtype))
        return tuple(found)


def converted(rows: PairRows, dtype: str) -> Rows:
    """Rows in a type."""
    return lambda i: [cast(x, rows.dtype, dtype) for x in rows.row(i)]
