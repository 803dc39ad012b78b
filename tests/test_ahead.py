"""What microkernels ask for ahead: every line of the next piece of B, evenly over the steps of all panels of rows."""

import pytest

from jax_nano.build import View
from jax_nano.kernels import micro
from jax_nano.plan import LINE_BYTES
from jax_nano.problem import bytes_of

DEPTH = 96


def asked(monkeypatch, view, panels, width, group):
    """The elements asked for at each step of each panel of rows."""
    turns = []
    monkeypatch.setattr(micro, "prefetch", lambda _base, at: turns[-1].append(at))
    for number in range(panels):
        ahead = micro.Ahead(view, number, panels, DEPTH, width)
        for k in range(0, DEPTH, group):
            turns.append([])
            ahead.ask(k, group)
    return turns


@pytest.mark.parametrize("dtype", ["f32", "bf16", "s8"])
@pytest.mark.parametrize(("group", "width"), [(1, 48), (1, 96), (2, 32), (4, 96)])
@pytest.mark.parametrize("panels", [1, 2, 5, 32])
@pytest.mark.parametrize("strides", [(4096, 1), (1, 4096)], ids=["rows", "columns"])
def test_every_line_is_asked_for_once_and_evenly(monkeypatch, strides, panels, group, width, dtype):
    view = View(None, 0, strides, dtype)
    line = LINE_BYTES // bytes_of(dtype)
    wanted = {view.offset(k, j) // line for k in range(DEPTH) for j in range(width)}
    turns = asked(monkeypatch, view, panels, width, group)
    found = [at // line for turn in turns for at in turn]
    assert wanted <= set(found)
    most = -(-len(wanted) // len(turns))
    assert {len(turn) for turn in turns} == {most}
    assert found == sorted(found)


@pytest.mark.parametrize("panels", [1, 2, 32])
@pytest.mark.parametrize("interleaved", [2, 4])
def test_rows_that_stand_together_are_asked_for_together(monkeypatch, interleaved, panels):
    width, line = 64, LINE_BYTES // bytes_of("bf16")
    view = View(
        None, 0, (width, interleaved), "bf16", interleaved=interleaved
    )  # of panels as wide as what is wanted, one behind the other
    turns = asked(monkeypatch, view, panels, width, 2)
    assert set(range(DEPTH * width // line)) <= {at // line for turn in turns for at in turn}


def test_nothing_is_asked_for_of_single_elements(monkeypatch):
    view = View(None, 0, (4096, 3), "f32")
    assert not any(asked(monkeypatch, view, 2, 32, 1))
