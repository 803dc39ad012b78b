"""Tables, files and pictures of results."""

import json
import math
import re

import pytest

from benchmarks import plot, report


def test_a_file_holds_all_that_was_measured(row, results, tmp_path):
    made = results(row(3e-6, 2e-6, XLA=(4e-6, 5e-6)), row(1e-6, kind="s4", peak_gflops=math.nan))
    path = report.save(made, tmp_path / "folder")
    assert path.name == "2026-01-02T030405-znver5.json"
    read = report.load(path)
    assert (read.found, read.roof._asdict()) == (made.found, json.loads(json.dumps(made.roof._asdict())))
    assert [r.key for r in read.rows] == [r.key for r in made.rows]
    first, second = read.rows
    assert (first.seconds("jax_nano"), first.seconds("XLA"), first.peak_gflops) == (2e-6, 4e-6, 100.0)
    assert math.isnan(second.peak_gflops) and math.isnan(second.seconds("XLA"))


def test_the_docstring_names_every_field(row, results, tmp_path):
    held = json.loads(report.save(results(row(1e-6)), tmp_path).read_text())
    names = {*held, *held["machine"], *held["roof"], *held["rows"][0]} - {"jax"}
    assert report.__doc__
    assert names <= set(re.findall(r"\w+", report.__doc__))


def test_files_are_valid_json_for_everyone(row, results, tmp_path):
    text = report.save(results(row(1e-6, peak_gflops=math.nan)), tmp_path).read_text()
    assert "NaN" not in text


@pytest.mark.parametrize("text, words", [
    ("{", "x.json is not JSON: "),
    ('{"products": []}', "x.json has no results of format 2; measure them anew with `python -m benchmarks`"),
    ("[]", "x.json has no results of format 2"),
])  # fmt: skip
def test_other_files_are_refused(text, words, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        report.load(path)


def test_tables_have_dashes_where_nothing_was_measured(row, results, capsys):
    libraries = ["jax_nano", "XLA", "NumPy"]
    report.print_header(libraries)
    report.print_row(row(1e-6, XLA=(2e-6,)), libraries)
    report.print_row(row(1e-6, kind="s4", peak_gflops=math.nan), libraries)
    _, *lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split() for line in lines] == [
        ["f32", "64x64x64", "524.3", "262.1", "-", "524.3%", "2.00x"],
        ["s4", "64x64x64", "524.3", "-", "-", "-", "-"],
    ]


def test_the_roof_says_what_is_left_out(results, capsys):
    report.print_roof(results().roof)
    assert capsys.readouterr().out.splitlines()[-1] == "no tile instructions: no AMX"


def test_cubes_are_drawn(row, results, tmp_path):
    names = ("64x64x64", "128x128x128")
    rows = [row(1e-6, XLA=(2e-6,), kind=kind, name=name) for kind in ("f32", "bf16", "s8", "s4") for name in names]
    path = plot.save(results(*rows, row(1e-6, name="1x2x3")), tmp_path / "x.png")
    assert path and path.stat().st_size > 10_000
    assert plot.save(results(row(1e-6, name="1x2x3")), tmp_path / "y.png") is None
