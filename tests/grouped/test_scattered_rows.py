"""Rows of a grouped product that are added up on its way out: in guarded memory and everywhere in programs."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grouped import GroupedRunner, exact, fused_kernel, run_fused
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from oracle import normal, wide

import jax_nano
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.grouped import RowScatter
from jax_nano.machine import host
from jax_nano.schedule.grouped.choose import grouped_plans

TOKENS, ROWS, K, N = 23, 95, 33, 45
SIZES = (20, 0, 33, 2)
BY_ROWS = lax.ScatterDimensionNumbers(
    update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)
DROP, CLIP, PROMISE = (
    lax.GatherScatterMode.FILL_OR_DROP, lax.GatherScatterMode.CLIP, lax.GatherScatterMode.PROMISE_IN_BOUNDS
)  # fmt: skip
SUMS = "sums of rows"
pack: Any = jax_nano.pack
quantize: Any = jax_nano.quantize


def operands(sizes=SIZES, dtype=jnp.float32, tokens=TOKENS, rows=ROWS, k=K, n=N):
    """Rows, experts, the token of each row, sizes, and weights of rows."""
    x, w = (jnp.asarray(normal(*shape, seed=i), dtype) for i, shape in enumerate(((rows, k), (4, k, n))))
    at = np.random.default_rng(3).integers(-5, tokens + 5, rows)
    weights = jnp.asarray(normal(rows, seed=7), dtype)
    return x, w, jnp.asarray(at, jnp.int32), jnp.asarray(sizes, jnp.int32), weights


def onto(mode=DROP, tokens=TOKENS):
    """The program of a base, or of zeros, and of places (M, 1) as they are: numbers below zero are no tokens."""

    def f(x, w, places, sizes, weights, base=None):
        y = lax.ragged_dot(x, jnp.asarray(w), sizes) * weights[:, None]
        base = jnp.zeros((tokens, y.shape[1]), y.dtype) if base is None else base
        return lax.scatter_add(base, places, y, BY_ROWS, mode=mode)

    return f


def assert_sums(actual, x, w, rows, sizes, weights, base=None, mode=DROP, tokens=TOKENS):
    """The result is within the bound of products and of sums in f32, docs/numerics.md, around NumPy's in float64."""
    (y, magnitude), terms = exact(x, w, sizes)
    y, magnitude = (a * f(np.asarray(weights, np.float64))[:, None] for a, f in ((y, np.asarray), (magnitude, np.abs)))
    out, most = (
        np.zeros((tokens, y.shape[1])) if base is None else f(np.asarray(base, np.float64)) for f in (np.array, np.abs)
    )
    at = np.asarray(rows, np.int64)
    at = np.clip(at, 0, tokens - 1) if mode == CLIP else at
    for row, token in enumerate(at):
        if 0 <= token < tokens:
            out[token] += y[row]
            most[token] += magnitude[row]
    dtype = np.asarray(actual).dtype
    own = float(jnp.finfo(dtype).eps)
    bound = (terms + len(at)) * np.finfo(np.float32).eps * most + 2 * own * most + 1e-30
    error = np.abs(np.asarray(actual, np.float64).reshape(out.shape) - out)
    assert np.all(error <= bound), f"{np.max(error / bound):.2f} times the bound"


def in_columns(x, w, rows, *others):
    return x, w, rows[:, None], *others


def in_kernel(f, *arguments):
    """What the kernel gives in guarded memory."""
    arguments = in_columns(*arguments)
    problem, _ = fused_kernel(f, *arguments)
    assert problem.scatter
    return run_fused(f, *arguments)


def ran_as(f, *arguments):
    return [(report.ran_as, SUMS in report.fused) for report in jax_nano.inspect(f, *arguments)]


FUSED = [("kernel", True)]


# The kernel.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda x: x.__name__)
@pytest.mark.parametrize("mode", [DROP, CLIP, PROMISE], ids=str)
@pytest.mark.parametrize("with_base", [False, True], ids=["zeros", "base"])
def test_rows_are_added_where_their_places_say(mode, dtype, with_base):
    arguments = operands(dtype=dtype)
    base = [jnp.asarray(normal(TOKENS, N, seed=9), dtype)] if with_base else []
    assert_sums(in_kernel(onto(mode), *arguments, *base), *arguments, *base, mode=mode)


