"""The conv_general_dilated cases of JAX's own test harnesses: types, precisions, dimensions, dilation, groups."""

import math
from collections import Counter

import jax
import ml_dtypes
import numpy as np
import pytest
from convolutions import direct_sum
from jax import lax
from oracle import kernels

import jax_nano
from jax_nano.ir.convolution import Spatial

with jax.enable_x64(True):  # without it, it leaves out the cases of 64-bit types
    from jax._src.internal_test_util.test_harnesses import StaticArg, all_harnesses

CASES = {harness.fullname: harness for harness in all_harnesses if harness.group_name == "conv_general_dilated"}


def operands(case):
    return case.dyn_args_maker(np.random.RandomState(0))


def convolution(case, f=jax_nano.conv_general_dilated):
    params = [x.value for x in case.arg_descriptors if isinstance(x, StaticArg)]
    return lambda lhs, rhs: f(lhs, rhs, *params)


def test_there_are_cases():
    assert len(CASES) >= 60


def test_every_outcome_is_stated(x64):
    """Types that kernels do not multiply, and results without elements, are left to XLA; all else is kernels."""

    def outcome(case):
        reports = jax_nano.inspect(convolution(case), *operands(case))
        if all(report.ran_as == "kernel" for report in reports):
            return "kernel"
        return " ".join(reports[0].reason.split()[:3])

    found = Counter(map(outcome, CASES.values()))
    assert set(found) == {"kernel", "no kernel multiplies", "a dimension is"}
    assert found["kernel"] >= len(CASES) // 2


def exact(case, lhs, rhs):
    """The result in float64, or complex or whole numbers, and the sum of magnitudes."""
    params = case.params
    numbers = lax.conv_dimension_numbers(params["lhs_shape"], params["rhs_shape"], params["dimension_numbers"])
    lhs_spec, rhs_spec, out_spec = numbers
    wide = np.complex128 if np.issubdtype(lhs.dtype, np.complexfloating) else np.float64
    x = np.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])).astype(wide)
    w = np.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])).astype(wide)
    spread = params["lhs_dilation"]
    image = np.zeros(
        (x.shape[0], *((s - 1) * d + 1 for s, d in zip(x.shape[1:-1], spread, strict=True)), x.shape[-1]), wide
    )
    image[:, *(slice(None, None, d) for d in spread)] = x
    pads = params["padding"]
    if isinstance(pads, str):
        reach = [(t - 1) * d + 1 for t, d in zip(w.shape[:-2], params["rhs_dilation"], strict=True)]
        pads = lax.padtype_to_pads(image.shape[1:-1], reach, params["window_strides"], pads)
    spatial = [
        Spatial(stride=s, dilation=d, padding=low)
        for s, d, (low, _) in zip(params["window_strides"], params["rhs_dilation"], pads, strict=True)
    ]
    shape = jax.eval_shape(convolution(case, lax.conv_general_dilated), lhs, rhs).shape
    shape = tuple(shape[d] for d in (out_spec[0], *out_spec[2:], out_spec[1]))
    groups = params["feature_group_count"], params["batch_group_count"]
    order = [(out_spec[0], *out_spec[2:], out_spec[1]).index(d) for d in range(len(out_spec))]
    return [
        np.transpose(direct_sum(a, b, shape, spatial, *groups), order)
        for a, b in ((image, w), (np.abs(image), np.abs(w)))
    ]


@pytest.mark.parametrize("name", CASES)
def test_harness(x64, name):
    case = CASES[name]
    lhs, rhs = operands(case)
    ours = convolution(case)
    reports = jax_nano.inspect(ours, lhs, rhs)
    is_kernel = all(report.ran_as == "kernel" for report in reports)
    with kernels(len(reports) if is_kernel else 0):
        result = ours(lhs, rhs)
    expected = jax.eval_shape(convolution(case, lax.conv_general_dilated), lhs, rhs)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    if not is_kernel:
        return
    sums, magnitude = exact(case, np.asarray(lhs), np.asarray(rhs))
    if np.issubdtype(result.dtype, np.integer):
        bits = 8 * result.dtype.itemsize
        difference = np.asarray(result).astype(np.int64) - sums.astype(np.int64)
        assert np.all(difference % (1 << bits) == 0)
        return
    acc = np.float64 if result.dtype == np.float64 else np.float32
    terms = math.prod(rhs.shape)
    bound = terms * float(np.finfo(acc).eps) * magnitude + float(ml_dtypes.finfo(result.dtype).eps) * np.abs(sums)
    assert np.all(np.abs(np.asarray(result, np.float64) - sums) <= bound)
    if lhs.dtype == rhs.dtype == result.dtype and lhs.dtype in (np.float32, np.float64):
        assert is_kernel
