"""Reports: which kernel a product runs as, or why it has none, in data and in words."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jax_nano.ir.attention import Attention, Problem
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.ir.pipeline import Pipeline, repeated
from jax_nano.runtime.kernel import Kernel
from jax_nano.runtime.log import logger
from jax_nano.schedule.attention.plan import AnyPlan, AttentionPlan
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.grouped.plan import GroupedPlan
from jax_nano.schedule.pipelines.plan import PipelinePlan
from jax_nano.schedule.plan import Plan

KINDS = {  # of reports, in the plural, and one of each
    "products": "product", "convolutions": "convolution", "attention": "attention",
    "grouped products": "grouped product", "loops": "loop", "programs": "program",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What became of one product, convolution, attention or loop of a program; prints as a few lines.

    Attributes:
      equation: it as the program has it: operands, result, dimension numbers.
      problem: it as jax_nano sees it, a Dot, an Attention, a Grouped or a Pipeline; None where it is none of these.
      kernel: what runs; None for lax.dot_general, or what else it is in JAX.
      reason: why it runs as that; empty for a kernel.
      fused: what the kernel does beside the product, in the order of the program.
      kept: in an accelerated program, what comes before, on A, and is not fused.
      stopped: in an accelerated program, what comes next and is not fused.
      otherwise: what runs where there is no kernel.
      devices: how many run it, each with shards of its own.
      shards: where XLA partitions it, what becomes of it on each device, once XLA has compiled the program.
    """

    equation: str
    problem: Any = None
    kernel: Kernel | None = None
    reason: str = ""
    fused: tuple[str, ...] = ()
    kept: str = ""
    stopped: str = ""
    otherwise: str = "lax.dot_general"
    devices: int = 1
    shards: Sequence[Report] = ()

    @property
    def kind(self) -> str:
        """What it is: one of KINDS."""
        if isinstance(self.problem, Attention) or self.equation.startswith(("attention", "gradients of")):
            return "attention"
        if self.equation.startswith("program of"):
            return "programs"
        if isinstance(self.problem, Pipeline) or self.otherwise == "XLA's loop":
            return "loops"
        if isinstance(self.problem, Grouped) or self.otherwise.startswith("lax.ragged_dot"):
            return "grouped products"
        return "convolutions" if self.otherwise.startswith("lax.conv") else "products"

    @property
    def ran_as(self) -> str:
        """Either "kernel" or what runs without one: "lax.dot_general" or "lax.conv_general_dilated" of a product."""
        return "kernel" if self.kernel or self.is_of_shards else self.otherwise

    @property
    def is_of_shards(self) -> bool:
        """Whether it becomes kernels only when XLA compiles the program, which is when shards are known."""
        return self.devices > 1 and not self.kernel and not self.reason

    @property
    def plan(self) -> Any:
        """Target, register block, cache blocks, phases and tasks, and why they were chosen."""
        return self.kernel.plan if self.kernel else None

    @property
    def mlir(self) -> str | None:
        """The composed MLIR module, in generic form."""
        return self.kernel.mlir if self.kernel else None

    @property
    def llvm_ir(self) -> str | None:
        """The LLVM IR it became, optimized."""
        return self.kernel.llvm_ir if self.kernel else None

    @property
    def assembly(self) -> str | None:
        """The assembly of that, in AT&T syntax."""
        return self.kernel.assembly if self.kernel else None

    def __str__(self) -> str:
        lines = {"runs as": f"kernel {self.kernel.name}" if self.kernel else self.otherwise}
        if self.is_of_shards:
            lines["runs as"] = "kernels of shards, which XLA finds when it compiles"
        if self.devices > 1:
            lines["on"] = f"each of {self.devices} devices"
        if self.problem:
            lines["problem"] = describe(self.problem)
        if self.kept:
            lines["before"] = self.kept
        if self.fused:
            lines["fused"] = ", ".join(self.fused)
        if self.stopped:
            lines["then"] = self.stopped
        if self.kernel:
            lines |= summary(self.kernel.plan) | {"code": f"{len(self.kernel.object):,} bytes"}
        if self.reason:
            lines["because"] = self.reason
        return "\n".join([self.equation, *(f"  {name:9}{text}" for name, text in lines.items())])

    __repr__ = __str__


