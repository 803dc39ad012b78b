"""Plans of attention: blocks of queries by blocks of keys, and who computes which.

Scores stand transposed: keys along the rows of a register block, queries along its lanes. So the maximum and the sum of
a softmax are those of registers, K is read by rows as it lies, exponentials are stored as the second product's B, and
the result is V transposed times them:

    S^T [keys, queries] = K [keys, d] @ Q^T [d, queries]          O^T [dv, queries] += V^T [dv, keys] @ P^T [keys, queries]

A task has the queries of one head, or the heads of one query that share keys. Its own scratch:

    | Q^T panels | block of K | block of V | scores of a panel | P^T of it | bias, mask of it | sums | a block's tiles |

where the sums are O^T, maxima, and sums of exponentials. Where keys are split among tasks, the sums are shared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from jax_nano.ir.attention import Attention, UnsupportedAttention
from jax_nano.ir.dtypes import WIDENS, bytes_of
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.scratch import apart, whole_lines

FEW_QUERIES = 8  # of them tiles would be as good as empty, and K and V are as good as read once
TASKS = 16  # keys are split until there are so many, whatever the number of threads
SPLIT_KEYS = 512  # in a split, at least
SOFTMAX_INSTRUCTIONS = 24  # of a register of scores: scaled, compared, exponentiated, added up, rounded
SETUP_SECONDS = 5e-6
# Queries of a task: K and V are copied once for so many, and their sums stay in L2. Keys of a block: a panel of scores
# stays in L1 beside the blocks of K and V.
QUERIES_PER_TASK, KEYS_PER_BLOCK = 256, 64


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Everything that shapes the code of one attention on one target. Sizes are in elements.

    Attributes:
      problem: what is computed.
      isa: the instruction set.
      instruction: multiplies in both products.
      mr: rows of a register block: keys, or elements of a value.
      nr: columns of it: queries, in whole registers.
      key_block: keys whose scores a panel holds.
      query_block: queries of a task.
      splits: parts of the keys, that different tasks attend to, and a phase of its own combines in order.
      packs_keys: blocks of K are copied, and converted to the instruction's type.
      packs_values: so are blocks of V; interleaved or transposed, as the instruction wants them.
      why: why it was chosen.
      predicted_seconds: by the cost model, on all threads.
    """

    problem: Attention
    isa: str
    instruction: DotInstruction
    mr: int
    nr: int
    key_block: int
    query_block: int
    splits: int = 1
    packs_keys: bool = True
    packs_values: bool = True
    why: str = field(default="", compare=False)
    predicted_seconds: float = field(default=0.0, compare=False)

    def __post_init__(self):
        for name, value, step in (
            ("nr", self.nr, self.lanes), ("query_block", self.query_block, self.nr),
            ("key_block", self.key_block, self.mr), ("key_block", self.key_block, self.instruction.shape[2]),
        ):  # fmt: skip
            if value % step:
                raise ValueError(f"{name} = {value} is not a multiple of {step}: panels would overlap")
        if self.splits > 1 and self.splits * self.keys_per_split - self.problem.keys >= self.keys_per_split:
            raise ValueError(f"{self.splits} splits of {self.problem.keys} keys: one would be empty")

    # Tasks.

    @property
    def rounds(self) -> int:
        """Rounds."""
        return 1

    @property
    def folds_heads(self) -> bool:
        """Query heads stand along the lanes, of which there are several that share keys, and one query each."""
        return self.problem.queries == 1 < self.problem.group

    @property
    def columns(self) -> int:
        """What stands along the lanes: the queries of a head, or the heads of a query."""
        return self.problem.group if self.folds_heads else self.problem.queries

    @property
    def outer(self) -> tuple[int, int, int]:
        """Over what tasks run beside blocks of queries and splits: (batch, heads of K, query heads of each)."""
        problem = self.problem
        return problem.batch, problem.heads, 1 if self.folds_heads else problem.group

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
        """Blocks of queries of all heads."""
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
        skips = problem.causal or problem.window or problem.key_lengths
        beyond = problem.window and problem.queries - 1 - problem.window[0] >= problem.keys
        lengths = problem.key_lengths and (problem.causal or problem.window)
        return not (beyond or lengths or (problem.mask and skips))

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
        return self.query_block * (self.value_rows + 2)

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Where the parts of a thread's own scratch begin, in bytes, and their `end`."""
        i, panel = self.instruction, self.key_block * self.nr
        packed = {
            "query": bytes_of(i.rhs, self.query_block * self.depth),
            "key": bytes_of(i.lhs, self.key_block * self.key_stride) if self.packs_keys else 0,
            "value": bytes_of(i.lhs, self.value_elements) if self.packs_values else 0,
            "scores": bytes_of(i.acc, panel),
            "exponentials": bytes_of(i.rhs, panel) if self.rounds_scores else 0,
            "bias": bytes_of(i.acc, panel) if self.problem.bias else 0,
            "mask": bytes_of(i.acc, panel) if self.problem.mask else 0,
            "sums": bytes_of(i.acc, self.sum_elements) if self.splits == 1 else 0,
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
        return bytes_of(self.instruction.acc, self.splits * self.elements * self.sum_elements)


def rounded_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def attention_plans(problem: Attention, machine: Machine, isa: Isa) -> list[AttentionPlan]:
    """The plans worth measuring, the one by the rules of this file first.

    Raises:
      UnsupportedAttention: the target has no instruction for this type.
    """
    level, instruction = instruction_for(problem, isa)
    first = plan_by(problem, machine, level, instruction)
    others = [replace(first, isa=isa.name, **changes) for changes in variations(first)]
    return [replace(plan, isa=isa.name) for plan in dict.fromkeys([first, *others])]


def choose_attention(problem: Attention, machine: Machine, isa: Isa) -> AttentionPlan:
    """The plan of an attention.

    Raises:
      UnsupportedAttention: the target has no instruction for this type.
    """
    plan = attention_plans(problem, machine, isa)[0]
    seconds = predicted_seconds(plan, machine)
    why = f"by rule: {1e6 * seconds:.1f} us expected on {machine.threads} threads"
    return replace(plan, why=why, predicted_seconds=seconds)


def instruction_for(problem: Attention, isa: Isa) -> tuple[Isa, DotInstruction]:
    """What multiplies: tiles before vectors, and what takes more steps at once before what takes fewer.

    Of few queries, tiles would be as good as empty.

    Raises:
      UnsupportedAttention: there is none.
    """
    few = max(problem.queries, problem.group if problem.queries == 1 else 1) <= FEW_QUERIES
    found = [
        (level, i)
        for level in (isa, isa.vectors)
        if level
        for i in level.dots
        if i.lhs == i.rhs and i.lhs in WIDENS[problem.dtype] and i.acc == problem.acc and not (i.tiles and few)
    ]
    if not found:
        raise UnsupportedAttention(f"{isa.name} has no instruction that multiplies {problem.dtype} into {problem.acc}")
    return max(found, key=lambda pair: (pair[1].tiles, pair[1].vnni))


def plan_by(problem: Attention, machine: Machine, isa: Isa, instruction: DotInstruction) -> AttentionPlan:
    """The plan around an instruction."""
    columns = problem.group if problem.queries == 1 else problem.queries
    mr, nr = tile_block(instruction, columns) if instruction.tiles else vector_block(problem, isa, instruction, columns)
    steps = math.lcm(mr, instruction.shape[2])
    key_block = rounded_up(min(KEYS_PER_BLOCK, problem.keys), steps)
    in_place = problem.dtype == instruction.lhs and columns <= FEW_QUERIES and not instruction.tiles
    plan = AttentionPlan(
        problem=problem,
        isa=isa.name,
        instruction=instruction,
        mr=mr,
        nr=nr,
        key_block=key_block,
        query_block=query_block(problem, machine, columns, nr),
        packs_keys=not (in_place and problem.key[-1] == 1),
        packs_values=not (in_place and instruction.vnni == 1 and problem.value[-1] == 1),
    )
    return replace(plan, splits=splits_of(plan))


def tile_block(instruction: DotInstruction, columns: int) -> tuple[int, int]:
    """Two tiles by two, or fewer columns."""
    rows, lanes, _ = instruction.shape
    return 2 * rows, min(2, -(-columns // lanes)) * lanes


def vector_block(problem: Attention, isa: Isa, instruction: DotInstruction, columns: int) -> tuple[int, int]:
    """The register block that goes over keys, elements of values, and queries with the fewest loads and empty lanes."""
    lanes = instruction.shape[1]

    def cost(block: tuple[int, int]) -> tuple[float, int]:
        mr, registers = block
        rows = -(-problem.value_depth // mr) * mr / problem.value_depth
        filled = -(-columns // (registers * lanes)) * registers * lanes / columns
        loads = (mr + registers) / (mr * registers)
        chains = max(1.0, 8 / (mr * registers))
        return rows * filled * chains * max(1, loads + 0.6), -mr * registers

    blocks = [(mr, r) for r in range(1, 7) for mr in (4, 6, 8, 12, 16) if mr * r + r + 1 <= isa.register_count]
    mr, registers = min(blocks, key=cost)
    return mr, registers * lanes


def query_block(problem: Attention, machine: Machine, columns: int, nr: int) -> int:
    """Queries of a task: enough to copy K and V for, few enough for each thread to have several tasks."""
    heads = problem.batch * problem.heads * (problem.group if problem.queries > 1 else 1)
    most = rounded_up(min(columns, QUERIES_PER_TASK), nr)
    while most > nr and heads * -(-columns // most) < 4 * machine.threads:
        most = rounded_up(most // 2, nr)
        if most <= 2 * nr:
            break
    return most


def splits_of(plan: AttentionPlan) -> int:
    """Parts of the keys: as many as it takes to have tasks for many threads, each of many keys.

    Rows that mix masks and skipped blocks are not split: whether they see any key, all splits decide together.
    """
    problem = plan.problem
    if problem.causal or problem.window or ((problem.bias or problem.mask) and problem.key_lengths):
        return 1
    wanted = min(-(-TASKS // plan.elements), problem.keys // SPLIT_KEYS)
    while wanted > 1:
        per_split = replace(plan, splits=1).key_block * -(-problem.keys // (wanted * plan.key_block))
        if wanted * per_split - problem.keys < per_split:
            return wanted
        wanted -= 1
    return 1


def variations(plan: AttentionPlan) -> Iterator[dict[str, int]]:
    """Other blocks of queries and keys."""
    for queries in (plan.query_block // 2, 2 * plan.query_block):
        if queries and queries % plan.nr == 0 and queries < 2 * plan.columns and plan.splits == 1:
            yield {"query_block": queries}


def predicted_seconds(plan: AttentionPlan, machine: Machine) -> float:
    """The time of both products, of the exponentials, and of what is read, whichever is longer."""
    problem, instruction, core = plan.problem, plan.instruction, machine.vector_core(plan.isa)
    m, n, k = instruction.shape
    lanes = rounded_up(plan.columns, plan.nr) / plan.columns
    rate, _ = machine.cores[plan.isa].rate(instruction.name)
    products = problem.multiplications * lanes / (m * n * k) / rate
    scores = problem.multiplications / (problem.depth + problem.value_depth) * lanes / n
    cycles = products + scores * SOFTMAX_INSTRUCTIONS / core.vector_per_cycle * 2
    threads = min(machine.threads, plan.tasks["compute"])
    compute = cycles / (machine.ghz * 1e9) / threads
    memory = problem.bytes / (machine.memory_gb_per_s[threads > 1] * 1e9)
    return max(compute, memory) + SETUP_SECONDS
