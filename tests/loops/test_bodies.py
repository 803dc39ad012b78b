"""Bodies built at random of the operations that pipelines know, beside the same loop of XLA in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from oracle import normal

import jax_nano
from jax_nano.runtime.report import reports

STEPS = 3
SIZES = st.sampled_from([1, 2, 3, 5, 8, 16, 17])


def squash(x):
    return jnp.tanh(x)


UNARY = {
    "tanh": squash,
    "logistic": jax.nn.sigmoid,
    "square": lambda x: squash(x * x),
    "where": lambda x: jnp.where(x > 0, x, 0.5 * x),
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "mean": lambda x: x - x.mean(-1, keepdims=True),
    "largest": lambda x: x * x.max(0, keepdims=True),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "reverse": lambda x: x[:, ::-1],
    "swap parts": lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], axis=1) if x.shape[1] > 1 else x,
    "reshape": lambda x: x.reshape(x.shape[::-1]).T,
    "flatten": lambda x: (x.reshape(-1) * 0.5).reshape(x.shape),
    "shift": lambda x: jnp.pad(x[1:], ((0, 1), (0, 0))) if x.shape[0] > 1 else x,
    "count": lambda x: squash(x + jnp.arange(x.shape[1], dtype=x.dtype)),
    "norm": lambda x: x / (1 + jnp.sqrt((x * x).sum())),
}
BINARY = {"add": jnp.add, "multiply": jnp.multiply, "smaller": jnp.minimum, "difference": jnp.subtract}


@st.composite
def bodies(draw):
    """(rows, columns, instructions): each makes another matrix of those before."""
    rows, columns = draw(SIZES), draw(SIZES)
    kinds = st.sampled_from([*UNARY, *BINARY, "product", "gram", "left"])
    steps = draw(st.lists(st.tuples(kinds, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
    return rows, columns, steps


def step_of(instructions):
    """A step of a scan whose carry is a matrix."""

    def step(carry, x, square, left):
        known = [carry, x]
        for kind, i, j in instructions:
            a, b = known[i % len(known)], known[j % len(known)]
            if kind in UNARY:
                known.append(UNARY[kind](a))
            elif kind in BINARY:
                known.append(BINARY[kind](a, b))
            elif kind == "product":
                known.append(a @ square)
            elif kind == "left":
                known.append(left @ b)
            else:
                known.append(squash(a @ b.T @ b))
        return squash(known[-1] @ square + carry), (known[-1], known[len(known) // 2].sum(0))

    return step


@settings(max_examples=60, deadline=None)
@given(bodies(), st.booleans(), st.booleans())
def test_random_bodies_compute_what_xla_does(body, reverse, batched):
    rows, columns, instructions = body
    step = step_of(instructions)

    def loop(square, left, carry, xs):
        return lax.scan(lambda c, x: step(c, x, square, left), carry, xs, reverse=reverse)

    square, left = 0.3 * normal(columns, columns), 0.3 * normal(rows, rows)
    carry, xs = normal(rows, columns), normal(STEPS, rows, columns)
    f = loop
    if batched:
        f = jax.vmap(loop, (None, None, 0, None))
        carry = normal(16, rows, columns)
    with reports() as found:
        actual = jax.jit(jax_nano.accelerate(f))(square, left, carry, xs)
    assert any(report.kernel and report.equation.startswith("scan") for report in found), found
    with jax.enable_x64(True):
        exact = jax.jit(f)(*(jnp.asarray(np.asarray(x), jnp.float64) for x in (square, left, carry, xs)))
    for x, true in zip(jax.tree.leaves(actual), jax.tree.leaves(exact), strict=True):
        assert np.abs(np.asarray(x, np.float64) - true).max() <= 1e-4 * max(1, np.abs(true).max())