class Reports(tuple[Report, ...]):
    """The reports of a program's products, in the order of its lowering; prints as them all."""

    def __str__(self) -> str:
        kernels = sum(report.ran_as == "kernel" for report in self)
        names = dict.fromkeys(report.otherwise for report in self if report.ran_as != "kernel") or ["lax.dot_general"]
        others = f"{len(self) - kernels} by {' and '.join(names)}"
        kinds = Counter(report.kind for report in self)
        counts = ", ".join(_count(kinds[kind], one) for kind, one in KINDS.items() if kinds[kind]) or "0 products"
        heading = f"{counts}: {kernels} by kernels, {others}"
        return "\n\n".join([heading, *map(str, self)])

    __repr__ = __str__


_listeners: ContextVar[tuple[list[Report], ...]] = ContextVar("jax_nano_listeners", default=())


@contextlib.contextmanager
def reports(*, alone: bool = False) -> Iterator[list[Report]]:
    """Collects what becomes of each product that this thread lowers inside the block, in order.

    Collectors around the block get them too, unless this one is to be alone.
    """
    collected: list[Report] = []
    token = _listeners.set((collected,) if alone else (*_listeners.get(), collected))
    try:
        yield collected
    finally:
        _listeners.reset(token)


def tell(report: Report) -> None:
    """Hands a report to those who collect them, and logs why there is no kernel."""
    if report.reason:
        logger.debug("not supported: %s: %s", report.equation, report.reason)
    for collected in _listeners.get():
        collected.append(report)


# Where microkernels read the operands, in words.
LHS = {"unpacked": "unpacked", "rows": "packed per task by rows", "columns": "packed per task by columns"}
RHS = {
    "unpacked": "unpacked",
    "per_task": "packed per task",
    "per_round": "packed per round",
    "panels": "packed before, as a weight",
}


def describe(problem: Problem) -> str:
    """One line: sizes, types, and which operands lie transposed in memory."""
    if isinstance(problem, Attention):
        return describe_attention(problem)
    if isinstance(problem, Pipeline):
        return describe_pipeline(problem)
    if isinstance(problem, Gated):
        return f"two products of one A, gated; {describe(problem.second)}"
    if isinstance(problem, Grouped):
        return describe_grouped(problem)
    b, m, n, k = problem.sizes
    sizes = f"M {m}, N {n}, K {k}" if b == 1 else f"B {b}, M {m}, N {n}, K {k}"
    text = f"{sizes}; {problem.lhs} x {problem.rhs} -> {problem.out}, summed in {problem.acc}"
    if problem.algorithm:
        text += f"; {_count(problem.terms, 'product')} of {problem.algorithm.dtype} splits"
    if problem.m and problem.k and problem.k[-1].lhs > problem.m[-1].lhs:
        text += "; A transposed"
    if problem.panels:
        text += f"; B in panels of {problem.panels.width}"
    elif problem.n and problem.k and problem.n[-1].rhs > problem.k[-1].rhs:
        text += "; B transposed"
    return text


def describe_attention(problem: Attention) -> str:
    """One line: sizes, type, masks."""
    heads = _count(problem.query_heads, "head") + (f" that share {problem.heads}" if problem.group > 1 else "")
    text = f"B {problem.batch}, T {problem.queries}, S {problem.keys}, {heads} of {problem.depth}"
    text += f" and {problem.value_depth}" if problem.value_depth != problem.depth else ""
    parts = {
        "causal": problem.causal, f"window {problem.window}": problem.window, "bias": problem.bias,
        "score function": problem.score,
        "mask": problem.mask, "lengths": problem.query_lengths or problem.key_lengths, "residual": problem.residual,
    }  # fmt: skip
    text += "; keys and values of s8" if problem.key_scales else ""
    return "; ".join([text, f"{problem.dtype}, summed in {problem.acc}", *(name for name in parts if parts[name])])


def describe_pipeline(problem: Pipeline) -> str:
    """One line: how many products and other stages, types, and what is multiplied in all."""
    stages = sum(1 for _ in repeated(problem.stages))
    count = len(problem.contractions)
    types = ", ".join(dict.fromkeys(stage.dtype for stage, _ in problem.contractions))
    text = f"{_count(count, 'product')} of {types} and {_count(stages - count, 'other stage')}"
    return f"{text}; {problem.multiplications:,} multiplications"


