"""Convolutions by tiles: padding, strides, few channels, gradients, in guarded memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amx.selection import those_that_run
from convolutions import Case
from oracle import normal
from tile_kernels import AMX, MACHINE, TileRunner, needs_tile_vectors

import jax_nano
from jax_nano.ir.convolution import Spatial
from jax_nano.schedule.candidates import kernel_plans

pytestmark = needs_tile_vectors
BF16, BYTES = ("bf16", "bf16", "f32"), ("s8", "s8", "s32")
CASES = {
    "padded": Case.same((1, 5, 6, 16), (3, 3), 20, types=BF16),
    "strided, few channels": Case.same((1, 9, 9, 3), (7, 7), 17, stride=2, types=BF16),
    "one dimension, dilated": Case.same((1, 19, 32), (3,), 33, dilation=3, types=("bf16", "bf16", "bf16")),
    "bytes": Case.same((1, 5, 5, 32), (3, 3), 16, types=BYTES),
    "bytes by unsigned": Case.same((1, 4, 5, 6), (3, 3), 16, types=("u8", "s8", "s32")),
    "places last": Case.same(
        (1, 5, 11, 8), (3, 3), 20, types=BF16, layouts=((0, 2, 3, 1), (1, 2, 3, 0)), places_last=True
    ),
    "places last, bytes": Case.same(
        (1, 4, 9, 6), (3, 3), 17, types=BYTES, layouts=((0, 2, 3, 1), (1, 2, 3, 0)), places_last=True
    ),
    "bytes' gradient": Case(
        image=(9, 5, 6, 2), kernel=(5, 6, 2, 18), result=(9, 3, 3, 18), spatial=(Spatial(padding=1),) * 2,
        types=BYTES, layouts=((3, 1, 2, 0), None),
    ),
    "many channels' gradient": Case(
        image=(20, 4, 9, 2), kernel=(2, 5, 2, 18), result=(20, 3, 3, 18),
        spatial=(Spatial(padding=1, dilation=2),) * 2, types=BF16, layouts=((3, 1, 2, 0), None),
    ),
    "kernel's gradient": Case(
        image=(16, 5, 6, 2), kernel=(5, 6, 2, 18), result=(16, 3, 3, 18), spatial=(Spatial(padding=1),) * 2,
        types=BF16, layouts=((3, 1, 2, 0), None),
    ),
}  # fmt: skip
NAMES = {"bf16": "tdpbf16ps", "s8": "tdpbssd", "u8": "tdpbusd"}


@pytest.fixture(autouse=True)
def _tiles(amx):
    """AMX runs, here or in the emulator."""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if those_that_run([NAMES[case.types[0]]])])
def test_convolutions_by_tiles(name):
    case = CASES[name]
    operands = case.operands()
    plans = [plan for plan in kernel_plans(case.dot, MACHINE, AMX) if plan.instruction.tiles]
    assert plans
    for plan in plans[:4]:
        case.check(TileRunner(plan)(*operands), *operands)


KEPT = {
    "packed": jax_nano.pack,
    "8 bits": jax_nano.quantize,
    "4 bits by groups": functools.partial(jax_nano.quantize, bits=4, group=64),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(("image", "kernel"), [((1, 9, 10, 24), (3, 3, 24, 40)), ((2, 6, 6, 64), (2, 3, 64, 33))])
def test_kernels_that_are_kept_otherwise(kept, image, kernel, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "amx")
    x, w = jnp.asarray(normal(*image), jnp.bfloat16), jnp.asarray(normal(*kernel, seed=1), jnp.bfloat16)
    weight = KEPT[kept](w, kernel="HWIO")
    convolve = functools.partial(
        jax_nano.conv_general_dilated, window_strides=(1, 1), padding="SAME", preferred_element_type=jnp.float32,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    (report,) = jax_nano.inspect(convolve, x, weight)
    assert report.problem
    assert report.problem.window
    plans = [plan for plan in kernel_plans(report.problem, MACHINE, AMX) if plan.instruction.tiles]
    assert plans
    wanted = np.float64(jax.lax.conv_general_dilated(
        x.astype(jnp.float32), jnp.asarray(weight).astype(jnp.float32), (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ))  # fmt: skip
    # The runner lays out panels itself.
    arrays = [x, w.reshape(-1, w.shape[-1])] if kept == "packed" else jax.tree.leaves((x, weight))
    for plan in plans[:4]:
        out = TileRunner(plan)(*map(np.asarray, arrays)).reshape(wanted.shape)
        np.testing.assert_allclose(out, wanted, atol=2e-2 * np.abs(wanted).max())
