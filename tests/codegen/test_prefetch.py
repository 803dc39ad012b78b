"""Software prefetches: every line of the next panel of B or A, evenly over the steps of all blocks of C."""

from dataclasses import replace
from typing import Any

import pytest
from products import Product, matrix

from jax_nano.codegen import prefetch
from jax_nano.codegen.dequantize import QuantizedMatrixRef
from jax_nano.codegen.loops import Span
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.operands import Area
from jax_nano.codegen.prefetch_targets import LhsPrefetch, RhsPrefetch, to_next_element
from jax_nano.ir.dot import Axis
from jax_nano.ir.dtypes import INT4_PER_WORD, bytes_of
from jax_nano.machine import host
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.plan import LINE_BYTES

DEPTH = 96
NOWHERE: Any = None  # of a matrix whose elements are only named


def area(m0, m1, n0, n1):
    return Area(Span(m0, m1, m1), Span(n0, n1, n1))


def prefetched(monkeypatch, panel, blocks, width, group, *, in_order=False):
    """The elements prefetched at each step of each block of C."""
    turns = []
    monkeypatch.setattr(prefetch, "prefetch", lambda _base, at: turns[-1].append(at))
    for number in range(blocks):
        share = prefetch.PanelPrefetch(panel, number, blocks, DEPTH, width, in_order)
        for k in range(0, DEPTH, group):
            turns.append([])
            share.emit(k, group)
    return turns


