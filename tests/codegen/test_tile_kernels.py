"""Kernels by tiles, on every edge: bytes exact, floats within the bound, nothing touched beside the arrays."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from amx import emulator
from amx.selection import those_that_run
from jax.lax import DotAlgorithmPreset
from kernel_runner import bits
from oracle import assert_dot_general
from tile_kernels import (
    AMX,
    MATMUL,
    PRODUCTS,
    TileRunner,
    blocked,
    check,
    kernel_of,
    needs_tile_vectors,
    numbers,
    run_here,
    tile_plans,
    tile_ways,
)

import jax_nano
from jax_nano.schedule.choose import order_of_sums

pytestmark = needs_tile_vectors
only_the_emulator_counts = pytest.mark.emulator

ROWS, COLS = [1, 2, 15, 16, 17, 31, 48, 65], [1, 15, 16, 17, 32, 33, 70]
FLOATS = those_that_run(["tdpbf16ps", "tdpfp16ps"])
BYTES = those_that_run(["tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"])
BLOCKS = [(t, w) for t, w in itertools.product(range(1, 8), repeat=2) if t * w + min(t, w) + 1 <= AMX.register_count]


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


def each_types(*types):
    """Runs a test for each (lhs, rhs, out) whose instruction can run here."""
    return pytest.mark.parametrize("types", list(filter(run_here, types)), ids="-".join)


def run(types, m, n, k, **options):
    rng = np.random.default_rng([m, n, k])
    plans = tile_plans((m, k), (k, n), MATMUL, types)
    check(plans, MATMUL, types, numbers(rng, (m, k), types[0]), numbers(rng, (k, n), types[1]), **options)


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("name", [*FLOATS, "tdpbusd"])
def test_every_edge_of_c(name, m):
    """One product of bytes stands for all: they are packed and stored by the same code."""
    for n in COLS:
        run(PRODUCTS[name], m, n, 37)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", FLOATS + BYTES)
def test_every_edge_of_the_sum(name, before):
    step = 64 // np.dtype(np.int8 if name in BYTES else np.float16).itemsize
    for k in (1, 2, 3, 4, 5, step - 1, step, step + 1, step + 8, 2 * step, 3 * step + 7):
        run(PRODUCTS[name], 20, 40, k, before=before)


@pytest.mark.parametrize("m", ROWS)
def test_packed_weights(m):
    types, rng = PRODUCTS["tdpbf16ps"], np.random.default_rng(m)
    for n, k in ((32, 64), (33, 37), (70, 100)):
        plans = tile_plans((m, k), (k, n), MATMUL, types, packed=True)
        assert all(plan.rhs == "panels" for plan in plans)
        check(plans, MATMUL, types, numbers(rng, (m, k), types[0]), numbers(rng, (k, n), types[1]))


LAYOUTS = {
    "nn": ((21, 45), (45, 35), (((1,), (0,)), ((), ()))),
    "nt": ((21, 45), (35, 45), (((1,), (1,)), ((), ()))),
    "tn": ((45, 21), (45, 35), (((0,), (0,)), ((), ()))),
    "tt": ((45, 21), (35, 45), (((0,), (1,)), ((), ()))),
    "matrix by vector": ((21, 45), (45,), (((1,), (0,)), ((), ()))),
    "vector by matrix": ((45,), (45, 35), (((0,), (0,)), ((), ()))),
    "batch": ((3, 18, 45), (3, 45, 35), (((2,), (1,)), ((0,), (0,)))),
    "batch inside, two free axes": ((5, 33, 4), (4, 9, 5), (((2,), (0,)), ((0,), (2,)))),
    "two contracted axes": ((3, 5, 7, 9), (3, 9, 4, 7), (((2, 3), (3, 1)), ((0,), (0,)))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*FLOATS, "tdpbsud"])
def test_every_layout(name, layout):
    lhs, rhs, dimension_numbers = LAYOUTS[layout]
    types, rng = PRODUCTS[name], np.random.default_rng(0)
    plans = tile_plans(lhs, rhs, dimension_numbers, types)
    check(plans, dimension_numbers, types, numbers(rng, lhs, types[0]), numbers(rng, rhs, types[1]))


@each_types(
    ("bf16", "bf16", "bf16"), ("f16", "f16", "f16"), ("f16", "f16", "bf16"), ("s8", "s8", "f32"),
    ("u8", "s8", "f32"), ("bf16", "s8", "f32"), ("u8", "bf16", "bf16"), ("f16", "u8", "f32"), ("s8", "f16", "f16"),
)  # fmt: skip
def test_types_are_converted_on_the_way(types):
    for m, n, k in ((32, 32, 64), (21, 35, 45)):
        run(types, m, n, k)


@pytest.mark.parametrize(("tall", "wide"), BLOCKS)
@each_types(("bf16", "bf16", "f32"), ("bf16", "bf16", "bf16"), ("s8", "u8", "s32"))
def test_every_register_block(types, tall, wide):
    rng = np.random.default_rng(0)
    for m, n, k in (
        (16 * (tall + 1), 16 * (wide + 1), 128),
        (7 * tall, 16 * wide - 3, 10),
        (33 * tall, 40 * wide, 150),
    ):
        lhs, rhs = numbers(rng, (m, k), types[0]), numbers(rng, (k, n), types[1])
        for plan in tile_ways(lhs.shape, rhs.shape, MATMUL, types):
            plans = [blocked(plan, tall, wide), blocked(plan, tall, wide, panels=1, depth=40)]
            check(plans, MATMUL, types, lhs, rhs)


@each_types(("bf16", "bf16", "bf16"), ("s8", "s8", "s32"))
def test_every_way_to_share_out_work(types):
    rng = np.random.default_rng(0)
    lhs, rhs = numbers(rng, (70, 620), types[0]), numbers(rng, (620, 100), types[1])
    for plan in tile_ways(lhs.shape, rhs.shape, MATMUL, types):
        tasks = blocked(plan, 2, 2, panels=1)
        parts = blocked(plan, 2, 2, panels=1, depth=128)
        plans = [
            replace(tasks, rhs="per_round"),
            replace(tasks, rhs="per_round", nc=64),
            replace(parts, rhs="per_round"),
            replace(parts, split_k=2),
            replace(blocked(plan, 2, 2), nb=32),
        ]
        check(plans, MATMUL, types, lhs, rhs)


@pytest.mark.parametrize("precision", [None, DotAlgorithmPreset.BF16_BF16_F32_X3], ids=str)
@pytest.mark.parametrize("m", [18, 33, 64])
def test_register_blocks_give_the_same_bits(m, precision):
    """What is an edge in one is none in another; all go on with the sums of the parts before."""
    types, rng = ("f32" if precision else "bf16",) * 2 + ("f32",), np.random.default_rng(m)
    lhs, rhs = numbers(rng, (m, 1000), types[0]), numbers(rng, (1000, 66), types[1])
    (plan, *_) = tile_plans(lhs.shape, rhs.shape, MATMUL, types, precision=precision)
    for parts in ({}, {"split_k": 2}):
        plans = [replace(blocked(plan, *block, depth=250), **parts) for block in ((1, 1), (2, 2), (1, 3), (4, 1))]
        assert len({order_of_sums(plan) for plan in plans}) == 1
        first, *others = (bits(TileRunner(plan)(lhs, rhs)) for plan in plans)
        assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("n", [17, 33, 64, 65, 100])
@each_types(
    ("bf16", "bf16", "bf16"), ("f16", "f16", "f32"), ("s8", "u8", "s32"), ("u8", "s8", "f32"), ("bf16", "s8", "f32"),
)  # fmt: skip
def test_panels_packed_beside_products(types, n):
    """Of the last panel's columns some are there; after it comes none. A task's rows may be fewer than a block's."""
    rng = np.random.default_rng(n)
    lhs, rhs = numbers(rng, (50, 256), types[0]), numbers(rng, (256, n), types[1])
    (plan, *_) = tile_plans(lhs.shape, rhs.shape, MATMUL, types, overlap_packing=True)
    for tall, wide in ((1, 1), (2, 2), (4, 1), (1, 2)):
        ways = {"panels": 1}, {"panels": 2}, {"panels": 2, "depth": 128}, {}
        check([blocked(plan, tall, wide, **way) for way in ways], MATMUL, types, lhs, rhs, before=tall == 2)


