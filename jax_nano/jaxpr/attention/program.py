"""Attention in JAX's own operations: the definition of the primitive."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_nano.ir.attention import MASKED
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.jaxpr.attention.program_evaluation import run_program


def accumulator(dtype: Any) -> Any:
    """The type of scores."""
    return jnp.promote_types(dtype, jnp.float32)


def visible(spec: AttentionSpec, rows: Array, columns: Array, extras: dict[str, Array]) -> Array | None:
    """Which pairs are not masked, broadcast to [B, N, T, S]; None where all are not.

    Args:
      spec: the masks.
      rows: the numbers of the queries.
      columns: the numbers of the keys.
      extras: the mask of these pairs, and lengths.
    """
    i, j = rows[:, None], columns[None, :]
    masks = [extras["mask"]] if spec.mask else []
    if spec.causal:
        masks.append(j <= i)
    if spec.window:
        masks += [j >= i - spec.window[0], j <= i + spec.window[1]]
    if spec.query_lengths:
        masks.append(i < extras["query_lengths"][:, None, None, None])
    if spec.key_lengths:
        masks.append(j < extras["key_lengths"][:, None, None, None])
    return functools.reduce(operator.and_, masks) if masks else None


def dequantized(spec: AttentionSpec, operands: Sequence[Array]) -> tuple[tuple[Array, ...], AttentionSpec]:
    """The operands and parameter of an attention to what quantized keys and values stand for."""
    if not spec.quantized:
        return tuple(operands), spec
    query, *integers = operands[:3]
    *extras, key_scales, value_scales = operands[3:]
    key, value = (
        (x.astype(jnp.float32) * scales[..., None]).astype(query.dtype)
        for x, scales in zip(integers, (key_scales, value_scales), strict=True)
    )
    return (query, key, value, *extras), replace(spec, quantized=False)


def scored(spec: AttentionSpec, scores: Array, rows: Array, columns: Array, extras: dict[str, Array]) -> Array:
    """What the score function makes of scores.

    Args:
      spec: whose function it is.
      scores: scores, whose last two axes are those of queries and of keys.
      rows: the numbers of the queries.
      columns: the numbers of the keys.
      extras: the function's arrays, of these pairs.
    """
    if spec.score is None:
        return scores
    places = rows.astype(jnp.int32)[:, None], columns.astype(jnp.int32)[None, :]
    (out,) = run_program(spec.score.program, [scores, *places, *(extras[name] for name in spec.score_arrays)])
    return jnp.broadcast_to(out, scores.shape)


def definition(
    spec: AttentionSpec,
    query: Array,
    key: Array,
    value: Array,
    *extras: Array,
    score: Callable[..., Array] | None = None,
) -> list[Array]:
    """The results of nano_attention, as jax.nn computes them; with any function of scores and of places."""
    (query, key, value, *rest), spec = dequantized(spec, (query, key, value, *extras))
    named = dict(zip(spec.extras, rest, strict=True))
    b, t, n, h = query.shape
    s, heads, depth = value.shape[1:]
    grouped = query.reshape(b, t, heads, n // heads, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=accumulator(query.dtype))
    scores = scores.reshape(b, n, t, s) * jnp.asarray(spec.scale, scores.dtype)
    if spec.bias:
        scores = scores + named["bias"].astype(scores.dtype)
    scores = scored(spec, scores, jnp.arange(t), jnp.arange(s), named)
    if score is not None:
        scores = score(scores, *(jnp.arange(size, dtype=jnp.int32) for size in scores.shape)).astype(scores.dtype)
    seen = visible(spec, jnp.arange(t), jnp.arange(s), named)
    if seen is not None:
        scores = jnp.where(seen, scores, jnp.asarray(MASKED, scores.dtype))
    probabilities = jax.nn.softmax(scores, axis=-1).astype(value.dtype).reshape(b, heads, n // heads, t, s)
    out = jnp.einsum("bkgts,bskv->btkgv", probabilities, value).reshape(b, t, n, depth)
    if spec.query_lengths:
        is_query = jnp.arange(t)[None, :] < named["query_lengths"][:, None]
        out = jnp.where(is_query[:, :, None, None], out, jnp.zeros((), out.dtype))
    return [out, jax.nn.logsumexp(scores, axis=-1)] if spec.residual else [out]
