"""The primitive nano_attention_gradient: a scan over blocks to every transformation, a kernel where it is lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir, xla

from jax_nano import config
from jax_nano.ir.attention_gradient import STATISTICS, AttentionGradient, Of
from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.jaxpr.attention.backward import Backward
from jax_nano.jaxpr.primitives import nano_attention_gradient_p
from jax_nano.jaxpr.varying import like
from jax_nano.lowering.attention import by_key, by_query, float0_or, joined_batch, of_scores
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import source_of
from jax_nano.lowering.export import register_lowering
from jax_nano.lowering.partition import check_partitioning
from jax_nano.lowering.region import accelerated
from jax_nano.lowering.small_loops import check_attention_inline
from jax_nano.runtime.kernels import TURNED_OFF, kernel_for
from jax_nano.runtime.report import Report, tell

GIVEN = ("cotangent", *STATISTICS, "average")
"""The operands behind those of the attention."""
PLACES = {"queries": slice(0, 1), "keys": slice(1, 3), "bias": slice(3, 4)}
"""Of which operands the gradients are."""


def _abstract(*operands: Any, spec: AttentionSpec, of: Of) -> list[ShapedArray]:  # noqa: ARG001
    return [like(x, x.shape, x.dtype) for x in operands[PLACES[of]]]


def by_blocks(*operands: Array, spec: AttentionSpec, of: Of) -> list[Array]:
    """The gradients by a scan over blocks, in JAX's own operations."""
    wanted = tuple(i in range(4)[PLACES[of]] for i in range(3 + spec.bias))
    arrays, (out_ct, lse, delta, *_) = operands[: -len(GIVEN)], operands[-len(GIVEN) :]
    found = Backward(spec, wanted).by_blocks(arrays, (out_ct, lse, delta))
    return [x for x in found if x is not None]


def _jvp(primals: Sequence[Array], moving: Sequence[Any], *, spec: AttentionSpec, of: Of):
    results = nano_attention_gradient_p.bind(*primals, spec=spec, of=of)
    known = [float0_or(tangent, primal) for primal, tangent in zip(primals, moving, strict=True)]
    return results, jax.jvp(partial(by_blocks, spec=spec, of=of), list(primals), known)[1]


def _batch(arrays: Sequence[Array], axes: Sequence[int | None], *, spec: AttentionSpec, of: Of):
    """Makes one dimension of the batch and the one that is mapped over.

    The gradient of a bias that is broadcast over the batch is computed for one after the other.
    """
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    bind = partial(nano_attention_gradient_p.bind, spec=spec, of=of)
    if of == "bias" and first_size(arrays[3], axes[3]) != first_size(arrays[0], axes[0]):
        return one_by_one(bind, arrays, axes), [0]
    broadcast = [False] * 3 + [spec.is_of_scores(name) for name in spec.extras] + [False] * len(GIVEN)
    broadcast[3] &= of != "bias"
    joined = joined_batch(arrays, axes, size, broadcast)
    results = bind(*joined)
    return [x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in results], [0] * len(results)


def first_size(x: Array, axis: int | None) -> int:
    """The size of the first dimension that is not mapped over."""
    return x.shape[axis == 0]


def one_by_one(f: Callable[..., list[Array]], arrays: Sequence[Array], axes: Sequence[int | None]) -> list[Array]:
    """The results of a function that is mapped over, in a loop."""
    mapped = [jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True) if axis is not None]

    def of_one(given: list[Array]) -> list[Array]:
        left = list(given)
        return f(*(x if axis is None else left.pop(0) for x, axis in zip(arrays, axes, strict=True)))

    return lax.map(of_one, mapped)


def describe(spec: AttentionSpec, sources: Sequence[Operand], of: Of) -> AttentionGradient:
    """The gradients of operands as they lie in memory.

    Raises:
      UnsupportedDot: there is no kernel for them.
    """
    query, key, value, *extras, cotangent = sources
    b, t, n, h = query.shape
    s, heads, depth = value.shape[1:]
    group = n // max(heads, 1)
    named = dict(zip(spec.extras, extras, strict=True))
    sizes = named["bias"].shape if of == "bias" else (0, 0, t, s)
    if sizes[2:] != (t, s):
        raise UnsupportedDot(f"no kernel adds up gradients of scores to those of a bias {[*sizes]}, but of {t} x {s}")
    return AttentionGradient(
        batch=b, heads=heads, group=group, queries=t, keys=s, depth=h, value_depth=depth, dtype=query.dtype,
        query=by_query(query, group), key=by_key(key), value=by_key(value),
        out=by_query(Operand.row_major(query.shape, query.dtype), group), scale=float(spec.scale),
        causal=spec.causal, window=spec.window,
        bias=of_scores(named["bias"], group) if spec.bias else None,
        mask=of_scores(named["mask"], group) if spec.mask else None,
        query_lengths=spec.query_lengths, key_lengths=spec.key_lengths,
        of=of, cotangent=by_query(cotangent, group), bias_sizes=(sizes[0], sizes[1]),
    )  # fmt: skip


def _lower(ctx: mlir.LoweringRuleContext, *operands: mlir.ir.Value, spec: AttentionSpec, of: Of) -> Any:
    avals: Any = ctx.avals_in
    types = ", ".join(f"{dtype_name(x.dtype)}{[*x.shape]}" for x in avals[:3])
    equation = f"gradients of {of} of attention of {types}"
    problem = None
    try:
        if not config.enabled():
            raise UnsupportedDot(TURNED_OFF)
        check_partitioning(ctx)
        check_attention_inline()
        count = 4 + len(spec.extras)
        found = [source_of(x, aval) for x, aval in zip(operands[:count], avals[:count], strict=True)]
        arrays, sources = zip(*found, strict=True)
        problem = describe(spec, sources, of)
        kernel = kernel_for(problem)
    except UnsupportedDot as reason:
        tell(Report(equation=equation, problem=problem, reason=str(reason), otherwise="a scan over blocks"))
        return _lower_by_blocks(ctx, *operands, spec=spec, of=of)
    tell(Report(equation=equation, problem=problem, kernel=kernel))
    named = dict(zip(GIVEN, zip(operands[count - 1 :], avals[count - 1 :], strict=True), strict=True))
    roles = [array.role for array in problem.arrays]
    rest = [named[role] for role in GIVEN[1:] if role in roles]
    ctx = ctx.replace(avals_in=[*avals[:count], *(aval for _, aval in rest)])
    return custom_call(ctx, kernel, [*arrays, *(x for x, _ in rest)])


nano_attention_gradient_p.def_impl(partial(xla.apply_primitive, nano_attention_gradient_p))
nano_attention_gradient_p.def_abstract_eval(_abstract)
ad.primitive_jvps[nano_attention_gradient_p] = _jvp
batching.primitive_batchers[nano_attention_gradient_p] = _batch
_lower_by_blocks = mlir.lower_fun(accelerated(by_blocks), multiple_results=True)
register_lowering(nano_attention_gradient_p, _lower, mlir.lower_fun(by_blocks, multiple_results=True))
