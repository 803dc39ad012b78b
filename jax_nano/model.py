"""What a plan costs: plain arithmetic on facts about a processor, without JAX or MLIR."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax_nano.elementwise import INSTRUCTIONS
from jax_nano.isa import Cache, Core, DotInstruction, Isa, Machine
from jax_nano.plan import LINE_BYTES, Plan
from jax_nano.problem import LARGEST, WORDS, Axis, Dot, bytes_of, extent

# Branches, addresses and the drained pipeline between one microkernel and the next.
BLOCK_OVERHEAD_CYCLES = 20
# The share of fetching B for packing that is left where it is asked for ahead.
UNHIDDEN = 0.1
# What another kind of block at the ragged end costs, beside its own cycles.
UNEVEN = 0.01
# How much longer an accumulator waits for its last update, where it waits for nothing else, than that takes.
LATENCY_SLACK = 1.2
# The share of a load's time that other work does not hide: of blocks that take the same cycles, fewer loads win.
LOAD_COLLISIONS = 0.03
# Handing out one task, where several threads take part.
TASK_US = 0.2
# The share of a task that a thread waits for the others at the end, on a machine with other work to do.
IMBALANCE = 0.15
# The share of a cache that a panel of B may fill and still be there when it is read again.
PANEL_SHARE = 0.67
# The share of the shorter of computing and fetching that the longer one does not hide.
EXPOSED = 0.1
# What a line of B takes that comes from the second cache and not the first, where prefetchers follow its strides.
FOLLOWED_MISS = 0.5
# What an element of A takes whose line other rows have pushed out since the last step.
THRASHED_CYCLES = 1.5
# What a run of bytes that neither of the nearest caches keeps takes, however short it is.
FAR_MISS_CYCLES = 3.5
# The share of bandwidth that copying reaches, which waits for what it has not asked for ahead.
PACKING_RATE = 0.72
# How much longer the wait for A is where it is read in place than where it is copied.
IN_PLACE = 1.3
# The share of this wait that is left where strides are short or runs are not, which prefetchers follow.
FOLLOWED = 0.3
# What a run of bytes that ends before a page does costs beside its own length: prefetchers begin again.
RUN_BYTES = 64
FAR_RUN_BYTES = 256  # where runs come from memory
AHEAD_RUN = 0.6  # the share of that where they are asked for ahead
STREAM_BYTES = 128  # where several rows of B are gone through side by side
# The share of a core's bandwidth from memory that is left to it while others read too.
MEMORY_SHARE = 0.75
LOOKUP_REGISTERS = 3  # for pairs of 4-bit integers as bf16, which a table gives
# What going over to the next of these rows costs in a microkernel, in bytes that would have been read meanwhile.
STREAM_TURN_BYTES = 32


@dataclass(frozen=True)
class Extra:
    """Vector instructions that a step of k needs beside the loads and the multiply-accumulates."""

    per_row: float = 0  # of A's elements, as broadcast
    per_register: float = 0  # of B
    loads: int = 1  # that a register of B takes
    registers: int = 0  # for constants, and between loads and multiply-accumulates
    held: int = 0  # registers of B that stay while several steps are taken out of them, for each that a step reads
    per_run: float = 0  # cycles from a row of C that is stored to the next


@dataclass(frozen=True)
class InPlace:
    """B that is read where it stands."""

    bytes: int = 0
    element_bytes: float = 0


@dataclass(frozen=True)
class RegisterBlock:
    """The block of C that stays in registers: `rows` x `cols` elements."""

    rows: int
    cols: int
    hold_lhs: bool  # all of A's rows are held and B streams, rather than the reverse


def step_cycles(core: Core, instruction: DotInstruction, rows: int, registers: int, extra: Extra = Extra()) -> float:
    """Cycles of one step of k on a block of rows x registers accumulators.

    rows * registers multiply-accumulates are fed by rows loads of A and registers of B; each accumulator waits for its
    own last update.

    Source: Low et al., "Analytical Modeling Is Enough for High-Performance BLIS", ACM TOMS 43(2), 2016.
    """
    dots, loads = rows * registers, rows + registers * extra.loads
    others = rows * extra.per_row + registers * extra.per_register
    per_cycle, latency = core.rate(instruction.name)
    bound = max(
        dots / per_cycle,
        loads / core.loads_per_cycle,
        LATENCY_SLACK * latency,
        (dots * instruction.operations + others) / core.vector_per_cycle,
        (dots * instruction.operations + loads + others + 1) / core.issue_per_cycle,
    )
    return bound + LOAD_COLLISIONS * loads / core.loads_per_cycle


def block_cycles(
    core: Core, instruction: DotInstruction, rows: int, registers: int, steps: int, extra: Extra = Extra()
) -> float:
    """Cycles of a microkernel: its loop, and the accumulators cleared before and stored after."""
    stores = rows * registers / core.stores_per_cycle
    cycles = steps * step_cycles(core, instruction, rows, registers, extra) + stores + BLOCK_OVERHEAD_CYCLES
    return beside(cycles, rows * extra.per_run)


def beside(computing: float, fetching: float) -> float:
    """The time of both, where each goes on while the other waits."""
    return max(computing, fetching) + EXPOSED * min(computing, fetching)


def fetch_cycles(machine: Machine, held_bytes: int, step_bytes: float) -> float:
    """Cycles that a step of k takes to bring `step_bytes` of B, out of `held_bytes` that are gone through in turn."""
    for cache, bytes_per_cycle in zip(machine.caches[:-1], (math.inf, machine.l2_bytes_per_cycle), strict=False):
        if held_bytes <= cache.bytes * PANEL_SHARE:
            return step_bytes / bytes_per_cycle
    far = held_bytes > machine.caches[-1].bytes
    bandwidth = machine.memory_gb_per_s[0] * MEMORY_SHARE if far else machine.l3_gb_per_s
    return step_bytes * machine.ghz / bandwidth


def stream_cycles(machine: Machine, held_bytes: int, row_bytes: float, rows: int) -> float:
    """The same where B is read in place, and asked for ahead: pieces of `rows` of its rows in a step of k."""
    if held_bytes <= machine.second_cache.bytes:
        return 0.0
    far = held_bytes > machine.caches[-1].bytes * PANEL_SHARE
    rate = machine.memory_gb_per_s[0] / machine.ghz if far else machine.l3_stream_bytes_per_cycle
    return rows * (row_bytes + STREAM_TURN_BYTES) / rate


def register_block(
    isa: Isa,
    machine: Machine,
    instruction: DotInstruction,
    m: int,
    n: int,
    k: int,
    extra: Extra = Extra(),
    rhs: InPlace = InPlace(),
) -> RegisterBlock:
    """Chooses how many accumulators stay in registers, for C of m x n: the block whose panels take the fewest cycles.

    Either n registers of B and one of A are live beside the accumulators, or m of A and one of B. The first panel of
    rows brings a panel of B from where it stands; every other one reads it again, from the cache that holds it.

    Raises:
      ValueError: the target has fewer than 3 registers.
    """
    core = machine.cores[isa.name]
    if isa.register_count < 3:
        raise ValueError(f"{isa.name} has {isa.register_count} registers; a block needs at least 3")
    lanes, steps = instruction.shape[1], -(-k // instruction.shape[2])
    widest = isa.register_count if rhs.bytes else isa.register_count // 2  # code that packs is as long as it is wide
    registers_of_n = -(-n // lanes)
    best: tuple[float, int, int] | None = None
    for rows in range(1, min(m, isa.register_count) + 1):
        for registers in range(1, min(registers_of_n, widest) + 1):
            live = rows * registers + registers * extra.held + min(rows, registers) + 1 + extra.registers
            if live > isa.register_count:
                break
            cycles = 0.0
            for c, c_count in panels(registers_of_n, registers):
                piece = c * isa.register_bytes
                row_bytes = c * lanes * rhs.element_bytes
                first = steps * stream_cycles(machine, rhs.bytes, row_bytes, instruction.shape[2])
                again = steps * fetch_cycles(machine, steps * piece, piece)
                for position, (r, r_count) in enumerate(panels(m, rows)):
                    block = block_cycles(core, instruction, r, c, steps, extra)
                    fetching = position == 0
                    cycles += c_count * (fetching * beside(block, first) + (r_count - fetching) * max(block, again))
            cycles *= 1 + UNEVEN * ((m % rows > 0) + (registers_of_n % registers > 0))
            if best is None or cycles < best[0]:
                best = cycles, rows, registers
    if best is None:
        raise ValueError("a block needs at least one row and one column")
    _, rows, registers = best
    return RegisterBlock(rows, registers * lanes, hold_lhs=rows < registers)


def tile_blocks(isa: Isa, instruction: DotInstruction, m: int, n: int) -> list[RegisterBlock]:
    """The blocks of tiles worth weighing for C of m x n: those that can grow in one direction at most.

    The same registers are live as in a block of vectors, where a row is a row of tiles.
    """
    height, lanes, _ = instruction.shape

    def allowed(tall: int, wide: int) -> bool:
        fits = tall * wide + min(tall, wide) + 1 <= isa.register_count
        return fits and tall <= -(-m // height) and wide <= -(-n // lanes)

    sizes = range(1, isa.register_count)
    return [
        RegisterBlock(tall * height, wide * lanes, hold_lhs=tall < wide)
        for tall in sizes
        for wide in sizes
        if allowed(tall, wide) and not (allowed(tall + 1, wide) and allowed(tall, wide + 1))
    ]


def inner_block(
    isa: Isa, machine: Machine, instruction: DotInstruction, dot: Dot, m: Axis, n: Axis, k: Axis
) -> RegisterBlock:
    """The same with K along the lanes, where each element of C has a register to itself.

    Rows of A and columns of B are read side by side: blocks whose streams push each other out of the nearest cache are
    left out.
    """
    l1 = machine.caches[0]
    lanes, steps = instruction.shape[1], -(-k.size // (instruction.shape[1] * instruction.shape[2]))
    spare = instruction.operations + (dot.lhs != instruction.lhs) + (dot.rhs != instruction.rhs)
    best: tuple[float, int, int] | None = None
    for rows in range(1, min(m.size, isa.register_count) + 1):
        for cols in range(1, min(n.size, lanes) + 1):
            if rows * cols + min(rows, cols) + spare > isa.register_count:
                break
            streams = fits(l1, 2 * rows, LINE_BYTES, bytes_of(dot.lhs, m.lhs)) or rows == 1
            streams &= fits(l1, 2 * cols, LINE_BYTES, bytes_of(dot.rhs, n.rhs)) or cols == 1
            if not streams and rows * cols > 1:
                continue
            cycles = 0.0
            for c, c_count in panels(n.size, cols):
                for r, r_count in panels(m.size, rows):
                    cycles += r_count * c_count * inner_cycles(isa, machine, instruction, r, c, steps, m.size)
            if best is None or cycles < best[0]:
                best = cycles, rows, cols
    if best is None:
        raise ValueError("a block needs at least one row and one column")
    return RegisterBlock(best[1], best[2], hold_lhs=False)


def inner_cycles(
    isa: Isa, machine: Machine, instruction: DotInstruction, rows: int, cols: int, steps: int, m: int
) -> float:
    """Cycles of a microkernel with K along the lanes: its loop, the sums over lanes, and what it reads again."""
    core, register = machine.cores[isa.name], isa.register_bytes
    sums = rows * (3 * cols + 2 * math.log2(instruction.shape[1])) / 2
    again = fetch_cycles(machine, m * steps * register, rows * register)
    if m > rows:
        again += fetch_cycles(machine, cols * steps * register, cols * register)
    return max(block_cycles(core, instruction, rows, cols, steps), steps * again) + sums


def panels(size: int, step: int) -> list[tuple[int, int]]:
    """(extent, how many) of the panels that cover `size`."""
    whole, rest = divmod(size, step)
    return [(step, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)


def fits(cache: Cache, pieces: int, piece_bytes: int, stride_bytes: int) -> bool:
    """Whether `pieces` runs of bytes, a stride apart, stay in a cache together.

    Strides that share a large power of two with the size of a way leave most of the cache's sets unused.
    """
    piece = max(piece_bytes, LINE_BYTES)
    places = max(1, cache.way_bytes // max(math.gcd(stride_bytes, cache.way_bytes), piece))
    return pieces * piece <= cache.bytes and pieces <= places * cache.ways


@dataclass(frozen=True)
class Estimate:
    """Predicted times, in seconds."""

    compute: float  # of all tasks, on one thread
    packing: float
    memory: float  # for reading the operands and writing the result once
    total: float  # with all threads


def seconds(plan: Plan, machine: Machine, threads: int | None = None) -> Estimate:
    """Predicts the time of a plan on a machine."""
    threads = threads or machine.threads
    hertz = machine.ghz * 1e9
    compute = compute_cycles(plan, machine) / hertz
    work, fetching = packing_cycles(plan, machine)
    if plan.ahead:
        pieces = plan.nr if plan.interleaved else plan.block_columns
        first = pieces / plan.nt if plan.rhs == "private" else 0.0  # of a task: nothing asks for it
        hidden = min((1 - UNHIDDEN) * fetching, compute * hertz)
        fetching -= (1 - first) * hidden
    packing = (work - hidden_packing_cycles(plan, machine, compute * hertz) + fetching) / hertz
    tasks = plan.rounds * plan.tasks["compute"]
    workers = min(threads, tasks)
    memory = memory_seconds(plan, machine, workers)
    share = min(1.0, math.ceil(tasks / workers) * largest_task(plan)) * (compute + packing)
    total = beside(share, memory)
    if workers > 1:
        total += IMBALANCE * total * workers / tasks
        total += 1e-6 * (machine.wake_us * (len(plan.tasks) * plan.rounds) + TASK_US * tasks / workers)
    return Estimate(compute, packing, memory, total)


def largest_task(plan: Plan) -> float:
    """The share of all work that the largest task has: the others may be ragged."""
    parts = (
        (plan.mt, plan.m.size),
        (min(plan.nt, plan.nc), plan.n.size),
        (plan.outer_per_task, extent(plan.outer)),
        (plan.blocks_per_split, plan.k_blocks),
    )
    return math.prod(min(1.0, part / max(whole, 1)) for part, whole in parts)


def extra_for(plan: Plan, machine: Machine) -> Extra:
    """What a plan's steps need beside loads and multiply-accumulates."""
    in_place = plan.lhs == "direct", not plan.reads_panels
    core = machine.vector_core(plan.isa)
    return extra(machine, core, plan.dot, plan.m, plan.instruction, *in_place, plan.lanes)


