"""The primitive nano_attention: its definition to every transformation, one kernel where it is lowered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir, xla

from jax_nano import config
from jax_nano.ir.attention import Attention, BlockArray, ScoreArray
from jax_nano.ir.attention_spec import SCALES, AttentionSpec
from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.jaxpr.attention.backward import Backward
from jax_nano.jaxpr.attention.program import accumulator, definition, dequantized
from jax_nano.jaxpr.attention.tangents import tangents
from jax_nano.jaxpr.primitives import nano_attention_p, nano_attention_tangent_p
from jax_nano.jaxpr.varying import like, varying_alike
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import nano, source_of
from jax_nano.lowering.export import register_lowering
from jax_nano.lowering.partition import Shards, devices_to_partition, partitioned_call
from jax_nano.lowering.region import accelerated
from jax_nano.lowering.sharding import GROUPED, Axes, ShardingRule
from jax_nano.lowering.small_loops import check_attention_inline
from jax_nano.runtime.kernels import TURNED_OFF, kernel_for
from jax_nano.runtime.report import Report, tell

TYPES = {"mask": np.bool_, "query_lengths": np.int32, "key_lengths": np.int32}


def _abstract(*operands: Any, spec: AttentionSpec) -> list[ShapedArray]:
    query, _, value, *extras = operands
    for name, x in zip(spec.extras, extras, strict=True):
        if (wanted := TYPES.get(name)) and x.dtype != wanted:
            raise TypeError(f"{name} of an attention is {x.dtype}, and has to be {np.dtype(wanted)}")
    b, t, n, _ = query.shape
    results = [like(query, (b, t, n, value.shape[3]), query.dtype)]
    return [*results, like(query, (b, n, t), accumulator(query.dtype))] if spec.residual else results


def _abstract_tangent(*operands: Any, spec: AttentionSpec) -> list[ShapedArray]:
    return _abstract(*operands[: 3 + len(spec.extras)], spec=spec)


def _jvp(primals: Sequence[Array], moving: Sequence[Any], *, spec: AttentionSpec) -> tuple[list[Array], list[Array]]:
    """Computes the results with a residual, of which the tangents are made."""
    if spec.quantized:
        known = [float0_or(tangent, primal) for primal, tangent in zip(primals, moving, strict=True)]
        return jax.jvp(partial(_attend_dequantized, spec), list(primals), known)
    full = replace(spec, residual=True)
    results = nano_attention_p.bind(*primals, spec=full)
    known = [
        jnp.zeros(primal.shape, primal.dtype) if type(tangent) is ad.Zero else tangent
        for primal, tangent in zip(primals[: spec.differentiable], moving, strict=False)
    ]
    moved = nano_attention_tangent_p.bind(*varying_alike([*primals, *results, *known]), spec=full)
    count = 1 + spec.residual
    return results[:count], moved[:count]


def float0_or(tangent: Any, primal: Array) -> Any:
    """A tangent as jax.jvp takes it."""
    if jnp.issubdtype(primal.dtype, jnp.floating):
        return ad.instantiate_zeros(tangent)
    return np.zeros(primal.shape, jax.dtypes.float0)


def _attend_dequantized(spec: AttentionSpec, *operands: Array) -> list[Array]:
    """Attention to the arrays that integers stand for, for its derivatives."""
    operands, spec = dequantized(spec, operands)
    return nano_attention_p.bind(*operands, spec=spec)


def _jvp_of_tangent(primals: Sequence[Array], moving: Sequence[Any], *, spec: AttentionSpec):
    known = [ad.instantiate_zeros(tangent) for tangent in moving]
    return jax.jvp(nano(partial(tangents, spec)), list(primals), known)


def _transpose(cotangents: Sequence[Any], *operands: Any, spec: AttentionSpec) -> list[Any]:
    count = 3 + len(spec.extras)
    given, results, moving = operands[:count], operands[count : count + 2], operands[count + 2 :]
    wanted = tuple(map(ad.is_undefined_primal, moving))
    known = [ad.instantiate_zeros(x) for x in cotangents]
    return [None] * (count + 2) + _gradients(Backward(spec, wanted), list(given), list(results), known)


@partial(jax.jit, static_argnums=0, inline=True)
@accelerated
def _gradients(
    backward: Backward, operands: list[Array], results: list[Array], cotangents: list[Array]
) -> list[Array | None]:
    return backward(operands, results, cotangents)


def _batch(arrays: Sequence[Array], axes: Sequence[int | None], *, spec: AttentionSpec, primitive: Any):
    """Makes one dimension of the batch and the one that is mapped over."""
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    broadcast = [False] * 3 + [spec.is_of_scores(name) for name in spec.extras]
    if primitive is nano_attention_tangent_p:
        broadcast += [False] * 5 + [True] * (spec.differentiable - 3)
    results = primitive.bind(*joined_batch(arrays, axes, size, broadcast), spec=spec)
    return [x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in results], [0] * len(results)


def joined_batch(
    arrays: Sequence[Array], axes: Sequence[int | None], size: int, broadcast: Sequence[bool]
) -> list[Array]:
    """Operands whose first dimension runs over a mapped one and the batch.

    Args:
      arrays: the operands, queries first.
      axes: which of their dimensions is mapped over.
      size: of that.
      broadcast: which of them broadcast to the scores, and stay as they are where none of these is mapped over.
    """
    stays = not any(is_score and axis is not None for is_score, axis in zip(broadcast, axes, strict=True))
    batch = jnp.moveaxis(arrays[0], axes[0], 0).shape[1] if axes[0] is not None else arrays[0].shape[0]
    return [
        x if is_score and stays and x.shape[0] == 1 else _joined(x, axis, (size, batch))
        for x, axis, is_score in zip(arrays, axes, broadcast, strict=True)
    ]


def _joined(x: Array, axis: int | None, sizes: tuple[int, int]) -> Array:
    """An array whose first dimension runs over a mapped one and the batch."""
    moved = x[None] if axis is None else jnp.moveaxis(x, axis, 0)
    return jnp.broadcast_to(moved, (*sizes, *moved.shape[2:])).reshape(-1, *moved.shape[2:])


for _primitive, _rule, _derivative in (
    (nano_attention_p, _abstract, _jvp),
    (nano_attention_tangent_p, _abstract_tangent, _jvp_of_tangent),
):
    _primitive.def_impl(partial(xla.apply_primitive, _primitive))
    _primitive.def_abstract_eval(_rule)
    ad.primitive_jvps[_primitive] = _derivative
    batching.primitive_batchers[_primitive] = partial(_batch, primitive=_primitive)
ad.primitive_transposes[nano_attention_tangent_p] = _transpose


def attend(*operands: Array, spec: AttentionSpec) -> list[Array]:
    """The results of nano_attention."""
    return nano_attention_p.bind(*varying_alike(operands), spec=spec)


def by_query(x: Operand, group: int) -> tuple[int, int, int, int, int]:
    """The strides of [B, T, N, H] over (b, h, g, t, d)."""
    batch, row, head, column = x.strides
    return batch, group * head, head, row, column


def by_key(x: Operand) -> tuple[int, int, int, int]:
    """The strides of [B, S, K, H] over (b, h, s, d)."""
    batch, row, head, column = x.strides
    return batch, head, row, column


def of_scores(x: Operand, group: int) -> ScoreArray:
    """An array that broadcasts to the scores, [B, N, T, S]."""
    strides = (stride if size > 1 else 0 for size, stride in zip(x.shape, x.strides, strict=True))
    batch, head, row, column = strides
    return ScoreArray(dtype=x.dtype, elements=x.elements, strides=(batch, group * head, head, row, column))


def describe(spec: AttentionSpec, sources: Sequence[Operand], out: Operand) -> Attention:
    """The attention of operands as they lie in memory, [B, T, N, H], [B, S, K, H] and so on.

    Raises:
      UnsupportedDot: there is no kernel for it.
    """
    query, key, value, *extras = sources
    b, t, n, h = query.shape
    s, heads, depth = value.shape[1:]
    group = n // max(heads, 1)

    arrays = {name: of_scores(x, group) for name, x in zip(spec.extras, extras, strict=True) if spec.is_of_scores(name)}
    blocks = arrays.pop("blocks", None)

    def of_scales(x: Operand) -> ScoreArray:
        batch, row, head = x.strides
        return ScoreArray(dtype=x.dtype, elements=x.elements, strides=(batch, head, 0, 0, row))

    arrays |= {name: of_scales(x) for name, x in zip(spec.extras, extras, strict=True) if name in SCALES}
    return Attention(
        batch=b, heads=heads, group=group, queries=t, keys=s, depth=h, value_depth=depth, dtype=query.dtype,
        query=by_query(query, group), key=by_key(key), value=by_key(value), out=by_query(out, group),
        scale=float(spec.scale), causal=spec.causal, window=spec.window, bias=arrays.get("bias"),
        score=spec.score, score_arrays=tuple(arrays[name] for name in spec.score_arrays),
        mask=arrays.get("mask"),
        blocks=BlockArray(queries=spec.blocks[0], keys=spec.blocks[1], elements=blocks.elements, strides=blocks.strides)
        if spec.blocks and blocks else None,
        query_lengths=spec.query_lengths, key_lengths=spec.key_lengths,
        key_scales=arrays.get("key_scales"), value_scales=arrays.get("value_scales"), residual=spec.residual,
    )  # fmt: skip


def row_major(value: mlir.ir.Value, aval: Any) -> tuple[mlir.ir.Value, Operand]:
    """An operand as it lies in memory where nothing is read through."""
    return value, Operand.row_major(aval.shape, dtype_name(aval.dtype))


def _lower(ctx: mlir.LoweringRuleContext, *operands: mlir.ir.Value, spec: AttentionSpec) -> Any:
    avals: Any = ctx.avals_in
    equation = "attention of " + ", ".join(f"{dtype_name(x.dtype)}{[*x.shape]}" for x in avals)
    problem = None
    try:
        if not config.enabled():
            raise UnsupportedDot(TURNED_OFF)
        devices = devices_to_partition(ctx)
        check_attention_inline()
        if devices > 1:
            check_sharding(spec)
        names = ("query", "key", "value", *spec.extras)
        found = [
            row_major(x, aval) if name in (*spec.score_arrays, "blocks") else source_of(x, aval)
            for name, x, aval in zip(names, operands, avals, strict=True)
        ]
        arrays, sources = zip(*found, strict=True)
        out = Operand.row_major(ctx.avals_out[0].shape, dtype_name(ctx.avals_out[0].dtype))
        problem = describe(spec, sources, out)
        kernel = None if devices > 1 else kernel_for(problem)
    except UnsupportedDot as reason:
        tell(Report(equation=equation, problem=problem, reason=str(reason), otherwise="its equations"))
        return _lower_definition(ctx, *operands, spec=spec)
    if devices > 1:
        return _lower_partitioned(ctx, operands, spec, Report(equation=equation, problem=problem))
    assert kernel
    fused = (f"score function {spec.score}",) if spec.score else ()
    tell(Report(equation=equation, problem=problem, kernel=kernel, fused=fused))
    return custom_call(ctx, kernel, arrays)


def _lower_partitioned(
    ctx: mlir.LoweringRuleContext, operands: Sequence[mlir.ir.Value], spec: AttentionSpec, report: Report
) -> Sequence[mlir.ir.Value]:
    """Lowers attention that XLA partitions: along the batch, heads and queries, every device runs a kernel."""

    def body(*arrays: Array, sums: dict[str, Axes]) -> list[Array]:  # noqa: ARG001
        return nano_attention_p.bind(*arrays, spec=spec)

    avals: Any = ctx.avals_in
    rule = sharding_rule(spec, [aval.shape for aval in avals])
    return partitioned_call(ctx, operands, Shards(rule, body, f"attention {spec}"), report)


def check_sharding(spec: AttentionSpec) -> None:
    """Checks that devices may share out an attention.

    Raises:
      UnsupportedDot: they may not.
    """
    parts = {"a score function": spec.score, "a block mask": spec.blocks, "a quantized cache": spec.quantized}
    if names := " and ".join(name for name, is_there in parts.items() if is_there):
        raise UnsupportedDot(f"attention with {names} is not sharded; call it in jax.shard_map")


def sharding_rule(spec: AttentionSpec, shapes: Sequence[tuple[int, ...]]) -> ShardingRule:
    """How attention may be sharded. Queries are numbered where a mask goes by their number: devices get all of them."""
    heads, kv_heads = shapes[0][2], shapes[1][2]
    n = "n" if heads == kv_heads else f"n{GROUPED}g"
    by_place = spec.causal or spec.window is not None or spec.query_lengths
    arrays: list[tuple[str, ...]] = [("b", "t", n, "h"), ("b", "s", "n", "h"), ("b", "s", "n", "v")]
    ones: list[str] = []
    for shape in shapes[3:]:
        names = ("b", n, "t", "s") if len(shape) == 4 else ("b",)
        broadcast = [f"one{len(ones) + i}" for i in range(len(shape))]
        arrays.append(tuple(x if size > 1 else one for x, size, one in zip(names, shape, broadcast, strict=True)))
        ones += broadcast
    results = (("b", "t", n, "v"), ("b", n, "t"))[: 1 + spec.residual]
    fixed = ("s", "h", *(["t"] if by_place else []), *ones)
    sizes = (("g", heads // kv_heads),) if heads != kv_heads else ()
    return ShardingRule(operands=tuple(arrays), results=results, fixed=fixed, sizes=sizes)


def _by_definition(*operands: Array, spec: AttentionSpec) -> list[Array]:
    return definition(spec, *operands)


def _by_tangents(*operands: Array, spec: AttentionSpec) -> list[Array]:
    return tangents(spec, *operands)


_lower_definition = mlir.lower_fun(nano(_by_definition), multiple_results=True)
register_lowering(nano_attention_p, _lower, mlir.lower_fun(_by_definition, multiple_results=True))
mlir.register_lowering(nano_attention_tangent_p, mlir.lower_fun(nano(_by_tangents), multiple_results=True))
