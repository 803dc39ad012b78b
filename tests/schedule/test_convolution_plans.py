"""Plans of convolutions: how much scratch they take, and which of their ways is chosen."""

import pytest
from convolutions import Case

from jax_nano.ir.convolution import Spatial
from jax_nano.machine.host import known, target
from jax_nano.schedule.choose import choose
from jax_nano.schedule.loop_nest import SharedSteps, shared_steps, window_runs, window_steps

SCRATCH = 16 << 20  # bytes of a thread
FIRST = (0, 2, 3, 1), (2, 3, 1, 0)  # channels
LARGE = {
    "512 channels": Case.same((1, 64, 64, 512), (3, 3), 512, dilation=4),
    "1000 x 1000": Case.same((1, 1000, 1000, 64), (3, 3), 64),
    "1000 x 1000, channels first": Case.same((1, 1000, 1000, 64), (3, 3), 64, layouts=FIRST, places_last=True),
    "2048 channels, one tap": Case.same((32, 14, 14, 2048), (1, 1), 512, stride=2),
    "first layer": Case.same((64, 224, 224, 3), (7, 7), 64, stride=2),
    "first layer, channels first": Case.same(
        (64, 224, 224, 3), (7, 7), 64, stride=2, layouts=FIRST, places_last=True
    ),
    "video": Case.same((2, 16, 112, 112, 64), (3, 3, 3), 64),
    "audio": Case.same((8, 160000, 512), (10,), 512, stride=5),
    "depthwise": Case.same((8, 224, 224, 512), (7, 7), 512, groups=512),
    "depthwise, channels first": Case.same(
        (8, 224, 224, 64), (7, 7), 64, groups=64, layouts=FIRST, places_last=True
    ),
    "large kernel": Case.same((1, 256, 256, 256), (31, 31), 8),
    "kernel's gradient": Case(
        image=(512, 56, 56, 32), kernel=(56, 56, 32, 512), result=(512, 3, 3, 512),
        spatial=Case.same((1, 56, 56, 1), (3, 3), 1).spatial, layouts=((3, 1, 2, 0), None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("processor", ["znver5", "sapphirerapids", "alderlake"])
@pytest.mark.parametrize("name", LARGE)
def test_scratch_of_a_thread_is_bounded(name, processor):
    machine = known(processor)
    plan = choose(LARGE[name].dot, machine, target(machine))
    assert plan.local_bytes + plan.shared_bytes // machine.threads <= SCRATCH


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_sums_into_few_channels_stand_in_lanes(outputs):
    machine = known("znver5")
    assert choose(Case.same((4, 56, 56, 64), (4, 4), outputs).dot, machine, target(machine)).inner_product


def test_places_that_are_no_neighbours_are_no_columns():
    """One output channel makes places the last dimension of the result, but not neighbours in the image."""
    machine = known("znver5")
    assert not choose(Case.same((1, 32, 32, 16), (3, 3), 1).dot, machine, target(machine)).swapped
    assert choose(Case.same((1, 32, 32, 1), (3, 3), 1).dot, machine, target(machine)).placewise


@pytest.mark.parametrize("size", [7, 14, 56])
def test_places_of_channels_first_stand_in_lanes(size):
    machine, first = known("znver5"), {"layouts": FIRST, "places_last": True}
    plan = choose(Case.same((1, size, size, 96), (7, 7), 96, groups=96, **first).dot, machine, target(machine))
    assert plan.placewise
    assert (plan.lhs, plan.rhs) == ("unpacked", "unpacked")


def test_channels_that_are_neighbours_are_read_in_place():
    machine = known("znver5")

    def lhs(case):
        return choose(case.dot, machine, target(machine)).lhs

    assert lhs(Case.same((8, 56, 56, 64), (3, 3), 64)) == "unpacked"
    assert lhs(Case.same((8, 224, 224, 3), (7, 7), 64, stride=2)) == "unpacked"
    assert lhs(Case.same((4, 56, 56, 64), (3, 3), 64, types=("bf16", "bf16", "f32"))) == "unpacked"
    odd = Case.same((4, 56, 56, 3), (3, 3), 64, types=("bf16", "bf16", "f32"))  # no whole pairs of channels
    assert lhs(odd) == "rows"


def test_runs_of_a_window():
    """Channels, and of rows within the bounds taps and channels; all taps where no place is beyond the image."""
    assert window_runs(Case.same((1, 9, 9, 8), (3, 5), 4).dot) == (8, 40)
    assert window_runs(Case.same((1, 9, 9, 8), (3, 5), 4, dilation=2).dot) == (8, 8)
    assert window_runs(Case.same((1, 9, 9, 8), (3, 3), 4, layouts=FIRST).dot) == (1, 3)  # taps
    valid = Case(image=(1, 9, 9, 8), kernel=(3, 3, 8, 4), result=(1, 7, 7, 4), spatial=(Spatial(),) * 2)
    assert window_runs(valid.dot) == (24, 24)


def test_channels_share_masks_wherever_they_stand_in_the_kernel():
    def shared(vnni, channels=8, taps=(3, 3), layout=FIRST):
        case = Case.same((1, 9, 17, channels), taps, 5, layouts=layout, places_last=True)
        return shared_steps(window_steps(case.dot.swapped()), vnni)

    by_taps = (FIRST[0], (1, 2, 3, 0))
    assert shared(1) == SharedSteps(axis=0, taps=9, period=9)
    assert shared(2) == SharedSteps(axis=0, taps=9, period=18)
    assert shared(2, channels=7) is None
    assert shared(4, taps=(2, 2)) == SharedSteps(axis=0, taps=4, period=4)
    assert shared(2, layout=by_taps) == SharedSteps(axis=-1, taps=1, period=2)
    assert shared(1, taps=(13, 13)) is None


def test_blocks_of_the_sum_are_whole_numbers_of_taps():
    machine, first = known("znver5"), {"layouts": FIRST, "places_last": True}
    for types in (("f32",) * 3, ("bf16",) * 3):
        plan = choose(Case.same((1, 64, 64, 512), (3, 3), 512, types=types, **first).dot, machine, target(machine))
        assert plan.shared_steps
        assert plan.kc % plan.shared_steps.period == 0
