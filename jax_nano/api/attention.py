"""The attention that users call: jax.nn.dot_product_attention, as one kernel."""

from __future__ import annotations

import functools
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
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.lowering import attention_gradient as attention_gradient  # the rules of what derivatives become
from jax_nano.lowering.attention import attend
from jax_nano.lowering.dot_general import nano
from jax_nano.runtime.report import Report, tell

STATIC = ("scale", "is_causal", "local_window_size", "implementation", "return_residual")


def dot_product_attention(  # noqa: PLR0913  its namesake's
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
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
      value: as `key`.
      bias: added to scaled scores; broadcasts to (B, N, T, S).
      mask: truth values that broadcast to that; pairs that have False are masked.
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
    """
    arrays = (query, key, value, bias, mask, query_seq_lengths, key_value_seq_lengths)
    arrays = tuple(jnp.asarray(x) if isinstance(x, (list, tuple)) else x for x in arrays)
    options = (scale, is_causal, local_window_size, implementation, return_residual)
    params = {name: _static(value) for name, value in zip(STATIC, options, strict=True)}
    is_traced = any(isinstance(x, Tracer) for x in (*arrays, scale))
    if is_traced or isinstance(scale, jax.Array) or not config.enabled():
        return _attend(*arrays, **params)
    return _compiled(*arrays, **params)


def _static(x: Any) -> Any:
    """An option that JIT can remember programs by: numbers that are known, and tuples of them."""
    if isinstance(x, (np.ndarray, np.generic)) or (isinstance(x, Array) and x.dtype == bool):
        return x if isinstance(x, Tracer) else hashable(np.asarray(x).tolist())
    return hashable(x)


def _attend(*arrays: Any, **params: Any) -> Any:
    query, key, value, bias, mask, query_lengths, key_lengths = arrays
    namesake: Any = partial(
        jax.nn.dot_product_attention, query_seq_lengths=query_lengths, key_value_seq_lengths=key_lengths, **params
    )
    result = jax.eval_shape(namesake, query, key, value, bias, mask)  # raises what it raises
    if not config.enabled():
        return namesake(query, key, value, bias, mask)
    if reason := _why_not(query, params) or _why_not_broadcast((query, key), {"bias": bias, "mask": mask}):
        equation = "attention of " + ", ".join(str(jax.typeof(x)) for x in (query, key, value))
        tell(Report(equation=equation, reason=reason, otherwise="its equations"))
        return nano(namesake)(query, key, value, bias, mask)
    query, key, value = map(_in_batches, (query, key, value))
    scores = {"bias": bias, "mask": mask}
    extras = {name: _in_batches(x) for name, x in scores.items() if x is not None}
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths}
    extras |= {name: jnp.asarray(x) for name, x in lengths.items() if x is not None}
    spec = AttentionSpec(
        scale=_scale(params["scale"], query.shape[-1]),
        causal=params["is_causal"],
        window=_window(params["local_window_size"], query.shape[1] + key.shape[1]),
        residual=params["return_residual"],
        **dict.fromkeys(extras, True),
    )
    out, *residual = attend(query, key, value, *(extras[name] for name in spec.extras), spec=spec)
    if not residual:
        return out.reshape(result.shape)
    lse = lax.stop_gradient(residual[0].transpose(0, 2, 1).astype(key.dtype))
    return out.reshape(result[0].shape), lse.reshape(result[1].shape)


_compiled = functools.wraps(_attend)(jax.jit(_attend, static_argnames=STATIC))


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


def _in_batches(x: ArrayLike) -> Array:
    """An array of four dimensions, with leading ones where there are fewer."""
    x = jnp.asarray(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _scale(scale: float | None, depth: int) -> float:
    """The scale, which jax.nn rounds to the scores' type."""
    return float(1.0 / np.sqrt(depth)) if scale is None else float(scale)


def _window(window: int | tuple[int, int] | None, most: int) -> tuple[int, int] | None:
    """The sides of a window, none of which is beyond all places: kernels add them to those in 32 bits."""
    if window is None:
        return None
    left, right = (window, window) if isinstance(window, int) else window
    return max(-most, min(int(left), most)), max(-most, min(int(right), most))
