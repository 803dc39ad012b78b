"""What microkernels ask for ahead: every line of the next piece of B, evenly over the steps of all blocks of C."""

from dataclasses import replace

import pytest
from products import Product, matrix

from jax_nano import schedule
from jax_nano.build import Integers, View
from jax_nano.kernels import macro, micro
from jax_nano.plan import LINE_BYTES
from jax_nano.problem import WORD_STEPS, bytes_of
from jax_nano.targets import host

DEPTH = 96


def asked(monkeypatch, view, blocks, width, group, in_order=False):
    """The elements asked for at each step of each block of C."""
    turns = []
    monkeypatch.setattr(micro, "prefetch", lambda _base, at: turns[-1].append(at))
    for number in range(blocks):
        ahead = micro.Ahead(view, number, blocks, DEPTH, width, in_order)
        for k in range(0, DEPTH, group):
            turns.append([])
            ahead.ask(k, group)
    return turns


@pytest.mark.parametrize("dtype", ["f32", "bf16", "s8"])
@pytest.mark.parametrize(("group", "width"), [(1, 48), (1, 96), (2, 32), (4, 96)])
@pytest.mark.parametrize("blocks", [1, 2, 5, 32])
@pytest.mark.parametrize("strides", [(4096, 1), (1, 4096)], ids=["rows", "columns"])
def test_every_line_is_asked_for_in_order_and_evenly(monkeypatch, strides, blocks, group, width, dtype):
    view = View(None, 0, strides, dtype)
    line = LINE_BYTES // bytes_of(dtype)
    wanted = {view.offset(k, j) // line for k in range(DEPTH) for j in range(width)}
    turns = asked(monkeypatch, view, blocks, width, group, in_order=True)
    found = [at // line for turn in turns for at in turn]
    assert wanted <= set(found)
    most = -(-len(wanted) // len(turns))
    assert {len(turn) for turn in turns} == {most}
    assert found == sorted(found)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "s8"])
@pytest.mark.parametrize(("group", "width"), [(1, 48), (1, 96), (2, 32), (4, 96)])
@pytest.mark.parametrize("blocks", [1, 2, 5, 32])
def test_every_line_of_the_rows_gone_through_is_asked_for_evenly(monkeypatch, blocks, group, width, dtype):
    view = View(None, 0, (4096, 1), dtype)
    line = LINE_BYTES // bytes_of(dtype)
    turns = asked(monkeypatch, view, blocks, width, group)
    found = {at // line for turn in turns for at in turn}
    assert {view.offset(k, j) // line for k in range(DEPTH) for j in range(width)} <= found
    assert {len(turn) for turn in turns} == {-(-group * -(-width // line) // blocks)}
    beyond = -(-blocks // group) * group  # blocks that take turns end with whole turns
    assert max(found) < view.offset(DEPTH + beyond, 0) // line


@pytest.mark.parametrize("blocks", [1, 2, 32])
@pytest.mark.parametrize("interleaved", [2, 4])
def test_rows_that_stand_together_are_asked_for_together(monkeypatch, interleaved, blocks):
    width, line = 64, LINE_BYTES // bytes_of("bf16")
    view = View(
        None, 0, (width, interleaved), "bf16", interleaved=interleaved
    )  # of panels as wide as what is wanted, one behind the other
    turns = asked(monkeypatch, view, blocks, width, 2)
    assert set(range(DEPTH * width // line)) <= {at // line for turn in turns for at in turn}


@pytest.mark.parametrize("blocks", [1, 3, 16])
@pytest.mark.parametrize("width", [16, 80])
def test_rows_of_words_are_asked_for_in_order(monkeypatch, width, blocks):
    view, line = Integers(None, 0, (4096, 1), "s4x8"), LINE_BYTES // micro.WORD_BYTES
    wanted = {row * 4096 + j for row in range(DEPTH // WORD_STEPS) for j in range(0, width, line)}
    found = [at for turn in asked(monkeypatch, view, blocks, width, 2) for at in turn]
    assert wanted <= set(found)
    assert found == sorted(found)


def test_nothing_is_asked_for_of_single_elements(monkeypatch):
    view = View(None, 0, (4096, 3), "f32")
    assert not any(asked(monkeypatch, view, 2, 32, 1))


def product_in_place(m, k, n):
    """A plan whose B is read where it stands, and asked for ahead."""
    machine = host.machine()
    dot = Product(lhs=matrix(m, k, "rows", "f32"), rhs=matrix(k, n, "rows", "f32"), out="f32").dot
    plans = schedule.kernel_plans(dot, machine, machine.isa("avx2"))
    return next(plan for plan in plans if plan.rhs_far and plan.kc < k)


@pytest.mark.parametrize("k", [1024, 1000], ids=["whole blocks", "a shorter one"])
def test_of_b_in_place_the_next_panel_in_order_is_asked_for(k):
    plan = product_in_place(16, k, 1024)
    columns, last = 4 * plan.nr, (plan.inner_k_blocks - 1) * plan.kc
    area, b = macro.Area(0, 16, columns, 2 * columns), View(None, 0, (1024, 1), "f32")

    def after(k0, j):
        return divmod(macro.Macrokernel(plan).following(b, b, k0, j, area).offset(0, 0), 1024)

    assert after(0, columns) == (0, columns + plan.nr)
    assert after(plan.kc, 2 * columns - plan.nr) == (2 * plan.kc, columns), "then those of the next steps"
    assert after(last, 2 * columns - plan.nr) == (k - plan.kc, columns), "and nothing beyond the last ones"


def test_of_streamed_rows_a_task_asks_for_its_columns_of_the_next_ones(monkeypatch):
    machine = host.machine()
    dot = Product(lhs=matrix(1, 1024, "rows", "f16"), rhs=matrix(1024, 2048, "rows", "f16"), out="f16").dot
    plan = next(plan for plan in schedule.kernel_plans(dot, machine, machine.isa("avx2")) if plan.streamed)
    area, b = macro.Area(0, 1, 0, 2048), View(None, 0, (2048, 1), "f16")
    asked: list[int] = []
    monkeypatch.setattr(micro, "prefetch", lambda _base, at: asked.append(at))
    for j in range(0, 2048, plan.nr):
        kernel = macro.Macrokernel(plan)
        (ask,) = kernel.ahead(kernel.following(b, b, plan.kc, j, area), area, 0, j, plan.nr)
        for k in range(plan.kc):
            ask(k, 1)
    wanted = range(2 * plan.kc * 2048, 3 * plan.kc * 2048, LINE_BYTES // bytes_of("f16"))
    assert [at for at in asked if at in wanted] == list(wanted)


@pytest.mark.parametrize("mc", [8, 24], ids=["one panel of rows", "several"])
@pytest.mark.parametrize(
    ("begin", "number", "following"),
    [(0, 0, 0), (96, 1, 2), (96, 2, 2)],
    ids=["within", "then the next element's", "and nothing beyond the last one"],
)
def test_of_a_in_place_the_next_rows_are_asked_for(monkeypatch, mc, begin, number, following):
    m, k, n, line = 100, 64, 80, LINE_BYTES // bytes_of("f32")
    machine = host.machine()
    dot = Product(lhs=matrix(m, k, "rows", "f32"), rhs=matrix(k, n, "rows", "f32"), out="f32").dot
    made = next(schedule.kernel_plans(dot, machine, machine.isa("avx2")))
    plan = replace(made, lhs="direct", lhs_far=True, mr=8, nr=32, mc=mc, mt=-(-m // mc) * mc, nt=96, nc=96, kc=k)
    kernel, area = macro.Macrokernel(plan), macro.Area(0, m, 0, n)
    a = View(None, number * m * k, (k, 1), "f32")
    asked: list[int] = []
    monkeypatch.setattr(micro, "prefetch", lambda _base, at: asked.append(at))
    rows = kernel.following_lhs(a, (min(number + 1, 2) - number) * m * k, begin, 0, area)
    for j in range(0, n, plan.nr):
        for row in range(0, mc, plan.mr):
            (ask,) = kernel.lhs_ahead(rows, area, begin, begin + row, j)
            for step in range(k):
                ask(step, 1)
    first = following * m + (0 if begin else mc)
    assert set(asked) == {row * k + at for row in range(first, first + mc) for at in range(0, k, line)}


@pytest.mark.parametrize(("k0", "following"), [(0, 16), (16, 32), (48, 48)], ids=["first", "within", "last"])
def test_of_columns_of_a_the_next_steps_of_all_rows_are_asked_for(monkeypatch, k0, following):
    m, k, n, line = 1024, 64, 40, LINE_BYTES // bytes_of("f32")
    machine = host.machine()
    dot = Product(lhs=matrix(m, k, "columns", "f32"), rhs=matrix(k, n, "rows", "f32"), out="f32").dot
    made = next(schedule.kernel_plans(dot, machine, machine.isa("avx2")))
    plan = replace(made, lhs="direct", lhs_far=True, mr=8, nr=32, mc=256, mt=256, nt=64, nc=64, kc=16, unroll=1)
    kernel, area = macro.Macrokernel(plan), macro.Area(256, 512, 0, n)
    asked: list[int] = []
    monkeypatch.setattr(micro, "prefetch", lambda _base, at: asked.append(at))
    steps = kernel.following_lhs(View(None, k0 * m, (1, m), "f32"), 0, 256, k0, area)
    for j in range(0, n, plan.nr):
        for row in range(256, 512, plan.mr):
            (ask,) = kernel.lhs_ahead(steps, area, 256, row, j)
            for step in range(plan.kc):
                ask(step, 1)
    assert set(asked) == {(following + step) * m + at for step in range(plan.kc) for at in range(256, 512, line)}


def test_rows_are_asked_for_where_they_are_read_in_place_and_b_is_gone_through_at_once():
    plan = product_in_place(16, 1024, 1024)
    for other in ({"lhs": "rows"}, {"lanes": "k"}, {"rhs": "private", "nb": plan.nr}):
        with pytest.raises(ValueError, match="A is asked for where it is read in place or by columns"):
            replace(plan, lhs_far=True, kc=1024, unroll=1, **other)
