"""Convolutions under every transformation, against a direct sum in float64, and what the program says of them."""

import contextlib
import itertools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import jax.scipy.signal
import numpy as np
import pytest
import scipy.signal
from convolutions import direct_sum
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import kernels, normal

import jax_nano
from jax_nano.ir.convolution import Spatial

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
X, W = normal(2, 9, 10, 8), normal(3, 3, 8, 16, seed=1)
EPS = float(np.finfo(np.float32).eps)


def convolve(f, x, w, strides=(1, 1), padding: Any = "SAME", **params):
    return f(x, w, strides, padding, **{"dimension_numbers": NHWC, **params})


def dilated(image, dilation):
    """An image with zeros between its places."""
    shape = [(size - 1) * d + 1 for size, d in zip(image.shape[1:-1], dilation, strict=True)]
    result = np.zeros((image.shape[0], *shape, image.shape[-1]), image.dtype)
    result[:, *(slice(None, None, d) for d in dilation)] = image
    return result


def exact(x, w, params, shape):
    """The convolution of NHWC by HWIO in float64, and the sum of magnitudes."""
    strides, pads, spread, dilation = (params[name] for name in ("strides", "padding", "lhs_dilation", "rhs_dilation"))
    spatial = [
        Spatial(stride=s, dilation=d, padding=low) for s, d, (low, _) in zip(strides, dilation, pads, strict=True)
    ]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    x, w = dilated(x.astype(np.float64), spread), w.astype(np.float64)
    return [direct_sum(a, b, shape, spatial, groups, batch_groups) for a, b in ((x, w), (np.abs(x), np.abs(w)))]


def ordered(array, names, order):
    """An array whose dimensions have these names, transposed to another order of them."""
    return np.transpose(array, [names.index(name) for name in order])


@st.composite
def convolutions(draw):
    """Operands and parameters of lax.conv_general_dilated: any padding, strides, dilation, groups."""
    count = draw(st.integers(1, 3))
    sizes = [draw(st.integers(1, 6)) for _ in range(count)]
    taps = [draw(st.integers(1, 4)) for _ in range(count)]
    params = {
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(count)),
        "lhs_dilation": tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(count)),
        "rhs_dilation": tuple(draw(st.integers(1, 2)) for _ in range(count)),
        "padding": [(draw(st.integers(-1, 4)), draw(st.integers(0, 4))) for _ in range(count)],
        "feature_group_count": 1,
        "batch_group_count": 1,
    }
    for d in range(count):
        reach = params["rhs_dilation"][d] * (taps[d] - 1) + 1
        span = params["lhs_dilation"][d] * (sizes[d] - 1) + 1 + sum(params["padding"][d])
        if span < reach:
            low, high = params["padding"][d]
            params["padding"][d] = (low, high + reach - span)
    groups, kind = draw(st.integers(1, 5)), draw(st.sampled_from(["feature_group_count", "batch_group_count", ""]))
    groups = groups if kind else 1
    if kind:
        params[kind] = groups
    inner, outer, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3)) * groups, draw(st.integers(1, 2))
    batch, channels = (batch * groups, inner) if kind == "batch_group_count" else (batch, inner * groups)
    return normal(batch, *sizes, channels), normal(*taps, inner, outer, seed=1), params


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.data())
def test_any_convolution_is_within_the_bound(case, data):
    x, w, params = case
    letters = "DHW"[3 - (x.ndim - 2) :]
    names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    lhs, rhs, out = numbers = tuple("".join(data.draw(st.permutations(name))) for name in names)
    of_kernel = [letters.index(d) for d in rhs if d in letters]  # the order in which parameters stand
    named: dict[str, Any] = {
        name: [v[d] for d in of_kernel] if isinstance(v, tuple | list) else v for name, v in params.items()
    }
    named["window_strides"] = named.pop("strides")
    result = jax_nano.conv_general_dilated(
        ordered(x, names[0], lhs), ordered(w, names[1], rhs), dimension_numbers=numbers, **named
    )
    result = ordered(result, out, names[2])
    sums, magnitude = exact(x, w, params, result.shape)
    terms = w.size // w.shape[-1]
    assert np.all(np.abs(result - sums) <= terms * EPS * magnitude)


ORDERS = ["NHWC", "NCHW", "HWNC", "CHWN", "HCNW"], ["HWIO", "OIHW", "OHWI", "IHWO", "HOWI"]


