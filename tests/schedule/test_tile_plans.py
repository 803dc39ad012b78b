"""What is composed where AMX is, where it is denied, and where it is only asked for. None of this needs AMX."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.lax import DotAlgorithmPreset
from tile_kernels import MATMUL

import jax_nano
from jax_nano.ir.dot import Dot, Operand
from jax_nano.lowering.precision import with_precision
from jax_nano.machine import host
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.choose import choose
from jax_nano.schedule.cost import estimate

NAMES = ("sapphirerapids", "emeraldrapids", "graniterapids")


def chosen(machine, types, m, n, k, threads=1, precision=None):
    machine = replace(machine, threads=threads)
    lhs, rhs = Operand.row_major((m, k), types[0]), Operand.row_major((k, n), types[1])
    return choose(with_precision(precision, Dot.of(lhs, rhs, MATMUL, types[2])), machine, machine.isas[0])


@pytest.fixture(params=NAMES)
def machine(request):
    return host.known(request.param)


BY_TILES = [("bf16", "bf16", "f32"), ("bf16", "bf16", "bf16"), ("s8", "s8", "s32"), ("u8", "s8", "s32")]


@pytest.mark.parametrize("types", BY_TILES, ids="-".join)
@pytest.mark.parametrize("threads", [1, 8])
def test_large_products_go_by_blocks_that_fill_the_tile_registers(machine, types, threads):
    plan = chosen(machine, types, 1024, 1024, 1024, threads)
    assert plan.instruction.tiles
    assert accumulators(plan) >= 4


def test_few_rows_go_by_wide_blocks(machine):
    plan = chosen(machine, ("bf16", "bf16", "f32"), 16, 512, 512)
    assert plan.instruction.tiles
    assert plan.mr == 16
    assert accumulators(plan) >= 3


def accumulators(plan):
    """Tiles of C in a register block."""
    rows, lanes, _ = plan.instruction.shape
    return plan.mr // rows * (plan.nr // lanes)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("types", [("bf16", "bf16", "f32"), ("u8", "s8", "s32")], ids="-".join)
def test_vectors_multiply_a_row_or_two(machine, types, m):
    assert not chosen(machine, types, m, 1024, 1024).instruction.tiles


@pytest.mark.parametrize("types", [("f32", "f32", "f32"), ("f64", "f64", "f64"), ("f32", "bf16", "f32")], ids="-".join)
def test_vectors_multiply_what_tiles_cannot(machine, types):
    plan = chosen(machine, types, 256, 256, 256)
    assert plan.isa == "avx512"


@pytest.mark.parametrize("m", [32, 64, 256])
@pytest.mark.parametrize("types", [("bf16", "bf16", "f32"), ("s8", "s8", "s32")], ids="-".join)
def test_packing_beside_products_is_weighed_and_hides_what_it_costs(machine, types, m):
    """By published throughputs: what it costs beyond them is fitted."""
    published = replace(machine, fitted=replace(machine.fitted, overlapped_work=1.0, overlapped_fetch=1.0))
    dot = chosen(machine, types, m, 512, 512).dot
    plans = list(kernel_plans(dot, machine, machine.isas[0]))
    overlapped = min(estimate.seconds(x, published, 1).total for x in plans if x.overlap_packing)
    before = min(estimate.seconds(x, published, 1).total for x in plans if not x.overlap_packing)
    assert overlapped < 0.95 * before


def test_panels_are_interleaved_by_tasks_that_pack_them_once(machine):
    dot = chosen(machine, ("bf16", "bf16", "f32"), 64, 512, 512).dot
    plan = next(plan for plan in kernel_plans(dot, machine, machine.isas[0]) if plan.overlap_packing)
    text = "packing of B is overlapped by each task, once for its rows, in whole steps"
    for changes in ({"rhs": "per_round"}, {"nb": plan.nr}, {"mt": 64, "mc": 32}, {"k": replace(plan.k, size=500)}):
        with pytest.raises(ValueError, match=f"^{text}$"):
            replace(plan, **changes)


F32 = ("f32", "f32", "f32")
COMPONENTS = [DotAlgorithmPreset[f"BF16_BF16_F32_X{terms}"] for terms in (3, 6, 9)]


@pytest.mark.parametrize("precision", COMPONENTS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("threads", [1, 8])
def test_products_of_components_go_by_tiles_faster_than_f32(machine, precision, threads):
    plan = chosen(machine, F32, 1024, 1024, 1024, threads, precision)
    assert plan.instruction.name == "tdpbf16ps"
    assert len(plan.terms) == plan.dot.terms > 1
    plain = chosen(machine, F32, 1024, 1024, 1024, threads)
    shared = replace(machine, threads=threads)
    assert estimate.seconds(plan, shared).total < estimate.seconds(plain, shared).total


def test_more_products_of_components_take_longer(machine):
    times = [estimate.seconds(chosen(machine, F32, 512, 512, 512, 1, x), machine, 1) for x in COMPONENTS]
    for fewer, more in itertools.pairwise(times):
        assert fewer.compute < more.compute


def test_half_floats_go_by_tiles_where_there_are_products_of_them():
    instructions = {
        name: chosen(host.known(name), ("f16", "f16", "f32"), 256, 256, 256).instruction.name for name in NAMES
    }
    assert instructions == {"sapphirerapids": "fma_f32", "emeraldrapids": "fma_f32", "graniterapids": "tdpfp16ps"}


def test_denied_tiles_leave_vectors_and_a_reason(machine, monkeypatch):
    monkeypatch.setattr(
        host._native, "tiles_denied", lambda: "Linux denies this process tile data: Operation not permitted"
    )
    without = host.granted(machine)
    assert [isa.name for isa in without.isas] == ["avx512", "avx2"]
    plan = chosen(without, ("bf16", "bf16", "f32"), 256, 256, 256)
    assert plan.isa == "avx512"
    assert plan.why.endswith("; no amx: Linux denies this process tile data: Operation not permitted")


def test_the_first_machine_with_an_instruction_set_stands_for_it():
    assert host.elsewhere("amx").name == "sapphirerapids"


def test_granted_tiles_stay(machine):
    assert host.granted(machine) is machine


@pytest.mark.emulator
def test_another_machines_kernels_can_be_looked_at(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    x = jax.ShapeDtypeStruct((128, 128), jax.numpy.bfloat16)
    (report,) = jax_nano.inspect(jax_nano.matmul, x, x)
    assert "target   amx, tdpbf16ps" in str(report)
    assert '"amx.tile_mulf"' in str(report.mlir)
    assert "llvm.x86.tdpbf16ps.internal" in str(report.llvm_ir)
    assert "tdpbf16ps" in str(report.assembly)


@pytest.mark.emulator
def test_another_machines_kernels_do_not_run(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    x = np.ones((128, 128), jax.numpy.bfloat16)
    message = (
        "this kernel was compiled for a processor with amx-tile,amx-bf16, which this one lacks; "
        "compile the program on this machine, with JAX_NANO_TARGET unset"
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax_nano.matmul(x, x)
