"""The attention that users call: jax.nn.dot_product_attention, as one kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jax_nano import config
from jax_nano.api.products import hashable
from jax_nano.ir.attention import MASKED
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.ir.dtypes import dtype_name
from jax_nano.ir.program import Unfusable
from jax_nano.ir.score_function import ScoreFunction
from jax_nano.jaxpr.attention.block_masks import BlockMask
from jax_nano.jaxpr.attention.program import accumulator, definition
from jax_nano.jaxpr.attention.score_reader import Score, mapped, read_score
from jax_nano.lowering import attention_gradient as attention_gradient  # the rules of what derivatives become
from jax_nano.lowering.attention import attend
from jax_nano.lowering.dot_general import nano
from jax_nano.runtime.report import Report, tell
from jax_nano.weights.cache import QuantizedCache

STATIC = ("scale", "is_causal", "local_window_size", "implementation", "return_residual")


def dot_product_attention(  # noqa: PLR0913  its namesake's
    query: ArrayLike,
    key: ArrayLike | QuantizedCache,
    value: ArrayLike | QuantizedCache,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    score: Score | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: bool = False,
) -> Any:
    """Computes softmax(scale * query @ key^T + bias, masked) @ value, for each head: jax.nn.dot_product_attention.

    One kernel computes it, without memory for the scores, and skips what masks by place rule out.

    Args:
      query: (B, T, N, H) or (T, N, H).
      key: (B, S, K, H) or (S, K, H); N is a multiple of K, and query heads share those of keys in groups of N / K.
        One that jax_nano.quantize_cache made is read as it is, where `value` is one as well.
      value: as `key`.
      bias: added to scaled scores; broadcasts to (B, N, T, S).
      mask: truth values that broadcast to that; pairs that have False are masked.
      score: what becomes of scores with their bias, before masks: an elementwise function of (score, batch, head,
        query, key), a floating-point number and the int32 numbers of its place, in JAX's operations. It may index
        arrays by these numbers, slopes[head] or ids[batch, query], or close over arrays that broadcast to
        (B, N, T, S). Arrays have gradients. What depends on the score, or on both query and key, runs in the kernel.
      block_mask: which pairs see each other, and which blocks of them are never computed: of jax_nano.block_mask.
      scale: by default 1 / sqrt(H). One that is computed within a program runs as in jax.nn.
      is_causal: keys behind the query's own place are masked.
      query_seq_lengths: int32 (B,); rows of the result behind so many are zero.
      key_value_seq_lengths: int32 (B,); keys behind so many are masked.
      local_window_size: how many keys before and behind the query's own place are not masked; one number for both.
      implementation: None or "xla"; "cudnn" means what it means to jax.nn.
      return_residual: whether the logarithms of the sums of exponentials are returned, too.

    Returns:
      An array of query's shape; or that and the residual, (B, T, N) or (T, N). A row whose keys are all masked has the
      average of all values, as in jax.nn.

    Raises:
      ValueError: shapes or types do not go together.
      TypeError: `score` is not elementwise.
    """
    arrays = (query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    arrays = tuple(jnp.asarray(x) if isinstance(x, (list, tuple)) else x for x in arrays)
    options = (scale, is_causal, local_window_size, implementation, return_residual)
    params = {name: _static(value) for name, value in zip(STATIC, options, strict=True)}
    if score is not None or block_mask is not None:
        return _attend_scored(score, block_mask, *arrays, **params)
    is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((arrays, scale)))
    if is_traced or isinstance(scale, jax.Array) or not config.enabled():
        return _attend(*arrays, **params)
    return _compiled(*arrays, **params)


def _static(x: Any) -> Any:
    """An option that JIT can remember programs by: numbers that are known, and tuples of them."""
    if isinstance(x, (np.ndarray, np.generic)) or (isinstance(x, Array) and x.dtype == bool):
        return x if isinstance(x, Tracer) else hashable(np.asarray(x).tolist())
    return hashable(x)


def _attend(
    *arrays: Any, score: ScoreFunction | None = None, blocks: tuple[int, int] | None = None, **params: Any
) -> Any:
    query, key, value, bias, mask, query_lengths, key_lengths, *rest = arrays
    namesake: Any = partial(
        jax.nn.dot_product_attention, query_seq_lengths=query_lengths, key_value_seq_lengths=key_lengths, **params
    )
    result = jax.eval_shape(namesake, query, *map(_type, (key, value)), bias, mask)  # raises what it raises
    if score is None and not config.enabled():
        return namesake(query, *map(jnp.asarray, (key, value)), bias, mask)
    why_not_broadcast = _why_not_broadcast((query, key), {"bias": bias, "mask": mask})
    if score is not None and why_not_broadcast:
        raise ValueError(f"with a score function, {why_not_broadcast}; repeat queries, keys and values")
    if reason := "" if score is not None else _why_not(query, params) or why_not_broadcast:
        _tell(reason, query, key, value)
        return nano(namesake)(query, *map(jnp.asarray, (key, value)), bias, mask)
    operands, spec = _operands(arrays[:7], params)
    if score is not None:
        spec = replace(spec, score=score, blocks=blocks)
        operands |= dict(zip((*spec.score_arrays, *(["blocks"] if blocks else [])), rest, strict=True))
    query, key, value = (operands[name] for name in ("query", "key", "value"))
    return _results(attend(query, key, value, *(operands[name] for name in spec.extras), spec=spec), result)


_compiled = functools.wraps(_attend)(jax.jit(_attend, static_argnames=(*STATIC, "score", "blocks")))


def _operands(arrays: Sequence[Any], params: dict[str, Any]) -> tuple[dict[str, Array], AttentionSpec]:
    """The operands of the primitive by name, but those of a score function, and its parameter."""
    query, key, value, bias, mask, query_lengths, key_lengths = arrays
    scales: dict[str, Array] = {}
    if is_quantized := isinstance(key, QuantizedCache) and isinstance(value, QuantizedCache):
        scales = {"key_scales": _in_batches(key.scales, 3), "value_scales": _in_batches(value.scales, 3)}
        key, value = key.values, value.values
    of_rank_four = {"query": query, "key": key, "value": value, "bias": bias, "mask": mask}
    operands = {name: _in_batches(x) for name, x in of_rank_four.items() if x is not None}
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths}
    operands |= {name: jnp.asarray(x) for name, x in lengths.items() if x is not None}
    spec = AttentionSpec(
        scale=_scale(params["scale"], operands["query"].shape[-1]),
        causal=params["is_causal"],
        window=_window(params["local_window_size"], operands["query"].shape[1] + operands["key"].shape[1]),
        residual=params["return_residual"],
        quantized=is_quantized,
    )
    operands |= scales
    return operands, spec.with_operands(operands)


def _results(found: list[Array], like: Any) -> Any:
    """The results of the primitive as those of the function, whose shapes and types are given."""
    out, *residual = found
    if not residual:
        return out.reshape(like.shape)
    lse = lax.stop_gradient(residual[0].transpose(0, 2, 1).astype(like[1].dtype))
    return out.reshape(like[0].shape), lse.reshape(like[1].shape)


def _attend_scored(score: Score | None, block_mask: BlockMask | None, *arrays: Any, **params: Any) -> Any:
    """Attention with a score function, which is read here: equal ones share one program, whichever object they are."""
    query, key, value, bias, mask, *lengths = arrays
    scale = params["scale"]
    if isinstance(scale, jax.Array):
        score, params = scaled(score, scale), params | {"scale": 1.0}
    if params["implementation"] == "cudnn":
        raise ValueError("cuDNN takes no score function; give implementation=None")
    namesake: Any = partial(
        jax.nn.dot_product_attention, query_seq_lengths=lengths[0], key_value_seq_lengths=lengths[1], **params
    )
    result = jax.eval_shape(namesake, query, *map(_type, (key, value)), bias, mask)  # raises what it raises
    (b, t, n, _), s = _in_batches(query).shape, jnp.shape(key)[-3]
    shape, dtype = (b, n, t, s), accumulator(jnp.result_type(query))
    try:
        function, more = read_score(score, shape, dtype) if score else (ScoreFunction.identity(dtype_name(dtype)), [])
    except Unfusable as reason:
        assert score
        _tell(f"of the score function, {reason}", query, key, value)
        operands, spec = _operands(arrays, params)
        run = partial(definition, spec, score=mapped(block_mask.hiding(score) if block_mask else score))
        query, key, value = (operands[name] for name in ("query", "key", "value"))
        return _results(nano(run)(query, key, value, *(operands[name] for name in spec.extras)), result)
    if block_mask is not None:
        block_mask.check(shape)
        function, order = function.masked(block_mask.function, MASKED)
        more = [[*more, *block_mask.arrays][i] for i in order] + [block_mask.blocks]
        params["blocks"] = block_mask.size
    is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((arrays, more)))
    return (_attend if is_traced else _compiled)(*arrays, *more, score=function, **params)


def scaled(score: Score | None, scale: Array) -> Score:
    """A score function of scores that are not scaled yet."""

    def of_products(product: Array, *place: Array) -> Array:
        return score(product * scale, *place) if score else product * scale

    return functools.wraps(score)(of_products) if score else of_products


def _tell(reason: str, *arrays: Any) -> None:
    """Tells why no kernel runs."""
    equation = "attention of " + ", ".join(str(jax.typeof(x)) for x in arrays)
    tell(Report(equation=equation, reason=reason, otherwise="its equations"))


def _why_not(query: Any, params: dict[str, Any]) -> str:
    """Says why no kernel computes it, as far as that is seen before it is lowered."""
    if isinstance(params["scale"], jax.Array):
        return "its scale is computed at run time; multiply the queries by it, and give scale=1"
    if params["implementation"] == "cudnn":
        return "cuDNN is asked for"
    if not all(isinstance(size, int) for size in jnp.shape(query)):
        return "its shape is symbolic; kernels are made for known sizes"
    return ""


def _why_not_broadcast(arrays: tuple[Any, Any], scores: dict[str, Any]) -> str:
    """Says which of the arrays that are beside the scores is larger than those: jax.nn repeats keys for it."""
    (batch, queries, heads, _), (_, keys, _, _) = ((1,) * (4 - jnp.ndim(x)) + jnp.shape(x) for x in arrays)
    sizes = batch, heads, queries, keys
    for name, x in scores.items():
        shape = (1,) * (4 - jnp.ndim(x)) + jnp.shape(x) if x is not None else ()
        if any(size not in (1, whole) for size, whole in zip(shape, sizes, strict=False)):
            return f"its {name} of {list(shape)} does not broadcast to scores of {list(sizes)}"
    return ""


def _in_batches(x: ArrayLike, ndim: int = 4) -> Array:
    """An array of four dimensions, or so many, with leading ones where there are fewer."""
    x = jnp.asarray(x)
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _type(x: Any) -> Any:
    """The shape and type of an array, or of that which a quantized one stands for."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, QuantizedCache) else x


def _scale(scale: float | None, depth: int) -> float:
    """The scale, which jax.nn rounds to the scores' type."""
    return float(1.0 / np.sqrt(depth)) if scale is None else float(scale)


def _window(window: int | tuple[int, int] | None, most: int) -> tuple[int, int] | None:
    """The sides of a window, none of which is beyond all places: kernels add them to those in 32 bits."""
    if window is None:
        return None
    left, right = (window, window) if isinstance(window, int) else window
    return max(-most, min(int(left), most)), max(-most, min(int(right), most))
