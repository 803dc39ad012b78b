"""The choice of a plan of attention: a register block by cost, all else by rules, and what is worth measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from jax_nano.ir.attention import Attention, UnsupportedAttention
from jax_nano.ir.attention_gradient import AttentionGradient
from jax_nano.ir.dtypes import WIDENS, bytes_of
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.attention.gradient import GradientPlan
from jax_nano.schedule.attention.plan import FEW_COLUMNS, AttentionPlan, folded, rounded_up
from jax_nano.schedule.cost.attention import attention_seconds, columns_cycles

FEW_QUERIES = FEW_COLUMNS  # of them tiles would be as good as empty, and K and V are as good as read once
# Keys are split until there are so many tasks, whatever the number of threads, of so many keys at least: where K and V
# are read once, a split is a matter of reading; elsewhere its sums are combined for many queries.
SPLITS = {False: (16, 512), True: (32, 256)}
# Queries of a task: K and V are copied once for so many, and their sums stay in L2. Keys of a block: a panel of scores
# stays in L1 beside the blocks of K and V.
QUERIES_PER_TASK, KEYS_PER_BLOCK = 256, 64
UNROLL = 4
FOLDED_REGISTERS = 2  # of queries of all heads that share keys, which are then one panel
PAGE_BYTES = 4096  # K and V are read so many bytes at a time where the rows of heads are neighbours
STREAMED_BYTES = 65536  # of K in a block that is read once: so much of K and of V is prefetched into L2 meanwhile
# Rows and registers of blocks that fill the registers of accumulators, of which the cost model chooses.
BLOCKS = {32: ((8, 2), (24, 1), (4, 4)), 16: ((4, 2), (8, 1))}
# Of few columns, whose keys and values are read in place, rows of values go by whole lines: 16 f32 take half the time
# of 24, and as much as 8 or 12 (Zen 5, 8 sequences of 2048 keys, 8 heads of 128).
FEW_COLUMNS_ROWS = {32: 16, 16: 8}


def attention_plans(problem: Attention, machine: Machine, isa: Isa) -> list[AttentionPlan]:
    """The plans worth measuring, the one by the rules of this file first.

    Raises:
      UnsupportedAttention: the target has no instruction for this type.
    """
    if isinstance(problem, AttentionGradient):
        return [gradient_plan(problem, machine, isa)]
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
    seconds = attention_seconds(plan, machine)
    why = f"cheapest block: {1e6 * seconds:.1f} us expected on {machine.threads} threads"
    return replace(plan, why=why, predicted_seconds=seconds)


def instruction_for(problem: Attention, isa: Isa) -> tuple[Isa, DotInstruction]:
    """What multiplies: tiles before vectors, and what takes more steps at once before what takes fewer.

    Of few queries, tiles would be as good as empty.

    Raises:
      UnsupportedAttention: there is none.
    """
    few = columns_of(problem, isa.dots[0].shape[1]) <= FEW_QUERIES
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
    columns = columns_of(problem, instruction.shape[1])
    mr, nr = register_block(problem, machine, isa, instruction, columns)
    steps = block_steps(mr, instruction)
    streams = columns <= nr and not instruction.tiles
    heads = neighbours(problem) if streams else 1
    keys = STREAMED_BYTES // bytes_of(problem.key_dtype, heads * problem.depth) if streams else KEYS_PER_BLOCK
    key_block = rounded_up(max(1, min(keys, KEYS_PER_BLOCK, problem.keys)), steps)
    in_place = problem.dtype == instruction.lhs and columns <= FEW_QUERIES and not instruction.tiles and heads == 1
    plan = AttentionPlan(
        problem=problem,
        isa=isa.name,
        instruction=instruction,
        mr=mr,
        nr=nr,
        unroll=UNROLL,
        key_block=key_block,
        query_block=query_block(problem, machine, columns, nr),
        heads_per_task=heads,
        packs_keys=not (in_place and problem.key_dtype == problem.dtype and problem.key[-1] == 1),
        packs_values=not (
            in_place and problem.value_dtype == problem.dtype and instruction.vnni == 1 and problem.value[-1] == 1
        ),
    )
    if plan.by_rows:
        plan = replace(plan, packs_keys=False, packs_values=False)
    return replace(plan, splits=splits_of(plan))


def block_steps(mr: int, instruction: DotInstruction) -> int:
    """What a block of keys is a multiple of: register blocks, instructions, and registers that packing transposes."""
    return math.lcm(mr, instruction.shape[2], UNROLL * instruction.vnni, instruction.shape[1] * instruction.vnni)


def columns_of(problem: Attention, lanes: int) -> int:
    """What stands along the lanes: see AttentionPlan.columns."""
    return problem.queries * (problem.group if folded(problem, FOLDED_REGISTERS * lanes) else 1)


def neighbours(problem: Attention) -> int:
    """Heads of keys of a task, whose rows are one piece of memory: as many as a page holds, and leave enough tasks."""
    apart = problem.key[1] != problem.depth or problem.value[1] != problem.value_depth
    if apart or {problem.key[-1], problem.value[-1]} != {1} or problem.arrays_of_pairs or problem.blocks:
        return 1
    if problem.causal or problem.window or problem.may_hide:
        return 1
    most = PAGE_BYTES // bytes_of(problem.key_dtype, max(problem.depth, problem.value_depth))
    parts, (wanted, _) = problem.batch * max(1, problem.keys // SPLITS[True][1]), SPLITS[False]
    fitting = (n for n in range(1, min(problem.heads, most) + 1) if problem.heads % n == 0)
    return max((n for n in fitting if problem.heads // n * parts >= wanted), default=1)


def gradient_plan(problem: AttentionGradient, machine: Machine, isa: Isa) -> GradientPlan:
    """The plan of gradients.

    Raises:
      UnsupportedAttention: the target has no instruction for this type.
    """
    level, instruction = instruction_for(problem, isa)
    columns, rows = problem.queries, problem.keys
    if problem.of != "queries":
        columns, rows = rows, columns
    mr, nr = register_block(problem, machine, level, instruction, columns)
    steps = block_steps(mr, instruction)
    return GradientPlan(
        problem=problem,
        isa=isa.name,
        instruction=instruction,
        mr=mr,
        nr=nr,
        unroll=UNROLL,
        key_block=rounded_up(min(KEYS_PER_BLOCK, rows), steps),
        query_block=query_block(problem, machine, columns, nr),
    )


def register_block(
    problem: Attention, machine: Machine, isa: Isa, instruction: DotInstruction, columns: int
) -> tuple[int, int]:
    """Rows and columns of a register block."""
    if instruction.tiles:
        return tile_block(instruction, columns)
    return vector_block(problem, machine, isa, instruction, columns)


def tile_block(instruction: DotInstruction, columns: int) -> tuple[int, int]:
    """Two tiles by two, or fewer columns."""
    rows, lanes, _ = instruction.shape
    return 2 * rows, min(2, -(-columns // lanes)) * lanes


def vector_block(
    problem: Attention, machine: Machine, isa: Isa, instruction: DotInstruction, columns: int
) -> tuple[int, int]:
    """The register block that takes the fewest cycles on all columns: of those that read once, a line of values."""
    lanes = instruction.shape[1]
    if columns <= min(FEW_COLUMNS, lanes) and problem.key[-1] == problem.value[-1] == 1 and not problem.query_lengths:
        return min(8, 1 << (isa.register_count // 2 // columns).bit_length() - 1), lanes
    if columns <= FEW_QUERIES or (folded(problem, FOLDED_REGISTERS * lanes) and columns <= lanes):
        return FEW_COLUMNS_ROWS[isa.register_count], lanes
    if problem.queries > 1 and folded(problem, FOLDED_REGISTERS * lanes):
        return FEW_COLUMNS_ROWS[isa.register_count] // 2, 2 * lanes

    def cycles(block: tuple[int, int]) -> float:
        mr, nr = block[0], block[1] * lanes
        keys = rounded_up(KEYS_PER_BLOCK, block_steps(mr, instruction))
        plan = AttentionPlan(
            problem=problem, isa=isa.name, instruction=instruction, mr=mr, nr=nr, key_block=keys, query_block=nr
        )
        return columns_cycles(plan, machine) / min(keys, plan.rows)

    mr, registers = min(BLOCKS[isa.register_count], key=cycles)
    return mr, registers * lanes


def query_block(problem: Attention, machine: Machine, columns: int, nr: int) -> int:
    """Queries of a task: enough to copy K and V for, few enough for each thread to have several tasks."""
    heads = problem.batch * problem.heads * (problem.group if columns == problem.queries else 1)
    if isinstance(problem, AttentionGradient) and problem.of == "bias":
        heads = math.prod(problem.sizes_of_bias)
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
    if (
        problem.causal
        or problem.window
        or problem.blocks
        or ((problem.bias or problem.mask or problem.score) and problem.key_lengths)
    ):
        return 1
    tasks = math.prod(plan.outer) * -(-plan.columns // QUERIES_PER_TASK)  # whatever blocks threads want
    wanted, keys = SPLITS[plan.streams]
    wanted = min(-(-wanted // tasks), problem.keys // keys)
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
