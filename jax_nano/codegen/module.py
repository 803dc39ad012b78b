"""Plan -> MLIR module."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func
from jax.interpreters.mlir import make_ir_context

from jax_nano.codegen import gated
from jax_nano.codegen.attention.gradient import GradientTask
from jax_nano.codegen.attention.gradient_bias import BiasGradientTask
from jax_nano.codegen.attention.kernel import AttentionKernel
from jax_nano.codegen.attention.operands import AttentionOperands
from jax_nano.codegen.grouped.kernel import GroupedKernel
from jax_nano.codegen.grouped.operands import GroupedOperands
from jax_nano.codegen.location import section
from jax_nano.codegen.macrokernel import Macrokernel
from jax_nano.codegen.operands import Arguments
from jax_nano.codegen.pipelines.kernel import PipelineKernel
from jax_nano.codegen.types import element_type
from jax_nano.ir.dot import Axis, extent
from jax_nano.schedule.attention.gradient import GradientPlan
from jax_nano.schedule.attention.plan import AnyPlan, AttentionPlan
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.pipelines.plan import PipelinePlan
from jax_nano.schedule.plan import Plan


def kernel_name(plan: AnyPlan) -> str:
    """The kernel's symbol, which says what it is."""
    if isinstance(plan, AttentionPlan | GroupedPlan | GatedPlan):
        return f"nano_{plan.problem.label}_{plan.isa}_{plan.mr}x{plan.nr}"
    if isinstance(plan, PipelinePlan):
        return f"nano_{plan.problem.label}_{plan.isa}"
    dot = plan.dot
    types = dot.lhs if dot.lhs == dot.rhs == dot.out else f"{dot.lhs}{dot.rhs}_{dot.out}"
    if dot.algorithm:
        types += f"_{dot.algorithm.dtype}x{dot.terms}"
    b, m, n, k = dot.sizes
    kind = "conv_" if dot.window else ""
    batch = f"b{b}" if b > 1 else ""
    fused = ("_panels" if dot.panels else "") + ("_fused" if dot.epilogue or dot.prologue else "")
    return f"nano_{kind}{types}_{batch}m{m}n{n}k{k}_{plan.isa}_{plan.mr}x{plan.nr}{fused}"


def phase_symbols(plan: AnyPlan) -> list[str]:
    """The entry points of the phases, in order."""
    return [kernel_name(plan) if phase == "compute" else f"{kernel_name(plan)}_{phase}" for phase in plan.tasks]


def build_module(plan: AnyPlan) -> str:
    """The MLIR module of a plan, in generic form with locations: a public function for every phase."""
    with make_ir_context() as context, ir.Location.unknown():
        context.allow_unregistered_dialects = True  # jaxlib does not know every dialect that MLIR 22 parses
        top = ir.Module.create()
        types = argument_types(plan)
        with ir.InsertionPoint(top.body):
            for phase, symbol in zip(plan.tasks, phase_symbols(plan), strict=True):
                with section(symbol):
                    function = func.FuncOp(symbol, (types, []))
                    with ir.InsertionPoint(function.add_entry_block()):
                        write_phase(plan, phase, function.arguments)
                        func.return_([])
        top.operation.verify()
        return str(top.operation.get_asm(print_generic_op_form=True, enable_debug_info=True))


def write_phase(plan: AnyPlan, phase: str, values: Sequence[ir.Value]) -> None:
    """Writes a phase of a plan of any kind."""
    if isinstance(plan, AttentionPlan):
        attention_phase(plan, phase, values)
    elif isinstance(plan, PipelinePlan):
        _, task, _, local, *arrays = values
        PipelineKernel(plan).compute_phase(0 if plan.task_count == 1 else task, local, arrays)
    elif isinstance(plan, GroupedPlan):
        grouped_phase(plan, phase, values)
    elif isinstance(plan, GatedPlan):
        gated_phase(plan, phase, values)
    else:
        product_phase(plan, phase, values)


def product_phase(plan: Plan, phase: str, values: Sequence[ir.Value]) -> None:
    """Writes a phase of a product."""
    kernel = Macrokernel(plan)
    phases = {"compute": kernel.compute_phase, "pack": kernel.pack_phase, "reduce": kernel.reduce_phase}
    phases[phase](entry_arguments(plan, phase, values))