def summary_of_pipeline(plan: PipelinePlan) -> dict[str, str]:
    """The plan in words, by topic."""
    blocks = dict.fromkeys(f"{block.rows} x {block.registers} registers" for _, block in plan.blocks)
    return {
        "target": f"{plan.isa}, {plan.instruction.name}",
        "blocks": ", ".join(blocks),
        "scratch": f"{plan.local_bytes:,} bytes",
        "phases": _phases(plan),
        "chosen": plan.why,
    }


def describe_grouped(problem: Grouped) -> str:
    """One line: groups, whose rows or steps they share out, and a group's product."""
    batch = f"B {problem.batch.size}, " if problem.batch.size > 1 else ""
    text = f"{batch}{_count(problem.groups, 'group')} that share out {problem.ragged.upper()}; {describe(problem.dot)}"
    text += f"; rows of A gathered out of {problem.gather.stored:,}" if problem.gather else ""
    return f"{text}; rows of C added up in {problem.scatter.stored:,}" if problem.scatter else text


def summary_of_grouped(plan: GroupedPlan) -> dict[str, str]:
    """The plan in words, by topic."""
    lines = {"target": f"{plan.isa}, {plan.instruction.name}"}
    if plan.one:
        lines["one row"] = blocks_of(plan.one)
    if plan.few:
        lines["few rows"] = f"up to {plan.few_rows}: {blocks_of(plan.few)}"
    if plan.many:
        lines["many rows" if plan.few else "groups"] = blocks_of(plan.many)
    return lines | {"phases": _phases(plan), "chosen": plan.why}


def blocks_of(plan: Plan) -> str:
    """The blocks of a group's product, in words."""
    return (
        f"{plan.mr} x {plan.nr} accumulators, {plan.instruction.name}; {plan.mt} x {plan.nt} in a task, KC {plan.kc}; "
        f"A {LHS[plan.lhs]}, B {RHS[plan.rhs]}"
    )


def summary_of_attention(plan: AttentionPlan) -> dict[str, str]:
    """The plan in words, by topic."""
    problem = plan.problem
    splits = f", in {plan.splits} splits" if plan.splits > 1 else ""
    skipped = [f"{100 * (1 - problem.visible):.0f} % of the scores are masked by place"] if problem.visible < 1 else []
    if blocks := problem.blocks:
        skipped.append(f"blocks of {blocks.queries} x {blocks.keys} that a block mask hides, as the kernel runs")
    packed = {"K": plan.packs_keys, "V": plan.packs_values}
    rows, columns, summed = plan.kinds
    modes = ", ".join(f"{name} {'packed per task' if is_packed else 'unpacked'}" for name, is_packed in packed.items())
    return {
        "target": f"{plan.isa}, {plan.instruction.name}",
        "block": f"{plan.mr} x {plan.nr} accumulators: {rows} or elements of {summed} x {columns}",
        "cache": f"{plan.query_block} {columns} a task, {plan.key_block} {rows} a block{splits}; {modes}",
        "skipped": "; ".join(skipped) or "none",
        "phases": _phases(plan),
        "chosen": plan.why,
    }


def _phases(plan: AnyPlan) -> str:
    return ", then ".join(f"{name} in {_count(count, 'task')}" for name, count in plan.tasks.items())


def summary(plan: AnyPlan) -> dict[str, str]:
    """The plan in words, by topic."""
    if isinstance(plan, AttentionPlan):
        return summary_of_attention(plan)
    if isinstance(plan, PipelinePlan):
        return summary_of_pipeline(plan)
    if isinstance(plan, GatedPlan):
        return summary(plan.second) | {"phases": _phases(plan), "chosen": plan.why}
    if isinstance(plan, GroupedPlan):
        return summary_of_grouped(plan)
    stationary = "A" if plan.lhs_stationary else "B"
    return {
        "target": f"{plan.isa}, {plan.instruction.name}" + (", operands exchanged" if plan.swapped else ""),
        "block": f"{plan.mr} x {plan.nr} accumulators, {stationary}-stationary, K unrolled by {plan.unroll}",
        "cache": f"MC {plan.mc}, KC {plan.kc}, NC {plan.nc}; A {LHS[plan.lhs]}, B {RHS[plan.rhs]}",
        "phases": _phases(plan) + (f", in {plan.rounds} rounds" if plan.rounds > 1 else ""),
        "chosen": plan.why,
    }


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
