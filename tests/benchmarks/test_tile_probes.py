"""Probes of tile instructions: what their loops hold, and that they compute, natively or by the emulator."""

import re
from collections import Counter

import pytest
from amx.selection import those_that_run

from benchmarks.probe import assembly, runnable
from benchmarks.static import main_loops
from benchmarks.tile_probes import RESIDENT, SIDE, tile_probes
from jax_nano.machine import host
from jax_nano.machine.x86 import AMX

STEPS = RESIDENT + 1
PROBES = {probe.name: probe for probe in tile_probes(AMX, STEPS)}
MNEMONICS = {"bf16": "tdpbf16ps", "f16": "tdpfp16ps", "s8": "tdpbssd"}


def instruction(name):
    return name.split(" ")[1].rstrip(",")


def test_each_instruction_has_two_but_for_other_signs():
    expected = [f"{dtype} {name}, {source}" for dtype, name in MNEMONICS.items() for source in ("L1", "registers")]
    assert list(PROBES) == expected


@pytest.mark.parametrize("name", PROBES)
def test_loops_hold_four_products_and_the_loads_that_they_are_named_for(name):
    (probe,) = (probe for probe in tile_probes(AMX) if probe.name == name)
    machine = host.known("graniterapids" if "fp16" in name else "sapphirerapids")
    (body,) = main_loops(assembly(probe, machine), re.compile(rf"\t{instruction(name)}\t"))
    counts = Counter(line.split("\t")[1] for line in body)
    assert counts[instruction(name)] == SIDE * SIDE
    assert counts["tileloadd"] == (2 * SIDE if name.endswith("L1") else 0)
    assert not counts.keys() & {"tilestored", "tilezero", "ldtilecfg"}
    operands = [line for line in body if "(" in line and "\tleaq\t" not in line]
    assert len(operands) == counts["tileloadd"], "nothing else is loaded or stored"
    accumulators = [line.rsplit("%", 1)[1] for line in body if line.startswith(f"\t{instruction(name)}")]
    assert len(set(accumulators)) == SIDE * SIDE, "products wait for no other of their step"


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", [name for name in PROBES if those_that_run([instruction(name)])])
def test_every_sum_is_that_of_all_products(here, name, tasks):
    probe = PROBES[name]
    result = runnable(probe, tasks)()
    depth = next(dot.shape[2] for dot in AMX.dots if dot.name == instruction(name))
    assert result.shape == (tasks * SIDE * SIDE * 16 * 16,)
    assert set(result.tolist()) == {STEPS * depth}
    assert probe.gflop == pytest.approx(2e-9 * STEPS * depth * SIDE * SIDE * 16 * 16)
