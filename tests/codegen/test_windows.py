"""Kernels of convolutions, in guarded memory: every plan of a few of them, on every instruction set of this machine."""

from dataclasses import replace

import pytest
from convolutions import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.lax import DotAlgorithmPreset
from kernel_runner import Runner

from jax_nano.ir.convolution import Spatial
from jax_nano.lowering.precision import with_precision
from jax_nano.machine import host
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.choose import choose
from jax_nano.schedule.tasks import task_plans

PADDED = (Spatial(padding=1),) * 2
BF16, BYTES = ("bf16", "bf16", "bf16"), ("s8", "s8", "s32")
FIRST = (0, 2, 3, 1), (2, 3, 1, 0)  # channels
AS_GRADIENT = (3, 1, 2, 0), None  # of a kernel: the image's channels are its batch
CASES = {
    "padded": Case.same((2, 7, 9, 5), (3, 3), 8),
    "padding beyond the taps": Case(
        image=(1, 3, 3, 2), kernel=(2, 2, 2, 3), result=(1, 8, 8, 3), spatial=(Spatial(padding=3),) * 2
    ),
    "large kernel": Case.same((1, 6, 6, 3), (7, 7), 33, stride=2),
    "one dimension": Case.same((2, 9, 16), (5,), 20, dilation=2),
    "three dimensions": Case.same((1, 4, 5, 6, 8), (3, 3, 3), 16),
    "bf16": Case.same((2, 12, 12, 16), (3, 3), 24, stride=2, types=BF16),
    "f16": Case.same((1, 5, 5, 3), (3, 3), 7, types=("f16", "f16", "f16")),
    "f64": Case.same((1, 5, 5, 3), (3, 3), 7, types=("f64", "f64", "f64")),
    "bytes": Case.same((2, 7, 7, 32), (3, 3), 16, types=BYTES),
    "unsigned by signed": Case.same((1, 5, 5, 6), (3, 3), 5, types=("u8", "s8", "s32")),
    "groups": Case.same((2, 7, 7, 6), (3, 3), 8, groups=2),
    "depthwise": Case.same((2, 7, 9, 21), (3, 3), 21, groups=21),
    "depthwise, strided": Case.same((1, 12, 11, 40), (5, 5), 40, groups=40, stride=2, types=BF16),
    "depthwise, dilated, f64": Case.same((1, 6, 7, 9), (3, 3), 9, groups=9, dilation=2, types=("f64", "f64", "f64")),
    "depthwise, many taps": Case.same((2, 40, 16), (25,), 16, groups=16),
    "depthwise into three": Case.same((1, 5, 6, 7), (3, 3), 21, groups=7),
    "narrow groups": Case.same((1, 7, 6, 32), (3, 3), 32, groups=8),
    "narrow groups, two of three": Case.same((1, 5, 6, 10), (3, 3), 15, groups=5),
    "depthwise kernel's gradient": Case(
        image=(18, 7, 9, 3), kernel=(7, 9, 3, 18), result=(1, 3, 3, 18), spatial=PADDED, batch_groups=18,
        layouts=((3, 1, 2, 0), None),
    ),
    "narrow groups' gradient": Case(
        image=(12, 7, 9, 3), kernel=(4, 5, 3, 18), result=(2, 3, 3, 18),
        spatial=(Spatial(padding=1, dilation=2),) * 2, batch_groups=6, layouts=((3, 1, 2, 0), None),
    ),
    "channels first": Case.same((2, 7, 7, 6), (3, 3), 16, layouts=((0, 2, 3, 1), (2, 3, 1, 0))),
    "channels first, bf16": Case.same((1, 7, 17, 3), (3, 3), 16, layouts=((0, 2, 3, 1), (2, 3, 1, 0)), types=BF16),
    "one tap, channels first": Case.same((2, 4, 5, 8), (1, 1), 4, layouts=((0, 2, 3, 1), (2, 3, 1, 0))),
    "places last": Case.same((2, 7, 9, 5), (3, 3), 8, layouts=((0, 2, 3, 1), (2, 3, 1, 0)), places_last=True),
    "places last, kernel by taps": Case.same(
        (2, 9, 17, 8), (3, 3), 24, layouts=((0, 2, 3, 1), (1, 2, 3, 0)), places_last=True
    ),
    "places last, bf16": Case.same(
        (1, 9, 17, 8), (3, 3), 24, layouts=((0, 2, 3, 1), (1, 2, 3, 0)), places_last=True, types=BF16
    ),
    "places last, bytes": Case.same(
        (2, 9, 9, 6), (3, 3), 10, layouts=((0, 2, 3, 1), (1, 2, 3, 0)), places_last=True, types=BYTES
    ),
    "places last, two apart": Case.same(
        (2, 9, 37, 5), (3, 3), 7, stride=2, layouts=FIRST, places_last=True
    ),
    "places last, three apart, bf16": Case.same(
        (1, 7, 64, 6), (3, 5), 5, stride=3, layouts=FIRST, places_last=True, types=BF16
    ),
    "places last, four apart, bytes": Case.same(
        (1, 5, 66, 8), (3, 3), 5, stride=4, layouts=FIRST, places_last=True, types=BYTES
    ),
    "places last, five apart": Case.same(
        (1, 5, 66, 4), (3, 3), 5, stride=5, layouts=FIRST, places_last=True
    ),
    "places last, rows shorter than a register": Case.same((1, 6, 12, 9), (3, 3), 5, layouts=FIRST, places_last=True),
    "places last, channels of 4 KiB": Case.same((1, 32, 32, 18), (1, 3), 3, layouts=FIRST, places_last=True),
    "places last, groups": Case.same((2, 9, 17, 8), (3, 3), 12, groups=4, layouts=FIRST, places_last=True),
    "places last, depthwise": Case.same(
        (2, 9, 35, 3), (3, 3), 3, groups=3, stride=2, layouts=FIRST, places_last=True
    ),
    "places last, depthwise, bf16": Case.same(
        (1, 9, 35, 3), (3, 3), 3, groups=3, layouts=FIRST, places_last=True, types=BF16
    ),
    "places last, depthwise, in one register": Case.same(
        (2, 11, 14, 2), (7, 7), 2, groups=2, layouts=FIRST, places_last=True
    ),
    "places last, depthwise, wide, dilated": Case.same(
        (1, 5, 70, 2), (3, 5), 2, groups=2, dilation=2, layouts=FIRST, places_last=True
    ),
    "places last, depthwise, f64, many taps": Case.same(
        (2, 40, 3), (25,), 3, groups=3, layouts=((0, 2, 1), (2, 1, 0)), places_last=True, types=("f64",) * 3
    ),
    "places last, channels into one": Case.same(
        (1, 6, 20, 3), (3, 1), 1, layouts=FIRST, places_last=True, types=("f16", "f16", "f32")
    ),
    "places last, one channel, all within": Case(
        image=(2, 9, 40, 1), kernel=(3, 3, 1, 1), result=(2, 7, 38, 1), spatial=(Spatial(),) * 2
    ),
    "one output channel": Case.same((2, 7, 19, 24), (3, 3), 1),
    "few output channels, bf16": Case.same((1, 7, 9, 64), (3, 3), 3, types=BF16),
    "places last, depthwise, bytes": Case.same(
        (1, 9, 35, 3), (3, 3), 3, groups=3, layouts=FIRST, places_last=True, types=BYTES
    ),
    "one channel, bytes": Case.same((2, 7, 21, 1), (3, 5), 1, dilation=2, types=BYTES),
    "one channel, bytes without signs": Case.same((1, 7, 70, 1), (3, 3), 1, types=("u8", "s8", "s32")),
    "one tap": Case.same((2, 7, 7, 6), (1, 1), 16, stride=2),
    "one channel": Case.same((2, 7, 7, 1), (3, 3), 1, dilation=2),
    "kernel's gradient": Case(
        image=(12, 7, 9, 3), kernel=(7, 9, 3, 10), result=(12, 3, 3, 10), spatial=PADDED, layouts=AS_GRADIENT
    ),
    "strided kernel's gradient, bf16": Case(
        image=(12, 7, 9, 3), kernel=(4, 5, 3, 10), result=(12, 3, 3, 10),
        spatial=(Spatial(padding=1, dilation=2),) * 2, types=("bf16", "bf16", "f32"), layouts=AS_GRADIENT,
    ),
    "groups of the batch": Case(
        image=(6, 7, 9, 3), kernel=(3, 3, 3, 10), result=(3, 7, 9, 10), spatial=PADDED, batch_groups=2
    ),
}  # fmt: skip


