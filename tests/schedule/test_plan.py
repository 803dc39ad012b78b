"""Plans for every kind of processor in machine/x86.py, followed step by step in Python: no JAX, no compilation."""

import functools
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_table import TYPES
from processors import KINDS
from products import Product, matrix
from strategies import plans, products

from jax_nano.ir.dot import Dot, Operand, UnsupportedDot, extent
from jax_nano.machine import x86
from jax_nano.schedule.candidates import STREAMS, kernel_plans
from jax_nano.schedule.choose import choose, order_of_sums
from jax_nano.schedule.cost import estimate
from jax_nano.schedule.cost.microkernel import LOOKUP_REGISTERS
from jax_nano.schedule.plan import Plan

MIB = 1 << 20
PROCESSORS = [(machine, isa) for machine in KINDS for isa in machine.isas]


@pytest.fixture(scope="module", params=PROCESSORS, ids=[f"{machine.name}-{isa.name}" for machine, isa in PROCESSORS])
def processor(request):
    """(machine, instruction set). All tests of one run together, and share its plans."""
    return request.param


@dataclass(frozen=True)
class Step:
    """One microkernel: a part of the sum of a block of C."""

    task: tuple[int, int]  # (round, task)
    split: int
    number: int  # of the block of k, counted through all of the sum
    outer: int
    rows: range
    columns: range
    depth: int


def along(begin, end, size, step) -> Iterator[range]:
    """The panels of [begin, end), all of `step` but for the last of the matrix."""
    for i in range(begin, end, step):
        yield range(i, min(i + step, size))


def steps(plan: Plan) -> Iterator[Step]:
    """What the computing phase does, as docs/architecture.md and plan.py say it: a second reading of them."""
    shape = plan.split_k, plan.outer_tasks, plan.m_tasks, plan.n_tasks
    assert plan.tasks["compute"] == math.prod(shape)
    for round_, task in itertools.product(range(plan.rounds), range(plan.tasks["compute"])):
        split, outer_task, m_task, n_task = np.unravel_index(task, shape)
        n_begin = round_ * plan.nc + n_task * plan.nt
        n_end = min(n_begin + plan.nt, (round_ + 1) * plan.nc, plan.n.size)
        m_begin, m_end = m_task * plan.mt, min((m_task + 1) * plan.mt, plan.m.size)
        numbers = range(split * plan.blocks_per_split, min((split + 1) * plan.blocks_per_split, plan.k_blocks))
        outers = range(
            outer_task * plan.outer_per_task, min((outer_task + 1) * plan.outer_per_task, extent(plan.outer))
        )
        for outer, number in itertools.product(outers, numbers):
            k_begin = number % plan.inner_k_blocks * plan.kc
            depth = min(plan.kc, plan.k.size - k_begin)
            b_blocks = range(n_begin, n_end, plan.block_columns)
            a_blocks = range(m_begin, m_end, plan.mc)
            for b_block, a_block in itertools.product(b_blocks, a_blocks):
                for columns in along(b_block, min(b_block + plan.block_columns, n_end), plan.n.size, plan.nr):
                    for rows in along(a_block, min(a_block + plan.mc, m_end), plan.m.size, plan.mr):
                        yield Step((round_, task), int(split), number, outer, rows, columns, depth)


def check(plan: Plan) -> None:
    """Asserts that a plan computes each element of C once, its parts of the sum in order, in one task."""
    c = extent(plan.outer), plan.m.size, plan.n.size
    depth = np.zeros((plan.split_k, *c), int)
    following = np.zeros((plan.split_k, *c), int) + np.arange(plan.split_k).reshape(-1, 1, 1, 1) * plan.blocks_per_split
    writers = {}
    for step in steps(plan):
        where = (
            step.split,
            step.outer,
            slice(step.rows.start, step.rows.stop),
            slice(step.columns.start, step.columns.stop),
        )
        assert 0 < len(step.rows) <= plan.mr
        assert 0 < len(step.columns) <= plan.nr
        assert np.all(following[where] == step.number), "blocks of k out of order, or twice"
        following[where] += 1
        depth[where] += step.depth
        panel = step.split, step.outer, step.rows.start, step.columns.start
        assert writers.setdefault(panel, step.task) == step.task, "two tasks write one block of C"
    assert np.all(depth.sum(axis=0) == plan.k.size * extent(plan.k_outer))
    assert plan.results == math.prod(c)


def registers(plan: Plan) -> int:
    """Accumulators, what is held of one operand, and a register through which the other streams."""
    rows, lanes, _ = plan.instruction.shape
    if plan.inner_product:
        return plan.mr * plan.nr + min(plan.mr, plan.nr) + 1
    m, n = -(-plan.mr // rows), -(-plan.nr // lanes)
    return m * n + (m if plan.lhs_stationary else n) + 1


@st.composite
def on_any_processor(draw):
    product = draw(products())
    machine, isa = draw(st.sampled_from(PROCESSORS))
    machine = replace(machine, threads=draw(st.sampled_from([1, 2, 8, 64])))
    return machine, choose(product.dot, machine, isa)


@settings(deadline=None, max_examples=200)
@given(on_any_processor())
def test_a_chosen_plan_computes_each_element_once(drawn):
    machine, plan = drawn
    check(plan)
    assert registers(plan) <= machine.isa(plan.isa).register_count


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(PROCESSORS), products())
def test_every_kernel_weighed_fits_the_registers(processor, product):
    machine, isa = processor
    for plan in kernel_plans(product.dot, machine, isa):
        assert registers(plan) <= machine.isa(plan.isa).register_count, plan


