"""The dot_general cases of JAX's own test harnesses: every type, mixed types, precisions and dimension numbers."""

import jax
import numpy as np
import pytest
from jax import lax
from oracle import assert_dot_general, kernels

import jax_nano

with jax.enable_x64(True):  # without it, it leaves out the cases of 64-bit types
    from jax._src.internal_test_util.test_harnesses import StaticArg, all_harnesses

CASES = {harness.fullname: harness for harness in all_harnesses if harness.group_name == "dot_general"}


def test_there_are_cases():
    assert len(CASES) >= 400


@pytest.mark.parametrize("name", CASES)
def test_harness(x64, name):
    case = CASES[name]
    lhs, rhs = case.dyn_args_maker(np.random.RandomState(0))
    numbers, precision, preferred = (x.value for x in case.arg_descriptors if isinstance(x, StaticArg))

    def product(lhs, rhs):
        return jax_nano.dot_general(lhs, rhs, numbers, precision, preferred)

    (report,) = jax_nano.inspect(product, lhs, rhs)
    with kernels(report.ran_as == "kernel"):
        result = product(lhs, rhs)
    expected = jax.eval_shape(lambda lhs, rhs: lax.dot_general(lhs, rhs, numbers, precision, preferred), lhs, rhs)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert_dot_general(result, lhs, rhs, numbers, promised=report.ran_as == "kernel")
    if lhs.dtype == rhs.dtype == result.dtype and lhs.dtype in (np.float32, np.float64):
        assert report.ran_as == "kernel"
