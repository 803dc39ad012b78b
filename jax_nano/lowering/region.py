"""The primitive nano_region: a product and what is fused with it, and to every transformation the program they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.extend.core import JaxprEqn, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.jaxpr.primitives import CONVOLUTIONS, DOUBLES, GROUPED_PRODUCTS, nano_region_p
from jax_nano.jaxpr.private import ClosedJaxpr
from jax_nano.jaxpr.region import Limits, Region
from jax_nano.jaxpr.region_growth import UNREADABLE
from jax_nano.jaxpr.rewrite import PrimitiveRewrite
from jax_nano.lowering import convolution, grouped
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import equation_of, nano, remat_rule
from jax_nano.lowering.experimental import register_jet_rules, register_sparse_rules
from jax_nano.lowering.export import register_lowering
from jax_nano.lowering.partition import check_partitioning, devices_to_partition, partitioned_call
from jax_nano.lowering.passes import WHOLE_PASSES, run_passes
from jax_nano.lowering.precision import with_precision
from jax_nano.lowering.region_partition import partition_region
from jax_nano.lowering.small_loops import check_inline
from jax_nano.runtime.kernels import kernel_for, prepare
from jax_nano.runtime.report import Report, reports, tell

Kernels = tuple[tuple[Dot | Grouped | Gated, Any], ...]  # of products: each with the precision of its product

accelerated = PrimitiveRewrite(DOUBLES, first=run_passes, before=register_sparse_rules)
"""`accelerated(f)` is f with a kernel for every product in it and what can be fused with it, however deep."""

accelerated_whole = PrimitiveRewrite(
    DOUBLES,
    first=partial(run_passes, passes=tuple(WHOLE_PASSES)),
    before=register_sparse_rules,
)
"""Like `accelerated`, with all elementwise work on A fused, whether that pays or not."""


def _abstract(*_: Any, region: Region, **__: Any) -> Any:
    return region.jaxpr.outvars[0].aval


def _evaluate(*arrays: Array, region: Region, **_: Any) -> Array:
    """Computes a region outside of a program: equal ones are compiled once, whatever stood around them."""
    return _apply(*arrays, region=region, limits=Limits(), upcoming=())


_apply = partial(xla.apply_primitive, nano_region_p)
nano_region_p.def_impl(_evaluate)
nano_region_p.def_abstract_eval(_abstract)


# Derived programs, fused in their turn. jit remembers them by region; inside of a program they become part of it.


@partial(jax.jit, static_argnames="region", inline=True)
@accelerated
def _jvp_program(region: Region, primals: list[Array], tangents: list[Array | None]) -> tuple[Array, Array]:
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def of(*values: Array) -> Array:
        return region(*(dict(enumerate(primals)) | dict(zip(moving, values, strict=True))).values())

    return jax.jvp(of, [primals[i] for i in moving], [tangents[i] for i in moving])


@partial(jax.jit, static_argnames=("region", "linear"), inline=True)
@accelerated
def _transpose_program(
    region: Region, linear: tuple[bool, ...], arrays: list[Array | None], cotangent: Array
) -> list[Array]:
    places = [i for i, is_linear in enumerate(linear) if is_linear]

    def of(*values: Array) -> Array:
        return region(*(dict(enumerate(arrays)) | dict(zip(places, values, strict=True))).values())

    avals = [region.jaxpr.invars[i].aval for i in places]
    return list(jax.linear_transpose(of, *avals)(cotangent))


@partial(jax.jit, static_argnames=("region", "axes"), inline=True)
@accelerated
def _batch_program(region: Region, axes: tuple[int | None, ...], arrays: list[Array]) -> Array:
    return jax.vmap(region, axes)(*arrays)


def _jvp(primals, tangents, *, region: Region, **_):
    known = [None if type(t) is ad.Zero or jax.typeof(t).dtype == jax.dtypes.float0 else t for t in tangents]
    out, tangent = _jvp_program(region, list(primals), known)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval()) if tangent.dtype == jax.dtypes.float0 else tangent


def _transpose(cotangent, *arrays, region: Region, **_):
    linear = tuple(map(ad.is_undefined_primal, arrays))
    known = [None if is_linear else x for is_linear, x in zip(linear, arrays, strict=True)]
    results = iter(_transpose_program(region, linear, known, cotangent))
    return [next(results) if is_linear else None for is_linear in linear]


def _batch(arrays, axes, *, region: Region, **_):
    return _batch_program(region, tuple(axes), list(arrays)), 0


def _product(eqn: JaxprEqn) -> JaxprEqn:
    return eqn.params["region"].product


ad.primitive_jvps[nano_region_p] = _jvp
ad.primitive_transposes[nano_region_p] = _transpose
batching.primitive_batchers[nano_region_p] = _batch
partial_eval.partial_eval_jaxpr_custom_rules[nano_region_p] = remat_rule(_product)
register_jet_rules(nano, accelerated)


def _lower(
    ctx: mlir.LoweringRuleContext, *arrays: mlir.ir.Value, region: Region, limits: Limits, upcoming: Kernels
) -> Any:
    product, kernel = region.product, region.kernel
    equation = _equation(product)
    try:
        devices = devices_to_partition(ctx)
        for part in region.parts or (region,):
            check_inline({"region": part}, ())
        if isinstance(kernel.dot, Grouped | Gated):
            check_partitioning(ctx)
        elif devices > 1:
            dot = with_precision(kernel.precision, kernel.dot)
            shards = partition_region(region, accelerated_whole)
            report = Report(equation=equation, problem=dot, fused=region.fused, otherwise=_namesake(product))
            return partitioned_call(ctx, arrays, shards, report)
        prepare(_supported_dots(upcoming))
        dot = with_precision(kernel.precision, kernel.dot)
        compiled = kernel_for(dot)
    except UnsupportedDot as reason:
        if region.parts:
            return _lower_in_parts(ctx, arrays, region, limits, reason)
        return _lower_without_kernel(ctx, arrays, region, reason)
    ends: Any = {"kept": limits.prologue, "stopped": limits.epilogue, "otherwise": _namesake(product)}
    tell(Report(equation=equation, problem=dot, kernel=compiled, fused=region.fused, **ends))
    operands = ctx.replace(avals_in=[ctx.avals_in[i] for i in kernel.sources])
    return custom_call(operands, compiled, [arrays[i] for i in kernel.sources])


def _equation(product: JaxprEqn) -> str:
    avals = [x.aval for x in (*product.invars, *product.outvars)]
    if product.primitive in CONVOLUTIONS:
        return convolution.equation_of(avals, product.params)
    if product.primitive in GROUPED_PRODUCTS:
        return grouped.equation_of(avals, product.params)
    return equation_of(avals, product.params["dimension_numbers"])


def _namesake(product: JaxprEqn) -> str:
    return convolution.NAMESAKE if product.primitive in CONVOLUTIONS else "lax.dot_general"


def _lower_without_kernel(
    ctx: mlir.LoweringRuleContext, arrays: Iterable[mlir.ir.Value], region: Region, reason: UnsupportedDot
) -> Any:
    """Lowers a region with its weights unpacked, if it has any, or equation by equation."""
    lower, text = (_lower_unpacked, "unpacked") if region.unpacks else (_lower_equations, "not fused")
    with reports(alone=True) as collected:
        result = lower(ctx, *arrays, region=region)
    for report in collected:
        tell(replace(report, stopped=f"{text}: {reason}"))
    return result


def _lower_in_parts(
    ctx: mlir.LoweringRuleContext,
    arrays: Iterable[mlir.ir.Value],
    region: Region,
    limits: Limits,
    reason: UnsupportedDot,
) -> Any:
    """Lowers a gated product as two regions, of which the first one says why."""
    with reports(alone=True) as collected:
        result = _lower_parts(ctx, *arrays, region=region, limits=limits)
    for number, report in enumerate(collected):
        tell(report if number else replace(report, stopped=f"two kernels, as {reason}"))
    return result


def _supported_dots(upcoming: Kernels) -> Iterator[Dot | Grouped | Gated]:
    """The products of kernels that follow what their precision asks for."""
    for dot, precision in upcoming:
        with suppress(UnsupportedDot):
            yield with_precision(precision, dot)


def _compute_unpacked(*arrays: Array, region: Region) -> Array:
    """Computes a region as one of the arrays that packed weights stand for."""
    jaxpr, unpacked = region.with_unpacked(*arrays)
    try:
        inner = Region.of(jaxpr)
    except UNREADABLE:
        (result,) = nano(jaxpr_as_fun(ClosedJaxpr(jaxpr, ())))(*unpacked)
        return result
    return nano_region_p.bind(*unpacked, region=inner, limits=Limits(), upcoming=())


def _compute_equations(*arrays: Array, region: Region, **_: Any) -> Array:
    return region(*arrays)


def _compute_parts(*arrays: Array, region: Region, limits: Limits) -> Array:
    """Computes a gated product as one region that gives an array, and another one that reads it."""
    values: dict[Any, Array] = dict(zip(region.jaxpr.invars, arrays, strict=True))
    upcoming = tuple((part.kernel.dot, part.kernel.precision) for part in region.parts)
    for part in region.parts:
        operands = [values[x] for x in part.jaxpr.invars]
        values[part.jaxpr.outvars[0]] = nano_region_p.bind(*operands, region=part, limits=limits, upcoming=upcoming)
    return values[region.jaxpr.outvars[0]]


_lower_parts = mlir.lower_fun(_compute_parts, multiple_results=False)
_lower_unpacked = mlir.lower_fun(_compute_unpacked, multiple_results=False)
_lower_equations = mlir.lower_fun(nano(_compute_equations), multiple_results=False)
register_lowering(nano_region_p, _lower, mlir.lower_fun(_compute_equations, multiple_results=False))