@pytest.mark.parametrize("sizes", [(0, 0, 0, 0), (0, 0, 95, 0), (1, 1, 1, 1), (0, 70, 40, 0)], ids=str)
def test_rows_of_no_group_add_zeros_and_empty_groups_nothing(sizes):
    arguments = operands(sizes)
    assert_sums(in_kernel(onto(), *arguments), *arguments)


@pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas])
def test_every_plan_of_every_target(isa):
    arguments = operands((20, 1, 60, 5), jnp.bfloat16, n=140)
    problem, arrays = fused_kernel(onto(), *in_columns(*arguments))
    machine = host.machine()
    for plan in grouped_plans(problem, machine, machine.isa(isa)):
        assert_sums(GroupedRunner(plan)(*arrays, before=True), *arguments)


@pytest.mark.parametrize(("tokens", "rows", "k", "n"), [(1, 40, 9, 17), (9, 1, 8, 16), (300, 5, 1, 3), (7, 64, 5, 2)])
def test_edges(tokens, rows, k, n):
    arguments = operands((0, rows // 2, rows, 0), tokens=tokens, rows=rows, k=k, n=n)
    assert_sums(in_kernel(onto(tokens=tokens), *arguments), *arguments, tokens=tokens)


@pytest.mark.parametrize("places", ["int8", "uint8", "int16", "uint16", "uint32"])
@pytest.mark.parametrize("mode", [DROP, CLIP], ids=str)
def test_places_of_every_integer_type_write_nothing_beyond_the_ends(places, mode):
    x, w, _, sizes, weights = operands()
    info = np.iinfo(places)
    at = np.random.default_rng(0).integers(max(info.min, -40), 60, ROWS).astype(places)
    at[:2] = info.min, info.max
    arguments = x, w, jnp.asarray(at), sizes, weights
    assert_sums(in_kernel(onto(mode), *arguments), *arguments, mode=mode)


def test_integers_are_exact():
    x, w = (
        jnp.asarray(np.random.default_rng(i).integers(-90, 90, s), jnp.int8)
        for i, s in enumerate([(95, 33), (4, 33, 45)])
    )
    _, _, rows, sizes, _ = operands()

    def f(x, w, places, sizes):
        y = lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.int32)
        return lax.scatter_add(jnp.zeros((TOKENS, N), jnp.int32), places, y, BY_ROWS)

    found = in_kernel(f, x, w, rows, sizes).reshape(TOKENS, N)
    np.testing.assert_array_equal(found, f(*in_columns(x, w, rows, sizes)))


def test_sums_of_f32_have_the_bits_of_xlas_scatter_of_the_kernels_rows():
    x, w, rows, sizes, weights = operands()
    product = jax.jit(jax_nano.accelerate(lambda x, w, g, weights: lax.ragged_dot(x, w, g) * weights[:, None]))
    expected = jnp.ones((TOKENS, N)).at[jnp.where(rows < 0, TOKENS, rows)].add(product(x, w, sizes, weights))
    found = in_kernel(onto(), x, w, rows, sizes, weights, jnp.ones((TOKENS, N)))
    np.testing.assert_array_equal(found.reshape(TOKENS, N), expected)


def test_narrow_sums_are_rounded_once():
    rows = 300
    x, w = jnp.ones((rows, 1), jnp.bfloat16), jnp.ones((4, 1, 16), jnp.bfloat16)
    sizes, weights = jnp.asarray([rows, 0, 0, 0]), jnp.ones(rows, jnp.bfloat16)
    found = in_kernel(onto(), x, w, jnp.zeros(rows, jnp.int32), sizes, weights).reshape(TOKENS, 16)
    assert found[0, 0] == 300  # ones added in bf16 end at 256
    assert not found[1:].any()


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_rows_and_groups(data):
    tokens, k, n = (data.draw(st.integers(least, most)) for least, most in ((1, 40), (1, 50), (2, 150)))
    at = data.draw(st.lists(st.integers(-3, tokens + 3), min_size=1, max_size=60))
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=4, max_size=4))
    x, w, _, _, weights = operands((), tokens=tokens, rows=len(at), k=k, n=n)
    arguments = x, w, jnp.asarray(at, jnp.int32), jnp.asarray(sizes, jnp.int32), weights
    assert_sums(in_kernel(onto(tokens=tokens), *arguments), *arguments, tokens=tokens)