@pytest.mark.parametrize("numbers", list(itertools.product(*ORDERS, ["NHWC", "NCHW", "HWCN"])))
def test_any_order_of_dimensions(numbers):
    lhs, rhs, out = numbers
    x = X.transpose(["NHWC".index(d) for d in lhs])
    w = W.transpose(["HWIO".index(d) for d in rhs])
    with kernels(1):
        result = jax_nano.conv_general_dilated(x, w, (1, 2), "SAME", dimension_numbers=numbers)
    params = {"strides": (1, 2), "padding": [(1, 1), (0, 1)], "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    groups = {"feature_group_count": 1, "batch_group_count": 1}
    sums, magnitude = exact(X, W, params | groups, (2, 9, 5, 16))
    result = np.transpose(result, [out.index(d) for d in "NHWC"])
    assert np.all(np.abs(result - sums) <= 72 * EPS * magnitude)


PROGRAMS = {
    "conv": lambda j, x, w: j.conv(x, w, (2, 1), "VALID"),
    "conv_with_general_padding": lambda j, x, w: j.conv_with_general_padding(
        x, w, (1, 1), [(1, 2), (0, 1)], (2, 1), (1, 2)
    ),
    "conv_transpose": lambda j, x, w: j.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=NCHW),
    "conv_general_dilated_patches": lambda j, x, w: j.conv_general_dilated_patches(x, (3, 2), (1, 1), "SAME"),
    "conv_general_dilated_local": lambda j, x, w: j.conv_general_dilated_local(
        x, jnp.ones((16, 72, 7, 8), np.float32) * w.ravel()[:16, None, None, None], (1, 1), "VALID", (3, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("jit", [False, True])
def test_namesakes_give_what_lax_gives(name, jit):
    x, w = X.transpose(0, 3, 1, 2), W.transpose(3, 2, 0, 1)
    want = PROGRAMS[name](jax.lax, x, w)
    f = lambda x, w: PROGRAMS[name](jax_nano, x, w)  # noqa: E731
    with kernels():
        got = (jax.jit(f) if jit else f)(x, w)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


TRANSFORMED = {
    "grad": lambda f: jax.grad(lambda x, w: (convolve(f, x, w) ** 2).sum(), (0, 1)),
    "grad, strided": lambda f: jax.grad(lambda x, w: (convolve(f, x, w, (2, 3)) ** 2).sum(), (0, 1)),
    "grad, dilated": lambda f: jax.grad(lambda x, w: (convolve(f, x, w, rhs_dilation=(2, 1)) ** 2).sum(), (0, 1)),
    "grad, groups": lambda f: jax.grad(
        lambda x, w: (convolve(f, x, w[:, :, :2], feature_group_count=4) ** 2).sum(), (0, 1)
    ),
    "grad, depthwise": lambda f: jax.grad(
        lambda x, w: (convolve(f, x, w[:, :, :1, :8], feature_group_count=8) ** 2).sum(), (0, 1)
    ),
    "jvp": lambda f: lambda x, w: jax.jvp(lambda x, w: convolve(f, x, w), (x, w), (x, w)),
    "vmap of images": lambda f: lambda x, w: jax.vmap(lambda x: convolve(f, x, w))(jnp.stack([x, 2 * x])),
    "vmap of kernels": lambda f: lambda x, w: jax.vmap(lambda w: convolve(f, x, w))(jnp.stack([w, 2 * w])),
    "vmap of both": lambda f: lambda x, w: jax.vmap(lambda x, w: convolve(f, x, w))(
        jnp.stack([x, 2 * x]), jnp.stack([w, 2 * w])
    ),
    "remat": lambda f: jax.grad(
        jax.checkpoint(lambda x, w: (convolve(f, x, w) ** 2).sum(), policy=jax.checkpoint_policies.dots_saveable),
        (0, 1),
    ),
    "scan": lambda f: lambda x, w: jax.lax.scan(
        lambda c, _: (jnp.tanh(convolve(f, c, w[..., :8])), None), x, None, length=3
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("how", ["namesake", "accelerate", "install"])
def test_transformations_give_kernels(name, how):
    wanted = jax.tree.leaves(jax.jit(TRANSFORMED[name](jax.lax.conv_general_dilated))(X, W))
    if how == "namesake":
        with kernels():
            got = jax.jit(TRANSFORMED[name](jax_nano.conv_general_dilated))(X, W)
    elif how == "accelerate":
        with kernels():
            got = jax.jit(jax_nano.accelerate(TRANSFORMED[name](jax.lax.conv_general_dilated)))(X, W)
    else:
        with jax_nano.installed(), kernels():
            got = jax.jit(TRANSFORMED[name](jax.lax.conv_general_dilated))(X, W)
    for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def conv(x, w, **params):
    return convolve(jax.lax.conv_general_dilated, x, w, **params)


FUSED = {
    "bias, relu": (lambda x, w, b: jax.nn.relu(conv(x, w) + b), (W, normal(16)), ("broadcast_in_dim", "add", "relu")),
    "scale, shift": (lambda x, w, b: conv(x, w) * b + 1, (W, normal(16)), ("broadcast_in_dim", "mul", "add")),
    "residual": (lambda x, w, r: conv(x, w) + r, (W, normal(2, 9, 10, 16)), ("add",)),
    "depthwise": (
        lambda x, w, b: jnp.tanh(conv(x, w, feature_group_count=8) + b),
        (normal(3, 3, 1, 8), normal(8)), ("broadcast_in_dim", "add", "tanh"),
    ),
    "groups": (
        lambda x, w, b: jnp.tanh(conv(x, w, feature_group_count=2) + b),
        (normal(3, 3, 4, 48), normal(48)), ("broadcast_in_dim", "add", "tanh"),
    ),
    "one output channel": (
        lambda x, w, b: jax.nn.relu(conv(x, w) + b), (W[..., :1], normal(2, 9, 10, 1)), ("add", "relu")
    ),
    "one tap": (
        lambda x, w, b: conv(x, w) + b, (normal(1, 1, 8, 16), normal(16)), ("squeeze", "broadcast_in_dim", "add")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_work_on_the_result_is_fused(name):
    f, operands, fused = FUSED[name]
    fast = jax_nano.accelerate(f)
    np.testing.assert_allclose(jax.jit(fast)(X, *operands), f(X, *operands), rtol=1e-4, atol=1e-4)
    (report,) = jax_nano.inspect(fast, X, *operands)
    assert report.fused == fused
    assert report.kernel


@pytest.mark.parametrize("numbers", list(itertools.product(*ORDERS, ["NHWC", "NCHW", "HWCN"])))
def test_one_tap_is_a_product(numbers):
    lhs, rhs, _ = numbers
    x = X.transpose(["NHWC".index(d) for d in lhs])
    w = W[:1, :1].transpose(["HWIO".index(d) for d in rhs])
    f = jax_nano.accelerate(lambda x, w: jax.nn.relu(conv(x, w, dimension_numbers=numbers)))
    wanted = jax.nn.relu(conv(x, w, dimension_numbers=numbers))
    with kernels(1):
        np.testing.assert_allclose(jax.jit(f)(x, w), wanted, rtol=1e-4, atol=1e-4)
    (report,) = jax_nano.inspect(f, x, w)
    assert report.problem
    assert not report.problem.window
    assert "relu" in report.fused


@pytest.mark.parametrize("out", ["NCHW", "CHWN", "NHWC"])
@pytest.mark.parametrize("outputs", [1, 5])
def test_one_tap_of_one_image_into_any_order(out, outputs):
    x, w = normal(1, 16, 9, 9), normal(outputs, 16, 1, 1, seed=1)
    with kernels(1):
        result = jax_nano.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", out))
    np.testing.assert_allclose(ordered(result, out, "NCHW"), np.einsum("nihw,oiyx->nohw", x, w), rtol=1e-4, atol=1e-5)


def test_work_before_one_tap_is_a_prologue():
    f = jax_nano.accelerate(lambda x, w, s: conv(jax.nn.relu(x * s + 1), w))
    x, w, scale = normal(2, 8, 8, 64), normal(1, 1, 64, 32), normal(64)
    (report,) = jax_nano.inspect(f, x, w, scale)
    assert report.problem
    assert report.problem.prologue
    np.testing.assert_allclose(f(x, w, scale), conv(jax.nn.relu(x * scale + 1), w), rtol=1e-4, atol=1e-4)


SIGNALS: dict[str, Any] = {
    "jnp.convolve": (jnp.convolve, np.convolve, ("full", "same", "valid"), (400,), (25,)),
    "jnp.correlate": (jnp.correlate, np.correlate, ("full", "same", "valid"), (400,), (25,)),
    "jnp.convolve, the longer one last": (jnp.convolve, np.convolve, ("full",), (3,), (40,)),
    "signal.convolve": (jax.scipy.signal.convolve, scipy.signal.convolve, ("full", "same", "valid"), (30, 20), (5, 3)),
    "signal.convolve, 3-D": (jax.scipy.signal.convolve, scipy.signal.convolve, ("same",), (9, 8, 7), (3, 2, 3)),
    "signal.correlate": (jax.scipy.signal.correlate, scipy.signal.correlate, ("full", "same"), (30, 20), (5, 3)),
    "signal.convolve2d": (jax.scipy.signal.convolve2d, scipy.signal.convolve2d, ("full", "same"), (30, 20), (5, 3)),
    "signal.correlate2d": (jax.scipy.signal.correlate2d, scipy.signal.correlate2d, ("valid",), (30, 20), (5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("how", ["accelerate", "install"])
def test_signals_are_convolved(name, how):
    f, oracle, modes, *shapes = SIGNALS[name]
    a, b = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    for mode in modes:

        def signal(a, b, mode=mode):
            return f(a, b, mode=mode)

        with jax_nano.installed() if how == "install" else contextlib.nullcontext(), kernels(1):
            actual = jax.jit(jax_nano.accelerate(signal) if how == "accelerate" else signal)(a, b)
        wanted, magnitude = oracle(*map(np.float64, (a, b)), mode=mode), oracle(*map(np.abs, (a, b)), mode=mode)
        assert np.all(np.abs(actual - wanted) <= b.size * EPS * magnitude)


AUDIO = {"NWC": ("NWC", "WIO", "NWC"), "NCW": ("NCW", "OIW", "NCW")}


@pytest.mark.parametrize("layout", AUDIO)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 16), (1, 1), (16, 1), (3, 20)])
@pytest.mark.parametrize("stride", [1, 2])
def test_audio_of_25_taps(layout, channels, outputs, stride):
    numbers = AUDIO[layout]
    x, w = normal(2, 300, channels), normal(25, channels, outputs, seed=1)
    f = jax_nano.accelerate(lambda x, w, b: jax.nn.relu(
        jax.lax.conv_general_dilated(x, w, (stride,), "SAME", dimension_numbers=numbers) + b
    ))  # fmt: skip
    operands = x.transpose(["NWC".index(d) for d in numbers[0]]), w.transpose(["WIO".index(d) for d in numbers[1]])
    with kernels(1):
        actual = jax.jit(f)(*operands, np.float32(0.5))
    places = -(-300 // stride)
    spatial = [Spatial(stride=stride, padding=((places - 1) * stride + 25 - 300) // 2)]
    shape = (2, places, outputs)
    sums, magnitude = (direct_sum(a, b, shape, spatial) for a, b in ((x, w), (np.abs(x), np.abs(w))))
    actual = np.transpose(actual, [numbers[2].index(d) for d in "NWC"])
    assert np.all(np.abs(actual - np.maximum(sums + 0.5, 0)) <= (25 * channels + 2) * EPS * (magnitude + 0.5))


def test_a_wider_type_is_read_as_it_is_kept():
    f = jax_nano.accelerate(lambda x, w: conv(x.astype(np.float32), w.astype(np.float32)))
    x, w = jnp.asarray(X, jnp.bfloat16), jnp.asarray(W, jnp.bfloat16)
    (report,) = jax_nano.inspect(f, x, w)
    assert report.problem
    assert (report.problem.lhs, report.problem.rhs, report.problem.out) == ("bf16", "bf16", "f32")


def test_weights_in_other_forms_stand_for_their_arrays():
    quantized = jax_nano.quantize(jnp.asarray(W), bits=8)
    f = jax_nano.accelerate(lambda x, w: jax.nn.relu(conv(x, jnp.asarray(w))))
    wanted = jax.nn.relu(conv(X, jnp.asarray(quantized)))
    np.testing.assert_allclose(jax.jit(f)(X, quantized), wanted, rtol=1e-4, atol=1e-4)


def test_symbolic_sizes_run_as_lax_does():
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 9, 10, 8), np.float32)
    exported = jax.export.export(jax.jit(lambda x, w: convolve(jax_nano.conv_general_dilated, x, w)))(x, W)
    np.testing.assert_allclose(exported.call(X, W), conv(X, W), rtol=1e-4, atol=1e-4)


def test_what_becomes_of_a_convolution_is_said():
    (report,) = jax_nano.inspect(jax_nano.conv_general_dilated, X, W, (1, 2), "SAME", dimension_numbers=NHWC)
    assert report.equation == (
        "f32[2,9,10,8] conv f32[3,3,8,16] -> f32[2,9,5,16], strides [1, 2], padding [(1, 1), (0, 1)]"
    )
    assert report.ran_as == "kernel"
    assert report.kernel
    assert report.kernel.name.startswith("nano_conv_f32_m90n16k72_")


def test_what_has_no_kernel_runs_as_lax_does():
    x, w = X.astype(np.complex64), W.astype(np.complex64)
    reports = jax_nano.inspect(jax_nano.conv_general_dilated, x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    assert reports[0].ran_as == "lax.conv_general_dilated"
    assert reports[0].reason == "no kernel multiplies c64 by c64 into c64"
    assert "by lax.conv_general_dilated" in str(reports)
    np.testing.assert_allclose(
        convolve(jax_nano.conv_general_dilated, x, w),
        convolve(jax.lax.conv_general_dilated, x, w),
        rtol=1e-4,
        atol=1e-4,
    )


def test_errors_are_those_of_lax():
    with pytest.raises(ValueError, match="feature dimension"):
        convolve(jax_nano.conv_general_dilated, X, W[:, :, :7])
    with pytest.raises(ValueError, match="feature_group_count"):
        convolve(jax_nano.conv_general_dilated, X, W, feature_group_count=3)


ORDERS: Any = [0, 3, 1, 2], [3, 2, 0, 1], [0, 3, 1, 2]
LISTS = jax.lax.ConvDimensionNumbers(*ORDERS)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("wrong", [{"strides": (0, 1)}, {"padding": None}, {"dimension_numbers": LISTS}])
def test_errors_of_parameters_are_those_of_lax(wrong):
    with pytest.raises((TypeError, ValueError)) as theirs:
        convolve(jax.lax.conv_general_dilated, X, W, **wrong)
    with pytest.raises(type(theirs.value)) as ours:
        convolve(jax_nano.conv_general_dilated, X, W, **wrong)
    assert str(ours.value)[:60] == str(theirs.value)[:60]


EMPTY = [((2, 31, 1, 8), (3, 2, 8, 33)), ((2, 9, 9, 0), (3, 3, 0, 4)), ((0, 8, 8, 3), (3, 3, 3, 4)),
         ((2, 8, 8, 3), (3, 3, 3, 0))]  # fmt: skip


@pytest.mark.parametrize(("image", "kernel"), EMPTY)
def test_accelerate_leaves_convolutions_of_nothing_alone(image, kernel):
    def f(x, w):
        return convolve(jax.lax.conv_general_dilated, x, w, (3, 4), "VALID", rhs_dilation=(5, 5)) + 1

    x, w = jnp.ones(image), jnp.ones(kernel)
    np.testing.assert_array_equal(jax_nano.accelerate(f)(x, w), f(x, w))


def test_no_product_with_an_inserted_zero_is_computed():
    f = lambda x, w: convolve(jax_nano.conv_general_dilated, x, w, padding=[(2, 2), (2, 2)], lhs_dilation=(2, 2))  # noqa: E731
    reports = jax_nano.inspect(f, normal(1, 8, 8, 4), normal(4, 4, 4, 6))
    assert [report.problem and report.problem.sizes for report in reports] == [(1, 64, 6, 16)] * 4


def test_padding_gives_no_nan():
    x = np.full_like(X, np.inf)
    w = np.ones_like(W)
    assert np.all(np.isposinf(convolve(jax_nano.conv_general_dilated, x, w)))


def test_bits_are_the_same_for_all_numbers_of_threads_in_a_plan():
    x, w = normal(1, 30, 30, 16), normal(3, 3, 16, 40)
    results = {np.asarray(convolve(jax_nano.conv_general_dilated, x, w)).tobytes() for _ in range(3)}
    assert len(results) == 1


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 8), (2, 8), (1, 2), (3, 4)])
def test_work_on_channels_first_is_fused(stride, groups):
    x, w, b = normal(2, 8, 9, 33), normal(16, 8 // groups, 3, 3, seed=1), normal(16, 1, 1, seed=2)

    def f(x, w, b):
        y = jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", feature_group_count=groups)
        return jax.nn.relu(y + b)

    (report,) = jax_nano.inspect(jax_nano.accelerate(f), x, w, b)
    assert "add" in report.fused
    assert {"relu", "max"} & set(report.fused)
    np.testing.assert_allclose(jax_nano.accelerate(f)(x, w, b), f(x, w, b), atol=1e-4)