def plans(dot):
    """One plan for each way to read the operands and each instruction."""
    found = {}
    for isa in host.machine().isas:
        for plan in kernel_plans(dot, host.machine(), isa):
            layouts = plan.lhs, plan.rhs, plan.inner_product, plan.channelwise, plan.placewise
            key = isa.name, plan.instruction.name, layouts
            found.setdefault(key, plan)
    return list(found.values())


@pytest.mark.parametrize("name", CASES)
def test_every_plan_of_a_convolution_is_right_and_stays_within_its_buffers(name):
    case = CASES[name]
    operands = case.operands()
    for plan in plans(case.dot):
        case.check(Runner(plan).at_both_ends(*operands), *operands)


@pytest.mark.parametrize("name", ["padded", "bf16", "kernel's gradient"])
def test_blocks_of_the_sum_and_tasks_that_end_within_runs(name):
    case = CASES[name]
    operands = case.operands()
    for plan in plans(case.dot):
        if plan.instruction.tiles or plan.inner_product or plan.isa != host.machine().isas[0].name:
            continue
        blocks = [plan.replace(kc=kc) for kc in range(plan.k_multiple, plan.k.size, 3 * plan.k_multiple)]
        rows = plan.lhs_panel
        divided = plan.replace(mc=rows, mt=2 * rows if 2 * rows < plan.m.size else rows)
        for each in (*blocks[:2], divided):
            case.check(Runner(each).at_both_ends(*operands), *operands)


