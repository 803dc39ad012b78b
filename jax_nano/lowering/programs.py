"""Small programs as one kernel: what `accelerate` makes of a program whose calls take longer than its arithmetic.

Such a program stands in a jit of its own, by a name. To every transformation it is that, so that derivatives and
batches of it are such programs as well. It is read when it is lowered: what is no pipeline, or would be no faster as
one, is lowered as it is, region by region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxpr_as_fun
from jax.extend.core.primitives import jit_p, scan_p, while_p
from jax.interpreters import mlir

from jax_nano import config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.pipeline import Pipeline, UnsupportedPipeline
from jax_nano.jaxpr.attention.program import definition
from jax_nano.jaxpr.attention.tangents import tangents
from jax_nano.jaxpr.inline import body_of, inline_calls, type_of
from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.program_parts import Part, parts_of, run_parts, single
from jax_nano.jaxpr.pipelines.random import is_key, physical, without_keys
from jax_nano.jaxpr.pipelines.reader import read_program
from jax_nano.jaxpr.primitives import (
    nano_attention_gradient_p,
    nano_attention_p,
    nano_attention_tangent_p,
    nano_loop_p,
)
from jax_nano.jaxpr.private import ClosedJaxpr, LoweringRule, is_staged, wrap_lowering
from jax_nano.lowering import program_cost
from jax_nano.lowering.attention_gradient import by_blocks
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.export import has_kernels
from jax_nano.lowering.loops import Called, reporting_faults
from jax_nano.lowering.partition import check_partitioning
from jax_nano.lowering.region import accelerated
from jax_nano.lowering.small_loops import is_in_loop
from jax_nano.machine.host import machine_for, target
from jax_nano.runtime.kernel import Kernel
from jax_nano.runtime.kernels import kernel_for
from jax_nano.runtime.report import Report, tell
from jax_nano.schedule.pipelines.choose import choose_pipeline

NAME = "jax_nano_program"
"""Of the jit that a small program stands in."""
OTHERWISE = "its calls one by one"

# What stands for attention in a program: arrays of all scores are small there.
ATTENTION: dict[Any, Callable[..., Any]] = {
    nano_attention_p: lambda *operands, spec: definition(spec, *operands),
    nano_attention_tangent_p: lambda *operands, spec: tangents(spec, *operands),
    nano_attention_gradient_p: by_blocks,
}


def as_program(closed: ClosedJaxpr) -> Callable[..., Sequence[Any]]:
    """A program as a function of its arguments, in a jit of its own where it may be worth one kernel.

    Outside of any jit, equations are computed one after the other, as each has been compiled before.
    """
    if not is_staged() or not program_cost.is_small(closed.jaxpr):
        return jaxpr_as_fun(closed)
    count = len(closed.consts)

    def program(*arrays: Any) -> Sequence[Any]:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, arrays[:count]))(*arrays[count:])

    program.__name__ = NAME
    return partial(jax.jit(program), *closed.consts)


accelerated_program = accelerated.evaluated(as_program)
"""Like `accelerated`, with one kernel for all of a small program."""


def is_ours(ctx: mlir.LoweringRuleContext, params: dict[str, Any]) -> bool:
    """Whether a jit may be a kernel: derivatives and batches may have grown."""
    if params["name"] != NAME or not config.enabled() or not has_kernels(ctx) or is_in_loop():
        return False
    is_on_cpu = {*(ctx.platforms or ctx.module_context.platforms)} == {"cpu"}
    return is_on_cpu and program_cost.is_small(params["jaxpr"].jaxpr)


def read(jaxpr: Jaxpr, avals: Sequence[Any]) -> Pipeline:
    """The pipeline of a program with regions and attention.

    Raises:
      UnsupportedPipeline: it is none, or has loops, which are kernels of their own.
    """
    for eqn in inline_calls(jaxpr).eqns:
        if eqn.primitive in (scan_p, while_p):
            raise UnsupportedPipeline(f"a {eqn.primitive.name} loop in it")
    defined = inline_calls(without_keys(jaxpr), _definition_or_body)
    return read_program(inlined(defined), avals)


def _definition_or_body(eqn: JaxprEqn) -> Jaxpr | None:
    if program := ATTENTION.get(eqn.primitive):
        return jax.make_jaxpr(partial(program, **eqn.params))(*map(type_of, eqn.invars)).jaxpr
    return body_of(eqn)


def faster_kernel(jaxpr: Jaxpr, pipeline: Pipeline) -> Kernel:
    """The kernel of a program.

    Raises:
      UnsupportedDot: there is none, or it is predicted to be no faster.
    """
    machine = machine_for()
    program_cost.check_is_faster(jaxpr, choose_pipeline(pipeline, machine, target(machine)), machine)
    return kernel_for(pipeline)


def lower_program(ctx: mlir.LoweringRuleContext, operands: Any, jaxpr: Jaxpr) -> Any:
    """Lowers a program as a kernel.

    Raises:
      UnsupportedDot: it is none, or would be no faster.
    """
    check_partitioning(ctx)
    try:
        pipeline = read(jaxpr, list(map(physical, ctx.avals_in)))
    except UnsupportedPipeline as reason:
        return lower_parts(ctx, operands, jaxpr, reason)
    ctx = ctx.replace(avals_in=list(map(physical, ctx.avals_in)), avals_out=list(map(physical, ctx.avals_out)))
    kernel = faster_kernel(jaxpr, pipeline)
    tell(Report(equation=equation_of(jaxpr), problem=pipeline, kernel=kernel))
    return custom_call(ctx, kernel, operands)


def lower_parts(ctx: mlir.LoweringRuleContext, operands: Any, jaxpr: Jaxpr, reason: UnsupportedPipeline) -> Any:
    """Lowers a program that is no pipeline, for a reason, with kernels of its parts.

    Raises:
      UnsupportedPipeline: no part is one, for that reason.
    """
    if isinstance(ctx.module_context.axis_context, mlir.SPMDAxisContext):
        raise reason  # collectives may stand between parts, and are not traced anew
    parts = parts_of(jaxpr, _is_readable)
    kernels = {part: kernel for part in parts if (kernel := _kernel_of(part))}
    if not kernels:
        raise reason
    tell(Report(equation=equation_of(jaxpr), reason=str(reason), otherwise="kernels of its parts"))

    def run(part: Part, *arrays: Any) -> Sequence[Any]:
        if part in kernels:
            return nano_loop_p.bind(*arrays, kernel=Called(kernels[part]))
        return jaxpr_as_fun(ClosedJaxpr(part.jaxpr, ()))(*arrays)

    return mlir.lower_fun(partial(run_parts, jaxpr, parts, run), multiple_results=True)(ctx, *operands)


def _is_readable(eqn: JaxprEqn) -> bool:
    """Whether an equation may be in a pipeline."""
    jaxpr = single(eqn)
    try:
        read(jaxpr, list(map(type_of, jaxpr.invars)))
    except UnsupportedDot:
        return False
    return not any(is_key(x.aval) for x in (*jaxpr.invars, *jaxpr.outvars))


def _kernel_of(part: Part) -> Kernel | None:
    """The kernel of a part; None where there is none, or it is predicted to be no faster."""
    jaxpr = part.jaxpr
    if not part.is_readable or not program_cost.is_small(jaxpr):
        return None
    equation = f"{equation_of(jaxpr)}, a part"
    try:
        pipeline = read(jaxpr, list(map(type_of, jaxpr.invars)))
        kernel = faster_kernel(jaxpr, pipeline)
    except UnsupportedDot as reason:
        tell(Report(equation=equation, reason=str(reason), otherwise=OTHERWISE))
        return None
    tell(Report(equation=equation, problem=pipeline, kernel=kernel))
    return kernel


def equation_of(jaxpr: Jaxpr) -> str:
    """A program in words."""
    calls = program_cost.Calls.of(jaxpr)
    return f"program of {calls.kernels + calls.operations} calls"


def _lowering(original: LoweringRule) -> LoweringRule:
    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        if not is_ours(ctx, params):
            return original(ctx, *operands, **params)
        jaxpr = params["jaxpr"].jaxpr
        target(machine_for())  # one that there is not is an error
        try:
            with reporting_faults(equation_of(jaxpr), "program"):
                return lower_program(ctx, operands, jaxpr)
        except UnsupportedDot as reason:
            tell(Report(equation=equation_of(jaxpr), reason=str(reason), otherwise=OTHERWISE))
        return original(ctx, *operands, **params)

    return lower


wrap_lowering(jit_p, _lowering)