def extra(
    machine: Machine, core: Core, dot: Dot, m: Axis, instruction: DotInstruction, lhs_direct: bool, rhs_direct: bool,
    lanes: str = "n",
) -> Extra:  # fmt: skip
    """The same before there is a plan: conversions in registers, rows of B interleaved there, and rows of C."""
    per_row = per_register = 0.0
    group = instruction.group
    registers = instruction.operations - 1
    if lhs_direct:
        per_row = 2.0 if dot.lhs != instruction.lhs else 0.0
        if instruction.lhs_offset:  # through a general register, out of which one is spread in a cycle
            per_row += core.vector_per_cycle
        registers += dot.lhs != instruction.lhs
    runs = run_cycles(machine, dot, m)
    if dot.rhs in WORDS and instruction.rhs == "bf16" and rhs_direct:
        looked_up = 1.0 + core.vector_per_cycle / core.shuffles_per_cycle  # a shift and a permutation
        return Extra(per_row, looked_up, registers=LOOKUP_REGISTERS, held=1, per_run=runs)
    if not rhs_direct:
        return Extra(per_row, registers=registers, per_run=runs)
    interleaved, converted = group > 1 and lanes == "n", dot.rhs != instruction.rhs
    if interleaved:
        per_register += 2.0 * core.vector_per_cycle / core.shuffles_per_cycle * math.log2(group)
        registers += group + 2  # and in which order shuffles take elements
    if converted:
        per_register += group * (4.0 if dot.rhs in LARGEST and instruction.rhs == "bf16" else 2.0)  # f32, half by half
        registers += 2
    held = int(dot.rhs in WORDS)
    return Extra(per_row, per_register, group if interleaved else 1, registers, held, runs)


