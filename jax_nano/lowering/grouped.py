"""The primitive nano_ragged_dot_general: lax.ragged_dot_general to every transformation, a kernel where it is lowered.

A ragged batch dimension makes no difference to the result, so there it is a product like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano import config
from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.ir.grouped import Grouped
from jax_nano.jaxpr.grouped.dimensions import GroupedDimensions, grouped_of
from jax_nano.jaxpr.primitives import nano_ragged_dot_general_p
from jax_nano.jaxpr.private import ragged_dot_general_p
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import nano, remat_rule, source_of, type_name
from jax_nano.lowering.export import register_lowering
from jax_nano.lowering.grouped_partition import partition_grouped
from jax_nano.lowering.grouped_rules import Params, batch_rule, product, transpose_sums
from jax_nano.lowering.partition import devices_to_partition, partitioned_call
from jax_nano.lowering.precision import with_precision
from jax_nano.lowering.small_loops import check_inline
from jax_nano.runtime.kernel import Kernel
from jax_nano.runtime.kernels import TURNED_OFF, kernel_for
from jax_nano.runtime.report import Report, tell

NAMESAKE = "lax.ragged_dot_general"

nano_ragged_dot_general_p.def_impl(partial(xla.apply_primitive, nano_ragged_dot_general_p))
nano_ragged_dot_general_p.def_effectful_abstract_eval(ragged_dot_general_p.abstract_eval)


def _transpose(cotangent: Any, lhs: Any, rhs: Any, sizes: Any, **params: Any) -> Any:
    """JAX's own rule, and another one where it has none."""
    dims = _dimensions_of(lhs, rhs, params)
    if dims.mode == "m":
        return ad.primitive_transposes[ragged_dot_general_p](cotangent, lhs, rhs, sizes, **params)
    if dims.mode == "k":
        return transpose_sums(cotangent, lhs, rhs, sizes, **params)
    of_product = {name: params[name] for name in ("precision", "preferred_element_type", "out_sharding")}
    numbers = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    rule = ad.primitive_transposes[dot_general_p]
    return [*rule(cotangent, lhs, rhs, dimension_numbers=numbers, **of_product), None]


def _dimensions_of(lhs: Any, rhs: Any, params: Params) -> GroupedDimensions:
    avals = (x.aval if ad.is_undefined_primal(x) else jax.typeof(x) for x in (lhs, rhs))
    return GroupedDimensions.of(params["ragged_dot_dimension_numbers"], *(len(x.shape) for x in avals))


