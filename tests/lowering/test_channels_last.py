"""Convolutions of images that end with places: which are transposed, and the primitive that does it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import Case
from oracle import kernels, normal

import jax_nano
from jax_nano.lowering.channels_last import has_image_of_places, pays_with_channels_last
from jax_nano.lowering.written_transpose import written_transpose

FIRST = (0, 2, 3, 1), (2, 3, 1, 0)  # channels


def pays(image, taps, outputs, **others):
    case = Case.same(image, (taps, taps), outputs, layouts=FIRST, places_last=True, **others)
    return pays_with_channels_last(case.convolution)


def test_many_taps_of_many_channels_are_worth_transposes():
    assert pays((8, 56, 56, 64), 3, 64)
    assert pays((2, 8, 8, 128), 7, 16)
    assert pays((4, 16, 16, 96), 5, 16, stride=2)
    assert pays((8, 224, 224, 3), 7, 64, stride=2)


def test_few_taps_or_large_results_are_not():
    assert not pays((8, 28, 28, 128), 1, 256, stride=2)
    assert not pays((1, 64, 64, 64), 3, 256)


def test_idle_lanes_and_short_runs_are_not():
    assert not pays((4, 31, 31, 17), 3, 33)
    assert not pays((2, 40, 40, 4), 5, 16)


def test_channels_that_are_pages_apart_are_moved_only_for_many_products():
    assert pays((2, 64, 64, 128), 3, 32)
    assert not pays((8, 32, 32, 64), 3, 3)
    assert pays((8, 30, 30, 64), 3, 3)


def test_groups_and_single_output_channels_stay():
    assert not pays((8, 56, 56, 64), 3, 64, groups=2)
    assert not pays((8, 56, 56, 64), 3, 1)


def test_the_gradient_of_a_kernel_is_packed_by_columns():
    of_kernel = Case(
        image=(64, 28, 28, 4), kernel=(28, 28, 4, 64), result=(64, 3, 3, 64),
        spatial=Case.same((1, 28, 28, 1), (3, 3), 1).spatial, layouts=((3, 0, 1, 2), (3, 0, 1, 2)),
    )  # fmt: skip
    assert not has_image_of_places(of_kernel.convolution)
    assert has_image_of_places(Case.same((4, 7, 7, 64), (3, 3), 64, layouts=FIRST).convolution)


def convolve(x, w, stride=1):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transposed_convolution_is_right(dtype):
    x, w = normal(2, 32, 9, 12).astype(dtype), normal(16, 32, 3, 3, seed=1).astype(dtype)
    (report,) = [r for r in jax_nano.inspect(jax_nano.accelerate(convolve), x, w) if r.problem]
    assert report.kernel
    assert not report.kernel.plan.swapped
    with kernels(1):
        actual = jax.jit(jax_nano.accelerate(convolve))(x, w)
    wanted = convolve(np.asarray(x, "float32"), np.asarray(w, "float32"))
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.asarray(actual, "float32"), wanted, atol=tolerance * float(np.abs(wanted).max()))


def test_xla_transposes_each_array_once():
    x, w = normal(2, 32, 9, 12), normal(16, 32, 3, 3, seed=1)
    text = jax.jit(jax_nano.accelerate(convolve)).lower(x, w).compile().as_text()
    assert text
    entry = text[text.index("ENTRY") :]
    assert 'custom_call_target="jax_nano"' in entry
    assert entry.count(" fusion(") + entry.count(" transpose(") + entry.count(" copy(") == 3


TRANSFORMED = {
    "jit": lambda f: f,
    "grad": lambda f: jax.grad(lambda x: (f(x) * jnp.arange(24.0).reshape(4, 2, 3)).sum()),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (2 * x,)),
    "vmap": lambda f: jax.vmap(f, in_axes=1, out_axes=2),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_written_transposes_are_transposes(name):
    order, x = (2, 0, 1), normal(2, 5, 3, 4) if name == "vmap" else normal(2, 3, 4)
    actual, wanted = (
        jax.jit(TRANSFORMED[name](f))(x)
        for f in (lambda x: written_transpose(x, order), lambda x: jnp.transpose(x, order))
    )
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)