def test_batches_and_parts_of_sums_packed_beside_products():
    types, rng = ("bf16", "bf16", "f32"), np.random.default_rng(0)
    lhs, rhs = numbers(rng, (3, 18, 64), types[0]), numbers(rng, (3, 64, 70), types[1])
    batch = ((2,), (1,)), ((0,), (0,))
    check(tile_plans(lhs.shape, rhs.shape, batch, types, overlap_packing=True), batch, types, lhs, rhs)
    lhs, rhs = numbers(rng, (30, 640), types[0]), numbers(rng, (640, 70), types[1])
    for plan in tile_ways(lhs.shape, rhs.shape, MATMUL, types, overlap_packing=True):
        parts = blocked(plan, 2, 1, panels=1, depth=128)
        check([parts, replace(parts, split_k=3)], MATMUL, types, lhs, rhs)


@pytest.mark.parametrize("name", BYTES)
def test_sums_of_bytes_wrap(name):
    types = PRODUCTS[name]
    lhs, rhs = (np.full(shape, {"s8": -128, "u8": 255}[t], np.dtype(t.replace("s", "int").replace("u", "uint")))
                for shape, t in (((17, 140_000), types[0]), ((140_000, 1), types[1])))  # fmt: skip
    check(tile_plans(lhs.shape, rhs.shape, MATMUL, types)[:1], MATMUL, types, lhs, rhs)


