"""The primitive nano_dot_general: lax.dot_general to every transformation, a composed kernel where it is lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import ad, batching, mlir, partial_eval, xla

from jax_nano import config
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.jaxpr.primitives import DOUBLES, ORIGINALS, nano_dot_general_p
from jax_nano.jaxpr.private import Recompute
from jax_nano.jaxpr.rewrite import PrimitiveRewrite
from jax_nano.lowering.cotangents import transpose_rule
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.experimental import register_remat3_rules, register_sparse_rules
from jax_nano.lowering.export import register_lowering
from jax_nano.lowering.partition import Shards, devices_to_partition, partitioned_call, sum_over
from jax_nano.lowering.precision import with_precision
from jax_nano.lowering.sharding import Axes, ShardingRule
from jax_nano.lowering.small_loops import check_inline
from jax_nano.lowering.xla_inline import check_multiplies
from jax_nano.runtime.kernels import TURNED_OFF, kernel_for
from jax_nano.runtime.report import Report, tell

nano = PrimitiveRewrite(DOUBLES, before=register_sparse_rules)
"""`nano(f)` is f with jax_nano's product for every lax.dot_general and every convolution in it, however deep."""

nano_dot_general_p.def_impl(partial(xla.apply_primitive, nano_dot_general_p))
nano_dot_general_p.def_effectful_abstract_eval(dot_general_p.abstract_eval)
# JAX's own rules, in which every product is ours.
batching.fancy_primitive_batchers[nano_dot_general_p] = nano(batching.fancy_primitive_batchers[dot_general_p])
ad.primitive_jvps[nano_dot_general_p] = nano(ad.primitive_jvps[dot_general_p])
ad.primitive_transposes[nano_dot_general_p] = nano(transpose_rule)


def remat_rule(product: Callable[[JaxprEqn], JaxprEqn]) -> Callable:
    """The rule of jax.checkpoint for an equation whose product is what policies know, as it is in JAX.

    What a policy would offload stays where it is: on CPUs that is the same memory.
    """

    def rule(saveable, unknown, instantiated, eqn):
        missing = [x for x, there in zip(eqn.invars, instantiated, strict=True) if isinstance(x, Var) and not there]
        if any(unknown):
            return None, eqn, [True], [True], missing
        asked = product(eqn)
        if saveable(ORIGINALS[asked.primitive], *(x.aval for x in asked.invars), **asked.params) in (False, Recompute):
            return eqn, eqn, [False], [True], missing
        return eqn, None, [False], [False], []

    return rule


partial_eval.partial_eval_jaxpr_custom_rules[nano_dot_general_p] = remat_rule(lambda eqn: eqn)
register_remat3_rules()


def lowering(default: mlir.LoweringRule) -> mlir.LoweringRule:
    """The CPU lowering rule of a dot_general: a custom call of its kernel, or `default` where it has none."""

    def lower(ctx: mlir.LoweringRuleContext, lhs: mlir.ir.Value, rhs: mlir.ir.Value, **params: Any):
        equation = equation_of((*ctx.avals_in, *ctx.avals_out), params["dimension_numbers"])
        dot = None
        try:
            if not config.enabled():
                raise UnsupportedDot(TURNED_OFF)
            devices = devices_to_partition(ctx)
            check_inline(params, (*ctx.avals_in, *ctx.avals_out))
            if ctx.primitive is dot_general_p:  # of a program that does not ask for kernels itself
                check_multiplies(params, (*ctx.avals_in, *ctx.avals_out))
            (lhs_array, a), (rhs_array, b) = map(source_of, (lhs, rhs), ctx.avals_in)
            dot = _dot(ctx, a, b, params["dimension_numbers"], params["precision"])
            kernel = None if devices > 1 else kernel_for(dot)
        except UnsupportedDot as reason:
            tell(Report(equation=equation, problem=dot, reason=str(reason)))
            return default(ctx, lhs, rhs, **params)
        if devices > 1:
            return _lower_partitioned(ctx, (lhs, rhs), params, Report(equation=equation, problem=dot))
        assert kernel
        tell(Report(equation=equation, problem=dot, kernel=kernel))
        return custom_call(ctx, kernel, (lhs_array, rhs_array))

    return lower


