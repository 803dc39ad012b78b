"""Progress: a bar on a terminal, a line elsewhere, nothing without a label."""

import io
from types import SimpleNamespace

import pytest

from jax_nano.runtime import progress as module
from jax_nano.runtime.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))  # pytest sets sys.stderr before each phase
    monkeypatch.setenv("COLUMNS", "60")
    return stream


def on_screen(text):
    """What stands in the lines of a terminal, without blanks at their ends."""
    lines = []
    for line in text.split("\n"):
        cells = ""
        for part in line.split("\r"):
            cells = part + cells[len(part) :]
        lines.append(cells.rstrip())
    return lines


def test_elsewhere_a_line_says_what_came_of_it(capsys):
    with progress(2, "product 1") as bar:
        bar.advance("compiling")
        bar.advance("measuring")
        bar.finish("20 us")
    assert capsys.readouterr().err == "product 1: 20 us\n"


def test_a_line_ends_with_the_last_step_if_nothing_else_is_said(capsys):
    with progress(1, "reading") as bar:
        bar.advance("a.txt")
    with progress(1, "writing"):
        pass
    assert capsys.readouterr().err == "reading: a.txt\nwriting\n"


def test_without_a_label_nothing_is_shown(capsys, terminal):
    with progress(2, "") as bar:
        bar.advance("compiling")
        bar.finish("done")
    assert terminal.getvalue() == ""


def test_a_terminal_has_a_bar_as_long_as_what_is_done(terminal):
    with progress(4, "product 1") as bar:
        assert on_screen(terminal.getvalue()) == [f"[{'.' * 20}] product 1"]
        bar.advance("compiling plan 1")
        assert on_screen(terminal.getvalue()) == [f"[{'#' * 5}{'.' * 15}] compiling plan 1: product 1"]
        bar.advance("x", steps=10)
        assert on_screen(terminal.getvalue()) == [f"[{'#' * 20}] x: product 1"]
        bar.finish("20 us")
    assert on_screen(terminal.getvalue()) == ["product 1: 20 us", ""]


def test_a_bar_stays_within_its_line(terminal):
    with progress(4, "a label that is longer than a line of the terminal can be, by far") as bar:
        bar.advance()
        drawn = terminal.getvalue().split("\r")
    assert max(map(len, drawn)) == 59


def test_an_exception_passes_on_and_leaves_no_line(terminal, capsys):
    def fail():
        with progress(4, "product 1"):
            raise ValueError("no plan")

    with pytest.raises(ValueError, match="no plan"):
        fail()
    assert on_screen(terminal.getvalue()) == [""]


def test_without_a_standard_error_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=None))
    with progress(1, "product 1") as bar:
        bar.advance("compiling")
