"""Results beside earlier ones: ratios, their mean, and what is more than noise."""

import math
import re

import pytest

from benchmarks import __main__ as command_line
from benchmarks import compare, report, roof
from benchmarks.compare import Pair


def test_what_both_runs_have_is_compared(row, results):
    earlier = results(row(1e-6), row(2e-6, kind="f64"))
    later = results(row(3e-6, kind="bf16"), row(4e-6, kind="f64"))
    (pair,) = compare.pairs(earlier, later)
    assert pair.later.kind == "f64" and pair.ratio() == 0.5


@pytest.mark.parametrize("earlier, later, slower, faster", [
    ((1.00, 1.01, 1.02), (1.05, 1.06, 1.05), True, False),  # noise of 1 % and 0
    ((1.00, 1.10, 1.20), (1.05, 1.06, 1.05), False, False),  # noise of 10 %
    ((1.00, 1.00, 9.00), (1.05, 1.05, 9.00), True, False),  # a single slow turn is none
    ((1.05, 1.06, 1.05), (1.00, 1.01, 1.02), False, True),
    ((1.00,), (1.00,), False, False),
])  # fmt: skip
def test_slower_and_faster_are_more_than_noise(row, earlier, later, slower, faster):
    pair = Pair(row(*earlier), row(*later))
    assert (pair.is_slower, pair.is_faster) == (slower, faster)


def test_a_comparison_in_words(row, results, capsys):
    earlier = results(row(1e-6, XLA=(1e-6,)), row(2e-6, kind="f64", XLA=(1e-6,)), jax="0.11")
    later = results(row(4e-6, XLA=(1e-6,), peak_gflops=50.0), row(1e-6, kind="f64"))
    compare.print_comparison(earlier, later)
    out = capsys.readouterr().out
    assert "compared with 2026-01-02T03:04:05+00:00\nnote: jax was 0.11, and is 0.12\n" in out
    rows = [line.split() for line in out.splitlines() if "64x64x64 " in line]
    assert rows[0] == ["f32", "64x64x64", "1.0", "4.0", "0.25", "0.0%", "1.00", "0.50", "slower"]
    assert rows[1] == ["f64", "64x64x64", "2.0", "1.0", "2.00", "0.0%", "-", "1.00", "faster"]
    assert "geometric means of 2 in common: jax_nano 0.707, XLA 1.000, peak 0.707\n" in out
    assert "slower by more than noise: f32 64x64x64 (0.25)\nfaster by more than noise: f64 64x64x64 (2.00)\n" in out


def test_runs_without_a_row_in_common_say_so(row, results, capsys):
    compare.print_comparison(results(row(1e-6)), results(row(1e-6, kind="s8")))
    assert capsys.readouterr().out.endswith("the two have no row in common\n")


def test_means_leave_out_what_is_not_there():
    assert compare.mean([2.0, math.nan, 8.0]) == pytest.approx(4)
    assert math.isnan(compare.mean([math.nan]))


def test_two_files_are_compared(row, results, tmp_path, capsys, monkeypatch):
    path = report.save(results(row(1e-6)), tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", str(path), str(path)])
    compare.main()
    assert "slower by more than noise: none\nfaster by more than noise: none\n" in capsys.readouterr().out


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks", *map(str, arguments)])
    command_line.main()


def test_a_run_is_saved_and_compared(quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roof, "READ_BYTES", 1 << 16)
    run(monkeypatch, "32", "--types", "f32", "s8", "--turns", 2, "--output", tmp_path)
    (path,) = tmp_path.glob("*.json")
    (picture,) = tmp_path.glob("*.png")
    assert picture.stat().st_size > 10_000
    run(monkeypatch, "32", "--types", "s8", "--turns", 2, "--output", tmp_path, "--compare", path)
    out = capsys.readouterr().out
    assert re.search(r"geometric means of 1 in common: jax_nano [\d.]+, XLA [\d.]+, peak [\d.]+\n", out)


@pytest.mark.parametrize("arguments, words", [
    (["1x2"], "'1x2' is neither a size nor MxNxK"),
    (["32", "--compare", "nothing.json"], "No such file"),
    (["--types", "c64"], "invalid choice: 'c64'"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_measured(arguments, words, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments)
    assert words in capsys.readouterr().err