@pytest.mark.parametrize("dtype", ["f32", "bf16", "s8"])
@pytest.mark.parametrize(("group", "width"), [(1, 48), (1, 96), (2, 32), (4, 96)])
@pytest.mark.parametrize("blocks", [1, 2, 5, 32])
@pytest.mark.parametrize("strides", [(4096, 1), (1, 4096)], ids=["rows", "columns"])
def test_every_line_is_prefetched_in_order_and_evenly(monkeypatch, strides, blocks, group, width, dtype):
    panel: Any = MatrixRef(NOWHERE, 0, strides, dtype)
    line = LINE_BYTES // bytes_of(dtype)
    wanted = {panel.offset(k, j) // line for k in range(DEPTH) for j in range(width)}
    turns = prefetched(monkeypatch, panel, blocks, width, group, in_order=True)
    found = [at // line for turn in turns for at in turn]
    assert wanted <= set(found)
    most = -(-len(wanted) // len(turns))
    assert {len(turn) for turn in turns} == {most}
    assert found == sorted(found)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "s8"])
@pytest.mark.parametrize(("group", "width"), [(1, 48), (1, 96), (2, 32), (4, 96)])
@pytest.mark.parametrize("blocks", [1, 2, 5, 32])
def test_every_line_of_the_rows_gone_through_is_prefetched_evenly(monkeypatch, blocks, group, width, dtype):
    panel: Any = MatrixRef(NOWHERE, 0, (4096, 1), dtype)
    line = LINE_BYTES // bytes_of(dtype)
    turns = prefetched(monkeypatch, panel, blocks, width, group)
    found = {at // line for turn in turns for at in turn}
    assert {panel.offset(k, j) // line for k in range(DEPTH) for j in range(width)} <= found
    assert {len(turn) for turn in turns} == {-(-group * -(-width // line) // blocks)}
    beyond = -(-blocks // group) * group  # blocks that take turns end with whole turns
    assert max(found) < panel.offset(DEPTH + beyond, 0) // line


@pytest.mark.parametrize("width", [16, 32, 48])
@pytest.mark.parametrize("stride", [1001, 1004])
def test_of_rows_that_begin_within_lines_panels_prefetch_what_the_one_before_left(monkeypatch, stride, width):
    line, panels = LINE_BYTES // bytes_of("f32"), 4
    views: list[Any] = [MatrixRef(NOWHERE, panel * width, (stride, 1), "f32") for panel in range(panels)]
    found = {at // line for panel in views for turn in prefetched(monkeypatch, panel, 3, width, 1) for at in turn}
    firsts = {panel.offset(k, 0) // line for panel in views[:1] for k in range(DEPTH)}
    assert {panel.offset(k, j) // line for panel in views for k in range(DEPTH) for j in range(width)} <= found | firsts


@pytest.mark.parametrize("blocks", [1, 2, 32])
@pytest.mark.parametrize("interleaved", [2, 4])
def test_interleaved_rows_are_prefetched_together(monkeypatch, interleaved, blocks):
    width, line = 64, LINE_BYTES // bytes_of("bf16")
    panel: Any = MatrixRef(
        NOWHERE, 0, (width, interleaved), "bf16", vnni=interleaved
    )  # of panels as wide as what is wanted, one behind the other
    turns = prefetched(monkeypatch, panel, blocks, width, 2)
    assert set(range(DEPTH * width // line)) <= {at // line for turn in turns for at in turn}


@pytest.mark.parametrize("blocks", [1, 3, 16])
@pytest.mark.parametrize("width", [16, 80])
def test_rows_of_packed_int4_are_prefetched_in_order(monkeypatch, width, blocks):
    panel, line = QuantizedMatrixRef(NOWHERE, 0, (4096, 1), "s4x8"), LINE_BYTES // prefetch.WORD_BYTES
    wanted = {row * 4096 + j for row in range(DEPTH // INT4_PER_WORD) for j in range(0, width, line)}
    found = [at for turn in prefetched(monkeypatch, panel, blocks, width, 2) for at in turn]
    assert wanted <= set(found)
    assert found == sorted(found)


def test_nothing_is_prefetched_of_single_elements(monkeypatch):
    panel: Any = MatrixRef(NOWHERE, 0, (4096, 3), "f32")
    assert not any(prefetched(monkeypatch, panel, 2, 32, 1))


def unpacked_product(m, k, n):
    """A plan whose B is read unpacked, and prefetched."""
    machine = host.machine()
    dot = Product(lhs=matrix(m, k, "rows", "f32"), rhs=matrix(k, n, "rows", "f32"), out="f32").dot
    plans = kernel_plans(dot, machine, machine.isa("avx2"))
    return next(plan for plan in plans if plan.prefetch_rhs and plan.kc < k)


@pytest.mark.parametrize("k", [1024, 1000], ids=["whole blocks", "a shorter one"])
def test_of_unpacked_b_the_next_panel_in_order_is_prefetched(k):
    plan = unpacked_product(16, k, 1024)
    columns, last = 4 * plan.nr, (plan.inner_k_blocks - 1) * plan.kc
    target, b = RhsPrefetch(plan, area(0, 16, columns, 2 * columns)), MatrixRef(NOWHERE, 0, (1024, 1), "f32")

    def after(k0, j):
        panel: Any = target.next_panel(b, b, k0, j)
        return divmod(panel.offset(0, 0), 1024)

    assert after(0, columns) == (0, columns + plan.nr)
    assert after(plan.kc, 2 * columns - plan.nr) == (2 * plan.kc, columns), "then those of the next steps"
    assert after(last, 2 * columns - plan.nr) == (k - plan.kc, columns), "and nothing beyond the last ones"


def test_of_streamed_rows_a_task_prefetches_its_columns_of_the_next_ones(monkeypatch):
    machine = host.machine()
    dot = Product(lhs=matrix(1, 1024, "rows", "f16"), rhs=matrix(1024, 2048, "rows", "f16"), out="f16").dot
    plan = next(plan for plan in kernel_plans(dot, machine, machine.isa("avx2")) if plan.streamed)
    target, b = RhsPrefetch(plan, area(0, 1, 0, 2048)), MatrixRef(NOWHERE, 0, (2048, 1), "f16")
    found: list[int] = []
    monkeypatch.setattr(prefetch, "prefetch", lambda _base, at: found.append(at))
    for j in range(0, 2048, plan.nr):
        (emit,) = target.hooks(target.next_panel(b, b, plan.kc, j), 0, j, plan.nr)
        for k in range(plan.kc):
            emit(k, 1)
    wanted = range(2 * plan.kc * 2048, 3 * plan.kc * 2048, LINE_BYTES // bytes_of("f16"))
    assert [at for at in found if at in wanted] == list(wanted)


def prefetched_of_a(monkeypatch, plan, strides, begin, k0, area, after=0):
    """Where the lines of A begin that are prefetched while a block of it goes through B."""
    target, a = LhsPrefetch(plan, area, after), MatrixRef(NOWHERE, 0, strides, "f32")
    found: list[int] = []
    line = LINE_BYTES // bytes_of("f32")
    monkeypatch.setattr(prefetch, "prefetch", lambda _base, at: found.append(at // line * line))
    following = target.next_block(a, begin, k0)
    for j in range(area.columns.begin, area.columns.end, plan.nr):
        for i in range(begin, begin + plan.mc, plan.mr):
            (emit,) = target.hooks(following, begin, i, j)
            for step in range(plan.kc):
                emit(step, 1)
    return set(found)


def plan_prefetching_a(m, k, n, order, **blocks):
    """A plan that prefetches A, with blocks of its own."""
    machine = host.machine()
    dot = Product(lhs=matrix(m, k, order, "f32"), rhs=matrix(k, n, "rows", "f32"), out="f32").dot
    plan = next(kernel_plans(dot, machine, machine.isa("avx2")))
    nt = -(-n // 32) * 32
    return replace(plan, lhs="unpacked", prefetch_lhs=True, mr=8, nr=32, nt=nt, nc=nt, unroll=1, **blocks)


@pytest.mark.parametrize("mc", [8, 24], ids=["one panel of rows", "several"])
@pytest.mark.parametrize("begin, after", [(0, 0), (96, 6400), (96, 0)], ids=["within", "last", "last of all"])
def test_of_unpacked_a_the_next_rows_are_prefetched(monkeypatch, mc, begin, after):
    m, k, n, line = 100, 64, 80, LINE_BYTES // bytes_of("f32")
    plan = plan_prefetching_a(m, k, n, "rows", mc=mc, mt=-(-m // mc) * mc, kc=k)
    first = after // k + (0 if begin else mc)
    wanted = {row * k + at for row in range(first, first + mc) for at in range(0, k, line)}
    assert prefetched_of_a(monkeypatch, plan, (k, 1), begin, 0, area(0, m, 0, n), after) == wanted


@pytest.mark.parametrize("k0", [0, 32], ids=["of the same steps", "where those are the last"])
def test_after_the_last_rows_come_the_first_ones_of_the_next_steps(monkeypatch, k0):
    m, k, n, line = 96, 64, 40, LINE_BYTES // bytes_of("f32")
    plan = plan_prefetching_a(m, k, n, "rows", mc=8, mt=96, kc=32)
    begins = {row * k + at for row in range(8) for at in range(0, 32, line)}
    wanted = {at + 32 for at in begins} if k0 == 0 else {at + m * k for at in begins}
    assert prefetched_of_a(monkeypatch, plan, (k, 1), 88, k0, area(0, m, 0, n), m * k) == wanted


@pytest.mark.parametrize("k0, following", [(0, 16), (16, 32), (48, 64)], ids=["first", "within", "last"])
@pytest.mark.parametrize("mc", [64, 256], ids=["packed in blocks of rows", "in place"])
def test_of_columns_of_a_the_next_steps_of_all_rows_are_prefetched(monkeypatch, mc, k0, following):
    m, k, n, line = 1024, 64, 40, LINE_BYTES // bytes_of("f32")
    plan = plan_prefetching_a(m, k, n, "columns", mc=mc, mt=256, kc=16)
    found = {
        at
        for begin in range(256, 512, mc)
        for at in prefetched_of_a(monkeypatch, plan, (1, m), begin, k0, area(256, 512, 0, n), after=m * k)
    }
    assert found == {(following + step) * m + at for step in range(plan.kc) for at in range(256, 512, line)}


def test_of_columns_whose_steps_are_all_in_hand_the_next_rows_are_prefetched(monkeypatch):
    m, k, n, line = 1024, 16, 40, LINE_BYTES // bytes_of("f32")
    plan = plan_prefetching_a(m, k, n, "columns", mc=64, mt=256, kc=16)
    found = prefetched_of_a(monkeypatch, plan, (1, m), 320, 0, area(256, 512, 0, n))
    assert found == {step * m + at for step in range(k) for at in range(384, 448, line)}


def test_a_task_of_one_element_of_the_outer_axes_prefetches_no_other():
    plan = plan_prefetching_a(64, 64, 40, "rows", mc=8, mt=64, kc=64)
    batched = replace(plan, outer=(Axis(size=5, lhs=4096, rhs=0, out=2560),))
    assert to_next_element(replace(batched, outer_per_task=1), 2) == 0
    assert to_next_element(replace(batched, outer_per_task=5), 2) == 4096
    assert to_next_element(replace(batched, outer_per_task=5), 4) == 0


def test_a_is_prefetched_as_it_lies_and_b_gone_through_at_once():
    plan = unpacked_product(16, 1024, 1024)
    message = "A is prefetched where it is unpacked or packed out of columns, all of B at once"
    for other in ({"lhs": "rows"}, {"lhs": "columns"}, {"inner_product": True}, {"rhs": "per_task", "nb": plan.nr}):
        with pytest.raises(ValueError, match=f"^{message}$"):
            replace(plan, prefetch_lhs=True, kc=1024, unroll=1, **other)
