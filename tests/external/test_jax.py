"""The dot_general cases of JAX's own test harnesses: every type, mixed types, precisions and dimension numbers."""

from collections import Counter

import jax
import numpy as np
import pytest
from jax import lax
from oracle import assert_dot_general, kernels

import jax_nano

with jax.enable_x64(True):  # without it, it leaves out the cases of 64-bit types
    from jax._src.internal_test_util.test_harnesses import StaticArg, all_harnesses

CASES = {harness.fullname: harness for harness in all_harnesses if harness.group_name == "dot_general"}


def operands(case):
    return case.dyn_args_maker(np.random.RandomState(0))


def arguments(case):
    """Dimension numbers, precision and type of the result."""
    return [x.value for x in case.arg_descriptors if isinstance(x, StaticArg)]


def product(case, dot_general=jax_nano.dot_general):
    return lambda lhs, rhs: dot_general(lhs, rhs, *arguments(case))


def test_there_are_cases():
    assert len(CASES) >= 400


def test_every_outcome_is_stated(x64):
    """The same for each version of JAX: types that kernels do not multiply are left to XLA, all else is a kernel."""

    def outcome(case):
        (report,) = jax_nano.inspect(product(case), *operands(case))
        return report.ran_as if report.ran_as == "kernel" else " ".join(report.reason.split()[:3])

    assert Counter(map(outcome, CASES.values())) == {"kernel": 109, "no kernel multiplies": 291}


@pytest.mark.parametrize("name", CASES)
def test_harness(x64, name):
    lhs, rhs = operands(CASES[name])
    ours = product(CASES[name])
    (report,) = jax_nano.inspect(ours, lhs, rhs)
    with kernels(report.ran_as == "kernel"):
        result = ours(lhs, rhs)
    expected = jax.eval_shape(product(CASES[name], lax.dot_general), lhs, rhs)
    numbers = arguments(CASES[name])[0]
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert_dot_general(result, lhs, rhs, numbers, promised=report.ran_as == "kernel")
    if lhs.dtype == rhs.dtype == result.dtype and lhs.dtype in (np.float32, np.float64):
        assert report.ran_as == "kernel"