def run_cycles(machine: Machine, dot: Dot, m: Axis) -> float:
    """Cycles from a row of C that is stored to the next.

    Rows whose stride shares a large power of two with the size of a way push each other out of the caches.
    """
    _, rows, cols, _ = dot.sizes
    l1 = machine.caches[0]
    if m.size == 1 or bytes_of(dot.out, rows * cols) <= l1.bytes:
        return 0.0
    places = l1.way_bytes // math.gcd(bytes_of(dot.out, m.out), l1.way_bytes)
    return max(machine.row_cycles, machine.conflict_cycles / places)


def compute_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of all microkernels, on one thread.

    The first panel of rows of every block of A fetches a panel of B from where B's block is; the others find it nearer,
    and so do all but the first of the products of one component of B.
    """
    core, instruction = machine.cores[plan.isa], plan.instruction
    if plan.lanes == "k":
        steps = -(-plan.kc // (instruction.shape[2] * instruction.shape[1]))
        cycles = sum(
            r_count * c_count * inner_cycles(machine.isa(plan.isa), machine, instruction, r, c, steps, plan.m.size)
            for r, r_count in panels(plan.m.size, plan.mr)
            for c, c_count in panels(plan.n.size, plan.nr)
        )
        return cycles * extent(plan.outer) * plan.k_blocks
    terms, components = plan.dot.terms, plan.dot.components[1]
    lanes, steps = instruction.shape[1], terms * -(-plan.kc // instruction.shape[2])
    blocks = -(-plan.m.size // plan.mc)
    b_bytes = rhs_block_bytes(plan)
    extra = extra_for(plan, machine)
    cycles = 0.0
    for cols, col_count in panels(plan.n.size, plan.nr):
        registers = -(-cols // lanes)
        step_bytes = bytes_of(instruction.rhs, registers * lanes * instruction.shape[2])
        again = steps * fetch_cycles(machine, steps * components // terms * step_bytes, step_bytes)
        row_bytes, rows_in_step = bytes_of(plan.dot.rhs, registers * lanes), instruction.shape[2]
        if plan.rhs == "direct":
            first = steps * stream_cycles(machine, b_bytes, row_bytes, rows_in_step)
            first *= 1 + STREAM_BYTES / bytes_of(plan.dot.rhs, plan.nt)
        elif plan.rhs == "panels":
            first = steps * stream_cycles(machine, b_bytes, row_bytes * rows_in_step, 1)
        else:
            share = components / terms
            first = share * steps * fetch_cycles(machine, b_bytes, step_bytes) + (1 - share) * again
        column = 0.0
        for rows, row_count in panels(plan.m.size, plan.mr):
            tall = -(-rows // instruction.shape[0])
            block = block_cycles(core, instruction, tall, registers, steps, extra)
            block += tile_pass_cycles(plan, machine, rows, registers) + steps * stalls(plan, machine, rows)
            block += (terms - 1) * BLOCK_OVERHEAD_CYCLES
            if plan.k_blocks > 1:
                block += 3 * tall * registers / core.stores_per_cycle + BLOCK_OVERHEAD_CYCLES
            fetching, rows_again = min(blocks, row_count), steps * lhs_refetch_cycles(plan, machine, tall)
            nearer = row_count - fetching
            column += fetching * beside(block, first + rows_again) + nearer * max(block, again + rows_again)
        cycles += col_count * column
    cycles *= extent(plan.outer) * plan.k_blocks
    cycles = beside(cycles, direct_lhs_cycles(plan, machine))
    cycles += extent(plan.outer) * plan.m.size * (plan.n_tasks * plan.rounds - 1) * machine.row_cycles
    return cycles + plan.rounds * plan.tasks["compute"] * core.setup_cycles


def tile_pass_cycles(plan: Plan, machine: Machine, rows: int, registers: int) -> float:
    """Cycles of the vectors that sums by tiles go through: before C, unless that takes tiles, and after small terms.

    From there, they go back into tiles.
    """
    if not plan.instruction.tiles:
        return 0.0
    tiles, core = machine.cores[plan.isa], machine.vector_core(plan.isa)
    height, lanes, _ = plan.instruction.shape
    whole = rows % height == 0 and plan.n.size % lanes == 0
    as_they_are = whole and plan.dot.out == plan.instruction.acc and not plan.dot.epilogue and not plan.dot.scaling
    through = 1 / core.loads_per_cycle + 1 / core.stores_per_cycle + 2 / core.vector_per_cycle
    cycles = 0.0 if as_they_are else rows * registers * through
    if plan.dot.terms > 1:
        there_and_back = -(-rows // height) * registers * (1 / tiles.stores_per_cycle + 1 / tiles.loads_per_cycle)
        cycles += rows * registers * through + there_and_back + BLOCK_OVERHEAD_CYCLES
    return cycles


def lhs_refetch_cycles(plan: Plan, machine: Machine, tall: int) -> float:
    """Cycles that a step of k takes to bring its tiles of A again; rows of vectors are too few to count."""
    if not plan.instruction.tiles:
        return 0.0
    rows, _, depth = plan.instruction.shape
    block = bytes_of(plan.instruction.lhs, min(plan.mc, plan.m.size) * plan.kc * plan.dot.components[0])
    return fetch_cycles(machine, block, bytes_of(plan.instruction.lhs, tall * rows * depth))


def rhs_block_bytes(plan: Plan) -> int:
    """Bytes of B that a task goes through for every block of A."""
    dtype = plan.instruction.rhs if plan.packs_rhs else plan.dot.rhs
    if not plan.packs_rhs:
        return bytes_of(dtype, plan.n.size * plan.k.size)
    columns = plan.local_rhs_columns or plan.nc  # what others packed is not in this core's caches
    return bytes_of(dtype, min(columns, plan.n.size) * plan.kc * plan.dot.components[1])


def stalls(plan: Plan, machine: Machine, rows: int) -> float:
    """Cycles that a step of k waits for lines that strides have pushed out of the nearest caches."""
    waits = 0.0
    lhs_stride, rhs_stride = bytes_of(plan.dot.lhs, plan.m.lhs), bytes_of(plan.dot.rhs, plan.k.rhs)
    by_elements = plan.lhs == "direct" and not plan.instruction.tiles  # tiles take whole lines at once
    if by_elements and rows > 1 and not fits(machine.caches[0], rows + 2, LINE_BYTES, lhs_stride):
        waits += THRASHED_CYCLES * rows
    if plan.lhs == "direct" and plan.k.lhs != 1 and plan.m.size > plan.mr:
        piece = bytes_of(plan.dot.lhs, plan.mr)
        waits += misses(machine, plan.kc, piece, bytes_of(plan.dot.lhs, plan.k.lhs))
    if plan.rhs == "direct" and plan.m.size > plan.mr:
        piece = bytes_of(plan.dot.rhs, plan.nr)
        waits += plan.instruction.shape[2] * misses(machine, plan.kc, piece, rhs_stride)
    return waits


def misses(machine: Machine, pieces: int, piece_bytes: int, stride_bytes: int) -> float:
    """Cycles of waiting for one of some runs of bytes, a stride apart, that are gone through again and again."""
    if fits(machine.caches[0], pieces, piece_bytes, stride_bytes):
        return 0.0
    lines = piece_bytes / LINE_BYTES
    if fits(machine.second_cache, pieces, piece_bytes, stride_bytes):
        return lines * (FOLLOWED_MISS if stride_bytes < machine.page_bytes else 1)
    return max(2 * lines, FAR_MISS_CYCLES)


def packing_cycles(plan: Plan, machine: Machine) -> tuple[float, float]:
    """Cycles of all packing on one thread: the work, and the wait for B, shorter where B is asked for ahead."""
    core = machine.vector_core(plan.isa)
    m, n, k, outer = plan.m.size, plan.n.size, plan.k.size * extent(plan.k_outer), extent(plan.outer)
    cycles = waiting = 0.0
    fetch = line_fetch_cycles(plan, machine)
    if plan.packs_rhs:
        times = outer * (plan.m_tasks if plan.rhs == "private" else 1)  # shared panels have no outer axes
        cycles += times * rhs_copy_cycles(plan, machine)
        columns = plan.pack_panels * plan.nr if plan.rhs == "shared" else plan.block_columns
        far = footprint(plan) > machine.caches[-1].bytes
        if plan.interleaved and far:
            columns = plan.nr
        run = bytes_of(plan.dot.rhs, min(columns, n) if plan.n.rhs == 1 else plan.kc)
        waiting += times * lines(k * n, plan.dot.rhs) * fetch
        if far:
            cycles += waiting * FAR_RUN_BYTES / run * (AHEAD_RUN if plan.ahead else 1)
        else:  # the processor's own prefetchers have most of it there in time
            cycles += waiting * (PACKING_RATE + RUN_BYTES / run)
            waiting = 0.0
    if plan.lhs != "direct":
        times = outer * plan.n_tasks * plan.rounds * plan.lhs_packings
        cycles += times * m * k * plan.dot.components[0] * prologue_cycles(plan, core)
        by_rows = plan.lhs == "rows" and plan.k.lhs == 1
        copied, turned = plan.m.lhs == 1 and plan.lhs == "columns", plan.k.lhs == 1 or plan.m.lhs == 1
        panel = bytes_of(plan.instruction.lhs, plan.lhs_panel * plan.instruction.group)
        stores = max(1.0, LINE_BYTES / panel) if plan.lhs == "columns" else 1.0
        converted = plan.dot.lhs != plan.instruction.lhs
        copying = stores * line_cycles(core, plan, by_rows or copied, turned, converted, plain=by_rows)
        cycles += times * lines(m * k * plan.dot.components[0], plan.instruction.lhs) * copying
        run = bytes_of(plan.dot.lhs, min(plan.mc, m) if plan.m.lhs == 1 else plan.kc)
        cycles += times * lines(m * k, plan.dot.lhs) * fetch * (1 + RUN_BYTES / run)
    return cycles, waiting


def prologue_cycles(plan: Plan, core: Core) -> float:
    """Cycles of work on an element of A: of a register of f32, unless elements are copied one by one."""
    prologue = plan.dot.prologue
    if not prologue:
        return 0.0
    lanes = plan.instruction.shape[1] if 1 in (plan.m.lhs, plan.k.lhs) else 1
    instructions = sum(INSTRUCTIONS.get(operation.name, 1) for operation in prologue.program.operations)
    return (2.0 * instructions / core.vector_per_cycle + len(prologue.extras) / core.loads_per_cycle) / lanes


def rhs_copy_cycles(plan: Plan, machine: Machine, alone: bool = True) -> float:
    """Cycles of packing B once."""
    core, k = machine.vector_core(plan.isa), plan.k.size * extent(plan.k_outer)
    padded = -(-plan.n.size // plan.nr) * plan.nr * plan.dot.components[1]
    converted = plan.dot.rhs != plan.instruction.rhs
    in_order = plan.n.rhs == 1 and plan.lanes == "n"
    copying = line_cycles(core, plan, in_order, 1 in (plan.n.rhs, plan.k.rhs), converted, alone=alone)
    return lines(k * padded, plan.instruction.rhs) * copying


def hidden_packing_cycles(plan: Plan, machine: Machine, products: float) -> float:
    """Cycles of packing that go on beside products: of all panels but a task's first, beside its first rows' products.

    Where those are of components, it is the last ones.
    """
    if not plan.interleaved:
        return 0.0
    panels = extent(plan.outer) * plan.m_tasks * (1 - plan.nr / plan.nt)
    alone, units = (panels * rhs_copy_cycles(plan, machine, alone) for alone in (True, False))
    first_rows = products / plan.dot.terms * plan.mr / max(plan.mr, min(plan.mt, plan.m.size))
    return max(0.0, first_rows + alone - beside(first_rows, units))


def direct_lhs_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles of waiting for A where it is read in place, by as many runs side by side as a block has rows."""
    if plan.lhs != "direct":
        return 0.0
    size = plan.m.size * plan.k.size * extent(plan.k_outer) * extent(plan.outer)
    waiting = IN_PLACE * lines(size, plan.dot.lhs) * line_fetch_cycles(plan, machine)
    if plan.k.lhs == 1:
        return waiting
    stride, run = bytes_of(plan.dot.lhs, plan.k.lhs), bytes_of(plan.dot.lhs, plan.mr)
    followed = stride < machine.page_bytes or run >= 2 * LINE_BYTES
    return waiting * (FOLLOWED if followed else 1 + RUN_BYTES / run)