@pytest.mark.parametrize("options", [None, {}, {"bits": 4, "group": 32}], ids=str)
def test_packed_and_quantized_experts(options):
    x, w, rows, sizes, weights = operands((20, 1, 60, 5), k=64)
    weight = pack(w) if options is None else quantize(w, **options)
    assert_sums(in_kernel(onto(), x, weight, rows, sizes, weights), x, wide(jnp.asarray(weight)), rows, sizes, weights)


def test_bits_do_not_depend_on_threads():
    arguments = operands(dtype=jnp.bfloat16, tokens=200, rows=900, n=300, sizes=(200, 0, 500, 100))
    arguments = in_columns(*arguments)
    expected = np.asarray(jax.jit(jax_nano.accelerate(onto(tokens=200)))(*arguments))
    with jax_nano.threads(1):
        alone = np.asarray(jax.jit(jax_nano.accelerate(onto(tokens=200)))(*arguments))
    np.testing.assert_array_equal(expected.view(np.uint16), alone.view(np.uint16))


# In programs.


def combined(x, w, rows, sizes, weights):
    y = lax.ragged_dot(x, jnp.asarray(w), sizes)
    return jnp.zeros((TOKENS, y.shape[1]), y.dtype).at[rows].add(y * weights[:, None])


RESIDUAL = jnp.asarray(normal(TOKENS, N, seed=8))


def with_bias(x, w, rows, sizes, weights):
    y = lax.ragged_dot(x, w, sizes) + jax_nano.repeat_by_group(RESIDUAL[:4], sizes, ROWS)
    return jnp.zeros((TOKENS, N)).at[rows].add(jax.nn.silu(y) * weights[:, None])


IDIOMS: dict[str, Any] = {
    "add": combined,
    "segment_sum": lambda x, w, rows, g, s: jax.ops.segment_sum(lax.ragged_dot(x, w, g) * s[:, None], rows, TOKENS),
    "clip": lambda x, w, rows, g, _: jnp.zeros((TOKENS, N)).at[rows].add(lax.ragged_dot(x, w, g), mode="clip"),
    "residual": lambda x, w, rows, g, _: RESIDUAL.at[rows].add(lax.ragged_dot(x, w, g)),
    "added": lambda *arguments: RESIDUAL + combined(*arguments),
    "unique": lambda x, w, rows, g, _: RESIDUAL.at[rows].add(lax.ragged_dot(x, w, g), indices_are_sorted=True),
    "rounded": lambda *arguments: combined(*arguments).astype(jnp.bfloat16),
    "narrow": lambda x, w, rows, g, _: (
        RESIDUAL.astype(jnp.bfloat16).astype(jnp.float32).at[rows].add(lax.ragged_dot(x, w, g)).astype(jnp.bfloat16)
    ),
    "activation": with_bias,
}


@pytest.mark.parametrize("f", IDIOMS.values(), ids=IDIOMS)
def test_accelerated_functions_add_rows_in_the_kernel(f):
    arguments = operands()
    fast = jax.jit(jax_nano.accelerate(f))
    tolerance = 1e-4 if f(*arguments).dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(wide(fast(*arguments)), wide(f(*arguments)), rtol=tolerance, atol=tolerance)
    assert ran_as(fast, *arguments) == FUSED


STAYS: dict[str, Any] = {
    "rows_are_used": lambda x, w, rows, g, _: (lambda y: RESIDUAL.at[rows].add(y) + y.sum())(lax.ragged_dot(x, w, g)),
    "columns": lambda x, w, rows, g, _: jnp.zeros((ROWS, N)).at[:, rows[:N]].add(lax.ragged_dot(x, w, g)),
    "set": lambda x, w, rows, g, _: jnp.zeros((TOKENS, N)).at[rows].set(lax.ragged_dot(x, w, g)),
    "max": lambda x, w, rows, g, _: jnp.zeros((TOKENS, N)).at[rows].max(lax.ragged_dot(x, w, g)),
    "base": lambda x, w, rows, g, _: lax.ragged_dot(x, w, g).at[rows].add(1.0),
    "ones": lambda x, w, rows, g, _: jnp.ones((TOKENS, N)).at[rows].add(lax.ragged_dot(x, w, g)),
    "long_base": lambda x, w, rows, g, _: jnp.tile(x, (9, 1)).at[rows].add(lax.ragged_dot(x, w[:, :, :K], g)),
}


