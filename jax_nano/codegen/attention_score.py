"""The score function of an attention on a panel: its program on registers of scores, with keys along rows.

Where an array differs along queries alone, its elements are loaded once for a panel; along keys alone, an element for
each row; along both, the panel's part of it is copied and transposed first, in the type of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from jax_nano.codegen.attention_operands import AttentionOperands, Head
from jax_nano.codegen.index import Index, Values, add, index, subtract
from jax_nano.codegen.load_store import load, load_scalar
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operand_loader import rounds_to_bf16
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.vector.cast import cast
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.score_function import FIRST_ARRAY, KEY, QUERY, SCORE
from jax_nano.schedule.attention import AttentionPlan

Rows = Callable[[Index], Values]  # registers of a row of a panel


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
      column: the first of the panel's queries, or of its folded heads.
      key: the first of the block's keys.
      pack: copies a panel's part of an array, (columns, keys), to a scratch (keys, columns) in the type of scores.
    """

    operands: AttentionOperands
    head: Head
    column: Index
    key: Index
    pack: Callable[[MatrixRef, MatrixRef], None]

    def rows(self) -> tuple[Rows, ...]:
        """The elements of each array."""
        found: list[Rows] = []
        pairs = 0
        for number, array in enumerate(self.operands.plan.problem.score_arrays):
            source = self.operands.score_array(self.head, number)
            by_column, by_key = source.strides
            if not by_column:
                found.append(self.by_key(source))
            elif not by_key:
                found.append(self.by_column(source))
            else:
                target = self.operands.packed_score_array(pairs)
                self.pack(source, target)
                found.append(self.by_pair(target, array.dtype))
                pairs += 1
        return tuple(found)

    @property
    def columns(self) -> range:
        """Where registers begin in a panel."""
        return range(0, self.operands.plan.nr, self.operands.plan.lanes)

    def by_key(self, source: MatrixRef) -> Rows:
        """An array that is the same for all queries: one element for all lanes."""
        lanes = self.operands.plan.lanes

        def row(i: Index) -> Values:
            one = load_scalar(source.base, source.offset(0, add(self.key, i)))
            return [broadcast(one, lanes)] * len(self.columns)

        return row

    def by_column(self, source: MatrixRef) -> Rows:
        """An array that is the same for all keys: its registers, none beyond the last query."""
        plan = self.operands.plan
        values = [
            load(source.base, source.offset(add(self.column, j), 0), plan.lanes, self.left(j)) for j in self.columns
        ]
        return lambda _: values

    def left(self, j: int) -> Index:
        """How many queries there are from column j of the panel on."""
        return subtract(self.operands.plan.columns, add(self.column, j))

    def by_pair(self, target: MatrixRef, dtype: str) -> Rows:
        """A copy of an array, in its type again."""
        plan, stored = self.operands.plan, "u8" if dtype == "pred" else dtype

        def row(i: Index) -> Values:
            values = [load(target.base, target.offset(i, j), plan.lanes) for j in self.columns]
            return [cast(x, target.dtype, stored) for x in values]

        return row