def line_fetch_cycles(plan: Plan, machine: Machine) -> float:
    """Cycles until a line of an operand is there, for packing, which does nothing else meanwhile."""
    size = footprint(plan)
    if size <= machine.second_cache.bytes:
        return 0.0
    near = size <= machine.caches[-1].bytes
    bandwidth = machine.l3_gb_per_s if near else machine.memory_gb_per_s[0] * MEMORY_SHARE
    bandwidth *= PACKING_RATE
    return LINE_BYTES / bandwidth * machine.ghz


def footprint(plan: Plan) -> int:
    """Bytes of the operands and the result."""
    b, m, n, k = plan.dot.sizes
    return bytes_of(plan.dot.lhs, b * m * k) + bytes_of(plan.dot.rhs, b * k * n) + bytes_of(plan.dot.out, b * m * n)


def lines(count: int, dtype: str) -> float:
    """Cache lines of packed elements."""
    return bytes_of(dtype, count) / LINE_BYTES


def line_cycles(
    core: Core, plan: Plan, copied: bool, transposed: bool, converted: bool, plain: bool = False, alone: bool = True
) -> float:
    """Cycles of packing one line's worth of elements; unless `alone`, those of the units that it keeps busy most."""
    lanes, group = plan.instruction.shape[1], plan.instruction.group
    registers = LINE_BYTES / (lanes * bytes_of(plan.instruction.acc))
    if copied:
        shuffles = 0.0 if plain else 2.0 * (group - 1)
    elif transposed:
        shuffles = math.log2(lanes) * 1.5
    else:
        return 4.0 * LINE_BYTES / bytes_of(plan.instruction.rhs)
    operations = shuffles + (2.0 * group if converted else 0.0)
    stores, shuffled = 1.0 / core.stores_per_cycle, operations / (core.vector_per_cycle / 2)
    return registers * (stores + shuffled + 1.0 if alone else max(stores, shuffled, 1.0))


def memory_seconds(plan: Plan, machine: Machine, workers: int) -> float:
    """How long the arrays take on their way to the cores: each task along m reads B again, each along n reads A."""
    size = footprint(plan)
    b, m, n, k = plan.dot.sizes
    again = (plan.m_tasks - 1) * (plan.rhs != "shared") * bytes_of(plan.dot.rhs, b * k * n)
    again += (plan.n_tasks * plan.rounds - 1) * bytes_of(plan.dot.lhs, b * m * k)
    inner = sum(cache.bytes * (1 if cache.shared else workers) for cache in machine.caches[:-1])
    if size <= inner:
        return 0.0
    one, every = machine.memory_gb_per_s
    if size <= machine.caches[-1].bytes:
        return (size + again) / (machine.l3_gb_per_s * workers * 1e9)
    return (size + again) / (min(one * workers, every) * 1e9)
