"""Probes: what they compute, what their loops hold, and which instructions there are probes of."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amx.selection import those_that_run

from jax_nano import _native
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine import host
from jax_nano.machine.x86 import AMX, AVX2, AVX512
from jax_nano.runtime.probes import memory, threads
from jax_nano.runtime.probes.arithmetic import (
    ADDITIONS,
    CHAINS,
    RESIDENT,
    SIDE,
    Unit,
    chain,
    distinct,
    multiply_adds,
    tile_products,
    units,
)
from jax_nano.runtime.probes.probe import Probe, Target, features, ones

HERE = host.detected()
VECTORS = [unit for unit in units(HERE) if not unit.dot.tiles]
GRANITE_RAPIDS, ZEN5 = host.known("graniterapids"), host.known("znver5")
TILES = [Unit(GRANITE_RAPIDS, AMX, dot) for dot in AMX.dots]


def named(unit):
    return f"{unit.isa.name} {unit.dot.name}"


def result(probe, *operands):
    operands = operands or [ones(array) for array in probe.arrays[:-1]]
    return np.asarray(probe.compiled(*operands)(*operands))


def loop_of(assembly):
    """The lines of the only loop."""
    ((_, body),) = re.findall(r"^(\.LBB\S+):((?:(?!^\.LBB).)*?)^\tj\w+\t\1$", assembly, re.M | re.S)
    return body


# What probes compute


@pytest.mark.parametrize("unit", VECTORS, ids=named)
@pytest.mark.parametrize("tasks", [1, 3])
def test_every_chain_multiplies_in_every_step(unit, tasks):
    found = result(multiply_adds(unit, tasks, 7))
    depth = unit.dot.shape[2]
    assert found.size == tasks * unit.dot.shape[1]
    assert np.all(found == 7 * depth * CHAINS)


@pytest.mark.parametrize("unit", VECTORS, ids=named)
def test_the_loop_has_an_instruction_a_chain_and_no_memory(unit):
    loop = loop_of(multiply_adds(unit, 1, 1 << 20).assembly)
    instructions = re.findall(r"^\t(?:\{vex\}\s+)?([a-z]\w*)(.*)$", loop, re.M)
    multiplying = [name for name, _ in instructions if name.startswith(("vfmadd", "vdpbf16", "vpdpb"))]
    assert len(multiplying) == CHAINS
    assert not [operands for _, operands in instructions if "(" in operands]


def test_additions_wait_for_each_other():
    loop = loop_of(chain(HERE, 1, 1 << 20).assembly)
    added = re.findall(r"^\t(?:add|xor)q\t(%\w+), (%\w+)$", loop, re.M)
    assert len(added) == ADDITIONS
    assert len(set(added)) == 1


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_task_reads_its_share(tasks):
    isa = HERE.isas[-1]
    probe = memory.reading(HERE, isa, tasks, 3 << 12, 5)
    (elements, _), _ = probe.arrays
    values = jnp.arange(elements, dtype=jnp.float32) % 7
    assert result(probe, values).sum() == 5 * np.asarray(values).sum()


@pytest.mark.parametrize("size", [64, 640, 1 << 14])
def test_links_go_through_all_lines_in_one_circle(size):
    links, lines = memory.links(size)
    assert lines == size // 64
    place, met = 0, set()
    for _ in range(lines):
        met.add(place)
        place = links[place]
    assert place == 0 and len(met) == lines
    assert {at % 8 for at in met} == {0}


def test_links_are_spread_over_a_buffer_of_more_lines(monkeypatch):
    monkeypatch.setattr(memory, "MOST_LINES", 10)
    links, lines = memory.links(1 << 14)
    assert lines == 10
    assert links.max() > links.size * 0.8


def test_a_chase_goes_on_where_the_last_one_ended():
    links, lines = memory.links(1 << 12)
    probe = memory.chasing(HERE, links.size, lines // 2)
    with jax.enable_x64(True):
        array, start = jnp.asarray(links), jnp.zeros(1, np.int64)
    half = result(probe, array, start)
    assert half[0] != 0
    with jax.enable_x64(True):
        assert result(probe, array, jnp.asarray(half))[0] == 0


def test_pages_are_touched():
    assert memory.page_fault_seconds() > 0


def test_calls_in_a_loop_run(own_cache):
    before = _native.executed_kernels()
    threads.calls_in_a_loop(HERE, 3)()
    assert _native.executed_kernels() - before == 3 * threads.LOOP_CALLS


def test_probes_that_differ_only_in_what_they_are_given_have_keys_of_their_own():
    target = Target(HERE.isas[-1].name, (), 1)
    probes = [Probe(lambda *_: None, target, [(8, dtype), (8, "f32")], HERE) for dtype in ("s8", "u8")]
    assert len({str(probe.attributes()["key"]) for probe in probes}) == 2
    assert features(Target("avx2", ("avx2", "fma"), 1)) == "+avx2,+fma"


# Tiles, read in the assembly and run by whatever runs them


@pytest.mark.parametrize("unit", TILES, ids=named)
@pytest.mark.parametrize("loaded", [False, True], ids=["on registers", "loaded"])
def test_tile_loops_have_four_products_and_as_many_loads_or_none(unit, loaded):
    text = tile_products(unit, 1, 1 << 12, loaded=loaded).assembly
    body = [line for line in loop_of(text).splitlines() if re.match(r"\t[a-z]", line)]
    names = Counter(line.split("\t")[1] for line in body)
    assert names[unit.dot.name] == SIDE * SIDE
    assert names["tileloadd"] == 2 * SIDE * loaded
    in_memory = [line for line in body if "(" in line and "\tleaq\t" not in line]
    assert len(in_memory) == names["tileloadd"], "nothing else is loaded or stored"
    accumulators = {line.rsplit("%", 1)[1] for line in body if line.startswith(f"\t{unit.dot.name}")}
    assert len(accumulators) == SIDE * SIDE, "products wait for no other of their step"
    assert text.count("ldtilecfg") == text.count("tilerelease") == 1
    assert "Folded Spill" not in text


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("loaded", [False, True], ids=["on registers", "loaded"])
@pytest.mark.parametrize("unit", [unit for unit in TILES if those_that_run([unit.dot.name])], ids=named)
def test_tiles_multiply_in_every_step(amx, here, unit, loaded, tasks):
    steps = RESIDENT + 1
    found = result(tile_products(unit, tasks, steps, loaded=loaded))
    assert found.size == tasks * SIDE * SIDE * 16 * 16
    assert np.all(found == steps * unit.dot.shape[2])


def test_tiles_that_are_loaded_fit_l1():
    for unit in TILES:
        (elements, dtype), _ = tile_products(unit, 1, 1, loaded=True).arrays
        assert bytes_of(dtype, elements) <= GRANITE_RAPIDS.l1.bytes // 2


# Which instructions there are probes of


@pytest.mark.parametrize(
    ("isa", "names"),
    [
        (AMX, ["tdpbf16ps", "tdpfp16ps", "tdpbssd"]),
        (AVX512, ["fma_f32", "fma_f64", "vdpbf16ps", "vpdpbusd_512"]),
        (AVX2, ["fma_f32", "fma_f64", "vpdpbusd_256", "vpdpbssd_256"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_of_those_that_differ_by_signs_one_is_measured(isa, names):
    assert [dot.name for dot in distinct(isa)] == names


def test_instructions_that_a_processor_lacks_are_not_measured():
    assert [unit.dot.name for unit in units(host.known("skylake"))] == ["fma_f32", "fma_f64"]


def test_a_task_takes_about_the_time_it_is_given():
    unit = Unit(ZEN5, AVX512, AVX512.dots[0])
    assert unit.steps(1e-3) == pytest.approx(1e6 * ZEN5.ghz * 2 / CHAINS, rel=0.01)
    assert unit.steps(0) == 1
