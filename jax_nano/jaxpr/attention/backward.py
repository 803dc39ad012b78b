"""The gradients of attention: by kernels or, in JAX's own operations, by a scan over blocks; without all scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_nano.ir.attention import MASKED
from jax_nano.ir.attention_gradient import has_gradient_kernels
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.jaxpr.attention.blocks import Blocks
from jax_nano.jaxpr.attention.program import scored
from jax_nano.jaxpr.attention.statistics import RowStatistics
from jax_nano.jaxpr.primitives import nano_attention_gradient_p
from jax_nano.jaxpr.varying import varying_alike

LARGE = 1e4  # of a logarithm of a sum: beside it, f32 holds those of numbers of keys to 5e-4


@dataclass(frozen=True)
class Backward:
    """The gradients of an attention, block of queries by block of keys: probabilities are recomputed.

    p = exp(scores - logsumexp);  dV = p^T dO;  dS = p * (dO V^T - rowsum(dO * O) + dL);  dQ = dS K;  dK = dS^T Q

    Source: Dao et al., "FlashAttention" (arXiv 2205.14135), algorithm 4.
    """

    spec: AttentionSpec
    wanted: tuple[bool, ...]  # of queries, keys, values, bias, and arrays of the score function, whose gradients are

    def __call__(
        self, operands: Sequence[Array], results: Sequence[Array], cotangents: Sequence[Array]
    ) -> list[Array | None]:
        """The gradients, None where none is wanted.

        Args:
          operands: those of nano_attention.
          results: its results.
          cotangents: those of its results.
        """
        spec = self.spec
        query, key, _, *extras = operands
        named = dict(zip(spec.extras, extras, strict=True))
        if 0 in (*query.shape[:3], key.shape[1]):
            given = zip(operands, self.wanted, strict=False)
            return [jnp.zeros_like(x) if wanted else None for x, wanted in given]
        out_ct, lse_ct = cotangents
        acc, lse = lse_ct.dtype, results[1]
        if spec.query_lengths:
            is_query = jnp.arange(query.shape[1])[None, :] < named["query_lengths"][:, None]
            out_ct = jnp.where(is_query[:, :, None, None], out_ct, jnp.zeros((), out_ct.dtype))
            lse = jnp.where(is_query[:, None, :], lse, jnp.zeros((), acc))
        delta = (out_ct.astype(acc) * results[0].astype(acc)).sum(-1).transpose(0, 2, 1) - lse_ct
        if has_gradient_kernels(spec):
            return self.by_kernels(operands, (out_ct, lse, delta))
        return self.by_blocks(operands, (out_ct, lse, delta))

    def by_kernels(self, operands: Sequence[Array], of_queries: tuple[Array, Array, Array]) -> list[Array | None]:
        """The gradients by the primitive that kernels compute. See `by_blocks`."""
        spec = replace(self.spec, residual=False)
        given = varying_alike([*operands, *of_queries])
        count = len(operands)
        arrays = varying_alike([*given, *self.of_rows(given[:count], given[count:])])
        bind = functools.partial(nano_attention_gradient_p.bind, *arrays, spec=spec)
        (of_query, *of_keys), of_bias = self.wanted[:3], self.wanted[3:]
        found = bind(of="queries") if of_query else [None]
        found += bind(of="keys") if any(of_keys) else [None, None]
        found += bind(of="bias") if any(of_bias) else [None] * len(of_bias)
        return [x if wanted else None for x, wanted in zip(found, self.wanted, strict=True)]

    def of_rows(self, operands: Sequence[Array], of_queries: Sequence[Array]) -> RowStatistics:
        """What kernels are given of rows beside the statistics."""
        spec, key, (out_ct, lse, _) = self.spec, operands[1], of_queries
        rows = RowStatistics.none(out_ct, lse, key.shape[2])
        if spec.bias:
            rows = rows._replace(rest=self.rest(operands, out_ct, lse))
        if Blocks.of(spec, operands[0], key).has_blind_rows(spec):
            rows = rows.with_blind_rows(out_ct, lse, key.shape[1], biased=spec.bias)
        return rows

    def rest(self, operands: Sequence[Array], out_ct: Array, lse: Array) -> Array:
        """The logarithms of what exponentials less the logarithms of sums add up to, [B, N, T].

        They are 0 but for rounding, and so are their derivatives.
        """
        operands, out_ct, lse = jax.tree.map(lax.stop_gradient, (list(operands), out_ct, lse))

        def counted() -> Array:  # all of its work is in the branch
            totals = self.step(operands, (out_ct, lse, lse)).counted()
            return jnp.log(totals.reshape(*lse.shape[:2], -1)[..., : lse.shape[2]])

        nothing, _ = varying_alike([jnp.zeros_like(lse), lse])
        return lax.cond((jnp.abs(lse) > LARGE).any(), counted, lambda: nothing)

    def step(self, operands: Sequence[Array], of_queries: tuple[Array, Array, Array]) -> BackwardStep:
        """A block's step. See `by_blocks`."""
        spec, (query, key, value, *extras), (out_ct, lse, delta) = self.spec, operands, of_queries
        heads, blocks = key.shape[2], Blocks.of(spec, query, key)
        rows = blocks.queries(query, heads), blocks.queries(out_ct, heads)
        stats = blocks.rows(lse, heads), blocks.rows(delta, heads)
        named = dict(zip(spec.extras, extras, strict=True))
        return BackwardStep(spec, blocks, named, (*rows, *stats), (blocks.keys(key), blocks.keys(value)))

    def by_blocks(self, operands: Sequence[Array], of_queries: tuple[Array, Array, Array]) -> list[Array | None]:
        """The gradients by a scan over blocks.

        Args:
          operands: those of nano_attention.
          of_queries: cotangents of the result, logarithms of sums, and what is taken from dP.
        """
        spec, (query, key, value, *extras), (_, lse, delta) = self.spec, operands, of_queries
        step, acc = self.step(operands, of_queries), lse.dtype
        blocks, rows = step.blocks, step.rows
        sums = [jnp.zeros(x.shape, acc) for x in (rows[0], *step.keys)]
        sums += [blocks.score_zeros(x.shape, acc) for x in extras[: spec.differentiable - 3]]
        sums = varying_alike([*sums, delta])
        step = step.with_totals()
        start = [x if wanted else None for x, wanted in zip(sums[:-1], self.wanted, strict=False)]
        found, _ = lax.scan(lambda sums, pair: (step(sums, *pair), None), start, blocks.pairs(spec))
        back = [blocks.queries_back, blocks.keys_back, blocks.keys_back, *[blocks.scores_back] * len(extras)]
        pairs = zip(back, found, (query, key, value, *extras), strict=False)
        return [None if x is None else of(x, like) for of, x, like in pairs]


