"""The primitive nano_ragged_dot_general: lax.ragged_dot_general to every transformation, a kernel where it is lowered.

A ragged batch dimension makes no difference to the result, so there it is a product like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import lax
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano import config
from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.ir.grouped import Grouped
from jax_nano.jaxpr.grouped import GroupedDimensions, grouped_of
from jax_nano.jaxpr.primitives import nano_ragged_dot_general_p
from jax_nano.jaxpr.private import ragged_dot_general_p
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import check_partitioning, nano, remat_rule, source_of, type_name
from jax_nano.lowering.precision import with_precision
from jax_nano.runtime.kernels import TURNED_OFF, kernel_for
from jax_nano.runtime.report import Report, tell

NAMESAKE = "lax.ragged_dot_general"

nano_ragged_dot_general_p.def_impl(partial(xla.apply_primitive, nano_ragged_dot_general_p))
nano_ragged_dot_general_p.def_effectful_abstract_eval(ragged_dot_general_p.abstract_eval)
# JAX's own rules, in which every product is ours.
batching.fancy_primitive_batchers[nano_ragged_dot_general_p] = nano(
    batching.fancy_primitive_batchers[ragged_dot_general_p]
)
ad.primitive_jvps[nano_ragged_dot_general_p] = nano(ad.primitive_jvps[ragged_dot_general_p])
ad.primitive_transposes[nano_ragged_dot_general_p] = nano(ad.primitive_transposes[ragged_dot_general_p])
partial_eval.partial_eval_jaxpr_custom_rules[nano_ragged_dot_general_p] = remat_rule(lambda eqn: eqn)


def lowering(default: mlir.LoweringRule) -> mlir.LoweringRule:
    """The CPU lowering rule: the custom call of a kernel, or `default` where there is none."""

    def lower(ctx: mlir.LoweringRuleContext, *operands: mlir.ir.Value, **params: Any) -> Any:
        equation, problem = equation_of(ctx, params), None
        try:
            if not config.enabled():
                raise UnsupportedDot(TURNED_OFF)
            check_partitioning(ctx)
            if params["group_offset"] is not None:
                raise UnsupportedDot("JAX does not implement group_offset")
            if dimensions(ctx, params).mode == "b":
                return lower_product(ctx, *operands, **params)
            arrays, sources = zip(*map(source_of, operands, ctx.avals_in), strict=True)
            problem = describe(ctx, sources, params)
            kernel = kernel_for(problem)
        except UnsupportedDot as reason:
            tell(Report(equation=equation, problem=problem, reason=str(reason), otherwise=NAMESAKE))
            return default(ctx, *operands, **params)
        tell(Report(equation=equation, problem=problem, kernel=kernel, otherwise=NAMESAKE))
        return custom_call(ctx, kernel, arrays)

    return lower


def dimensions(ctx: mlir.LoweringRuleContext, params: dict[str, Any]) -> GroupedDimensions:
    """The dimensions of what is lowered."""
    lhs, rhs, _ = ctx.avals_in
    return GroupedDimensions.of(params["ragged_dot_dimension_numbers"], len(lhs.shape), len(rhs.shape))


def describe(ctx: mlir.LoweringRuleContext, sources: Any, params: dict[str, Any]) -> Grouped:
    """The grouped product of what is lowered.

    Raises:
      UnsupportedDot: there is no kernel for it.
    """
    (aval,) = ctx.avals_out
    out = Operand.row_major(aval.shape, dtype_name(aval.dtype))
    problem = grouped_of(params["ragged_dot_dimension_numbers"], *sources, out)
    return problem.replace(dot=with_precision(params["precision"], problem.dot))


def lower_product(ctx: mlir.LoweringRuleContext, *operands: mlir.ir.Value, **params: Any) -> Any:
    """Lowers a product with a ragged batch, which is one without."""

    def product(lhs: Any, rhs: Any, _: Any) -> Any:
        numbers = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        return lax.dot_general(
            lhs, rhs, numbers, precision=params["precision"], preferred_element_type=params["preferred_element_type"]
        )

    rule: Callable[..., Any] = mlir.lower_fun(nano(product), multiple_results=False)
    return rule(ctx, *operands)


def equation_of(ctx: mlir.LoweringRuleContext, params: dict[str, Any]) -> str:
    """What is lowered, in words."""
    lhs, rhs, sizes, out = map(type_name, (*ctx.avals_in, *ctx.avals_out))
    (ragged,) = params["ragged_dot_dimension_numbers"].lhs_ragged_dimensions
    (contract, batch) = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    text = f"{lhs} x {rhs} -> {out}, groups of {sizes} along dimension {ragged}"
    text += f", contracting {list(contract[0])} with {list(contract[1])}"
    return f"{text}, batch {list(batch[0])} with {list(batch[1])}" if batch[0] else text


_as_lax = mlir.lower_fun(ragged_dot_general_p.bind, multiple_results=False)
# Not cacheable: a cached lowering is a function of its own, which cannot see that an operand is a transpose.
mlir.register_lowering(nano_ragged_dot_general_p, _as_lax, cacheable=False)
mlir.register_lowering(nano_ragged_dot_general_p, lowering(_as_lax), platform="cpu")
