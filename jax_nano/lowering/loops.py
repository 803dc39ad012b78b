"""Loops as one kernel: the lowerings of scans and while loops whose products are jax_nano's.

A loop is read when it is lowered, after all transformations: derivatives and batches of loops are loops. What is no
pipeline, or would be no faster as one, is lowered as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p, scan_p, while_p
from jax.interpreters import mlir

from jax_nano import config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import NUMPY_TYPES
from jax_nano.ir.pipeline import Pipeline, UnsupportedPipeline
from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.loop_motion import EMPTY, MovedLoop, bytes_of, move_products
from jax_nano.jaxpr.pipelines.loop_parts import avals_in_parts, by_parts, in_parts
from jax_nano.jaxpr.pipelines.random import inner, physical, without_keys
from jax_nano.jaxpr.pipelines.reader import read_scan, read_while
from jax_nano.jaxpr.pipelines.scans import Scan
from jax_nano.jaxpr.primitives import PRODUCTS, nano_loop_p, nano_region_p
from jax_nano.jaxpr.private import LoweringRule, ReplacedLowering, wrap_lowering
from jax_nano.lowering import small_loops as small_loops  # whose lowering of while loops is wrapped here
from jax_nano.lowering.custom_call import custom_call
from jax_nano.lowering.dot_general import nano
from jax_nano.lowering.export import has_kernels
from jax_nano.lowering.loop_cost import LARGE_BYTES, before_seconds, check_is_faster
from jax_nano.lowering.partition import check_partitioning
from jax_nano.machine.host import machine_for, target
from jax_nano.runtime.kernel import Kernel
from jax_nano.runtime.kernels import kernel_for
from jax_nano.runtime.log import logger
from jax_nano.runtime.report import Report, tell
from jax_nano.schedule.pipelines.choose import choose_pipeline

OTHERWISE = "XLA's loop"

_refused: ContextVar[bool] = ContextVar("jax_nano_refused_scan", default=False)
"""Whether the next while loop is a scan that is no pipeline."""


def has_products(*jaxprs: Jaxpr, installed: bool) -> bool:
    """Whether there is a product or convolution of jax_nano's in jaxprs, at any depth; if `installed`, each is."""
    ours = PRODUCTS if installed else PRODUCTS - {dot_general_p, conv_general_dilated_p}
    for jaxpr in jaxprs:
        for eqn in jaxpr.eqns:
            if eqn.primitive in ours or eqn.primitive is nano_region_p:
                return True
            if has_products(*jaxprs_in_params(eqn.params), installed=installed):
                return True
    return False


def is_ours(ctx: mlir.LoweringRuleContext, params: dict[str, Any]) -> bool:
    """Whether a loop may be a kernel at all."""
    if not config.enabled() or not has_kernels(ctx) or {*(ctx.platforms or ctx.module_context.platforms)} != {"cpu"}:
        return False
    return has_products(*jaxprs_in_params(params), installed=ReplacedLowering.has_replaced(dot_general_p))


def equation_of(params: dict[str, Any]) -> str:
    """A loop in words."""
    if "length" in params:
        return f"scan of {params['length']} steps" + (", from the last to the first" if params["reverse"] else "")
    return "while loop"


@contextlib.contextmanager
def reporting_faults(equation: str, kind: str = "loop") -> Iterator[None]:
    """Makes a reason to leave a loop or a program to XLA of whatever fails in reading it, and logs what to report.

    Args:
      equation: it in words.
      kind: which of both it is.

    Raises:
      UnsupportedDot: as the block does, or as something else failed.
    """
    try:
        yield
    except UnsupportedDot:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        logger.error("a %s could not be read, and XLA computes it. Please report: %s", equation, text)
        raise UnsupportedPipeline(f"jax_nano could not read the {kind} ({text})") from error


Lower = Callable[[mlir.LoweringRuleContext, Any, dict[str, Any]], Any]


def lower_scan(ctx: mlir.LoweringRuleContext, operands: Any, params: dict[str, Any]) -> Any:
    """Lowers a scan as a kernel, with products before and behind it.

    Raises:
      UnsupportedDot: it is none, or would be no faster.
    """
    check_partitioning(ctx)
    ctx = ctx.replace(avals_in=list(map(physical, ctx.avals_in)), avals_out=list(map(physical, ctx.avals_out)))
    scan = Scan.of(params)
    scan = replace(scan, jaxpr=without_keys(scan.jaxpr))
    if scan.jaxpr.effects or scan.jaxpr.constvars:
        raise UnsupportedPipeline("the loop has effects, or constants of its own")
    scan = replace(scan, jaxpr=inlined(scan.jaxpr))
    moved = move_products(scan)
    if moved.scan.length < 1:
        raise UnsupportedPipeline("a loop of no steps")
    pipeline = read_scan(moved.scan, moved.avals(ctx.avals_in, scan))
    whole = read_scan(scan, ctx.avals_in) if moved.moves else pipeline
    parts = faster_parts(moved, pipeline, replace(moved, before=EMPTY).avals(ctx.avals_in, scan))
    if parts:
        moved, pipeline = parts
    kernel = faster_kernel(pipeline, whole)
    tell(Report(equation=equation_of(params), problem=pipeline, kernel=kernel))
    if not moved.moves and not parts:
        return custom_call(ctx, kernel, operands)

    def run(*arrays: Any) -> Any:
        return nano_loop_p.bind(*arrays, kernel=Called(kernel))

    program = partial(moved, by_parts(run, moved.scan, scan.length) if parts else run, scan.carries)
    return mlir.lower_fun(nano(program), multiple_results=True)(ctx, *operands)


