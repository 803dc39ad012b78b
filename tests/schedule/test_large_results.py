"""Results that leave the caches: they are written row by row, where sums are short."""

from dataclasses import replace

import pytest
from kernel_runner import Runner
from products import Product, matrix

from jax_nano.ir.dot import Dot, Operand, extent
from jax_nano.machine import host
from jax_nano.schedule.candidates import FAR_ROWS, FAR_ROWS_OF_LONG_SUMS
from jax_nano.schedule.choose import choose
from jax_nano.schedule.cost import estimate
from jax_nano.schedule.cost.memory import lost_out_cycles, result_leaves
from jax_nano.schedule.scratch import LINE_BYTES

ZEN5 = replace(host.known("znver5"), threads=2)


def batched(batch, m, n, k, dtype="f32"):
    """Batched matrices, B transposed."""
    lhs, rhs = Operand.row_major((batch, m, k), dtype), Operand.row_major((batch, n, k), dtype)
    return Dot.of(lhs, rhs, (((2,), (2,)), ((0,), (0,))), dtype)


def chosen(dot, machine=ZEN5):
    """The plan for Zen 5 with its AVX-512."""
    return choose(dot, machine, machine.isas[0])


@pytest.mark.parametrize("k, rows", [(2, FAR_ROWS), (7, FAR_ROWS), (12, FAR_ROWS_OF_LONG_SUMS)])
def test_blocks_of_a_large_result_follow_one_another_along_rows(k, rows):
    plan = chosen(batched(16, 480, 1024, k))
    assert plan.row_by_row
    assert plan.mc == plan.mr <= rows
    assert plan.nr * 4 <= 4 * LINE_BYTES


@pytest.mark.parametrize(
    "sizes, why",
    [((4, 480, 1024, 7), "the LLC holds the result"), ((16, 480, 1024, 64), "products hide the writes")],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_other_results_are_written_by_wide_blocks(sizes, why):
    plan = chosen(batched(*sizes))
    assert not plan.row_by_row


def test_results_leave_the_caches_where_two_of_them_do_not_fit():
    half = ZEN5.llc.bytes // 2 // 4
    fits, leaves = (Dot.of(Operand.row_major((m, 1), "f32"), Operand.row_major((1, 1024), "f32"),
                           (((1,), (0,)), ((), ())), "f32") for m in (half // 1024, half // 1024 + 1))  # fmt: skip
    assert not result_leaves(fits, ZEN5)
    assert result_leaves(leaves, ZEN5)


def test_one_block_of_columns_is_written_row_by_row_in_any_order():
    plan = chosen(batched(1, 1000, 64, 3))
    assert plan.replace(mc=plan.mt, nr=64, nt=64, nc=64).row_by_row


def test_pieces_of_many_rows_take_longer_on_the_way_to_memory():
    plan = chosen(batched(16, 480, 1024, 7))
    pieces = plan.replace(mc=plan.mt)
    by_rows, by_pieces = (estimate.seconds(each, ZEN5).memory for each in (plan, pieces))
    assert by_pieces / by_rows == pytest.approx(1 + ZEN5.fitted.far_pieces_share, rel=0.05)


def test_rows_written_one_after_the_other_conflict_with_none():
    """Rows of C that are 4 KiB apart compete for the same lines, where all are written in turn."""
    plan = chosen(batched(16, 480, 1024, 7))
    pieces = plan.replace(mc=plan.mt)
    assert estimate.seconds(plan, ZEN5).compute < estimate.seconds(pieces, ZEN5).compute


def test_pages_of_one_panel_of_columns_are_not_lost():
    """They are written once each, however many there are: sums of a tall result stand in vectors all the same."""
    lhs, rhs = Operand.row_major((100_000, 3), "f64"), Operand.row_major((3, 7), "f64")
    plan = chosen(Dot.of(lhs, rhs, (((1,), (0,)), ((), ())), "f64"))
    assert not plan.inner_product
    assert lost_out_cycles(plan, ZEN5, 7) == 0.0


def test_threads_do_not_change_the_blocks_of_sums():
    dot = batched(16, 480, 1024, 7)
    plans = [chosen(dot, replace(ZEN5, threads=threads)) for threads in (1, 2, 8)]
    assert {(plan.kc, plan.split_k, plan.instruction.name) for plan in plans} == {(7, 1, "fma_f32")}
    assert all(extent(plan.outer) == 16 for plan in plans)


@pytest.mark.parametrize("rhs", ["unpacked", "per_task"])
def test_ragged_rows_and_columns(rhs):
    """Blocks of 4 rows and 2 registers, of 11 rows and 77 columns."""
    product = Product(lhs=matrix(11, 5, "rows", "f32"), rhs=matrix(5, 77, "rows", "f32"), out="f32")
    machine = host.machine()
    plan = choose(product.dot, machine, host.target(machine))
    lanes = plan.instruction.shape[1]
    columns = -(-77 // (2 * lanes)) * 2 * lanes
    plan = plan.replace(
        lhs="unpacked", rhs=rhs, mr=4, nr=2 * lanes, mc=4, mt=12, nt=columns, nc=columns, nb=0, lhs_stationary=False
    )
    operands = product.operands()
    assert plan.row_by_row
    product.check(Runner(plan).at_both_ends(*operands), *operands)
