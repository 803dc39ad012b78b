"""The primitive nano_conv_general_dilated: lax.conv_general_dilated to every transformation, a kernel where lowered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax import Array
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano import config
from jax_nano.ir.dot import Operand, UnsupportedDot
from jax_nano.jaxpr.convolutions import convolution_of, is_in_order
from jax_nano.jaxpr.primitives import nano_conv_general_dilated_p
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import nano, partial_sum_type, remat_rule, source_of, type_name
from jax_nano.lowering.export import register_lowering
from jax_nano.lowering.partition import Shards, devices_to_partition, partitioned_call, sum_over
from jax_nano.lowering.precision import with_precision
from jax_nano.lowering.sharding import Axes, ShardingRule
from jax_nano.lowering.simple_convolutions import simpler
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
            devices = devices_to_partition(ctx)
            (lhs_array, a), (rhs_array, b) = map(source_of, (lhs, rhs), ctx.avals_in)
            convolution = convolution_of(a, b, ctx.avals_out[0], params)
            if not is_in_order(convolution) and rhs_array != rhs:  # better as it is seen than as it lies
                rhs_array, b = rhs, Operand.row_major(mlir.ir.RankedTensorType(rhs.type).shape, b.dtype)
                convolution = convolution_of(a, b, ctx.avals_out[0], params)
            dot = with_precision(params["precision"], convolution.dot())
            if devices > 1:
                report = Report(equation=equation, problem=dot, otherwise=NAMESAKE)
                return _lower_partitioned(ctx, (lhs, rhs), params, report)
            if others := simpler(params, convolution):
                return mlir.lower_fun(nano(others), multiple_results=False)(ctx, lhs, rhs)
            kernel = kernel_for(dot)
        except UnsupportedDot as reason:
            tell(Report(equation=equation, problem=dot, reason=str(reason), otherwise=NAMESAKE))
            return default(ctx, lhs, rhs, **params)
        tell(Report(equation=equation, problem=dot, kernel=kernel, otherwise=NAMESAKE))
        return custom_call(ctx, kernel, (lhs_array, rhs_array))

    return lower


def _lower_partitioned(
    ctx: mlir.LoweringRuleContext, operands: Sequence[mlir.ir.Value], params: Params, report: Report
) -> Sequence[mlir.ir.Value]:
    """Lowers a convolution that XLA partitions: along the batch and channels, every device runs a kernel."""
    (out,) = ctx.avals_out

    def body(lhs: Array, rhs: Array, *, sums: dict[str, Axes]) -> list[Array]:
        dtype = partial_sum_type(out.dtype) if sums else params["preferred_element_type"]
        shards = params | {"preferred_element_type": dtype, "out_sharding": None}
        known = {name: shards[name] for name in params}
        return [sum_over(nano_conv_general_dilated_p.bind(lhs, rhs, **known), sums).astype(out.dtype)]

    text = f"convolution {sorted((name, str(value)) for name, value in params.items())} {out.dtype}"
    return partitioned_call(ctx, operands, Shards(sharding_rule(params), body, text), report)


def sharding_rule(params: Params) -> ShardingRule:
    """How a convolution may be sharded: windows cross the borders of shards, and so may groups."""
    specs = params["dimension_numbers"]
    channels, batch = params["feature_group_count"] == 1, params["batch_group_count"] == 1
    names = (("batch", "channel"), ("feature", "channel"), ("batch", "feature"))
    if not (channels and batch):
        names = ((names[0][0], "channel"), ("feature", "part"), (names[2][0] if batch else "result", "feature"))
    arrays = []
    for which, (spec, (first, second)) in zip("ikr", zip(specs, names, strict=True), strict=True):
        factors = [""] * len(spec)
        for name, place in zip((first, second, *(f"{which}{i}" for i in range(len(spec)))), spec, strict=False):
            factors[place] = name
        arrays.append(tuple(factors))
    free = {"batch"} if batch else set()
    free |= {"channel", "feature"} if channels and batch else set()
    fixed = tuple(dict.fromkeys(name for factors in arrays for name in factors if name not in free))
    sums = ("channel",) if channels and batch else ()
    return ShardingRule(operands=tuple(arrays[:2]), results=(arrays[2],), sums=sums, fixed=fixed)


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
register_lowering(nano_conv_general_dilated_p, lowering(_as_lax), _as_lax)