@dataclass(frozen=True)
class BackwardStep:
    """What a block of queries and one of keys contribute to the gradients.

    Attributes:
      spec: the attention.
      blocks: the blocks.
      named: bias, mask, lengths, and what belongs to a score function.
      rows: queries, cotangents of the result, logarithms of sums, and what is taken from dP; in blocks of queries.
      keys: keys and values, in blocks of keys.
      totals: what exponentials less the logarithms of sums add up to, where that is not 1.
    """

    spec: AttentionSpec
    blocks: Blocks
    named: dict[str, Array]
    rows: tuple[Array, Array, Array, Array]
    keys: tuple[Array, Array]
    totals: Array | None = None

    def with_totals(self) -> BackwardStep:
        """The step that knows what exponentials add up to, in blocks of queries.

        Beside a logarithm that a bias makes large, or a score function, as in rows whose keys these all hide, that of
        their number is lost.
        """
        if not (self.spec.bias or self.spec.score):
            return self
        named, rows, keys = jax.tree.map(lax.stop_gradient, (self.named, self.rows, self.keys))
        lse, known = rows[2], replace(self, named=named, rows=rows, keys=keys)
        ones, _ = varying_alike([jnp.ones_like(lse), lse])
        return replace(self, totals=lax.cond((jnp.abs(lse) > LARGE).any(), known.counted, lambda: ones))

    def counted(self) -> Array:
        """What exponentials less the logarithms of sums add up to, in blocks of queries; 1 where there are none."""
        lse = self.rows[2]
        zeros, ones, _ = varying_alike([jnp.zeros_like(lse), jnp.ones_like(lse), lse])

        def add(totals: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            i, j = pair
            pairs = self.pairs(i, j)
            scores = self.scores(self.products(i, j), *self.moving(pairs), pairs=pairs, i=i, j=j)
            p, _ = self.probabilities(scores, self.blocks.query_block(lse, i), pairs, i, j)
            return self.blocks.add_query(totals, p.sum(-1), i), None

        totals, _ = lax.scan(add, zeros, self.blocks.pairs(self.spec))
        return jnp.where(totals > 0, totals, ones)

    def __call__(self, sums: Sequence[Array | None], i: Array, j: Array) -> list[Array | None]:
        """Adds it to the sums, unless a block mask hides it."""
        if not self.spec.blocks:
            return self.added(sums, i, j)
        is_visited = self.blocks.is_visited(self.spec.blocks, self.named["blocks"], i, j)
        is_visited |= (self.blocks.query_block(self.rows[2], i) < MASKED / 2).any()
        return lax.cond(is_visited, lambda: self.added(sums, i, j), lambda: list(sums))

    def added(self, sums: Sequence[Array | None], i: Array, j: Array) -> list[Array | None]:
        """The sums with what the blocks contribute."""
        spec, blocks = self.spec, self.blocks
        query, out_ct, lse, delta = (blocks.query_block(x, i) for x in self.rows)
        key, value = (blocks.key_block(x, j) for x in self.keys)
        product = functools.partial(jnp.einsum, preferred_element_type=lse.dtype)
        pairs = self.pairs(i, j)
        of_products = functools.partial(self.scores, pairs=pairs, i=i, j=j)
        scores, pull = jax.vjp(of_products, self.products(i, j), *self.moving(pairs))
        p, seen = self.probabilities(scores, lse, pairs, i, j)
        ds = p * (product("bkgtv,bksv->bkgts", out_ct, value) - delta[..., None])
        if seen is not None and blocks.has_blind_rows(spec):
            ds = jnp.where(seen, ds, jnp.zeros((), ds.dtype))
        ds, *others = pull(ds)
        scaled = (ds * jnp.asarray(spec.scale, ds.dtype)).astype(query.dtype)
        updates: list[Callable[[Array], Array]] = [
            lambda total: blocks.add_query(total, product("bkgts,bksh->bkgth", scaled, key), i),
            lambda total: blocks.add_key(total, product("bkgts,bkgth->bksh", scaled, query), j),
            lambda total: blocks.add_key(total, product("bkgts,bkgtv->bksv", p.astype(value.dtype), out_ct), j),
            *(functools.partial(blocks.add_scores, x=x, i=i, j=j) for x in others),
        ]
        return [None if x is None else update(x) for x, update in zip(sums, updates, strict=False)]

    def products(self, i: Array, j: Array) -> Array:
        """The scaled products of a block of queries and one of keys."""
        query, key = self.blocks.query_block(self.rows[0], i), self.blocks.key_block(self.keys[0], j)
        dtype = self.rows[2].dtype
        return jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=dtype) * jnp.asarray(
            self.spec.scale, dtype
        )

    def pairs(self, i: Array, j: Array) -> dict[str, Array]:
        """The parts of the operands that broadcast to the scores."""
        return {name: self.blocks.score_block(x, i, j) for name, x in self.named.items() if self.spec.is_of_pairs(name)}

    def moving(self, pairs: dict[str, Array]) -> list[Array]:
        """Those of them that have derivatives, in the type of scores."""
        names = self.spec.extras[: self.spec.differentiable - 3]
        return [pairs[name].astype(self.rows[2].dtype) for name in names]

    def scores(self, products: Array, *moving: Array, pairs: dict[str, Array], i: Array, j: Array) -> Array:
        """The scores of a block: of its scaled products, and of the parts of other operands that have derivatives."""
        spec, heads = self.spec, products.shape[1]
        moved = zip(spec.extras, moving, strict=False)
        pairs = pairs | {name: x if name == "bias" else x.astype(pairs[name].dtype) for name, x in moved}
        grouped = {name: self.blocks.grouped(x, heads) for name, x in pairs.items()}
        scores = products + grouped["bias"].astype(products.dtype) if spec.bias else products
        return scored(spec, scores, *self.blocks.places(i, j), grouped)

    def probabilities(
        self, scores: Array, lse: Array, pairs: dict[str, Array], i: Array, j: Array
    ) -> tuple[Array, Array | None]:
        """The probabilities of a block, and which of its pairs are not masked."""
        spec, blocks, heads = self.spec, self.blocks, scores.shape[1]
        seen = blocks.visible(spec, self.named | pairs, i, j)
        if seen is None:
            return self.exponentials(scores, lse, i), None
        seen = blocks.grouped(seen, heads)
        # What is not seen may be far above the logarithm: nothing that becomes infinite may have derivatives.
        p = self.exponentials(jnp.where(seen, scores, lse[..., None]), lse, i)
        zero = jnp.zeros((), p.dtype)
        if not blocks.has_blind_rows(spec):
            return jnp.where(seen, p, zero), seen
        inside = blocks.grouped(blocks.inside(i, j), heads)
        if spec.bias or spec.score:  # hidden pairs may be all that is left beside scores less than theirs
            p = self.exponentials(jnp.where(seen, scores, jnp.asarray(MASKED, p.dtype)), lse, i)
            return jnp.where(inside, p, zero), seen
        average = jnp.where(inside, jnp.asarray(1 / blocks.key_count, p.dtype), zero)
        return jnp.where(lse[..., None] < MASKED / 2, average, jnp.where(seen, p, zero)), seen

    def exponentials(self, scores: Array, lse: Array, i: Array) -> Array:
        """Those of scores less the logarithms of sums, by what they add up to."""
        p = jnp.exp(scores - lse[..., None])
        return p if self.totals is None else p / self.blocks.query_block(self.totals, i)[..., None]