@settings(deadline=None, max_examples=50)
@given(products(), st.data())
def test_any_plan_computes_each_element_once(product, data):
    """So what test_layouts.py runs are plans in the sense of this file, too."""
    check(data.draw(plans(product)))


SHAPES = (
    (64, 64, 64), (256, 256, 256), (1000, 1000, 1000), (2048, 2048, 2048), (4096, 4096, 4096),
    (1, 4096, 4096), (4096, 1, 4096), (16, 4096, 4096), (128, 50257, 768), (3, 5, 100_000), (100_000, 7, 3),
)  # fmt: skip


def large(types, sizes, a, b):
    (m, n, k), (lhs, rhs, out) = sizes, types
    return Product(lhs=matrix(m, k, a, lhs), rhs=matrix(k, n, b, rhs), out=out).dot


LARGE = [
    large(types, sizes, "rows", b)
    for types in (("f32", "f32", "f32"), ("bf16", "bf16", "bf16"), ("s8", "s8", "s32"), ("f32", "u8", "f32"))
    for sizes in SHAPES
    for b in ("rows", "columns")
] + [large(types, sizes, "columns", "rows") for types in (("f32",) * 3, ("bf16",) * 3) for sizes in SHAPES]


MACHINES = {machine.name: machine for machine in x86.MACHINES}


@functools.cache
def chosen(dot, name, isa, threads):
    return choose(dot, replace(MACHINES[name], threads=threads), isa)


@pytest.mark.parametrize("threads", [1, 64])
def test_registers_and_scratch_suffice(processor, threads):
    """Scratch is at most 16 MiB a thread, and 16 MiB."""
    machine, isa = processor
    for dot in LARGE:
        plan = chosen(dot, machine.name, isa, threads)
        assert registers(plan) <= machine.isa(plan.isa).register_count, plan
        assert threads * plan.local_bytes + plan.shared_bytes <= (threads + 1) * 16 * MIB, plan


def test_what_orders_a_sum_does_not_depend_on_threads(processor):
    """Said by field, not by order_of_sums, which the choice goes by."""
    machine, isa = processor
    for dot in LARGE:
        plans = [chosen(dot, machine.name, isa, threads) for threads in (1, 8)]
        assert len({order_of_sums(plan) for plan in plans}) == 1, plans
        if plans[0].instruction.acc != "s32":
            fields = {(p.swapped, p.instruction, p.inner_product, p.k, p.k_outer, p.kc, p.split_k) for p in plans}
            assert len(fields) == 1, plans


@pytest.mark.parametrize("threads", [2, 8, 64])
def test_several_threads_are_not_expected_to_take_longer_than_one(processor, threads):
    """Where the sum is not made in parts, which then are tasks of their own."""
    machine, isa = processor
    for dot in LARGE:
        several, one = (chosen(dot, machine.name, isa, t) for t in (threads, 1))
        if one.split_k == 1:
            assert (
                estimate.seconds(several, machine, threads).total <= 1.05 * estimate.seconds(one, machine, 1).total
            ), several


def test_more_work_is_expected_to_take_longer(processor):
    machine, isa = processor
    for types, b in itertools.product(TYPES, ("rows", "columns")):
        cubes = [large(types, (size,) * 3, "rows", b) for size in (8, 32, 128, 512, 2048)]
        times = [estimate.seconds(chosen(dot, machine.name, isa, 1), machine, 1).total for dot in cubes]
        assert times == sorted(times), (types, b)


