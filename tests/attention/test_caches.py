"""Key-value caches: read in place at their capacity, and of 8-bit integers."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from attention import assert_attention, exact
from oracle import kernels

import jax_nano
from jax_nano.weights.cache import QuantizedCache

B, S, N, K, D = 2, 300, 8, 2, 48
FLOATS = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
each_type = pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)


def arrays(dtype=jnp.float32, t=1, s=S):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, t, N, D), (B, s, K, D), (B, s, K, D)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def decode(caches, query, key, value, index):
    """A step: a token is written into caches [B, S, K, D], and attended to."""
    place = (0, index, 0, 0)
    caches = tuple(jax.lax.dynamic_update_slice(x, new, place) for x, new in zip(caches, (key, value), strict=True))
    lengths = jnp.full(query.shape[0], index + 1, jnp.int32)
    return caches, jax_nano.dot_product_attention(query, *caches, key_value_seq_lengths=lengths)


def decode_quantized(caches, query, key, value, index):
    """The same of quantized caches."""
    caches = tuple(cache.update(new, index) for cache, new in zip(caches, (key, value), strict=True))
    lengths = jnp.full(query.shape[0], index + 1, jnp.int32)
    return caches, jax_nano.dot_product_attention(query, *caches, key_value_seq_lengths=lengths)


def generate(step):
    def tokens(caches, query):
        def body(carry, index):
            caches, query = carry
            caches, out = step(caches, query, query[:, :, :K], query[:, :, :K], index)
            return (caches, out), None

        return jax.lax.scan(body, (caches, query), jnp.arange(7))[0]

    return tokens


def generate_while(step):
    def tokens(caches, query):
        def body(carry):
            index, caches, query = carry
            caches, out = step(caches, query, query[:, :, :K], query[:, :, :K], index)
            return index + 1, caches, out

        return jax.lax.while_loop(lambda carry: carry[0] < 7, body, (0, caches, query))

    return tokens


def copies(compiled, cache):
    """The instructions of a program that copy or transpose an array of a cache's size."""
    shape = re.escape(",".join(map(str, cache.shape)))
    return re.findall(rf"\[{shape}\]\S* (?:copy|transpose|convert)\(.*", compiled.as_text())


def assert_in_place(f, caches, *arguments):
    compiled = jax.jit(f, donate_argnums=0).lower(caches, *arguments).compile()
    leaves = jax.tree.leaves(caches)
    assert not [copy for leaf in leaves for copy in copies(compiled, leaf)]
    memory = compiled.memory_analysis()
    assert memory and memory.temp_size_in_bytes < max(leaf.nbytes for leaf in leaves) / 2


def caches_of(dtype, step):
    _, k, v = arrays(dtype, s=2048)
    return (k, v) if step is decode else (jax_nano.quantize_cache(k), jax_nano.quantize_cache(v))


each_step = pytest.mark.parametrize("step", [decode, decode_quantized])


@each_step
@each_type
def test_a_step_copies_no_cache(dtype, step):
    query, key, value = arrays(dtype, s=1)
    assert_in_place(step, caches_of(dtype, step), query, key, value, 3)


@each_step
@pytest.mark.parametrize("loop", [generate, generate_while])
def test_loops_copy_no_cache(loop, step):
    query, _, _ = arrays(jnp.bfloat16, s=1)
    assert_in_place(loop(step), caches_of(jnp.bfloat16, step), query)


def test_caches_by_heads_are_read_in_place():
    query, key, value = arrays(s=1)
    caches = tuple(x.swapaxes(1, 2) for x in arrays(s=2048)[1:])

    def step(caches, query, key, value, index):
        place = (0, 0, index, 0)
        caches = tuple(
            jax.lax.dynamic_update_slice(x, new.swapaxes(1, 2), place)
            for x, new in zip(caches, (key, value), strict=True)
        )
        lengths = jnp.full(B, index + 1, jnp.int32)
        by_token = (x.swapaxes(1, 2) for x in caches)
        return caches, jax_nano.dot_product_attention(query, *by_token, key_value_seq_lengths=lengths)

    assert_in_place(step, caches, query, key, value, 3)


@each_step
@each_type
def test_steps_give_what_all_tokens_give(dtype, step):
    tokens = 9
    q, k, v = arrays(dtype, t=tokens, s=tokens)
    caches = tuple(jnp.zeros((B, 20, K, D), dtype) for _ in range(2))
    if step is decode_quantized:
        caches = tuple(map(jax_nano.quantize_cache, caches))
    run = jax.jit(step, donate_argnums=0)
    for i in range(tokens):
        place = slice(i, i + 1)
        caches, out = run(caches, q[:, place], k[:, place], v[:, place], i)
        seen = [np.asarray(x)[:, : i + 1] for x in caches]
        assert_attention(out, np.asarray(q[:, place]), *seen)


def test_values_behind_the_length_are_not_read():
    q, k, v = arrays()
    k, v = (x.at[:, 250:].set(jnp.nan) for x in (k, v))
    out = jax_nano.dot_product_attention(q, k, v, key_value_seq_lengths=jnp.full(B, 192))
    assert np.isfinite(out).all()


# Of 8-bit integers.


def stood_for(cache):
    """The array that a cache stands for, in float64."""
    return np.asarray(cache.values, np.float64) * np.asarray(cache.scales, np.float64)[..., None]


@each_type
def test_no_number_moves_by_more_than_half_a_scale(dtype):
    _, k, _ = arrays(dtype)
    cache = jax_nano.quantize_cache(k)
    assert (cache.values.dtype, cache.scales.dtype, cache.dtype) == (jnp.int8, jnp.float32, dtype)
    error = np.abs(stood_for(cache) - np.asarray(k, np.float64))
    largest = np.abs(np.asarray(k, np.float64)).max(-1, keepdims=True)
    assert (error <= largest / 254 * (1 + 1e-4)).all()


