"""The examples that are loops, in their short forms."""

import pathlib
import re
import runpy
import shutil
import sys

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def run(name, folder, monkeypatch, *arguments):
    """Runs a copy of an example in a folder, where its picture stays."""
    example = shutil.copy(EXAMPLES / name, folder)
    shutil.copy(EXAMPLES / "sonnets.txt", folder)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(example), run_name="__main__")


def test_the_recurrent_example_learns_the_same_as_through_xla(tmp_path, capsys, monkeypatch):
    run("recurrent.py", tmp_path, monkeypatch, "--steps", 12, "--hidden", 32)
    printed = capsys.readouterr().out
    bits = re.findall(r"([\d.]+) bits at first, +([\d.]+) at last", printed)
    assert bits[0] == bits[1]
    assert float(bits[0][1]) < float(bits[0][0])
    assert "scan of 64 steps, from the last to the first: kernel" in printed
    assert (tmp_path / "recurrent.png").stat().st_size > 10_000


def test_the_filter_example_follows_the_track(tmp_path, capsys, monkeypatch):
    run("filter.py", tmp_path, monkeypatch, "--steps", 200, "--aircraft", 16)
    printed = capsys.readouterr().out
    errors = re.findall(r"at most (\S+) m from NumPy", printed)
    assert len(errors) == 4
    assert all(float(error) < 1e-3 for error in errors)
    measured, filtered = re.findall(r"measured ([\d.]+) m from the truth, filtered ([\d.]+) m", printed)[0]
    assert float(filtered) < 0.6 * float(measured)
    assert (tmp_path / "filter.png").stat().st_size > 10_000
