"""Plans of the gradients of attention: blocks of columns by blocks of rows.

Columns are queries and rows keys for dQ, and the other way round for dK, dV and dB: then all are one loop nest. x1 and
x2 are queries and cotangents, or keys and values, of the columns; y1 and y2 what the others are, of the rows:

    S^T [rows, columns] = y1 @ x1^T          dP^T [rows, columns] = y2 @ x2^T
    P^T, dS^T           = of both, element by element
    d1^T [d, columns]  += y1^T @ dS^T        d2^T [dv, columns]  += y2^T @ P^T      (of keys alone)

A task of dB adds up dS^T of a block of rows over all heads, and elements of the batch, that share the bias.

A task's scratch:

    | x1^T, x2^T panels | y1, y2 by rows | y1^T, y2^T | scores | dP^T | P^T | dS^T | bias, mask | sums | tiles |
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from jax_nano.ir.attention_gradient import AttentionGradient
from jax_nano.ir.dtypes import bytes_of
from jax_nano.schedule.attention.plan import AttentionPlan, rounded_up
from jax_nano.schedule.plan import LINE_BYTES
from jax_nano.schedule.scratch import apart, whole_lines


@dataclass(frozen=True, kw_only=True)
class GradientPlan(AttentionPlan):
    """An AttentionPlan whose key_block is one of rows, and whose query_block is one of columns."""

    problem: AttentionGradient  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def of_keys(self) -> bool:
        """Whether columns are keys."""
        return self.problem.of != "queries"

    @property
    def of_bias(self) -> bool:
        """Whether scores' own gradients are the result."""
        return self.problem.of == "bias"

    @property
    def folds_heads(self) -> bool:
        """Columns are those of one head."""
        return False

    @property
    def streams(self) -> bool:
        """Nothing is read once."""
        return False

    @property
    def by_rows(self) -> bool:
        """Columns stand along lanes."""
        return False

    @property
    def columns(self) -> int:
        """Queries, or keys."""
        return self.problem.keys if self.of_keys else self.problem.queries

    @property
    def rows(self) -> int:
        """Keys, or queries."""
        return self.problem.queries if self.of_keys else self.problem.keys

    @property
    def visited(self) -> float:
        """The share of a panel's blocks that masks by place do not rule out, in the mean."""
        sizes = (self.key_block, self.nr) if self.of_keys else (self.nr, self.key_block)
        return self.problem.visited(*sizes)

    @property
    def kinds(self) -> tuple[str, str, str]:
        """What rows are, what columns are, and whose elements rows of sums are."""
        return ("queries", "keys", "queries and cotangents") if self.of_keys else ("keys", "queries", "keys")

    @property
    def outer(self) -> tuple[int, int, int]:
        """Over what tasks run beside blocks of columns: those of keys add up over the query heads that share them."""
        problem = self.problem
        if self.of_bias:
            return problem.sizes_of_bias
        return problem.batch, problem.heads, 1 if self.of_keys else problem.group

    def padded(self, depth: int) -> int:
        """A depth in whole instructions."""
        return rounded_up(depth, self.instruction.shape[2])

    def sum_rows(self, depth: int) -> int:
        """Rows of a gradient, transposed, in whole tiles."""
        return rounded_up(depth, self.instruction.shape[0])

    def row_stride(self, depth: int) -> int:
        """Elements from row to row of y1 or y2, which packing writes in whole registers."""
        return apart(rounded_up(depth, self.instruction.shape[1] * self.instruction.vnni), self.instruction.lhs)

    @property
    def packs_transposed(self) -> bool:
        """y1^T and y2^T stand apart from y1 and y2: the instruction takes several rows at once."""
        return self.instruction.shape[2] > 1 and not self.of_bias

    def transposed_elements(self, depth: int) -> int:
        """Elements of y1^T or y2^T."""
        if not self.packs_transposed:
            return 0
        return self.sum_rows(depth) * self.value_stride if self.instruction.tiles else self.key_block * depth

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Where the parts of a thread's own scratch begin, in bytes, and their `end`."""
        i, panel = self.instruction, self.panel_elements
        depths = {"1": self.problem.depth, "2": self.problem.value_depth}
        sizes = {f"x{n}": bytes_of(i.rhs, self.query_block * self.padded(depth)) for n, depth in depths.items()}
        sizes |= {f"y{n}": bytes_of(i.lhs, self.key_block * self.row_stride(depth)) for n, depth in depths.items()}
        sizes |= {f"t{n}": bytes_of(i.lhs, self.transposed_elements(depth)) for n, depth in depths.items()}
        sizes |= {name: bytes_of(i.acc, panel) for name in ("scores", "products")}
        sizes |= {
            name: bytes_of(i.rhs, panel) if self.rounds_scores and not self.of_bias else 0 for name in ("p", "ds")
        }
        sizes["bias"] = bytes_of(i.acc, panel) if self.problem.bias else 0
        sizes["mask"] = bytes_of(i.acc, panel) if self.problem.mask else 0
        sizes |= {f"d{n}": bytes_of(i.acc, self.query_block * self.sum_rows(depth)) for n, depth in depths.items()}
        if self.of_bias:
            sizes |= {"d1": 0, "d2": 0, "slopes": bytes_of(i.acc, self.key_block * self.query_block)}
        sizes["tiles"] = bytes_of(i.acc, self.mr * self.nr) if i.tiles else 0
        found, at = {}, 0
        for name, size in sizes.items():
            found[name], at = at, at + whole_lines(size) + (LINE_BYTES if size else 0)
        return found | {"end": at}

    @property
    def packed(self) -> tuple[str, ...]:
        """What is copied per task, in words."""
        return ("queries", "keys", "values", "cotangents")
