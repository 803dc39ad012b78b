"""The primitive nano_region: a product and what is fused with it, and to every transformation the program they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.jaxpr.primitives import nano_dot_general_p, nano_region_p
from jax_nano.jaxpr.region import Region
from jax_nano.jaxpr.rewrite import Rebinding
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import equation_of, nano, remat_rule, settled
from jax_nano.lowering.pipeline import optimized
from jax_nano.runtime.kernels import kernel_for, prepare
from jax_nano.runtime.report import Report, reports, tell

accelerated = Rebinding({dot_general_p: nano_dot_general_p}, first=optimized)
"""`accelerated(f)` is f with a kernel for every product in it and what can be fused with it, however deep."""

accelerated_whole = Rebinding({dot_general_p: nano_dot_general_p}, first=partial(optimized, every_prologue=True))
"""Like `accelerated`, with all elementwise work on A fused, whether that pays or not."""


def _abstract(*_: Any, region: Region) -> Any:
    return region.jaxpr.outvars[0].aval


nano_region_p.def_impl(partial(xla.apply_primitive, nano_region_p))
nano_region_p.def_abstract_eval(_abstract)


# Derived programs, fused in their turn. jit remembers them by region; inside of a program they become part of it.


@partial(jax.jit, static_argnames="region", inline=True)
@accelerated
def _differentiated(region: Region, primals: list[Array], tangents: list[Array | None]) -> tuple[Array, Array]:
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def of(*values: Array) -> Array:
        return region(*(dict(enumerate(primals)) | dict(zip(moving, values, strict=True))).values())

    return jax.jvp(of, [primals[i] for i in moving], [tangents[i] for i in moving])


@partial(jax.jit, static_argnames=("region", "linear"), inline=True)
@accelerated
def _transposed(region: Region, linear: tuple[bool, ...], arrays: list[Array | None], cotangent: Array) -> list[Array]:
    places = [i for i, is_linear in enumerate(linear) if is_linear]

    def of(*values: Array) -> Array:
        return region(*(dict(enumerate(arrays)) | dict(zip(places, values, strict=True))).values())

    avals = [region.jaxpr.invars[i].aval for i in places]
    return list(jax.linear_transpose(of, *avals)(cotangent))


@partial(jax.jit, static_argnames=("region", "axes"), inline=True)
@accelerated
def _batched(region: Region, axes: tuple[int | None, ...], arrays: list[Array]) -> Array:
    return jax.vmap(region, axes)(*arrays)


def _jvp(primals, tangents, *, region: Region):
    known = [None if type(t) is ad.Zero or t.dtype == jax.dtypes.float0 else t for t in tangents]
    out, tangent = _differentiated(region, list(primals), known)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval()) if tangent.dtype == jax.dtypes.float0 else tangent


def _transpose(cotangent, *arrays, region: Region):
    linear = tuple(map(ad.is_undefined_primal, arrays))
    known = [None if is_linear else x for is_linear, x in zip(linear, arrays, strict=True)]
    results = iter(_transposed(region, linear, known, cotangent))
    return [next(results) if is_linear else None for is_linear in linear]


def _batch(arrays, axes, *, region: Region):
    return _batched(region, tuple(axes), list(arrays)), 0


def _product(eqn: JaxprEqn) -> JaxprEqn:
    return eqn.params["region"].product


ad.primitive_jvps[nano_region_p] = _jvp
ad.primitive_transposes[nano_region_p] = _transpose
batching.primitive_batchers[nano_region_p] = _batch
partial_eval.partial_eval_jaxpr_custom_rules[nano_region_p] = remat_rule(_product)


def _lower(ctx: mlir.LoweringRuleContext, *arrays: mlir.ir.Value, region: Region):
    product = region.product
    equation = equation_of([x.aval for x in (*product.invars, *product.outvars)], product.params["dimension_numbers"])
    try:
        layout = region.layout
        dot = settled(ctx, layout.dot(), layout.precision)
        prepare(_first_of(region.beside, ctx))
        kernel = kernel_for(dot)
    except UnsupportedDot as reason:
        lower, text = (_unpacked, "unpacked") if region.unpacks else (_unfused, "not fused")
        with reports(alone=True) as collected:
            result = lower(ctx, *arrays, region=region)
        for report in collected:
            tell(replace(report, stopped=f"{text}: {reason}"))
        return result
    ends = {"kept": region.kept, "stopped": region.stopped}
    tell(Report(equation=equation, problem=dot, kernel=kernel, fused=region.fused, **ends))
    operands = ctx.replace(avals_in=[ctx.avals_in[i] for i in layout.sources])
    return custom_call(operands, kernel, [arrays[i] for i in layout.sources])


def _first_of(beside: list[Region], ctx: mlir.LoweringRuleContext) -> Iterator[Dot]:
    """The problems of all regions of a program, for the first of them that is lowered; none for the others."""
    regions = beside[:]
    beside.clear()
    for region in regions:
        with suppress(UnsupportedDot):
            yield settled(ctx, region.layout.dot(), region.layout.precision)


def _with_unpacked(*arrays: Array, region: Region) -> Array:
    return region.unpacked(*arrays)


def _evaluated(*arrays: Array, region: Region) -> Array:
    return region(*arrays)


_unpacked = mlir.lower_fun(_with_unpacked, multiple_results=False)
_unfused = mlir.lower_fun(nano(_evaluated), multiple_results=False)
mlir.register_lowering(nano_region_p, mlir.lower_fun(_evaluated, multiple_results=False), cacheable=False)
mlir.register_lowering(nano_region_p, _lower, platform="cpu", cacheable=False)