def attention_phase(plan: AttentionPlan, phase: str, values: Sequence[ir.Value]) -> None:
    """Writes a phase of an attention."""
    _, task, shared, local, *arrays = values
    task = 0 if plan.tasks[phase] == 1 else task
    if isinstance(plan, GradientPlan):
        kind = BiasGradientTask if plan.of_bias else GradientTask
        kind(plan, task, local, arrays).emit()
        return
    kernel = AttentionKernel(plan)
    phases = {"compute": kernel.compute_phase, "combine": kernel.combine_phase}
    phases[phase](AttentionOperands(plan, task, shared, local, arrays))


def grouped_phase(plan: GroupedPlan, phase: str, values: Sequence[ir.Value]) -> None:
    """Writes a phase of a grouped product."""
    kernel = GroupedKernel(plan)
    phases = {"group": kernel.group_phase, "compute": kernel.compute_phase, "combine": kernel.combine_phase}
    _, task, shared, local, *arrays = values
    phases[phase](GroupedOperands(plan, task, shared, local, arrays))


def gated_phase(plan: GatedPlan, phase: str, values: Sequence[ir.Value]) -> None:
    """Writes a phase of a gated product."""
    round_, task, shared, local, *arrays = values
    number = 0 if plan.rounds == 1 else round_
    task = 0 if plan.tasks[phase] == 1 else task
    gated.write_phase(gated.GatedOperands(plan, number, task, shared, local, arrays), phase)


def entry_arguments(plan: Plan, phase: str, values: Sequence[ir.Value]) -> Arguments:
    """A phase's arguments, with the operands in the plan's order; where there is one round or task, its number is 0."""
    round_, task, shared, local, lhs, rhs, *extras, out = values
    if plan.swapped:
        lhs, rhs = rhs, lhs
    number = 0 if plan.rounds == 1 else round_
    task = 0 if plan.tasks[phase] == 1 else task
    return Arguments(number, task, shared, local, lhs, rhs, out, tuple(extras))


def argument_types(plan: AnyPlan) -> list[ir.Type]:
    """(round, task, shared, local, the arrays in the caller's order)."""
    if isinstance(plan, AttentionPlan | GroupedPlan | GatedPlan | PipelinePlan):
        sizes = [(array.elements, array.dtype) for array in plan.problem.arrays]
    else:
        sizes = array_spans(plan)
    index = ir.IndexType.get()
    byte = ir.IntegerType.get_signless(8)
    arrays = [ir.MemRefType.get([size], element_type(dtype)) for size, dtype in sizes]
    scratch = [ir.MemRefType.get([max(1, size)], byte) for size in (plan.shared_bytes, plan.local_bytes)]
    return [index, index, *scratch, *arrays]


def array_spans(plan: Plan) -> list[tuple[int, str]]:
    """How many elements of each array a product's plan reaches over, in the caller's order, and their types."""
    dot = plan.dot.swapped() if plan.swapped else plan.dot
    groups = dot.b, dot.m, dot.n, dot.k
    axes = [axis for group in groups for axis in group]
    extras = [dtype for dtype, _ in dot.extras]
    lhs, rhs, out, *rest = (span(axes, array) for array in range(3 + len(extras)))
    if dot.window:
        lhs, rhs = (dot.window.elements, rhs) if dot.window.operand == "lhs" else (lhs, dot.window.elements)
    if dot.panels:
        rhs = dot.panels.elements
    if dot.scaling:  # beside the first group's, one for each further group
        further = (extent(dot.k) - 1) // dot.scaling.group_size * dot.scaling.stride
        rest[-len(dot.scaling.arrays) :] = [size + further for size in rest[-len(dot.scaling.arrays) :]]
    return [(lhs, dot.lhs), (rhs, dot.rhs), *zip(rest, extras, strict=True), (out, dot.out)]


def span(axes: list[Axis], array: int) -> int:
    """How many elements lie between the first and the last that a product touches in one of its arrays.

    Arrays are counted as in Axis.strides.
    """
    return 1 + sum((axis.size - 1) * axis.strides()[array] for axis in axes)