def faster_parts(moved: MovedLoop, pipeline: Pipeline, avals: Sequence[Any]) -> tuple[MovedLoop, Pipeline] | None:
    """The loop with the products before it made in its parts, and its pipeline, where that is predicted to be faster.

    Args:
      moved: the loop.
      pipeline: what is left of it behind those products.
      avals: the types of its operands, without those that are made before it.
    """
    machine = machine_for()
    size = moved.scan.length * sum(map(bytes_of, moved.before.outvars))
    if size < LARGE_BYTES:
        return None
    try:
        parts = in_parts(moved, avals)
        if parts is None:
            return None
        other = read_scan(parts.scan, avals_in_parts(parts.scan, avals, moved.scan.length))
        plans = [choose_pipeline(each, machine, target(machine)) for each in (pipeline, other)]
    except UnsupportedDot:
        return None
    before = before_seconds(other.multiplications - pipeline.multiplications, size, plans[0], machine)
    return (parts, other) if plans[1].predicted_seconds < plans[0].predicted_seconds + before else None


def lower_while(ctx: mlir.LoweringRuleContext, operands: Any, params: dict[str, Any]) -> Any:
    """Lowers a while loop as a kernel, likewise."""
    check_partitioning(ctx)
    ctx = ctx.replace(avals_in=list(map(physical, ctx.avals_in)), avals_out=list(map(physical, ctx.avals_out)))
    params = params | {name: inner(params[name]) for name in ("cond_jaxpr", "body_jaxpr")}
    pipeline = read_while(params, ctx.avals_in)
    kernel = faster_kernel(pipeline, pipeline)
    tell(Report(equation=equation_of(params), problem=pipeline, kernel=kernel))
    return custom_call(ctx, kernel, operands)


def faster_kernel(pipeline: Pipeline, whole: Pipeline) -> Kernel:
    """The kernel of a loop; `whole` has what stands before and behind it, too.

    Raises:
      UnsupportedDot: there is none, or it is predicted to be no faster.
    """
    machine = machine_for()
    outer = 1e-6 * machine.fitted.interruption_us if small_loops.is_in_function() else 0.0
    check_is_faster(choose_pipeline(pipeline, machine, target(machine)), whole, machine, outer)
    return kernel_for(pipeline)


@dataclass(frozen=True, eq=False)
class Called:
    """A kernel as a parameter: equal to itself alone."""

    kernel: Kernel


def _abstract(*_: Any, kernel: Called) -> list[ShapedArray]:
    problem = kernel.kernel.problem
    assert isinstance(problem, Pipeline)
    values = [problem.values[number] for number in problem.results]
    return [ShapedArray(value.shape, np.dtype(NUMPY_TYPES[value.dtype])) for value in values]


def _lower_call(ctx: mlir.LoweringRuleContext, *arrays: Any, kernel: Called) -> Any:
    return custom_call(ctx, kernel.kernel, arrays)


nano_loop_p.def_abstract_eval(_abstract)
mlir.register_lowering(nano_loop_p, _lower_call, platform="cpu", cacheable=False)


def _lowering(lower_loop: Lower) -> Callable[[LoweringRule], LoweringRule]:
    def replacement(original: LoweringRule) -> LoweringRule:
        def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
            refused = _refused.get()
            if refused or not is_ours(ctx, params):
                token = _refused.set(False)
                try:
                    return original(ctx, *operands, **params)
                finally:
                    _refused.reset(token)
            try:
                target(machine_for())  # one that there is not is an error
                with reporting_faults(equation_of(params)):
                    return lower_loop(ctx, operands, params)
            except UnsupportedDot as reason:
                tell(Report(equation=equation_of(params), reason=str(reason), otherwise=OTHERWISE))
            token = _refused.set(lower_loop is lower_scan)
            try:
                return original(ctx, *operands, **params)
            finally:
                _refused.reset(token)

        return lower

    return replacement


wrap_lowering(scan_p, _lowering(lower_scan))
wrap_lowering(while_p, _lowering(lower_while))
