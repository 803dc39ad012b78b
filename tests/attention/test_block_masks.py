"""Block masks: results as with dense masks, blocks that are never computed, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention import assert_attention
from oracle import kernels

import jax_nano

B, N, K, D = 2, 4, 2, 16
RNG = np.random.default_rng(0)
NN = jax.nn.dot_product_attention


def arrays(t, s, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, t, N, D), (B, s, K, D), (B, s, K, D)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def ids(size):
    return np.sort(RNG.integers(0, 4, (B, size)))


QUERY_IDS, KEY_IDS = ids(300), ids(270)
MASKS = {
    "documents": (lambda b, h, q, k: jnp.asarray(QUERY_IDS)[b, q] == jnp.asarray(KEY_IDS)[b, k], B, 1),
    "prefix": (lambda b, h, q, k: (k <= q) | (k < 40), 1, 1),
    "dilated": (lambda b, h, q, k: (q // 64) % 2 == (k // 64) % 2, 1, 1),
    "heads": (lambda b, h, q, k: jnp.abs(q - k) <= 10 * (h + 1) ** 2, 1, N),
    "nothing": (lambda b, h, q, k: (q < 0) & (k < 0), 1, 1),
    "everything": (lambda b, h, q, k: (q >= 0) & (k >= 0), 1, 1),
}
each_mask = pytest.mark.parametrize("name", MASKS)


def made(name, t=300, s=270, block=(128, 128)):
    visible, batch, heads = MASKS[name]
    return jax_nano.block_mask(visible, (batch, heads, t, s), block=block)


def dense(name, t=300, s=270):
    visible, batch, heads = MASKS[name]
    place = np.ix_(*map(np.arange, (batch, heads, t, s)))
    return np.broadcast_to(np.asarray(visible(*place)), (batch, heads, t, s))


@each_mask
@pytest.mark.parametrize("block", [(128, 128), (64, 32), (100, 70), (1000, 1000), (16, 300)])
def test_results_are_those_of_a_dense_mask(block, name):
    q, k, v = arrays(300, 270)
    with kernels(1):
        out = jax_nano.dot_product_attention(q, k, v, block_mask=made(name, block=block))
        out.block_until_ready()
    assert_attention(out, *map(np.asarray, (q, k, v)), mask=dense(name))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_results_of_narrow_types(dtype):
    q, k, v = arrays(300, 270, dtype)
    out = jax_nano.dot_product_attention(q, k, v, block_mask=made("documents"))
    assert_attention(out, *map(np.asarray, (q, k, v)), mask=dense("documents"))


@each_mask
def test_beside_other_masks_and_a_score_function(name):
    q, k, v = arrays(300, 270)
    lengths = np.array([270, 100], np.int32)
    out = jax_nano.dot_product_attention(
        q, k, v, score=lambda s, *_: jnp.tanh(s), block_mask=made(name), is_causal=True, key_value_seq_lengths=lengths
    )
    options = {"mask": dense(name), "causal": True, "key_lengths": lengths}
    assert_attention(out, *map(np.asarray, (q, k, v)), score=lambda s, *_: np.tanh(s), **options)


@each_mask
def test_one_query_whose_heads_share_keys(name):
    q, k, v = arrays(1, 270)
    out = jax_nano.dot_product_attention(q, k, v, block_mask=made(name, t=1, block=(1, 64)))
    assert_attention(out, *map(np.asarray, (q, k, v)), mask=dense(name, t=1))


@each_mask
@pytest.mark.parametrize("block", [(128, 128), (100, 70)])
def test_blocks_are_those_with_a_visible_pair(block, name):
    seen, (rows, columns) = dense(name), block
    found = np.asarray(made(name, block=block).blocks)
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            part = seen[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            np.testing.assert_array_equal(found[:, :, i, j], part.any((2, 3)))


def test_hidden_blocks_are_never_computed():
    q, k, v = arrays(512, 512)
    mask = jax_nano.block_mask(lambda b, h, q, k: q // 128 == k // 128, (1, 1, 512, 512))
    assert mask.skipped == 0.75
    poisoned = v.at[:, 128:256].set(jnp.nan)
    out = np.asarray(jax_nano.dot_product_attention(q, k, poisoned, block_mask=mask))
    assert np.array_equal(np.isnan(out).any((0, 2, 3)), np.arange(512) // 128 == 1)
    visited = np.asarray(
        jax_nano.dot_product_attention(q, k, poisoned, mask=np.eye(4).repeat(128, 0).repeat(128, 1) > 0)
    )
    assert np.isnan(visited).all()


@pytest.mark.parametrize("name", ["documents", "dilated", "heads", "nothing"])
@pytest.mark.parametrize("size", [512, 64])
def test_gradients(size, name, monkeypatch):
    monkeypatch.setattr("jax_nano.jaxpr.attention.blocks.BLOCK", size)
    jax.clear_caches()
    operands, weights = arrays(300, 270), jnp.asarray(RNG.standard_normal((B, 300, N, D)), jnp.float32)

    def loss(attention):
        return jax.jit(jax.grad(lambda *x: (attention(*x) * weights).sum(), (0, 1, 2)))(*operands)

    block_mask, mask = made(name), dense(name)
    found = loss(lambda *x: jax_nano.dot_product_attention(*x, block_mask=block_mask))
    right = loss(lambda *x: NN(*x, mask=mask))
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)
    jax.clear_caches()


def test_gradients_skip_hidden_blocks():
    q, k, v = arrays(512, 512)
    mask = jax_nano.block_mask(lambda b, h, q, k: q // 256 == k // 256, (1, 1, 512, 512))
    poisoned = v.at[:, 256:].set(jnp.nan)

    def loss(q):
        return jax_nano.dot_product_attention(q, k, poisoned, block_mask=mask)[:, :256].sum()

    assert np.isfinite(jax.grad(loss)(q)[:, :256]).all()


def test_it_goes_through_jit_scan_and_vmap():
    q, k, v = arrays(300, 270)
    mask = made("documents")
    right = NN(q, k, v, mask=dense("documents"))

    @jax.jit
    def layers(q, mask):
        return jax.lax.scan(lambda _, q: (None, jax_nano.dot_product_attention(q, k, v, block_mask=mask)), None, q)[1]

    np.testing.assert_allclose(layers(q[None], mask)[0], right, rtol=1e-5, atol=1e-5)
    out = jax.vmap(lambda q: jax_nano.dot_product_attention(q, k, v, block_mask=mask))(jnp.stack([q, -q]))
    np.testing.assert_allclose(out[0], right, rtol=1e-5, atol=1e-5)
    inside = jax.jit(lambda q: jax_nano.dot_product_attention(q, k, v, block_mask=made("documents")))(q)
    np.testing.assert_allclose(inside, right, rtol=1e-5, atol=1e-5)


def test_masks_of_equal_functions_share_a_program():
    first, second = (jax_nano.block_mask(lambda b, h, q, k: k <= q, (1, 1, 64, 64)) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_errors():
    with pytest.raises(
        TypeError, match=r"a mask gives ShapeDtypeStruct\(shape=\(\), dtype=int32\); give a truth value"
    ):
        jax_nano.block_mask(lambda b, h, q, k: q - k, (1, 1, 8, 8))
    with pytest.raises(ValueError, match="has nothing to hide; give positive sizes"):
        jax_nano.block_mask(lambda b, h, q, k: q >= k, (1, 1, 8, 0))
    mask = jax_nano.block_mask(lambda b, h, q, k: q >= k, (1, 1, 8, 8))
    with pytest.raises(
        ValueError, match=r"block_mask is one for scores \[1, 1, 8, 8\], and these are \[2, 4, 300, 270\]"
    ):
        jax_nano.dot_product_attention(*arrays(300, 270), block_mask=mask)


def test_inspect_says_so():
    (report,) = jax_nano.inspect(
        lambda *x: jax_nano.dot_product_attention(*x, block_mask=made("documents")), *arrays(300, 270)
    )
    assert "blocks of 128 x 128 that a block mask hides, as the kernel runs" in str(report)
    assert report.fused == ("score function mask (eq, and, select_n)",)
