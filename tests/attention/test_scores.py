"""Score functions: beside their plain definitions in NumPy, their derivatives, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention import assert_attention
from oracle import kernels, primitives

import jax_nano
from jax_nano.ir.program import Unfusable
from jax_nano.jaxpr.attention.score_reader import mapped, read_score

B, N, T, S, K, D = 2, 4, 70, 90, 2, 16
RNG = np.random.default_rng(0)
SLOPES = RNG.random(N).astype(np.float32)
QUERY_IDS, KEY_IDS = np.sort(RNG.integers(0, 3, (B, T))), np.sort(RNG.integers(0, 3, (B, S)))
BIAS = RNG.standard_normal((1, N, 1, S)).astype(np.float32)
PER_QUERY = RNG.standard_normal((B, N, T, 1)).astype(np.float32)
TABLE = RNG.standard_normal((N, T + S)).astype(np.float32)
RANDOM = RNG.random((B, S)).astype(np.float32)
PAIRS = RNG.random((1, 1, T, S)) < 0.5
LOWEST = float(np.finfo(np.float32).min)


def functions(np: Any, at: Any = lambda x: x) -> dict[str, Any]:
    """Score functions, by NumPy or jax.numpy; `at` makes arrays of one of these."""
    slopes, query_ids, key_ids, bias, table = map(at, (SLOPES, QUERY_IDS, KEY_IDS, BIAS, TABLE))
    per_query, pairs = at(PER_QUERY), at(PAIRS)
    return {
        "soft cap": lambda s, b, h, q, k: 5 * np.tanh(s / 5),
        "alibi": lambda s, b, h, q, k: s + slopes[h] * (k - q),
        "documents": lambda s, b, h, q, k: np.where(query_ids[b, q] == key_ids[b, k], s, LOWEST),
        "prefix": lambda s, b, h, q, k: np.where((k <= q) | (k < 20), s, -np.inf),
        "relative positions": lambda s, b, h, q, k: s + table[h, k - q + T],
        "head and batch": lambda s, b, h, q, k: s * (h + 1) - b * k / 9,
        "broadcast arrays": lambda s, b, h, q, k: s * bias + slopes[:, None, None] + per_query,
        "truth values of pairs": lambda s, b, h, q, k: np.where(pairs, s, s / 2),
        "integers": lambda s, b, h, q, k: np.where((q // 8 == k // 8) & (k % 3 < 2), s, s - 1),
    }


PLAIN, OURS = functions(np), functions(jnp, jnp.asarray)
each_function = pytest.mark.parametrize("name", PLAIN)


def arrays(dtype=jnp.float32, t=T, s=S):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, t, N, D), (B, s, K, D), (B, s, K, D)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def attend(score, *operands, **options):
    return jax_nano.dot_product_attention(*operands, score=score, **options)


@each_function
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_results(dtype, name):
    q, k, v = arrays(dtype)
    with kernels(1):
        out = attend(OURS[name], q, k, v)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert_attention(out, *map(np.asarray, (q, k, v)), score=PLAIN[name])


@each_function
def test_results_beside_masks(name):
    q, k, v = arrays()
    options: dict[str, Any] = {"bias": BIAS, "key_lengths": np.array([90, 40], np.int32)}
    out = attend(OURS[name], q, k, v, BIAS, is_causal=True, key_value_seq_lengths=options["key_lengths"])
    assert_attention(out, *map(np.asarray, (q, k, v)), score=PLAIN[name], causal=True, **options)


@pytest.mark.parametrize("name", ["soft cap", "alibi", "head and batch"])
def test_one_query_whose_heads_share_keys(name):
    q, k, v = arrays(t=1, s=1300)
    out = attend(OURS[name], q, k, v)
    assert_attention(out, *map(np.asarray, (q, k, v)), score=PLAIN[name])


def test_arrays_of_one_query_whose_heads_share_keys():
    q, k, v = arrays(t=1)
    bias = RNG.standard_normal((B, N, 1, S)).astype(np.float32)
    for array in (bias, bias[:1], bias[..., :1], bias[:, :1]):
        out = attend(lambda s, *_, x=array: s + jnp.asarray(x), q, k, v)
        assert_attention(out, *map(np.asarray, (q, k, v)), score=lambda s, *_, x=array: s + x)


@pytest.mark.parametrize(("name", "heads"), [("soft cap", 4), ("alibi", 1), ("documents", 1)])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_few_queries_of_heads_whose_rows_are_neighbours(dtype, queries, name, heads):
    shapes = (16, queries, 8, 32), (16, 70, 4, 32), (16, 70, 4, 32)
    operands = [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]
    slopes, ids = RNG.random(8).astype(np.float32), RNG.integers(0, 2, (16, 70))
    scores = {
        "soft cap": lambda np, s, b, h, q, k: 5 * np.tanh(s / 5),
        "alibi": lambda np, s, b, h, q, k: s + np.asarray(slopes)[h] * (k - q),
        "documents": lambda np, s, b, h, q, k: np.where(np.asarray(ids)[b, k] == 1, s, LOWEST),
    }
    lengths = np.array([70, 66] * 8, np.int32) if heads > 1 else None

    def ours(*x):
        return attend(functools.partial(scores[name], jnp), *x, key_value_seq_lengths=lengths)

    (report,) = jax_nano.inspect(ours, *operands)
    assert report.plan.heads_per_task == heads
    assert report.plan.folds_heads == (queries == 1)
    plain = functools.partial(scores[name], np)
    assert_attention(ours(*operands), *map(np.asarray, operands), score=plain, key_lengths=lengths)


def test_doubles():
    with jax.enable_x64(new_val=True):
        q, k, v = arrays(jnp.float64)
        for name in ("soft cap", "documents", "truth values of pairs"):
            out = attend(OURS[name], q, k, v)
            assert_attention(out, *map(np.asarray, (q, k, v)), score=PLAIN[name])


def test_rows_that_see_nothing_average_every_value():
    q, k, v = arrays()
    out = attend(lambda s, b, h, q, k: jnp.where(q == 7, LOWEST, s), q, k, v, is_causal=True)
    plain = plain_attention(lambda s, b, h, q, k: jnp.where(q == 7, LOWEST, s), q, k, v, causal=True)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)


def plain_attention(score, q, k, v, *, causal=False):
    """The definition in JAX, for its derivatives."""
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    scores = score(jnp.einsum("btnd,bsnd->bnts", q, k) / 4, *np.ix_(*map(np.arange, (B, N, q.shape[1], k.shape[1]))))
    if causal:
        seen = np.tri(q.shape[1], k.shape[1], dtype=bool)
        scores = jnp.where(seen, scores, -0.7 * float(np.finfo(np.float32).max))
    return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores, -1), v)


def with_arrays(slopes, per_query, bias):
    return lambda s, b, h, q, k: 5 * jnp.tanh((s + slopes[h] * (k - q) / 9 + per_query) / 5) * bias


WEIGHTS = jnp.asarray(RNG.standard_normal((B, T, N, D)), jnp.float32)


def assert_gradients(f, plain, operands, tolerance=1e-5):
    found, right = (jax.jit(jax.grad(g, tuple(range(len(operands)))))(*operands) for g in (f, plain))
    for a, b in zip(found, right, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("block", [512, 32])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_operands_and_arrays(causal, block, monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", block)
    jax.clear_caches()

    def ours(q, k, v, *given):
        return (attend(with_arrays(*given), q, k, v, is_causal=causal) * WEIGHTS).sum()

    def plain(q, k, v, *given):
        return (plain_attention(with_arrays(*given), q, k, v, causal=causal) * WEIGHTS).sum()

    assert_gradients(ours, plain, [*arrays(), *map(jnp.asarray, (SLOPES, PER_QUERY, BIAS))])
    jax.clear_caches()


@pytest.mark.parametrize("name", ["documents", "relative positions", "integers"])
def test_gradients_of_operands(name):
    def ours(*x):
        return (attend(OURS[name], *x) * WEIGHTS).sum()

    def plain(*x):
        return (plain_attention(OURS[name], *x) * WEIGHTS).sum()

    assert_gradients(ours, plain, arrays())


def test_jvp_and_second_derivatives():
    q, k, v = arrays(t=20, s=30)

    def f(attention):
        def of(q, slopes):
            return (attention(lambda s, b, h, q, k: jnp.tanh(s + slopes[h] * (k - q)), q, k, v) ** 2).sum()

        return of

    point = q, jnp.asarray(SLOPES)
    ours, plain = (jax.jvp(f(g), point, point) for g in (attend, plain_attention))
    np.testing.assert_allclose(ours, plain, rtol=1e-4)

    def second(g):
        return jax.grad(lambda *x: sum((y**2).sum() for y in jax.grad(f(g), (0, 1))(*x)), (0, 1))(*point)

    for a, b in zip(second(attend), second(plain_attention), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("hidden", [-1e9, -1e30, LOWEST])
def test_derivatives_of_rows_that_a_constant_hides(hidden):
    def score(s, b, h, q, k):
        return jnp.where((q % 3 == 1) | (k < 5), hidden, s)

    def derivatives(attention):
        gradients = jax.jit(jax.grad(lambda *x: (attention(score, *x) * WEIGHTS).sum(), (0, 1, 2)))(*arrays())
        return [*gradients, jax.jvp(lambda *x: attention(score, *x), arrays(), arrays())[1]]

    for a, b in zip(derivatives(attend), derivatives(plain_attention), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("name", ["quotient", "logarithm of a place", "root"])
def test_derivatives_where_blocks_are_padded(name, monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", 32)
    jax.clear_caches()

    def derivatives(attention):
        def f(q, k, v, x):
            of = {
                "quotient": lambda s, b, h, q, k: s / x[b, k] + jnp.log(x[b, k]),
                "logarithm of a place": lambda s, b, h, q, k: s + jnp.log(1.0 * (S - k)) * x[b, k] / (T - q),
                "root": lambda s, b, h, q, k: jnp.sqrt(jnp.abs(s)) * x[b, k],
            }
            return attention(of[name], q, k, v)

        operands = (*arrays(), 1 + jnp.asarray(RANDOM))
        gradients = jax.jit(jax.grad(lambda *x: (f(*x) * WEIGHTS).sum(), (0, 1, 2, 3)))(*operands)
        return [*gradients, jax.jvp(f, operands, operands)[1]]

    for a, b in zip(derivatives(attend), derivatives(plain_attention), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max(), rtol=0)
    jax.clear_caches()


def test_a_bias_that_does_not_broadcast_to_scores_is_refused():
    q, k, v = arrays()
    with pytest.raises(ValueError, match=r"its bias of \[1, 1, 1, 5\] does not broadcast .* repeat queries, keys and"):
        attend(OURS["soft cap"], q, k[:, :1], v[:, :1], jnp.zeros((1, 1, 1, 5)))


def test_vmap_over_operands_and_arrays():
    q, k, v = arrays()
    slopes = jnp.stack([jnp.asarray(SLOPES)] * 3) * jnp.arange(3)[:, None]

    def f(attention, q, slopes):
        return attention(lambda s, b, h, q, k: s + slopes[h] * (k - q) + b * k / 100, q, k, v)

    for axes, operands in (((0, None), (jnp.stack([q, -q, q]), slopes[1])), ((None, 0), (q, slopes)),
                           ((1, 0), (jnp.stack([q, -q, q], 1), slopes))):  # fmt: skip
        with kernels(1):
            out = jax.vmap(lambda *x: f(attend, *x), axes)(*operands)
        right = jax.vmap(lambda *x: f(plain_attention, *x), axes)(*operands)
        np.testing.assert_allclose(out, right, rtol=1e-4, atol=1e-5)


def test_remat_and_scan():
    q, k, v = arrays()
    caps = jnp.array([1.0, 2.0, 5.0])

    def f(attention):
        def step(x, cap):
            return jax.checkpoint(lambda x: attention(lambda s, *_: cap * jnp.tanh(s / cap), x, k, v))(x), None

        return jax.jit(jax.grad(lambda q, caps: (jax.lax.scan(step, q, caps)[0] ** 2).sum(), (0, 1)))(q, caps)

    for a, b in zip(f(attend), f(plain_attention), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=0)


# What is read.


def read(score, shape=(B, N, T, S)):
    return read_score(score, shape, jnp.float32)


def test_what_differs_along_one_axis_is_an_array_made_before():
    function, found = read(lambda s, b, h, q, k: s + jnp.exp2(-h.astype(jnp.float32)) * (k - q))
    assert [operation.name for operation in function.program.operations] == ["sub", "convert", "mul", "add"]
    assert [x.shape for x in found] == [(1, N, 1, 1)]


def test_ids_are_compared_in_the_kernel():
    function, found = read(OURS["documents"])
    assert [x.shape for x in found] == [(B, 1, T, 1), (B, 1, 1, S)]
    assert str(function) == "score (eq, select_n)"


def test_functions_that_compute_the_same_are_equal():
    first, second = (read(lambda s, *_: jnp.tanh(s / 5))[0] for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != read(lambda s, *_: jnp.tanh(s / 6))[0]


def test_a_function_whose_operations_have_no_vector_code_runs_by_its_equations():
    q, k, v = arrays()

    def score(s, *_):
        return jax.lax.lgamma(jnp.abs(s) + 1)

    with pytest.raises(Unfusable, match="lgamma is not elementwise, or has no vector code"):
        read(score)
    report, *_ = jax_nano.inspect(lambda *x: attend(score, *x), q, k, v)
    assert report.reason == "of the score function, lgamma is not elementwise, or has no vector code"
    assert report.ran_as == "its equations"
    np.testing.assert_allclose(attend(score, q, k, v), plain_attention(score, q, k, v), rtol=1e-5, atol=1e-5)


def test_what_is_not_elementwise_is_refused():
    q, k, v = arrays()
    with pytest.raises(TypeError, match="a score function has to be elementwise: cumsum is not elementwise"):
        attend(lambda s, *_: jnp.cumsum(s * BIAS, axis=-1), q, k, v)
    with pytest.raises(TypeError, match=r"give one score for each, and index arrays or shape them so that"):
        attend(lambda s, *_: s[..., None] * BIAS[0, 0, 0], q, k, v)
    with pytest.raises(TypeError, match="scores are transposed"):
        attend(lambda s, *_: s.swapaxes(0, 1) * jnp.ones((4, 4, 8, 8)), *(x[:, :8] for x in four_of_each()))


def four_of_each():
    return [jax.random.normal(jax.random.key(0), (4, 8, 4, 16))] * 3


def test_scalars_come_as_scalars():
    q, k, v = arrays()
    shapes = []

    def score(s, b, h, q, k):
        shapes.append({x.shape for x in (s, b, h, q, k)})
        return jax.lax.select(q >= k, s, s / jax.lax.dynamic_index_in_dim(divisors, h, keepdims=False))

    divisors = jnp.arange(2.0, 2 + N)
    with kernels(1):
        out = attend(score, q, k, v)
    plain = plain_attention(lambda s, b, h, q, k: jnp.where(q >= k, s, s / divisors[h]), q, k, v)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
    assert all(found == {()} for found in shapes)


def test_a_scale_that_is_computed_is_part_of_the_score_function():
    q, k, v = arrays()
    with kernels(1):
        out = jax.jit(lambda x: attend(OURS["soft cap"], q, k, v, scale=x))(0.3)
    assert_attention(out, *map(np.asarray, (q, k, v)), score=PLAIN["soft cap"], scale=0.3)


def test_cudnn_takes_none():
    with pytest.raises(ValueError, match="cuDNN takes no score function; give implementation=None"):
        attend(OURS["soft cap"], *arrays(), implementation="cudnn")


def test_inspect_shows_the_score_function():
    def soft_cap(s, *_):
        return 50 * jnp.tanh(s / 50)

    (report,) = jax_nano.inspect(lambda *x: attend(soft_cap, *x, is_causal=True), *arrays())
    assert report.fused == ("score function soft_cap (div, tanh, mul)",)
    assert "score function soft_cap (div, tanh, mul)" in str(report)
    assert "causal_score" in str(report)


def test_it_is_one_equation():
    program = jax.make_jaxpr(lambda *x: attend(OURS["soft cap"], *x))(*arrays())
    assert [name for name in primitives(program.jaxpr) if "nano" in name] == ["nano_attention"]


def test_turned_off_it_is_computed_by_its_equations(monkeypatch):
    monkeypatch.setenv("JAX_NANO", "0")
    q, k, v = arrays()
    with kernels(0):
        out = attend(OURS["alibi"], q, k, v)
    assert_attention(out, *map(np.asarray, (q, k, v)), score=PLAIN["alibi"])


def test_mapped_is_the_function_of_each_pair():
    numbers = [jnp.arange(size) for size in (B, N, T, S)]
    scores = jnp.zeros((B, N, T, S))
    out = mapped(lambda s, b, h, q, k: s + 1000 * b + 100 * h + q / 100 + k)(scores, *numbers)
    i = np.ix_(*map(np.arange, (B, N, T, S)))
    np.testing.assert_allclose(out, 1000 * i[0] + 100 * i[1] + i[2] / 100 + i[3], rtol=1e-6)
