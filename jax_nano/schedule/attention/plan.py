"""Plans of attention: blocks of queries by blocks of keys, and who computes which.

Scores stand transposed: keys along the rows of a register block, queries along its lanes. So the maximum and the sum of
a softmax are those of registers, K is read by rows as it lies, exponentials are stored as the second product's B, and
the result is V transposed times them:

    S^T [keys, queries] = K [keys, d] @ Q^T [d, queries]
    O^T [dv, queries]  += V^T [dv, keys] @ P^T [keys, queries]

A task has the queries of one head, or of all heads that share keys. Where those are few, so that reading K and V takes
longest, it has several heads of keys whose rows are neighbours in memory, one after the other in each block of keys:
then it reads memory from end to end. Its own scratch:

    | Q^T panels | block of K | block of V | scores of a panel | P^T of it | bias, mask of it | sums | a block's tiles |

where the sums are O^T, maxima, and sums of exponentials, of each head. Where keys are split among tasks, these are
shared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

from jax_nano.ir.attention import Attention
from jax_nano.ir.attention_spec import hides_rows
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import DotInstruction
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.pipelines.plan import PipelinePlan
from jax_nano.schedule.plan import Plan
from jax_nano.schedule.scratch import apart, whole_lines

FEW_COLUMNS = 8  # of them, as rows of a product


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Everything that shapes the code of one attention on one target. Sizes are in elements.

    Attributes:
      problem: what is computed.
      isa: the instruction set.
      instruction: multiplies in both products.
      mr: rows of a register block: keys, or elements of a value.
      nr: columns of it: queries, in whole registers.
      unroll: updates in an iteration of a microkernel; rows of scores that a softmax takes at a time, or half of them.
      key_block: keys whose scores a panel holds.
      query_block: queries of a task.
      heads_per_task: heads of keys that a task has, whose rows are neighbours in memory.
      splits: parts of the keys, that different tasks attend to, and a phase of its own combines in order.
      packs_keys: blocks of K are copied, and converted to the instruction's type.
      packs_values: so are blocks of V; interleaved or transposed, as the instruction wants them.
      scratch_nr: columns of the panels that scratch is laid out for, where they are wider than this plan's.
      why: why it was chosen.
      predicted_seconds: by the cost model, on all threads.
    """

    problem: Attention
    isa: str
    instruction: DotInstruction
    mr: int
    nr: int
    unroll: int = 4
    key_block: int
    query_block: int
    heads_per_task: int = 1
    splits: int = 1
    packs_keys: bool = True
    packs_values: bool = True
    scratch_nr: int = 0
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)

    def __post_init__(self):
        for name, value, step in (
            ("nr", self.nr, self.lanes), ("query_block", self.query_block, self.nr),
            ("key_block", self.key_block, self.mr), ("key_block", self.key_block, self.instruction.shape[2]),
            ("key_block", self.key_block, keys_copied_at_once(self.problem, self.instruction)),
        ):  # fmt: skip
            if value % step:
                raise ValueError(f"{name} = {value} is not a multiple of {step}: panels would overlap")
        if self.problem.keys > self.key_block and self.key_block % (self.lanes * self.instruction.vnni):
            raise ValueError(f"key_block = {self.key_block} is not a multiple of registers, which packing transposes")
        if self.problem.heads % self.heads_per_task:
            raise ValueError(f"{self.heads_per_task} heads a task do not divide {self.problem.heads}")
        if self.heads_per_task > 1 and not self.always_visits:
            raise ValueError("rows without keys are looked for in tasks of one head")
        if self.splits > 1 and self.splits * self.keys_per_split - self.problem.keys >= self.keys_per_split:
            raise ValueError(f"{self.splits} splits of {self.problem.keys} keys: one would be empty")

    def replace(self, **changes: Any) -> AttentionPlan:
        """The plan with some fields changed.

        Raises:
          ValueError: such a plan cannot be.
        """
        return replace(self, **changes)

    # Tasks.

    @property
    def rounds(self) -> int:
        """Rounds."""
        return 1

    @property
    def folds_heads(self) -> bool:
        """Query heads that share keys stand along the lanes, with all queries of each."""
        return folded(self.problem, self.nr)

    @property
    def columns(self) -> int:
        """What stands along the lanes: the queries of a head, or of all heads that share keys, a query's together."""
        return self.problem.queries * (self.problem.group if self.folds_heads else 1)

    @property
    def rows(self) -> int:
        """What stands along the rows of a panel."""
        return self.problem.keys

    @property
    def visited(self) -> float:
        """The share of a panel's blocks that masks by place do not rule out, in the mean."""
        return self.problem.visited(self.problem.queries if self.folds_heads else self.nr, self.key_block)

    @functools.cached_property
    def last_panel(self) -> AttentionPlan | None:
        """The plan of the last panel, in the scratch of the others, where it fills half of their columns or less.

        It has as few registers of columns as hold it, and as many accumulators in more rows. None where all panels are
        alike.
        """
        left = self.columns % self.nr
        widths = (w for w in range(self.lanes, self.nr, self.lanes) if self.nr % w == 0 and left <= w)
        nr = next(widths, None) if left and not self.folds_heads and not self.streams else None
        if nr is None:
            return None
        mr = self.mr if self.instruction.tiles else self.mr * self.nr // nr
        return replace(self, mr=mr, nr=nr, scratch_nr=self.nr) if self.key_block % mr == 0 else None

    @property
    def kinds(self) -> tuple[str, str, str]:
        """What rows are, what columns are, and whose elements rows of sums are."""
        return "keys", "queries", "values"

    @property
    def outer(self) -> tuple[int, int, int]:
        """Over what tasks run beside blocks of queries and splits: (batch, heads of K, query heads of each)."""
        problem = self.problem
        return problem.batch, problem.heads // self.heads_per_task, 1 if self.folds_heads else problem.group

    @property
    def query_blocks(self) -> int:
        """Blocks of queries."""
        return -(-self.columns // self.query_block)

    @property
    def keys_per_split(self) -> int:
        """Keys of a split, in whole blocks."""
        return -(-self.problem.keys // (self.splits * self.key_block)) * self.key_block

    @property
    def elements(self) -> int:
        """Blocks of queries of all heads, or of so many as a task has."""
        batch, heads, group = self.outer
        return batch * heads * group * self.query_blocks

    @functools.cached_property
    def tasks(self) -> dict[str, int]:
        """Phases in order, and how many tasks each has."""
        phases = {"compute": self.elements * self.splits}
        return phases | {"combine": self.elements} if self.splits > 1 else phases

    @property
    def always_visits(self) -> bool:
        """No row is without keys in the blocks that are visited, but for rows whose keys are all masked anyway.

        Otherwise such rows may be found, of which all keys have to be visited: they average V.
        """
        problem = self.problem
        skips = problem.causal or problem.window or problem.key_lengths or problem.blocks
        hidden = hides_rows(problem.causal, problem.window, problem.queries, problem.keys)
        lengths = problem.key_lengths and (problem.causal or problem.window)
        return not (hidden or lengths or (problem.may_hide and skips))

    # Layouts in scratch.

    @property
    def lanes(self) -> int:
        """Queries in a register."""
        return self.instruction.shape[1]

    @property
    def depth(self) -> int:
        """D in whole instructions."""
        return rounded_up(self.problem.depth, self.instruction.shape[2])

    @property
    def key_stride(self) -> int:
        """Elements from row to row of a packed block of K, which packing writes in whole registers."""
        register = self.instruction.shape[1] * self.instruction.vnni
        return apart(rounded_up(self.problem.depth, register), self.instruction.lhs)

    @property
    def value_rows(self) -> int:
        """Rows of O^T, in whole tiles."""
        return rounded_up(self.problem.value_depth, self.instruction.shape[0])

    @property
    def value_stride(self) -> int:
        """Elements from row to row of a packed block of V transposed, for tiles."""
        return apart(self.key_block, self.instruction.lhs)

    @property
    def value_elements(self) -> int:
        """Elements of a packed block of V."""
        if self.instruction.tiles:
            return self.value_rows * self.value_stride
        return self.key_block * self.problem.value_depth

    @property
    def rounds_scores(self) -> bool:
        """Exponentials are rounded to a narrower type than the scores', and stand apart from them."""
        return self.instruction.rhs != self.instruction.acc

    @property
    def sum_elements(self) -> int:
        """Elements of a task's sums: O^T by panels, then maxima and sums of exponentials."""
        return self.out_elements + 2 * self.query_block

    @property
    def streams(self) -> bool:
        """K and V go through one panel of queries, so that reading them takes longest."""
        return self.columns <= self.nr and not self.instruction.tiles

    @property
    def by_rows(self) -> bool:
        """The columns are few enough to stand along rows instead: scores are inner products, sums are P @ V.

        K and V are then read in place, each line once, by whole registers.
        """
        problem = self.problem
        in_place = problem.key[-1] == problem.value[-1] == 1 and not problem.query_lengths
        return self.streams and self.columns <= FEW_COLUMNS and in_place

    @property
    def out_stride(self) -> int:
        """Elements of a row of sums that stand by rows."""
        return rounded_up(self.problem.value_depth, self.lanes)

    @property
    def query_elements(self) -> int:
        """Elements of a head's packed queries."""
        return self.query_block * (self.query_stride if self.by_rows else self.depth)

    @property
    def query_stride(self) -> int:
        """Elements from query to query where they stand by rows, which packing writes in whole registers."""
        return rounded_up(self.problem.depth, self.lanes * self.instruction.vnni)

    @property
    def out_elements(self) -> int:
        """Elements of O^T, or of O by rows."""
        return self.query_block * (self.out_stride if self.by_rows else self.value_rows)

    @property
    def paired_score_arrays(self) -> int:
        """Arrays of the score function of which a panel's part is copied: those that differ along both of its axes."""
        axis = 2 if self.folds_heads else 3
        return sum(array.strides[axis] != 0 != array.strides[4] for array in self.problem.score_arrays)

    @property
    def panel_elements(self) -> int:
        """Elements of the scores of a panel and a block of keys, as scratch has room for."""
        return self.key_block * max(self.nr, self.scratch_nr)

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Where the parts of a thread's own scratch begin, in bytes, and their `end`."""
        i, panel = self.instruction, self.panel_elements
        packed = {
            "query": bytes_of(i.rhs, self.heads_per_task * self.query_elements),
            "key": bytes_of(i.lhs, self.key_block * self.key_stride) if self.packs_keys else 0,
            "value": bytes_of(i.lhs, self.value_elements) if self.packs_values else 0,
            "scores": bytes_of(i.acc, panel),
            "exponentials": bytes_of(i.rhs, panel) if self.rounds_scores else 0,
            "bias": bytes_of(i.acc, panel) if self.problem.bias else 0,
            "mask": bytes_of(i.acc, panel) if self.problem.mask else 0,
            "score": bytes_of(i.acc, panel * self.paired_score_arrays),
            "sums": bytes_of(i.acc, self.heads_per_task * self.sum_elements) if self.splits == 1 else 0,
            "tiles": bytes_of(i.acc, self.mr * self.nr) if i.tiles else 0,
        }
        found, at = {}, 0
        for name, size in packed.items():
            found[name], at = at, at + whole_lines(size)
        return found | {"end": at}

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread."""
        return self.places["end"]

    @property
    def shared_bytes(self) -> int:
        """Scratch that all tasks see: the sums of all splits."""
        if self.splits == 1:
            return 0
        elements = self.splits * self.elements * self.heads_per_task * self.sum_elements
        return bytes_of(self.instruction.acc, elements)


AnyPlan = Plan | AttentionPlan | GroupedPlan | GatedPlan | PipelinePlan


def keys_copied_at_once(problem: Attention, instruction: DotInstruction) -> int:
    """Keys that a block has a multiple of: where packing transposes what lies along keys, registers of them."""
    _, lanes, _ = instruction.shape
    if problem.value[2] == 1 != problem.value[3]:
        return lanes * instruction.vnni
    scores = [x.strides for x in problem.arrays_of_pairs]
    return lanes if any(key == 1 and (query or member) for *_, member, query, key in scores) else 1


def folded(problem: Attention, columns: int) -> bool:
    """Whether query heads that share keys are columns of one product: one query each, or no more than `columns`."""
    if problem.group == 1 or problem.queries == 1:
        return problem.group > 1
    of_pairs = problem.arrays_of_pairs or problem.score or problem.blocks
    return problem.queries * problem.group <= columns and not of_pairs


def rounded_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple
