"""The primitive nano_conv_general_dilated: lax.conv_general_dilated to every transformation, a kernel where lowered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano import config
from jax_nano.ir.dot import Operand, UnsupportedDot
from jax_nano.jaxpr.convolutions import convolution_of, is_in_order
from jax_nano.jaxpr.primitives import nano_conv_general_dilated_p
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import check_partitioning, nano, remat_rule, source_of, type_name
from jax_nano.lowering.precision import with_precision
from jax_nano.lowering.simple_convolutions import simpler
from jax_nano.lowering.xla_convolution import check_convolution
from jax_nano.runtime.kernels import TURNED_OFF, kernel_for
from jax_nano.runtime.report import Report, tell

NAMESAKE = "lax.conv_general_dilated"
Params = dict[str, Any]

nano_conv_general_dilated_p.def_impl(partial(xla.apply_primitive, nano_conv_general_dilated_p))
nano_conv_general_dilated_p.def_effectful_abstract_eval(conv_general_dilated_p.abstract_eval)
# JAX's own rules, in which every convolution is ours.
batching.fancy_primitive_batchers[nano_conv_general_dilated_p] = nano(
    batching.fancy_primitive_batchers[conv_general_dilated_p]
)
ad.primitive_jvps[nano_conv_general_dilated_p] = nano(ad.primitive_jvps[conv_general_dilated_p])
ad.primitive_transposes[nano_conv_general_dilated_p] = nano(ad.primitive_transposes[conv_general_dilated_p])
partial_eval.partial_eval_jaxpr_custom_rules[nano_conv_general_dilated_p] = remat_rule(lambda eqn: eqn)


def lowering(default: mlir.LoweringRule) -> mlir.LoweringRule:
    """The CPU lowering rule of a convolution: the custom call of its kernel, or `default` where it has none.

    One that is several, or that has to be seen otherwise, is lowered as those.
    """

    def lower(ctx: mlir.LoweringRuleContext, lhs: mlir.ir.Value, rhs: mlir.ir.Value, **params: Any):
        equation = equation_of((*ctx.avals_in, *ctx.avals_out), params)
        dot = None
        try:
            if not config.enabled():
                raise UnsupportedDot(TURNED_OFF)
            check_partitioning(ctx)
            (lhs_array, a), (rhs_array, b) = map(source_of, (lhs, rhs), ctx.avals_in)
            convolution = convolution_of(a, b, ctx.avals_out[0], params)
            if not is_in_order(convolution) and rhs_array != rhs:  # better as it is seen than as it lies
                rhs_array, b = rhs, Operand.row_major(mlir.ir.RankedTensorType(rhs.type).shape, b.dtype)
                convolution = convolution_of(a, b, ctx.avals_out[0], params)
            dot = with_precision(params["precision"], convolution.dot())
            if others := simpler(params, convolution):
                return mlir.lower_fun(nano(others), multiple_results=False)(ctx, lhs, rhs)
            kernel = kernel_for(dot)
            check_convolution(dot, kernel, params)
        except UnsupportedDot as reason:
            tell(Report(equation=equation, problem=dot, reason=str(reason), otherwise=NAMESAKE))
            return default(ctx, lhs, rhs, **params)
        tell(Report(equation=equation, problem=dot, kernel=kernel, otherwise=NAMESAKE))
        return custom_call(ctx, kernel, (lhs_array, rhs_array))

    return lower


def equation_of(avals: Sequence[Any], params: Params) -> str:
    """A convolution of operands and a result of these types, in words."""
    lhs, rhs, out = map(type_name, avals)
    words = [f"{lhs} conv {rhs} -> {out}", f"strides {list(params['window_strides'])}"]
    words.append(f"padding [{', '.join(f'({low}, {high})' for low, high in params['padding'])}]")
    words += [
        f"{name.replace('_', ' ')} {list(params[name])}" for name in ("lhs_dilation", "rhs_dilation")
        if any(count != 1 for count in params[name])
    ]  # fmt: skip
    words += [
        f"{params[name]} {name.replace('_group_count', '')} groups"
        for name in ("feature_group_count", "batch_group_count") if params[name] != 1
    ]  # fmt: skip
    return ", ".join(words)


_as_lax = mlir.lower_fun(conv_general_dilated_p.bind, multiple_results=False)
# Not cacheable: a cached lowering is a function of its own, which cannot see that an operand is a transpose.
mlir.register_lowering(nano_conv_general_dilated_p, _as_lax, cacheable=False)
mlir.register_lowering(nano_conv_general_dilated_p, lowering(_as_lax), platform="cpu")
