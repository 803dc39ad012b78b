"""The arithmetic of the cost model: plain numbers in, plain numbers out."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processors import FIXED, KINDS

from jax_nano.ir.dot import Dot, Operand
from jax_nano.machine import x86
from jax_nano.machine.isa import Cache, Core
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.cost import memory, packing
from jax_nano.schedule.cost.estimate import KernelCost, unit_of
from jax_nano.schedule.cost.memory import PACKED
from jax_nano.schedule.cost.microkernel import Extra, Unit, block_cycles, panels, step_cost
from jax_nano.schedule.register_block import BlockSearch, register_blocks, tile_blocks
from jax_nano.schedule.weight_panels import panels_for

CORE = Core(
    dots_per_cycle=2, dot_latency_cycles=4, loads_per_cycle=2, stores_per_cycle=1, vector_per_cycle=4,
    issue_per_cycle=8, in_flight=448,
)  # fmt: skip
(FMA,) = (dot for dot in x86.AVX512.dots if dot.name == "fma_f32")


def unit(core=CORE, extra=Extra()):  # noqa: B008 (it cannot be changed)
    """FMA on a core."""
    machine = replace(x86.MACHINES[0], isas=(x86.AVX512,), cores={"avx512": core}, fitted=FIXED)
    return Unit(machine, x86.AVX512, FMA, extra)


PROCESSORS = [(machine, isa) for machine in KINDS for isa in machine.isas]
every_processor = pytest.mark.parametrize("machine, isa", PROCESSORS, ids=[f"{m.name}-{i.name}" for m, i in PROCESSORS])


# A step of k


def nearly(cycles):
    """Of blocks that take the same time otherwise, those with fewer loads are a little cheaper."""
    return pytest.approx(cycles, rel=0.05)


@pytest.mark.parametrize(
    "rows, registers, cycles, limit",
    [
        (14, 2, 14, "28 multiply-accumulates, 2 in a cycle"),
        (12, 1, 6.5, "13 loads, 2 in a cycle"),
        (1, 3, FIXED.latency_slack * 4, "the latency of an accumulator's own last update"),
    ],
)
def test_a_step_takes_as_long_as_what_limits_it(rows, registers, cycles, limit):
    assert step_cost(unit(), rows, registers).cycles == nearly(cycles), limit


def test_a_step_waits_for_other_vector_instructions_and_for_issue():
    assert step_cost(unit(extra=Extra(per_register=12)), 8, 2).cycles == nearly(8 + FIXED.port_conflict_share * 24 / 4)
    assert step_cost(unit(extra=Extra(per_register=12)), 2, 4).cycles == nearly((8 + 48) / 4)
    assert step_cost(unit(replace(CORE, issue_per_cycle=1)), 8, 2).cycles == nearly(16 + 10 + 1)


def test_a_slower_instruction_has_its_own_throughput():
    slow = unit(replace(CORE, slower=((FMA.name, 0.5, 8),)))
    assert step_cost(slow, 4, 4).cycles == nearly(32)
    assert step_cost(slow, 1, 1).cycles == nearly(FIXED.latency_slack * 8)


def test_longer_sums_take_longer():
    times = [block_cycles(unit(), 14, 2, steps) for steps in (1, 10, 100)]
    assert times == sorted(set(times))
    assert times[2] - times[1] == pytest.approx(90 * step_cost(unit(), 14, 2).cycles)


def test_short_blocks_wait_beside_others():
    """One step of a lone accumulator is a handful of instructions, of which the reorder buffer holds many."""
    alone, among_others = (block_cycles(unit(replace(CORE, in_flight=n)), 1, 1, 1) for n in (1, 448))
    assert alone > 20 > 5 > among_others
    long = [block_cycles(unit(replace(CORE, in_flight=n)), 14, 2, 100) for n in (1, 448)]
    assert long[0] == long[1]


# Register blocks


def sizes():
    return st.integers(1, 3000)


VECTORS = [(machine, isa, dot) for machine, isa in PROCESSORS for dot in isa.dots if not dot.tiles]
TILES = [(isa, dot) for _, isa in PROCESSORS for dot in isa.dots if dot.tiles]


@given(st.sampled_from(VECTORS), sizes(), sizes(), sizes())
def test_a_register_block_fits_the_registers_and_the_matrix(row, m, n, k):
    machine, isa, instruction = row
    lanes = instruction.shape[1]
    block = register_blocks(Unit(machine, isa, instruction), (m, n, k))[0]
    registers = -(-block.cols // lanes)
    assert block.rows * registers + min(block.rows, registers) + 1 <= isa.register_count
    assert block.lhs_stationary == (block.rows < registers)
    assert 0 < block.rows <= m
    assert block.cols % lanes == 0
    assert 0 < block.cols < n + lanes


@given(st.sampled_from(TILES), sizes(), sizes())
def test_blocks_of_tiles_fit_the_registers_and_the_matrix(row, m, n):
    isa, instruction = row
    rows, lanes, _ = instruction.shape
    choices = tile_blocks(isa, instruction, m, n)
    assert choices
    for block in choices:
        tall, wide = block.rows // rows, block.cols // lanes
        assert tall * wide + min(tall, wide) + 1 <= isa.register_count
        assert block.lhs_stationary == (tall < wide)
        assert 0 < block.rows < m + rows
        assert 0 < block.cols < n + lanes


def test_a_block_is_weighed_as_the_plan_around_it_is():
    """Where B stays in L1 and blocks divide C, so that nothing else differs."""
    machine, isa = x86.MACHINES[0], x86.AVX512
    dot = Dot.of(
        Operand.row_major((48, 32), "f32"), Operand.row_major((32, 64), "f32"), (((1,), (0,)), ((), ())), "f32"
    )
    packed = [plan for plan in kernel_plans(dot, machine, isa) if (plan.lhs, plan.rhs) == ("rows", "per_task")]
    assert packed
    for kernel in packed:
        plan = replace(kernel, mr=12, mc=48, mt=48, nr=32, nc=64, nt=64)
        search = BlockSearch(unit_of(plan, machine), (48, 64, 32), PACKED, 0)
        assert search.cycles(12, 2) == pytest.approx(KernelCost(plan, machine).compute_cycles(plan))


def test_too_few_registers():
    isa = replace(x86.AVX512, register_count=2)
    with pytest.raises(ValueError, match=f"^{re.escape('avx512 has 2 registers; a block needs at least 3')}$"):
        register_blocks(Unit(x86.MACHINES[0], isa, FMA), (8, 8, 8))


@pytest.mark.parametrize("m, n", [(0, 8), (8, 0)])
def test_an_empty_block(m, n):
    with pytest.raises(ValueError, match=r"^a block needs at least one row and one column$"):
        register_blocks(unit(), (m, n, 8))


# Panels and caches


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_panels_cover_what_there_is(size, step):
    covering = panels(size, step)
    assert sum(extent * count for extent, count in covering) == size
    assert all(0 < extent <= step and count > 0 for extent, count in covering)


L1 = Cache(level=1, bytes=32 << 10, ways=8)


@pytest.mark.parametrize(
    "pieces, piece_bytes, stride_bytes, fits",
    [
        (512, 64, 64, True),
        (513, 64, 64, False),
        (8, 64, 4096, True),  # one set of eight ways
        (9, 64, 4096, False),
        (16, 64, 2048, True),  # two sets
        (17, 64, 2048, False),
        (512, 64, 4096 + 64, True),
        (4, 8192, 8192, True),
        (1, 1, 1, True),
    ],
)
def test_strides_that_share_a_way_leave_sets_unused(pieces, piece_bytes, stride_bytes, fits):
    assert memory.fits(L1, pieces, piece_bytes, stride_bytes) == fits


# Packing


def test_weights_in_panels_cost_no_packing():
    machine = x86.MACHINES[0]
    panels = panels_for("f32", 256, 512, machine, x86.AVX512)
    weight = Operand(shape=(256, 512), strides=(1, panels.rows), dtype="f32", panels=panels)
    dot = Dot.of(Operand.row_major((4, 256), "f32"), weight, (((1,), (0,)), ((), ())), "f32")
    plans = list(kernel_plans(dot, machine, x86.AVX512))
    assert {plan.rhs for plan in plans} == {"panels"}
    assert all(packing.packing_cycles(plan, machine) == (0, 0) for plan in plans if plan.lhs == "unpacked")


def test_a_block_of_a_is_packed_again_for_every_block_of_b():
    contract = (((0,), (0,)), ((), ()))
    dot = Dot.of(Operand.row_major((1024, 512), "f32"), Operand.row_major((1024, 6144), "f32"), contract, "f32")
    machine = x86.MACHINES[0]
    plan = next(p for p in kernel_plans(dot, machine, x86.AVX512) if (p.lhs, p.rhs) == ("columns", "per_task"))
    once, again = (
        sum(packing.packing_cycles(replace(plan, nb=nb), machine))
        - sum(packing.packing_cycles(replace(plan, nb=nb, lhs="unpacked"), machine))
        for nb in (0, plan.nt // plan.nr // 8 * plan.nr)
    )
    assert again == pytest.approx(8 * once)
