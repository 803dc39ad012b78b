"""What a newcomer runs: the example, the benchmarks, and the code in README."""

import functools
import itertools
import json
import pathlib
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import jax_nano
from benchmarks import static, tables, timing
from jax_nano.machine import host

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_learns_the_same_through_jax_nano_as_through_xla(tmp_path, capsys):
    example = shutil.copy(ROOT / "examples" / "digits.py", tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    accuracy = {name: float(percent) for name, percent in re.findall(r"^(jax_nano|XLA) +([\d.]+)%", printed, re.M)}
    assert accuracy["jax_nano"] > 97 and accuracy["XLA"] > 97
    difference = re.search(r"largest difference of the loss curves: (\S+)", printed)
    assert difference and float(difference[1]) < 1e-3
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def run_example(name, folder, monkeypatch, *arguments):
    """Runs a copy of an example in a folder, where its pictures stay; gives what it defines."""
    example = shutil.copy(ROOT / "examples" / name, folder)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(example), run_name="__main__")


def test_the_gpt_example_writes_the_same_in_f32_through_jax_nano_as_through_xla(tmp_path, capsys, monkeypatch):
    model = "--layers", 2, "--width", 128, "--vocabulary", 300
    defined = run_example("gpt.py", tmp_path, monkeypatch, *model, "--count", 5)
    printed = capsys.readouterr().out
    rows = re.findall(r"│ (\w+) +│ (\w+) +│ [\d.]+ s +│ +([\d,]+) +│ +([\d.,]+) +│ first (\d)", printed)
    assert [row[:2] for row in rows] == list(itertools.product(defined["TYPES"], ("jax_nano", "XLA")))
    assert rows[0][-1] == rows[1][-1] == "5"
    assert re.search("attention of f32: 2 of 2 layers by nano_attention_f32_b2t1s133h1d64_mask", printed)
    assert (tmp_path / "gpt.png").stat().st_size > 10_000


def test_the_gpt_example_reads_checkpoints(tmp_path, capsys, monkeypatch):
    model = "--layers", 2, "--width", 64, "--vocabulary", 300
    run = functools.partial(run_example, "gpt.py", tmp_path, monkeypatch)
    common = "--types", "f32", "--count", 4, "--prompt"
    params = run(*model, *common, "1 2 3")["random_params"](2, 64, 300)
    mask = {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}
    saved = {f"transformer.{name}": np.asarray(x) for name, x in params.items()} | mask
    save_file(saved, tmp_path / "model.safetensors")
    run("--checkpoint", tmp_path / "model.safetensors", *common, "1 2 3")
    vocabulary = ["t", "th", "the", "Ġthe", *(f"<{i}>" for i in range(4, 300))]
    (tmp_path / "vocab.json").write_text(json.dumps({part: i for i, part in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    run("--checkpoint", tmp_path / "model.safetensors", *common, "ththe the")
    printed = re.findall("written by the first: (.*)", capsys.readouterr().out)
    assert printed[0] == printed[1] == " ".join(re.findall(r"\d+", printed[2]))


def test_the_attention_example_draws_time_and_memory(tmp_path, capsys, monkeypatch):
    model = "--layers", 1, "--width", 128, "--vocabulary", 300, "--frames", 70, "--tokens", 20
    run_example("attention.py", tmp_path, monkeypatch, *model, "--lengths", 64, 128)
    printed = capsys.readouterr().out
    assert "attention by kernels: 3 of 3" in printed
    assert len(re.findall(r"│ (?:f32|bf16) +│ (?:XLA|jax_nano) +│ +[\d.,]+ ms", printed)) == 4
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_the_vision_example_agrees_with_xla_and_learns(tmp_path, capsys, monkeypatch):
    small = "--size", 32, "--batch", 1, "--types", "f32", "--epochs", 4, "--weights"
    run_example("vision.py", tmp_path, monkeypatch, *small, "arrays")
    printed = capsys.readouterr().out
    (error,) = re.findall(r"jax_nano, arrays +[\d.]+ images/s +within (\S+) of XLA", printed)
    assert float(error) < 1e-5
    assert float(re.findall(r"held-out accuracy: ([\d.]+)%", printed)[0]) > 90
    assert (tmp_path / "vision.png").stat().st_size > 10_000


def test_the_characters_example_learns(capsys, monkeypatch):
    arguments = ["--steps", "60", "--hidden", "256", "--count", "5"]
    monkeypatch.setattr(sys, "argv", ["characters.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "characters.py"), run_name="__main__")
    printed = capsys.readouterr().out
    bits = [float(number) for number in re.findall(r"^step +\d+ +([\d.]+) bits", printed, re.M)]
    assert len(bits) == 10 and bits[-1] < 4 < 5 < bits[0]
    assert re.search(r"^I\n\nFrom fairest creatures we desire increase,\n", printed, re.M)


def test_code_in_the_readme_runs(capsys):
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    before = jax_nano.executed_kernels()
    exec(code, {})
    assert (
        jax_nano.executed_kernels() >= before + 10
    )  # the model's two, one under installed(), and those of the functions
    assert "by kernels, 0 by lax.dot_general" in capsys.readouterr().out


@pytest.mark.parametrize("table", [tables.packed_weights, tables.quantized_weights])
def test_tables_have_a_ratio_in_each_cell(table, capsys, monkeypatch):
    for module, name, value in (
        (tables, "LAYERS", 1), (tables, "WIDTH", 64), (tables, "VOCABULARY", 100),
        (timing, "TURN_SECONDS", 1e-4), (timing, "REST_SECONDS", 0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    table(turns=1)
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    labels = len([cell for cell in rows[0].split("|") if cell.strip()]) - 4
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == header.count("|") - 1
        assert all(float(cell) > 0 for cell in cells[labels:])


@pytest.mark.parametrize("processor, name", [("alderlake", "fma_f32"), ("sapphirerapids", "tdpbf16ps")])
def test_main_loops_are_bound_by_their_products_on_processors_elsewhere(processor, name):
    machine = host.known(processor)
    (instruction,) = (dot for dot in machine.isas[0].dots if dot.name == name)
    loop, *_ = static.loops_of(static.plan_of(machine, machine.isas[0].name, instruction), machine)
    assert 2 * loop.products > loop.loads, "a product takes as long as two loads"
    assert loop.cycles < 1.05 * loop.alone == pytest.approx(1.05 * loop.published, rel=0.01)
