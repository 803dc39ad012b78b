"""Programs that take fewer operations: which ones are rewritten, and that they compute the same."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from elementwise_runner import TARGETS, evaluate
from elementwise_runner import program as program_for

from jax_nano.codegen.vector.simplify import simplify

X = np.concatenate([np.linspace(-12, 12, 4001), [-100.0, -1e-30, 0.0, 100.0, np.inf]]).astype(np.float32)


def program(f, x=X):
    return program_for(f, x)


def names(found):
    return [operation.name for operation in found.operations]


@pytest.mark.parametrize("f", [lambda x: 1 + jnp.tanh(x), lambda x: jnp.tanh(x) + 1], ids=["before", "behind"])
def test_one_plus_tanh_is_twice_the_logistic_function_of_twice_x(f):
    assert names(simplify(program(f))) == ["add", "logistic", "add"]


def test_half_of_twice_x_is_x():
    assert names(simplify(program(lambda x: 0.5 * (1 + jnp.tanh(x))))) == ["add", "logistic"]


def test_gelu_has_no_tanh():
    found = program(jax.nn.gelu)
    assert "tanh" in names(found)
    assert "tanh" not in names(simplify(found))
    assert len(simplify(found).operations) < len(found.operations)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (1 + jnp.tanh(x)) * jnp.tanh(x),
        lambda x: 2 + jnp.tanh(x),
        lambda x: x + jnp.tanh(x),
        lambda x: 1 - jnp.tanh(x),
        lambda x: 0.25 * (x + x),
        lambda x: 0.5 * (x + 1),
    ],
    ids=["used twice", "another constant", "a variable", "a difference", "another factor", "another sum"],
)
def test_other_programs_stay(f):
    assert simplify(program(f)) == program(f)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_programs_of_rounded_operations_stay(dtype):
    found = program(lambda x: 1 + jnp.tanh(x), X.astype(dtype))
    assert simplify(found) == found
    assert "logistic" in names(simplify(found.widened()))


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_cancels(target):
    with np.errstate(over="ignore"):
        exact = 2 / (1 + np.exp(-2 * X.astype(np.float64)))
    (actual,) = evaluate(program(lambda x: 1 + jnp.tanh(x)), [X], target)
    np.testing.assert_allclose(
        actual, exact, rtol=4 * float(np.finfo(np.float32).eps), atol=float(np.finfo(np.float32).tiny)
    )
