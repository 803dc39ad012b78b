"""The tangents of attention, in JAX's own operations: a scan over blocks, without memory for all scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.jaxpr.attention.backward import BackwardStep
from jax_nano.jaxpr.attention.blocks import Blocks
from jax_nano.jaxpr.varying import varying_alike


def tangents(spec: AttentionSpec, *operands: Array) -> list[Array]:
    """The results of nano_attention_tangent: linear in the tangents of the first operands, which come last.

    dS = scale * (dQ K^T + Q dK^T) + dB;  dL = rowsum(p * dS);  dO = (p * dS) V + p dV - dL * O

    With a score function, dS is what becomes of that, and of its arrays' tangents, by its derivative.
    """
    count = 3 + len(spec.extras)
    query, key, value, *extras = operands[:count]
    out, lse, *moving = operands[count:]
    named = dict(zip(spec.extras, extras, strict=True))
    heads, acc = key.shape[2], lse.dtype
    blocks = Blocks.of(spec, query, key)
    stats = blocks.rows(lse, heads)
    known = BackwardStep(
        spec, blocks, named,
        (blocks.queries(query, heads), blocks.queries(moving[0], heads), stats, stats),
        (blocks.keys(key), blocks.keys(value)),
    ).with_totals()  # fmt: skip
    step = TangentStep(known, (blocks.keys(moving[1]), blocks.keys(moving[2])), moving[3:])
    rows = known.rows[0].shape[:-1]
    total, of_lse, _ = varying_alike([jnp.zeros((*rows, value.shape[3]), acc), jnp.zeros(rows, acc), lse])
    start = total, of_lse
    (total, of_lse), _ = lax.scan(lambda sums, pair: (step(sums, *pair), None), start, blocks.pairs(spec))
    of_lse = of_lse.reshape(*lse.shape[:2], -1)[..., : lse.shape[2]]
    moved = blocks.queries_back(total, out.astype(acc)) - of_lse.transpose(0, 2, 1)[..., None] * out.astype(acc)
    if spec.query_lengths:
        is_query = jnp.arange(query.shape[1])[None, :] < named["query_lengths"][:, None]
        moved = jnp.where(is_query[:, :, None, None], moved, jnp.zeros((), acc))
        of_lse = jnp.where(is_query[:, None, :], of_lse, jnp.zeros((), acc))
    return [moved.astype(out.dtype), of_lse]


@dataclass(frozen=True)
class TangentStep:
    """What a block of queries and one of keys contribute to the tangents.

    Attributes:
      known: the blocks of the operands; in the place of cotangents, the tangents of queries.
      keys: the tangents of keys and values, in blocks of keys.
      others: those of the bias and of the arrays of a score function, if there are any.
    """

    known: BackwardStep
    keys: tuple[Array, Array]
    others: Sequence[Array]

    def __call__(self, sums: tuple[Array, Array], i: Array, j: Array) -> tuple[Array, Array]:
        """Adds it to (p * dS) V + p dV and to rowsum(p * dS)."""
        spec, blocks = self.known.spec, self.known.blocks
        query, query_dot, lse, _ = (blocks.query_block(x, i) for x in self.known.rows)
        key, value, key_dot, value_dot = (blocks.key_block(x, j) for x in (*self.known.keys, *self.keys))
        product = functools.partial(jnp.einsum, preferred_element_type=lse.dtype)
        of_scores = functools.partial(product, "bkgth,bksh->bkgts")
        of_values = functools.partial(product, "bkgts,bksv->bkgtv")
        scale = jnp.asarray(spec.scale, lse.dtype)
        pairs = self.known.pairs(i, j)
        known = self.known.products(i, j), *self.known.moving(pairs)
        products = (of_scores(query_dot, key) + of_scores(query, key_dot)) * scale
        moving = products, *(blocks.score_block(x, i, j).astype(lse.dtype) for x in self.others)
        scores, ds = jax.jvp(functools.partial(self.known.scores, pairs=pairs, i=i, j=j), known, moving)
        p, seen = self.known.probabilities(scores, lse, pairs, i, j)
        ds = p * ds
        if seen is not None and blocks.has_blind_rows(spec):
            ds = jnp.where(seen, ds, jnp.zeros((), ds.dtype))
        moved = of_values(ds.astype(value.dtype), value) + of_values(p.astype(value.dtype), value_dot)
        return blocks.add_query(sums[0], moved, i), _add_rows(blocks, sums[1], ds.sum(-1), i)


def _add_rows(blocks: Blocks, total: Array, x: Array, i: Array) -> Array:
    """Adds to a block of rows of [B, K, G, T]."""
    return lax.dynamic_update_slice_in_dim(total, blocks.query_block(total, i) + x, i * blocks.query_size, 3)