def _batch(arrays: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    if params["group_offset"] is not None:
        raise NotImplementedError("JAX does not implement group_offset")
    return nano(partial(batch_rule, **params))(arrays, axes)


batching.primitive_batchers[nano_ragged_dot_general_p] = _batch
ad.primitive_jvps[nano_ragged_dot_general_p] = nano(ad.primitive_jvps[ragged_dot_general_p])
ad.primitive_transposes[nano_ragged_dot_general_p] = nano(_transpose)
partial_eval.partial_eval_jaxpr_custom_rules[nano_ragged_dot_general_p] = remat_rule(lambda eqn: eqn)


def lowering(default: mlir.LoweringRule) -> mlir.LoweringRule:
    """The CPU lowering rule: the custom call of a kernel, or `default` where there is none."""

    def lower(ctx: mlir.LoweringRuleContext, *operands: mlir.ir.Value, **params: Any) -> Any:
        equation, problem = equation_of((*ctx.avals_in, *ctx.avals_out), params), None
        try:
            if not config.enabled():
                raise UnsupportedDot(TURNED_OFF)
            devices = devices_to_partition(ctx)
            if params["group_offset"] is not None:
                raise UnsupportedDot("JAX does not implement group_offset")
            if dimensions(ctx, params).mode == "b":
                return lower_product(ctx, *operands, **params)
            check_inline(params, (*ctx.avals_in, *ctx.avals_out))
            if devices > 1:
                return lower_partitioned(ctx, operands, params)
            arrays, problem, kernel = best_kernel(ctx, operands, params)
        except UnsupportedDot as reason:
            tell(Report(equation=equation, problem=problem, reason=str(reason), otherwise=NAMESAKE))
            return default(ctx, *operands, **params)
        tell(Report(equation=equation, problem=problem, kernel=kernel, otherwise=NAMESAKE))
        return custom_call(ctx, kernel, arrays)

    return lower


def lower_partitioned(ctx: mlir.LoweringRuleContext, operands: Sequence[mlir.ir.Value], params: Params) -> Any:
    """Lowers a grouped product that XLA partitions: every device runs a kernel on its shards.

    Raises:
      UnsupportedDot: there is none for the whole.
    """
    avals: Any = ctx.avals_in
    problem = describe(ctx, [Operand.row_major(x.shape, dtype_name(x.dtype)) for x in avals], params)
    shards = partition_grouped(dimensions(ctx, params), avals, ctx.avals_out[0], params)
    report = Report(equation=equation_of((*avals, *ctx.avals_out), params), problem=problem, otherwise=NAMESAKE)
    return partitioned_call(ctx, operands, shards, report)


def best_kernel(
    ctx: mlir.LoweringRuleContext, operands: Sequence[mlir.ir.Value], params: Params
) -> tuple[Sequence[mlir.ir.Value], Grouped, Kernel]:
    """The kernel that reads operands as they lie, or else as XLA transposes them; with its operands.

    Raises:
      UnsupportedDot: there is none.
    """
    arrays, sources = zip(*map(source_of, operands, ctx.avals_in), strict=True)
    try:
        problem = describe(ctx, sources, params)
        return arrays, problem, kernel_for(problem)
    except UnsupportedDot:
        if all(array == operand for array, operand in zip(arrays, operands, strict=True)):
            raise
    avals: Any = ctx.avals_in
    problem = describe(ctx, [Operand.row_major(x.shape, dtype_name(x.dtype)) for x in avals], params)
    return operands, problem, kernel_for(problem)


def dimensions(ctx: mlir.LoweringRuleContext, params: Params) -> GroupedDimensions:
    """The dimensions of what is lowered."""
    avals: Any = ctx.avals_in
    return GroupedDimensions.of(params["ragged_dot_dimension_numbers"], avals[0].ndim, avals[1].ndim)


def describe(ctx: mlir.LoweringRuleContext, sources: Sequence[Operand], params: Params) -> Grouped:
    """The grouped product of what is lowered.

    Raises:
      UnsupportedDot: there is no kernel for it.
    """
    (aval,) = ctx.avals_out
    out = Operand.row_major(aval.shape, dtype_name(aval.dtype))
    lhs, rhs, sizes = sources
    return with_precision(params["precision"], grouped_of(params["ragged_dot_dimension_numbers"], lhs, rhs, sizes, out))


def lower_product(ctx: mlir.LoweringRuleContext, *operands: mlir.ir.Value, **params: Any) -> Any:
    """Lowers a product with a ragged batch, which is one without."""
    rule: Any = mlir.lower_fun(nano(lambda lhs, rhs, _: product(lhs, rhs, params)), multiple_results=False)
    return rule(ctx, *operands)


def equation_of(avals: Sequence[Any], params: Params) -> str:
    """A grouped product of such operands and with such a result, in words."""
    lhs, rhs, sizes, out = map(type_name, avals)
    (ragged,) = params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
    (contract, batch) = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    text = f"{lhs} x {rhs} -> {out}, groups of {sizes} along dimension {ragged}"
    text += f", contracting {list(contract[0])} with {list(contract[1])}"
    return f"{text}, batch {list(batch[0])} with {list(batch[1])}" if batch[0] else text


_as_lax = mlir.lower_fun(ragged_dot_general_p.bind, multiple_results=False)
# Not cacheable: a cached lowering is a function of its own, which cannot see that an operand is a transpose.
register_lowering(nano_ragged_dot_general_p, lowering(_as_lax), _as_lax)