@each_type
@pytest.mark.parametrize("t", [1, 3, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_to_what_integers_stand_for(causal, t, dtype):
    q, k, v = arrays(dtype, t)
    caches = [jax_nano.quantize_cache(x) for x in (k, v)]
    lengths = np.array([S, 70], np.int32)
    with kernels(1):
        out = jax_nano.dot_product_attention(q, caches[0], caches[1], is_causal=causal, key_value_seq_lengths=lengths)
        out.block_until_ready()
    assert out.dtype == dtype
    assert_attention(out, np.asarray(q), *map(stood_for, caches), causal=causal, key_lengths=lengths)


@each_type
def test_the_error_of_quantization(dtype):
    q, k, v = arrays(dtype, t=5)
    out = jax_nano.dot_product_attention(q, jax_nano.quantize_cache(k), jax_nano.quantize_cache(v))
    right, _, _ = exact(*(np.asarray(x) for x in (q, k, v)))
    # Scores move by |q| . half a scale, probabilities by twice as much of themselves, values by half a scale.
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    moved = np.abs(wide[0]).sum(-1).max() * np.abs(wide[1]).max() / 254 / np.sqrt(D)
    assert np.abs(np.asarray(out, np.float64) - right).max() <= (2 * moved + 1 / 254 + 0.01) * np.abs(wide[2]).max()


def test_beside_a_score_function_a_bias_and_a_block_mask():
    q, k, v = arrays(t=40)
    keys, values = (jax_nano.quantize_cache(x) for x in (k, v))
    bias = np.random.default_rng(0).standard_normal((1, N, 40, S)).astype(np.float32)
    mask = jax_nano.block_mask(lambda b, h, q, k: k % 3 > 0, (1, 1, 40, S))
    out = jax_nano.dot_product_attention(q, keys, values, bias, score=lambda s, *_: jnp.tanh(s), block_mask=mask)
    seen = np.broadcast_to(np.arange(S) % 3 > 0, (1, 1, 40, S))
    options = {"bias": bias, "score": lambda s, *_: np.tanh(s), "mask": seen}
    assert_attention(out, np.asarray(q), stood_for(keys), stood_for(values), **options)


def test_gradients_of_queries_and_vmap():
    q, k, v = arrays(t=4)
    caches = [jax_nano.quantize_cache(x) for x in (k, v)]

    def loss(keys, values):
        return jax.grad(lambda q: (jax_nano.dot_product_attention(q, keys, values) ** 2).sum())(q)

    np.testing.assert_allclose(loss(*caches), loss(*(x.dequantize() for x in caches)), rtol=1e-5, atol=1e-6)
    out = jax.vmap(lambda q: jax_nano.dot_product_attention(q, caches[0], caches[1]))(jnp.stack([q, -q]))
    assert_attention(out[1], -np.asarray(q), *map(stood_for, caches))


def test_it_stands_for_an_array():
    q, k, v = arrays()
    caches = [jax_nano.quantize_cache(x) for x in (k, v)]
    assert isinstance(caches[0], QuantizedCache)
    assert caches[0].shape == k.shape
    assert caches[0].nbytes == k.size + 4 * k.size // D
    np.testing.assert_array_equal(jnp.asarray(caches[0]), caches[0].dequantize())
    plain = jax.nn.dot_product_attention(q, *(x.dequantize() for x in caches))
    np.testing.assert_allclose(jax_nano.dot_product_attention(q, caches[0], caches[1].dequantize()), plain, atol=1e-6)


def test_turned_off_it_is_dequantized(monkeypatch):
    monkeypatch.setenv("JAX_NANO", "0")
    q, k, v = arrays()
    caches = [jax_nano.quantize_cache(x) for x in (k, v)]
    with kernels(0):
        out = jax_nano.dot_product_attention(q, caches[0], caches[1])
    assert_attention(out, np.asarray(q), *map(stood_for, caches))


def test_zeros_are_an_empty_cache():
    cache = jax_nano.quantize_cache(jnp.zeros((B, S, K, D), jnp.bfloat16))
    assert (np.asarray(cache.dequantize()) == ml_dtypes.bfloat16(0)).all()


def test_a_token_is_updated_alone():
    _, k, _ = arrays()
    cache = jax_nano.quantize_cache(k)
    token = jnp.ones((B, 1, K, D)) * 3
    updated = cache.update(token, 5)
    np.testing.assert_allclose(updated.dequantize()[:, 5:6], token, rtol=1e-6)
    np.testing.assert_array_equal(updated.values.at[:, 5].set(0), cache.values.at[:, 5].set(0))


def test_errors():
    with pytest.raises(TypeError, match="a cache of int32 is not quantized; give bfloat16, float16 or float32"):
        jax_nano.quantize_cache(jnp.zeros((2, 3, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"a cache is \(B, S, K, H\) or \(S, K, H\); this has the shape \(3, 4\)"):
        jax_nano.quantize_cache(jnp.zeros((3, 4)))
    cache = jax_nano.quantize_cache(jnp.zeros((2, 5, 3, 4)))
    with pytest.raises(ValueError, match=r"tokens of shape \(2, 3, 4\) have no place in a cache of \(2, 5, 3, 4\)"):
        cache.update(jnp.zeros((2, 3, 4)), 0)


def test_inspect_says_so():
    q, k, v = arrays(jnp.bfloat16)
    caches = [jax_nano.quantize_cache(x) for x in (k, v)]
    (report,) = jax_nano.inspect(jax_nano.dot_product_attention, q, *caches)
    assert report.ran_as == "kernel"
    assert "keys and values of s8" in str(report)
    assert "_s8_" in str(report)