@pytest.mark.parametrize("name", FLOATS)
def test_nan_and_infinity_stay_in_their_rows_and_columns(name):
    types, rng = PRODUCTS[name], np.random.default_rng(0)
    lhs, rhs = numbers(rng, (19, 33), types[0]), numbers(rng, (33, 21), types[1])
    lhs[16, 32], lhs[3, 0], rhs[32, 17], rhs[5, 20] = np.nan, np.inf, -np.inf, np.nan
    expected = lhs.astype(np.float64) @ rhs.astype(np.float64)
    for plan in tile_plans(lhs.shape, rhs.shape, MATMUL, types):
        actual = TileRunner(plan)(lhs, rhs).reshape(expected.shape)
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        np.testing.assert_array_equal(actual[np.isinf(expected)], expected[np.isinf(expected)].astype(np.float32))


def counts(plan, lhs, rhs):
    """How often each instruction ran in one execution."""
    run, before = TileRunner(plan), emulator.executed()
    run(lhs, rhs)
    return {name: count - before[name] for name, count in emulator.executed().items() if count != before[name]}


@only_the_emulator_counts
@pytest.mark.parametrize("name", FLOATS + BYTES)
def test_a_task_configures_tiles_once_and_loads_no_more_than_it_multiplies(name):
    types, rng = PRODUCTS[name], np.random.default_rng(0)
    k = 640
    lhs, rhs = numbers(rng, (64, k), types[0]), numbers(rng, (k, 96), types[1])
    for plan in tile_ways(lhs.shape, rhs.shape, MATMUL, types):
        shared = blocked(plan, 2, 2, panels=1)
        blocks, steps = 6, k // plan.instruction.shape[2]
        assert shared.tasks == {"compute": blocks}
        once = dict.fromkeys(["ldtilecfg", "tilerelease"], blocks)
        tiles = dict.fromkeys(["tilezero", "tilestored"], 4 * blocks)
        loop = {"tileloadd": 4 * steps * blocks, name: 4 * steps * blocks}
        assert counts(shared, lhs, rhs) == {**once, **tiles, **loop}


@only_the_emulator_counts
@pytest.mark.parametrize("shape", [(50, 70, 90), (9, 40, 33)])
def test_ragged_edges_configure_tiles_once(shape):
    m, n, k = shape
    types, rng = PRODUCTS["tdpbf16ps"], np.random.default_rng(0)
    lhs, rhs = numbers(rng, (m, k), types[0]), numbers(rng, (k, n), types[1])
    for plan in tile_plans(lhs.shape, rhs.shape, MATMUL, types):
        ran = counts(plan, lhs, rhs)
        assert ran["ldtilecfg"] == ran["tilerelease"] == 1


def test_a_program_runs_kernels_by_tiles(here):
    rng = np.random.default_rng(0)
    x, w = numbers(rng, (100, 64), "bf16"), numbers(rng, (64, 90), "bf16")
    (report,) = jax_nano.inspect(jax_nano.matmul, x, w)
    assert report.plan and report.plan.instruction.name == "tdpbf16ps"
    before = jax_nano.executed_kernels()
    result = np.asarray(jax_nano.matmul(x, w))
    assert jax_nano.executed_kernels() == before + 1
    assert_dot_general(result, x, w, MATMUL)


def test_tasks_on_many_threads_give_the_same_bits(here):
    """XLA's pool takes the tasks; each thread has tiles of its own."""
    types, rng = PRODUCTS["tdpbf16ps"], np.random.default_rng(0)
    lhs, rhs = numbers(rng, (190, 70), types[0]), numbers(rng, (70, 150), types[1])
    for plan in tile_ways(lhs.shape, rhs.shape, MATMUL, types):
        kernels = [kernel_of(blocked(plan, 2, 2)), kernel_of(blocked(plan, 2, 2, panels=1))]
        results = [run_by_xla(kernel, lhs, rhs) for kernel in kernels for _ in range(5)]
        for result in results:
            np.testing.assert_array_equal(result.view(np.uint32), results[0].view(np.uint32))


def run_by_xla(kernel, lhs, rhs):
    shape = jax.ShapeDtypeStruct((lhs.shape[0], rhs.shape[1]), np.float32)
    call = jax.jit(lambda a, b: jax.ffi.ffi_call("jax_nano", shape)(a, b, **kernel.attributes()))
    return np.asarray(call(lhs, rhs))


def test_an_epilogue_follows_the_tiles(here):
    rng = np.random.default_rng(0)
    x, w = numbers(rng, (50, 64), "bf16"), numbers(rng, (64, 40), "bf16")
    bias, scale = numbers(rng, (40,), "f32"), numbers(rng, (50, 1), "f32")

    def layer(x, w, bias, scale):
        return jax.numpy.maximum(jax.numpy.dot(x, w, preferred_element_type=np.float32) * scale + bias, 0)

    (report,) = jax_nano.inspect(jax_nano.accelerate(layer), x, w, bias, scale)
    assert report.plan and report.plan.instruction.name == "tdpbf16ps"
    assert report.problem and report.problem.epilogue
    exact = np.maximum(x.astype(np.float64) @ w.astype(np.float64) * scale + bias, 0)
    np.testing.assert_allclose(jax_nano.accelerate(layer)(x, w, bias, scale), exact, rtol=1e-5, atol=1e-4)