@pytest.mark.parametrize("f", STAYS.values(), ids=STAYS)
def test_other_scatters_stay_in_the_program(f):
    x, w, rows, *others = operands()
    arguments = x, w, rows % TOKENS, *others
    fast = jax.jit(jax_nano.accelerate(f))
    np.testing.assert_allclose(fast(*arguments), f(*arguments), rtol=1e-4, atol=1e-4)
    assert ran_as(fast, *arguments) == [("kernel", False)]


def test_inspect_says_where_rows_go_and_why_they_do_not():
    arguments = operands()
    (report,) = jax_nano.inspect(jax_nano.accelerate(combined), *arguments)
    assert "_fused_scattered_g4m95n45k33_" in str(report)
    assert "rows of C added up in 23" in str(report)
    assert "then combine in" in str(report)
    (report,) = jax_nano.inspect(jax_nano.accelerate(STAYS["long_base"]), *arguments)
    assert "scatter-add: few of 855 rows change, which are not copied for 95" in str(report)


def layer(x, first, second, rows, sizes, weights):
    """An expert layer as programs have it."""
    hidden = jax.nn.silu(lax.ragged_dot(x[rows], first, sizes))
    return jnp.zeros_like(x).at[rows].add(lax.ragged_dot(hidden, second, sizes) * weights[:, None])


def test_tokens_are_read_and_added_in_place():
    _, _, rows, sizes, weights = operands()
    x, first, second = (jnp.asarray(normal(*s, seed=i)) for i, s in enumerate(((TOKENS, K), (4, K, N), (4, N, K))))
    arguments = x, first, second, rows % TOKENS, sizes, weights
    fast = jax.jit(jax_nano.accelerate(layer))
    np.testing.assert_allclose(fast(*arguments), layer(*arguments), rtol=1e-3, atol=1e-3)
    assert ran_as(fast, *arguments) == [("kernel", False), ("kernel", True)]
    for found, wanted in zip(
        *(jax.jit(jax.grad(lambda x, a, b, f=f: jnp.sin(f(x, a, b, *arguments[3:])).sum(), (0, 1, 2)))(*arguments[:3])
          for f in (fast, layer)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


def test_one_product_gathers_and_scatters():
    x, w, rows, sizes, _ = operands(k=N)
    rows_of = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

    def f(x, w, places, sizes):
        gathered = lax.gather(x, places, rows_of, (1, N), mode=CLIP)
        return lax.scatter_add(x, places, lax.ragged_dot(gathered, w, sizes), BY_ROWS, mode=CLIP)

    arguments = in_columns(x[:TOKENS], w, rows, sizes)
    found = run_fused(f, *arguments).reshape(TOKENS, N)
    np.testing.assert_allclose(found, f(*arguments), rtol=1e-4, atol=1e-3)
    (report,) = jax_nano.inspect(jax_nano.accelerate(f), *arguments)
    assert report.fused == ("gather of rows", SUMS)


def test_autotune_measures_them():
    f = jax_nano.accelerate(combined)
    assert "rows of C added up in 23" in str(jax_nano.autotune(f, *operands()))


def test_errors_say_what_no_kernel_does():
    scatter = RowScatter(places="s32", stored=3, sum="f32", out="f32")
    with pytest.raises(UnsupportedDot, match="no kernel adds rows at places of u64; convert them to s32"):
        replace(scatter, places="u64")
    with pytest.raises(UnsupportedDot, match="there is no row to add to: there is nothing to compute"):
        replace(scatter, stored=0)
    with pytest.raises(UnsupportedDot, match="no kernel adds up rows of s64; convert them to f32"):
        replace(scatter, sum="s64")