@pytest.mark.parametrize("name", ["padded", "kernel's gradient"])
def test_sums_of_bf16_splits_are_as_exact_as_f32(name):
    case = CASES[name]
    operands = case.operands()
    dot = with_precision(DotAlgorithmPreset.BF16_BF16_F32_X9, case.dot)
    assert dot.terms == 9
    for plan in plans(dot)[:3]:
        case.check(Runner(plan).at_both_ends(*operands), *operands)


@pytest.mark.parametrize("places_last", [False, True])
def test_every_division_into_tasks_is_right(places_last):
    layouts = ((0, 2, 3, 1), (1, 2, 3, 0)) if places_last else (None, None)
    case = Case.same((1, 10, 12, 8), (3, 3), 40, layouts=layouts, places_last=places_last)
    operands, machine = case.operands(), replace(host.machine(), threads=4)
    kernel = choose(case.dot, host.machine(), host.machine().isas[0])
    divided = {(plan.rhs, plan.nb > 0, plan.mt < plan.m.size): plan for plan in task_plans(kernel, machine)}
    for plan in divided.values():
        case.check(Runner(plan).at_both_ends(*operands), *operands)


@st.composite
def cases(draw):
    """Convolutions of one to three spatial dimensions, with any padding, strides and dilation."""
    count, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
    image, taps, places, spatial = [], [], [], []
    for _ in range(count):
        size, tap = draw(st.integers(1, 7)), draw(st.integers(1, 4))
        each = Spatial(
            stride=draw(st.integers(1, 3)), dilation=draw(st.integers(1, 3)), padding=draw(st.integers(-1, 3))
        )
        image.append(size)
        taps.append(tap)
        places.append(draw(st.integers(1, 6)))
        spatial.append(each)
    inner, outer, batch = draw(st.integers(1, 5)), draw(st.integers(1, 20)), draw(st.integers(1, 2))
    return Case(
        image=(batch, *image, inner * groups), kernel=(*taps, inner, outer * groups),
        result=(batch, *places, outer * groups), spatial=tuple(spatial), groups=groups,
        types=draw(st.sampled_from([("f32", "f32", "f32"), BF16, BYTES])),
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(cases())
def test_any_convolution_is_right_and_stays_within_its_buffers(case):
    operands = case.operands()
    machine = host.machine()
    plan = choose(case.dot, machine, machine.isas[0])
    case.check(Runner(plan).at_both_ends(*operands), *operands)