def test_large_blocks_keep_the_multipliers_busy(processor):
    """Neither loads nor the latency of accumulators hold up the multiply-accumulates of 1024 cubed."""
    machine, isa = processor
    for dot in LARGE:
        plan = chosen(dot, machine.name, isa, 1)
        if min(dot.sizes[1:]) < 256 or plan.instruction.tiles or plan.inner_product:
            continue
        core = machine.cores[plan.isa]
        per_cycle, latency = core.rate(plan.instruction.name)
        registers = -(-plan.nr // plan.instruction.shape[1])
        cycles = plan.mr * registers / per_cycle
        assert cycles >= latency, plan
        assert 1.1 * cycles >= (plan.mr + registers) / core.loads_per_cycle, plan


# Plan's own checks


def plan(**changes):
    """A plan for a product of 100 x 100 by 100 x 100."""
    machine, isa = PROCESSORS[0]
    product = Product(lhs=matrix(100, 100, "rows", "f32"), rhs=matrix(100, 100, "rows", "f32"), out="f32")
    chosen = choose(product.dot, machine, isa)
    blocks = {"mr": 4, "nr": 16, "mc": 8, "mt": 16, "nt": 32, "nc": 64, "nb": 0, "kc": 100, "unroll": 1, "split_k": 1}
    return replace(chosen, **blocks | {"lhs": "unpacked", "rhs": "unpacked"} | changes)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"mc": 6}, "mc = 6 is not a multiple of 4: panels would overlap"),
        ({"mt": 12}, "mt = 12 is not a multiple of 8: panels would overlap"),
        ({"nt": 40, "nc": 80}, "nt = 40 is not a multiple of 16: panels would overlap"),
        ({"nb": 24, "nt": 48}, "nb = 24 is not a multiple of 16: panels would overlap"),
        ({"nb": 48, "nt": 64}, "nt = 64 is not a multiple of 48: panels would overlap"),
        ({"nc": 72}, "nc = 72 is not a multiple of 16: panels would overlap"),
        ({"kc": 30, "unroll": 4}, "kc = 30 is not a multiple of 4: panels would overlap"),
        ({"kc": 40, "rhs": "per_task"}, "kc = 40 is not a multiple of 16: panels would overlap"),
        ({"kc": 20, "split_k": 4}, "4 splits of 5 blocks: one would be empty, or B is shared"),
        ({"kc": 32, "split_k": 2, "rhs": "per_round"}, "2 splits of 4 blocks: one would be empty, or B is shared"),
    ],
)
def test_blocks_that_do_not_fit_together(changes, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        plan(**changes)


@pytest.mark.parametrize("changes", [{"mc": 100, "mt": 100}, {"kc": 100, "unroll": 3}, {"kc": 200}])
def test_the_last_block_may_be_ragged(changes):
    plan(**changes)


# Products without a plan


@pytest.mark.parametrize(
    "types, text",
    [
        (("f32", "f64", "f64"), "no kernel multiplies f32 by f64 into f64"),
        (("s8", "s8", "bf8"), "no kernel multiplies s8 by s8 into bf8"),
        (("c64", "c64", "c64"), "no kernel multiplies c64 by c64 into c64"),
    ],
)
def test_types_without_a_kernel(types, text):
    lhs, rhs, out = types
    with pytest.raises(UnsupportedDot, match=f"^{re.escape(text)}$"):
        Dot.of(Operand.row_major((2, 3), lhs), Operand.row_major((3, 4), rhs), (((1,), (0,)), ((), ())), out)


def test_types_that_an_instruction_set_lacks():
    isa = replace(x86.AVX2, dots=x86.AVX2.dots[:1])
    dot = Product(lhs=matrix(2, 3, "rows", "f64"), rhs=matrix(3, 4, "rows", "f64"), out="f64").dot
    with pytest.raises(UnsupportedDot, match=r"^avx2 has no instruction that multiplies f64 by f64 into f64$"):
        choose(dot, x86.MACHINES[0], isa)


@pytest.mark.parametrize("k", [16, 17, 600, 1000, 1008, 1024, 2048])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_packed_rows_do_not_compete_for_cache_lines(k, dtype):
    machine = x86.MACHINES[0]
    product = Product(lhs=matrix(3000, k, "rows", dtype), rhs=matrix(k, 16, "rows", dtype), out=dtype)
    plans = [plan for plan in kernel_plans(product.dot, machine, x86.AVX512) if plan.lhs == "rows"]
    assert plans
    for plan in plans:
        assert plan.scratch.lhs_stride >= plan.kc
        line = 64 // (2 if plan.instruction.lhs == "bf16" else 4)
        assert plan.scratch.lhs_stride % line == 0 and plan.scratch.lhs_stride // line % 2 == 1


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize(("dtype", "columns"), [("bf16", 3072), ("s8", 768), ("s4x8", 3072)])
def test_rows_of_a_large_matrix_are_read_as_they_lie_in_memory(dtype, columns, threads):
    """By tasks that have all columns, unless threads were idle then."""
    machine = replace(next(machine for machine in x86.MACHINES if machine.name == "znver5"), threads=threads)
    a, b = Operand.row_major((1, 768), "bf16"), Operand.row_major((768, columns), dtype)
    plan = choose(Dot.of(a, b, (((1,), (0,)), ((), ())), "bf16"), machine, machine.isas[0])
    assert (plan.lhs, plan.rhs, plan.split_k) == ("unpacked", "unpacked", STREAMS)
    assert plan.n_tasks == 1 or threads > STREAMS
    assert plan.tasks["compute"] >= min(threads, STREAMS * (columns // plan.nr))
    check(plan)


@pytest.mark.parametrize("m", [1, 4])
def test_words_stay_in_registers_while_their_steps_are_taken_out_of_them(m):
    """Beside an accumulator, each register of columns has one of words."""
    machine = next(machine for machine in x86.MACHINES if machine.name == "znver5")
    isa = machine.isas[0]
    a, b = Operand.row_major((m, 768), "bf16"), Operand.row_major((768, 50257), "s4x8")
    plan = choose(Dot.of(a, b, (((1,), (0,)), ((), ())), "f32"), machine, isa)
    registers = plan.nr // plan.instruction.shape[1]
    assert plan.rhs == "unpacked"
    assert (plan.mr + 1) * registers + LOOKUP_REGISTERS < isa.register_count
