"""The choice of a plan of attention: by rules, and what is worth measuring beside it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

from jax_nano.ir.attention import Attention, UnsupportedAttention
from jax_nano.ir.attention_gradient import AttentionGradient
from jax_nano.ir.dtypes import WIDENS, bytes_of
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.schedule.attention import AttentionPlan, folded, rounded_up
from jax_nano.schedule.attention_gradient import GradientPlan

FEW_QUERIES = 8  # of them tiles would be as good as empty, and K and V are as good as read once
TASKS = 32  # keys are split until there are so many, whatever the number of threads
SPLIT_KEYS = 256  # in a split, at least
SOFTMAX_INSTRUCTIONS = 24  # of a register of scores: scaled, compared, exponentiated, added up, rounded
SETUP_SECONDS = 5e-6
# Queries of a task: K and V are copied once for so many, and their sums stay in L2. Keys of a block: a panel of scores
# stays in L1 beside the blocks of K and V.
QUERIES_PER_TASK, KEYS_PER_BLOCK = 256, 64
UNROLL = 4
FOLDED_REGISTERS = 2  # of queries of all heads that share keys, which are then one panel
PAGE_BYTES = 4096  # K and V are read so many bytes at a time where the rows of heads are neighbours
STREAMED_BYTES = 65536  # of K in a block that is read once: so much of K and of V is prefetched into L2 meanwhile
# Rows and registers of blocks, and the time they take where nothing is empty: measured on Zen 5 for five shapes, where
# blocks of 4 to 14 rows and 2 to 6 registers are within 8 % of each other. Those for 16 registers fill them as much.
BLOCKS = {32: ((8, 2, 1.0), (24, 1, 1.06), (4, 4, 1.0)), 16: ((4, 2, 1.0), (8, 1, 1.06))}
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
    seconds = predicted_seconds(plan, machine)
    why = f"by rule: {1e6 * seconds:.1f} us expected on {machine.threads} threads"
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
    mr, nr = tile_block(instruction, columns) if instruction.tiles else vector_block(problem, isa, instruction, columns)
    steps = math.lcm(mr, instruction.shape[2], UNROLL * instruction.vnni)
    streams = columns <= nr and not instruction.tiles
    heads = neighbours(problem) if streams else 1
    keys = STREAMED_BYTES // bytes_of(problem.dtype, heads * problem.depth) if streams else KEYS_PER_BLOCK
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
        packs_keys=not (in_place and problem.key[-1] == 1),
        packs_values=not (in_place and instruction.vnni == 1 and problem.value[-1] == 1),
    )
    return replace(plan, splits=splits_of(plan))


def columns_of(problem: Attention, lanes: int) -> int:
    """What stands along the lanes: see AttentionPlan.columns."""
    return problem.queries * (problem.group if folded(problem, FOLDED_REGISTERS * lanes) else 1)


def neighbours(problem: Attention) -> int:
    """Heads of keys of a task, whose rows are one piece of memory: as many as a page holds."""
    apart = problem.key[1] != problem.depth or problem.value[1] != problem.value_depth
    if apart or {problem.key[-1], problem.value[-1]} != {1} or problem.bias or problem.mask:
        return 1
    if problem.causal or problem.window:
        return 1
    most = PAGE_BYTES // bytes_of(problem.dtype, max(problem.depth, problem.value_depth))
    return max(n for n in range(1, problem.heads + 1) if problem.heads % n == 0 and n <= max(1, most))


def gradient_plan(problem: AttentionGradient, machine: Machine, isa: Isa) -> GradientPlan:
    """The plan of gradients.

    Raises:
      UnsupportedAttention: the target has no instruction for this type.
    """
    level, instruction = instruction_for(problem, isa)
    columns, rows = problem.queries, problem.keys
    if problem.of == "keys":
        columns, rows = rows, columns
    vectors = functools.partial(vector_block, problem, level)
    mr, nr = (tile_block if instruction.tiles else vectors)(instruction, columns)
    steps = math.lcm(mr, instruction.shape[2], UNROLL * instruction.vnni)
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


def tile_block(instruction: DotInstruction, columns: int) -> tuple[int, int]:
    """Two tiles by two, or fewer columns."""
    rows, lanes, _ = instruction.shape
    return 2 * rows, min(2, -(-columns // lanes)) * lanes


def vector_block(problem: Attention, isa: Isa, instruction: DotInstruction, columns: int) -> tuple[int, int]:
    """The register block that goes over queries and elements of values with the fewest empty lanes and rows."""
    lanes = instruction.shape[1]
    if columns <= FEW_QUERIES or (folded(problem, FOLDED_REGISTERS * lanes) and columns <= lanes):
        return FEW_COLUMNS_ROWS[isa.register_count], lanes
    if problem.queries > 1 and folded(problem, FOLDED_REGISTERS * lanes):
        return FEW_COLUMNS_ROWS[isa.register_count] // 2, 2 * lanes

    def cost(block: tuple[int, int, float]) -> float:
        mr, registers, share = block
        filled = rounded_up(columns, registers * lanes) / columns
        rows = rounded_up(problem.value_depth, mr) / problem.value_depth
        return share * filled * (1 + rows) / 2

    mr, registers, _ = min(BLOCKS[isa.register_count], key=cost)
    return mr, registers * lanes


def query_block(problem: Attention, machine: Machine, columns: int, nr: int) -> int:
    """Queries of a task: enough to copy K and V for, few enough for each thread to have several tasks."""
    heads = problem.batch * problem.heads * (problem.group if columns == problem.queries else 1)
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
