"""Packed and quantized kernels of convolutions: what they stand for, and convolutions that read them as they are."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import direct_sum
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from oracle import kernels, normal, wide
from quantized import exact

import jax_nano
from jax_nano.ir.convolution import Spatial

pack: Any = jax_nano.pack
quantize: Any = jax_nano.quantize
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
EPS = float(np.finfo(np.float32).eps)
X, W = normal(2, 9, 10, 24), normal(3, 3, 24, 40, seed=1)
QUANTIZED = [
    {}, {"bits": 4}, {"group": 32}, {"bits": 4, "group": 32}, {"symmetric": False}, {"bits": 4, "symmetric": False},
    {"bits": 4, "group": 64, "symmetric": False},
]  # fmt: skip
each_quantized = pytest.mark.parametrize("options", QUANTIZED, ids=str)


def conv(x, w, strides=(1, 1), padding: Any = "SAME", numbers=NHWC, **params):
    return jax_nano.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **params)


def report(f, *operands):
    """What becomes of the one product in f; there may be a loop around it."""
    (only,) = (found for found in jax_nano.inspect(f, *operands) if not found.equation.startswith("scan"))
    return only


def reads_panels(f, *operands):
    found = report(f, *operands)
    return found.ran_as == "kernel" and found.problem and found.problem.panels is not None


def floats(q):
    """What a quantized kernel of HWIO stands for, in float64."""
    return exact(q).reshape(*q.layout.taps, -1, q.shape[-1])


def assert_convolution(actual, x, w, strides=(1, 1), low=(1, 1)):
    """Within (K + 3) eps |x| |w| + ulp / 2 of the direct sum of NHWC and HWIO in float64."""
    spatial = [Spatial(stride=s, padding=p) for s, p in zip(strides, low, strict=True)]
    sums, magnitude = (direct_sum(a, b, actual.shape, spatial) for a, b in ((x, w), (np.abs(x), np.abs(w))))
    terms = w.size // w.shape[-1]
    bound = (terms + 3) * EPS * magnitude + float(jnp.finfo(actual.dtype).eps) / 2 * np.abs(sums)
    assert np.all(np.abs(wide(actual) - sums) <= bound)


# What they stand for.


@pytest.mark.parametrize("spec", ["HWIO", "OIHW", "OHWI", "IHWO", "HOWI"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_unpacking_gives_the_kernel(spec, dtype):
    with jax.enable_x64(True):
        w = jnp.asarray(normal(3, 4, 5, 7), dtype)
        packed = pack(w, kernel=spec)
        assert (packed.shape, packed.ndim, packed.size, packed.dtype) == (w.shape, 4, w.size, w.dtype)
        np.testing.assert_array_equal(packed.unpack(), w)
        np.testing.assert_array_equal(np.asarray(packed), w)


@pytest.mark.parametrize(("shape", "spec"), [((25, 1, 16), "WIO"), ((2, 3, 4, 5, 6), "DHWIO"), ((6, 5), "OI")])
def test_kernels_of_any_rank_are_packed(shape, spec):
    w = normal(*shape)
    np.testing.assert_array_equal(pack(w, kernel=spec).unpack(), w)
    np.testing.assert_allclose(quantize(w, kernel=spec).dequantize(), w, atol=np.abs(w).max() / 100)


@each_quantized
def test_quantized_kernels_are_within_half_a_scale(options):
    q = quantize(W, kernel="HWIO", **options)
    assert (q.shape, q.dtype) == (W.shape, W.dtype)
    scales = np.repeat(wide(q.scales), q.group or q.rows, axis=-2)[: q.rows].reshape(W.shape)
    assert np.all(np.abs(floats(q) - W) <= scales * 0.5 * (1 + 2**-10))
    np.testing.assert_allclose(q.dequantize(), floats(q), rtol=EPS)


def test_a_kernel_of_another_order_is_quantized_as_that():
    q, moved = quantize(W, kernel="HWIO"), quantize(W.transpose(3, 2, 0, 1), kernel="OIHW")
    np.testing.assert_array_equal(q.values, moved.values)
    np.testing.assert_array_equal(q.dequantize(), moved.dequantize().transpose(2, 3, 1, 0))


def test_a_stack_of_kernels_is_scanned_over():
    kernels_of_layers = normal(3, 3, 3, 8, 8, seed=2)

    def network(x, w):
        def layer(x, w):
            return jnp.tanh(lax.conv_general_dilated(x, jnp.asarray(w), (1, 1), "SAME", dimension_numbers=NHWC)), None

        return lax.scan(layer, x, w)[0]

    x, packed = X[..., :8], pack(kernels_of_layers, kernel="HWIO")
    assert packed.shape == kernels_of_layers.shape
    fast = jax.jit(jax_nano.accelerate(network))
    with kernels(3):
        np.testing.assert_allclose(fast(x, packed), network(x, kernels_of_layers), atol=1e-4)
    assert reads_panels(fast, x, packed)


def test_weights_are_kept_and_told_apart_by_their_layout():
    packed = pack(W, kernel="HWIO")
    assert jax.tree.structure(packed) != jax.tree.structure(pack(W.reshape(-1, 40)))
    copy = pickle.loads(pickle.dumps(packed))
    np.testing.assert_array_equal(copy.unpack(), W)


@pytest.mark.parametrize("spec", ["HWI", "HWOO", "IHWIO", "", 4])
@pytest.mark.parametrize("keep", [pack, quantize])
def test_layouts_name_each_dimension_once(keep, spec):
    with pytest.raises(ValueError, match='name each dimension by a letter, input channels "I" and output channels "O"'):
        keep(W, kernel=spec)


@pytest.mark.parametrize("keep", [pack, quantize])
def test_a_kernel_has_the_dimensions_of_its_layout(keep):
    with pytest.raises(ValueError, match=r'a kernel of the shape \(72, 24\) has no dimensions "HWIO"'):
        keep(normal(72, 24), kernel="HWIO")


# Convolutions.


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("image", "kernel", "strides"),
    [
        ((2, 9, 10, 24), (3, 3, 24, 40), (1, 1)),
        ((1, 14, 14, 64), (3, 3, 64, 33), (2, 2)),
        ((1, 7, 7, 3), (5, 2, 3, 16), (1, 2)),
        ((2, 6, 6, 32), (1, 1, 32, 64), (1, 1)),
        ((2, 6, 6, 32), (1, 1, 32, 64), (2, 2)),
        ((1, 5, 40, 1), (1, 25, 1, 8), (1, 1)),
    ],
    ids=str,
)
def test_convolutions_read_the_panels(image, kernel, strides, dtype):
    with jax.enable_x64(True):
        x, w = jnp.asarray(normal(*image), dtype), jnp.asarray(normal(*kernel, seed=1), dtype)
        f = functools.partial(conv, strides=strides)
        packed = pack(w, kernel="HWIO")
        with kernels(1):
            actual = f(x, packed)
        assert actual.dtype == dtype
        assert reads_panels(f, x, packed)
        pads = [max(0, (-(-s // t) - 1) * t + k - s) // 2 for s, k, t in zip(image[1:], kernel, strides, strict=False)]
        assert_convolution(actual, wide(x), wide(w), strides, pads)


@each_quantized
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("channels", [24, 21])
def test_convolutions_read_the_integers(options, dtype, channels):
    x, q = (
        jnp.asarray(X[..., :channels], dtype),
        quantize(jnp.asarray(W[:, :, :channels], dtype), kernel="HWIO", **options),
    )
    with kernels(1):
        actual = conv(x, q, preferred_element_type=jnp.float32)
    assert_convolution(actual, wide(x), floats(q))
    found = report(functools.partial(conv, preferred_element_type=jnp.float32), x, q)
    assert found.problem and found.problem.rhs == {8: "u8", 4: "u4x8"}[q.bits].replace(
        "u", "s" if q.zeros is None else "u"
    )


@pytest.mark.parametrize("target", ["avx2", "avx512"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convolutions_of_another_target(target, dtype, monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", target)
    x, w = jnp.asarray(X, dtype), jnp.asarray(W, dtype)
    packed = pack(w, kernel="HWIO")
    assert reads_panels(conv, x, packed)
    with kernels(2):
        assert_convolution(conv(x, packed), wide(x), wide(w))
        q = quantize(w, kernel="HWIO", bits=4, group=32)
        assert_convolution(conv(x, q), wide(x), floats(q))


LAYOUTS = {
    "OIHW, NCHW": ("OIHW", ("NCHW", "OIHW", "NCHW")),
    "HWIO, NCHW": ("HWIO", ("NCHW", "HWIO", "NCHW")),
    "OIHW, NHWC": ("OIHW", ("NHWC", "OIHW", "NHWC")),
    "OHWI, NHWC": ("OHWI", ("NHWC", "OHWI", "NHWC")),
}
KEPT = {
    "packed": pack, "8 bits": quantize, "4 bits": functools.partial(quantize, bits=4),
    "groups": functools.partial(quantize, group=32),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_kernels_are_read_in_any_layout(layout, kept, strides):
    spec, numbers = LAYOUTS[layout]
    x = X.transpose(["NHWC".index(d) for d in numbers[0]])
    w = KEPT[kept](W.transpose(["HWIO".index(d) for d in spec]), kernel=spec)
    f = functools.partial(conv, strides=strides, numbers=numbers)
    with kernels(1):
        actual = f(x, w)
    wanted = lax.conv_general_dilated(jnp.asarray(x), jnp.asarray(w), strides, "SAME", dimension_numbers=numbers)
    np.testing.assert_allclose(actual, wanted, atol=2e-4)
    assert {"packed weight", "nano_dequantize"} & set(report(f, x, w).fused)


@st.composite
def cases(draw):
    """An image, a kernel, strides, padding, and how the kernel is kept."""
    taps = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 3)))]
    sizes = [draw(st.integers(t, 8)) for t in taps]
    channels, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    strides = tuple(draw(st.integers(1, 2)) for _ in taps)
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in taps)
    options = draw(st.sampled_from([None, *QUANTIZED]))
    return normal(2, *sizes, channels), normal(*taps, channels, outputs, seed=1), strides, padding, options


@settings(max_examples=40, deadline=None)
@given(cases())
def test_any_kernel_is_within_the_bound(case):
    x, w, strides, padding, options = case
    letters = "DHW"[3 - len(strides) :]
    spec = f"{letters}IO"
    kept = pack(w, kernel=spec) if options is None else quantize(w, kernel=spec, **options)
    actual = conv(x, kept, strides, padding, (f"N{letters}C", spec, f"N{letters}C"))
    assert_convolution(
        actual, wide(x), wide(w) if options is None else floats(kept), strides, [low for low, _ in padding]
    )


LEFT = {
    "feature groups": (W[:, :, :12], "SAME", {"feature_group_count": 2}),
    "depthwise": (W[:, :, :1, :24], "SAME", {"feature_group_count": 24}),
    "batch groups": (W, "SAME", {"batch_group_count": 2}),
    "input dilation": (W, [(1, 2), (1, 2)], {"lhs_dilation": (2, 2)}),
    "kernel dilation": (W, "SAME", {"rhs_dilation": (2, 1)}),
    "one output channel": (W[..., :1], "SAME", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("kept", KEPT)
def test_results_are_right_whether_the_weight_can_be_read_or_not(name, kept):
    w, padding, params = LEFT[name]
    q = KEPT[kept](w, kernel="HWIO")
    actual = conv(X, q, (1, 1), padding, **params)
    wanted = lax.conv_general_dilated(jnp.asarray(X), jnp.asarray(q), (1, 1), padding, dimension_numbers=NHWC, **params)
    np.testing.assert_allclose(actual, wanted, atol=2e-4)


UNREAD = {
    "one for each tap": (pack(W), {}, "a kernel is packed as matrices, one for each tap: tell pack of its dimensions"),
    "scales of taps": (quantize(W), {}, "scales differ along the sum"),
    "feature groups": (pack(W[:, :, :12], kernel="HWIO"), {"feature_group_count": 2}, "by whole panels of"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_inspect_says_why_a_weight_is_not_read_as_it_is_kept(name):
    w, params, reason = UNREAD[name]
    assert reason in report(functools.partial(conv, **params), X, w).kept
    assert reason in str(jax_nano.inspect(functools.partial(conv, **params), X, w))


def test_a_kernel_for_another_target_is_unpacked(monkeypatch):
    monkeypatch.setenv("JAX_NANO_TARGET", "avx2")
    packed = pack(jnp.asarray(W, jnp.bfloat16), kernel="HWIO")
    monkeypatch.delenv("JAX_NANO_TARGET")
    x = jnp.asarray(X, jnp.bfloat16)
    assert_convolution(conv(x, packed), wide(x), wide(jnp.asarray(W, jnp.bfloat16)))


# In programs.


def layer(x, w, scale, shift):
    y = lax.conv_general_dilated(x, jnp.asarray(w), (1, 1), "SAME", dimension_numbers=NHWC)
    return jax.nn.relu(y * scale + shift)


@pytest.mark.parametrize("kept", KEPT)
def test_work_around_the_convolution_is_fused(kept):
    w, scale, shift = KEPT[kept](W, kernel="HWIO"), normal(40, seed=2), normal(40, seed=3)
    fast = jax.jit(jax_nano.accelerate(layer))
    with kernels(1):
        np.testing.assert_allclose(fast(X, w, scale, shift), layer(X, jnp.asarray(w), scale, shift), atol=5e-4)
    assert {"relu", "mul", "add"} <= set(report(fast, X, w, scale, shift).fused)


TRANSFORMED = {
    "grad": lambda f: jax.grad(lambda x, w: (f(x, w) ** 2).sum()),
    "jvp": lambda f: lambda x, w: jax.jvp(lambda x: f(x, w), (x,), (x,)),
    "vmap": lambda f: lambda x, w: jax.vmap(lambda x: f(x, w))(jnp.stack([x, 2 * x])),
    "remat": lambda f: jax.grad(lambda x, w: (jax.checkpoint(f)(x, w) ** 2).sum()),
    "scan": lambda f: lambda x, w: lax.scan(lambda c, _: (jnp.tanh(f(c, w))[..., :24], None), x, None, length=2)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("how", ["namesake", "accelerate"])
def test_transformations(name, kept, how):
    w = KEPT[kept](W, kernel="HWIO")

    def plain(x, w):
        return lax.conv_general_dilated(x, jnp.asarray(w), (1, 1), "SAME", dimension_numbers=NHWC)

    wanted = jax.tree.leaves(TRANSFORMED[name](plain)(X, jnp.asarray(w)))
    fast = TRANSFORMED[name](conv) if how == "namesake" else jax_nano.accelerate(TRANSFORMED[name](plain))
    for a, b in zip(jax.tree.leaves(jax.jit(fast)(X, w)), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_padding_gives_no_nan():
    x = np.full_like(X, np.inf)
    assert np.all(np.isposinf(conv(x, pack(np.ones_like(W), kernel="HWIO"))))
    assert np.all(np.isposinf(conv(x, quantize(np.ones_like(W), kernel="HWIO", bits=4, group=32))))


# Images as integers.


def rounded(x, q, numbers):
    """The convolution of images that are rounded as "int8" rounds them."""
    axes = [d for d in range(x.ndim) if d != numbers[0].index("N")]
    steps = np.abs(x).max(tuple(axes), keepdims=True) / 127
    integers = np.round(x / np.where(steps == 0, 1, steps))
    result = lax.conv_general_dilated(
        jnp.asarray(integers, jnp.float32), q.dequantize(), (1, 1), "SAME", dimension_numbers=numbers
    )
    return np.asarray(result) * steps


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("numbers", [NHWC, NCHW])
def test_images_are_rounded_where_the_kernel_asks_for_it(bits, numbers):
    spec = numbers[1]
    x = X.transpose(["NHWC".index(d) for d in numbers[0]]).copy()
    x[1] *= 50
    q = quantize(W.transpose(["HWIO".index(d) for d in spec]), kernel=spec, bits=bits, activations="int8")
    f = functools.partial(conv, numbers=numbers)
    with kernels(1):
        np.testing.assert_allclose(f(x, q), rounded(x, q, numbers), rtol=1e-4, atol=1e-2)
    found = report(f, x, q)
    assert found.problem
    assert found.problem.acc == "s32"
    assert {found.problem.lhs, found.problem.rhs} == {"s8", {8: "s8", 4: "s4x8"}[bits]}


def test_images_of_zeros_give_zeros():
    assert not np.any(conv(np.zeros_like(X), quantize(W, kernel="HWIO", activations="int8")))


@pytest.mark.parametrize(("kind", "channels"), [("batch_group_count", 24), ("feature_group_count", 12)])
def test_images_of_groups_stay_as_they_are(kind, channels):
    q = quantize(W[:, :, :channels], kernel="HWIO", activations="int8")
    params: Any = {"dimension_numbers": NHWC, kind: 2}
    wanted = lax.conv_general_dilated(jnp.asarray(X), q.dequantize(), (1, 1), "SAME", **params)
    np.testing.assert_allclose(conv(X, q, **{kind: 2}), wanted, atol=1e-3)


def test_the_derivative_is_that_of_images_that_are_not_rounded():
    q = quantize(W, kernel="HWIO", activations="int8")

    def total(x, w):
        return (conv(x, w) * jnp.arange(40)).sum()

    np.testing.assert_allclose(jax.grad(total)(X, q), jax.grad(total)(X, q.dequantize()), rtol=1e-3, atol=1e-2)
    with pytest.raises(TypeError, match="a QuantizedWeight has no derivative"):
        jax.grad(total, 1, allow_int=True)(X, q)