def source_of(value: mlir.ir.Value, aval: Any) -> tuple[mlir.ir.Value, Operand]:
    """The row-major array behind an operand, and how the operand strides over it: transposes are read through."""
    if not all(isinstance(size, int) for size in aval.shape):
        raise UnsupportedDot(f"the shape {aval.shape} is symbolic; kernels are made for known sizes")
    value, permutation = untransposed(value)
    source = Operand.row_major(mlir.ir.RankedTensorType(value.type).shape, dtype_name(aval.dtype))
    return value, source.transposed(permutation)


def untransposed(value: mlir.ir.Value) -> tuple[mlir.ir.Value, list[int]]:
    """The array that a value is a transpose of, and by which permutation."""
    permutation = list(range(mlir.ir.RankedTensorType(value.type).rank))
    while not isinstance(value.owner, mlir.ir.Block) and value.owner.name == "stablehlo.transpose":
        outer = mlir.ir.DenseI64ArrayAttr(value.owner.attributes["permutation"])
        permutation = [outer[dimension] for dimension in permutation]
        value = value.owner.operands[0]
    return value, permutation


def _dot(ctx: mlir.LoweringRuleContext, lhs: Operand, rhs: Operand, dimension_numbers, precision) -> Dot:
    (out,) = ctx.avals_out
    return with_precision(precision, Dot.of(lhs, rhs, dimension_numbers, dtype_name(out.dtype)))


def _lower_partitioned(
    ctx: mlir.LoweringRuleContext, values: Sequence[mlir.ir.Value], params: dict[str, Any], report: Report
) -> Sequence[mlir.ir.Value]:
    """Lowers a product that XLA partitions: every device runs a kernel on its shards."""
    (lhs, left), (rhs, right) = map(untransposed, values)
    (out,) = ctx.avals_out
    factors = [f"d{i}" for i in range(out.ndim)]
    lhs_factors, rhs_factors, sums = factors_of(params["dimension_numbers"], factors, len(left), len(right))
    lying = tuple(
        tuple(names[permutation.index(i)] for i in range(len(names)))
        for names, permutation in ((lhs_factors, left), (rhs_factors, right))
    )
    rule = ShardingRule(operands=lying, results=(tuple(factors),), sums=sums)
    known = {name: params[name] for name in ("dimension_numbers", "precision", "preferred_element_type")}

    def body(lhs: Array, rhs: Array, *, sums: dict[str, Axes]) -> list[Array]:
        arrays = lax.transpose(lhs, left), lax.transpose(rhs, right)
        dtype = partial_sum_type(out.dtype) if sums else known["preferred_element_type"]
        shards = nano_dot_general_p.bind(
            *arrays, **(params | known | {"preferred_element_type": dtype, "out_sharding": None})
        )
        return [sum_over(shards, sums).astype(out.dtype)]

    text = f"{known} {left} {right} {out.dtype}"
    return partitioned_call(ctx, (lhs, rhs), Shards(rule, body, text, scatters=True), report)


def factors_of(
    dimension_numbers: Any, out: Sequence[str], lhs_ndim: int, rhs_ndim: int
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """The factors of both operands of a dot_general, by those of its result; and those that it sums over."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    lhs, rhs = [""] * lhs_ndim, [""] * rhs_ndim
    sums = tuple(f"k{i}" for i in range(len(lhs_contract)))
    names = iter(out)
    for name, i, j in zip(sums, lhs_contract, rhs_contract, strict=True):
        lhs[i] = rhs[j] = name
    for i, j in zip(lhs_batch, rhs_batch, strict=True):
        lhs[i] = rhs[j] = next(names)
    for factors in (lhs, rhs):
        factors[:] = [name or next(names) for name in factors]
    return lhs, rhs, sums


def partial_sum_type(dtype: Any) -> Any:
    """The type in which sums of several devices are added: that of the accumulators, and of integers the result's."""
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def equation_of(avals: Sequence[Any], dimension_numbers) -> str:
    """A dot_general of operands and a result of these types, in words."""
    lhs, rhs, out = map(type_name, avals)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    text = f"{lhs} x {rhs} -> {out}, contracting {list(lhs_contract)} with {list(rhs_contract)}"
    return f"{text}, batch {list(lhs_batch)} with {list(rhs_batch)}" if lhs_batch else text


def type_name(aval: Any) -> str:
    """An array's type and shape, in words."""
    return f"{dtype_name(aval.dtype)}[{','.join(map(str, aval.shape))}]"


_as_lax = mlir.lower_fun(dot_general_p.bind, multiple_results=False)
register_lowering(nano_dot_general_p, lowering(_as_lax), _as_lax)
