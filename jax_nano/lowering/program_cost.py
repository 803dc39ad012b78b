"""Whether a small program is worth a kernel: its predicted time beside that of its calls one by one.

Its arithmetic is much the same either way. One kernel saves the calls of the others, and what XLA does between them; it
lacks the other threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax.extend.core import Jaxpr, JaxprEqn, Var

from jax_nano.ir.pipeline import Contraction, UnsupportedPipeline, repeated
from jax_nano.jaxpr.fusion import has_known_sizes
from jax_nano.jaxpr.inline import inline_calls, type_of
from jax_nano.jaxpr.legality import is_elementwise
from jax_nano.jaxpr.operands import VIEWS
from jax_nano.jaxpr.pipelines.rules import SAME
from jax_nano.jaxpr.primitives import FUSED_PRODUCTS, nano_attention_gradient_p, nano_attention_p, nano_region_p
from jax_nano.lowering.loop_cost import peak
from jax_nano.machine.isa import Machine
from jax_nano.schedule.cost.pipeline import stage_cycles
from jax_nano.schedule.pipelines.plan import PipelinePlan

FASTER = "its calls one by one are predicted to be as fast: {calls:.1f} us beside {kernel:.1f}"
MOST_EQUATIONS = 500  # which take 50 ms to read
MOST_BYTES = 1 << 20  # of arguments and results, which have to be in L2
# Of the arithmetic: by so much are stages slower than kernels, at most (of 40 programs on Zen 5).
MARGIN = 0.1
# From so many elements on, XLA (JAX 0.12) gives reductions to other threads.
PARALLEL_ELEMENTS = 2048
KERNELS = FUSED_PRODUCTS | {nano_region_p, nano_attention_p, nano_attention_gradient_p}


@dataclass(frozen=True)
class Calls:
    """What runs one by one where a program is no kernel.

    Attributes:
      kernels: how many kernels.
      operations: how many operations of XLA's, each with all that XLA fuses into it.
      is_parallel: whether one of those goes to other threads.
    """

    kernels: int
    operations: int
    is_parallel: bool = False

    @classmethod
    def of(cls, jaxpr: Jaxpr) -> Calls:
        """Those of a program: elementwise work and views belong to what reads them, if XLA computes that."""
        eqns = inline_calls(jaxpr).eqns
        kernels = [eqn for eqn in eqns if eqn.primitive in KERNELS]
        needed = {x for x in jaxpr.outvars if isinstance(x, Var)}
        needed |= {x for eqn in kernels for x in eqn.invars if isinstance(x, Var)}
        operations = [eqn for eqn in eqns if _is_operation(eqn, needed)]
        return cls(len(kernels), len(operations), any(map(_is_parallel, operations)))

    def seconds(self, machine: Machine) -> float:
        """What it takes to begin them all."""
        begun = 1e-6 * (self.kernels * machine.fitted.call_us + self.operations * machine.fitted.piece_us)
        return begun + (1e-6 * machine.fitted.parallel_us if self.is_parallel and machine.threads > 1 else 0.0)


def _is_operation(eqn: JaxprEqn, needed: set[Var]) -> bool:
    if eqn.primitive in KERNELS or eqn.primitive in VIEWS or eqn.primitive.name in SAME:
        return False
    return not is_elementwise(eqn.primitive) or any(out in needed for out in eqn.outvars)


def _is_parallel(eqn: JaxprEqn) -> bool:
    is_reduction = eqn.primitive.name.startswith(("reduce_", "argm"))
    return is_reduction and type_of(eqn.invars[0]).size >= PARALLEL_ELEMENTS


def is_small(jaxpr: Jaxpr) -> bool:
    """Whether a program may be worth a kernel for all of it: it has products, several calls, and small arrays."""
    if jaxpr.effects or not jaxpr.outvars or len(jaxpr.eqns) > MOST_EQUATIONS or not has_known_sizes(jaxpr):
        return False
    arrays = [type_of(x) for x in (*jaxpr.invars, *jaxpr.outvars)]
    if sum(x.size * x.dtype.itemsize for x in arrays if hasattr(x, "size")) > MOST_BYTES:
        return False
    calls = Calls.of(jaxpr)
    return calls.kernels > 0 and calls.kernels + calls.operations > 1


def check_is_faster(jaxpr: Jaxpr, plan: PipelinePlan, machine: Machine) -> None:
    """Checks that the plan of a program is predicted to take less time than what would run without it.

    Args:
      jaxpr: the program, with its regions.
      plan: of all of it.
      machine: where it runs.

    Raises:
      UnsupportedPipeline: it is not.
    """
    arithmetic = arithmetic_seconds(plan, machine)
    fitted = machine.fitted
    calling = 1e-6 * (fitted.call_us - fitted.pipeline_call_us)  # of nothing else in the program
    own = plan.predicted_seconds + calling + MARGIN * arithmetic
    others = Calls.of(jaxpr).seconds(machine) + arithmetic
    if own >= others:
        raise UnsupportedPipeline(FASTER.format(calls=1e6 * others, kernel=1e6 * own))


def arithmetic_seconds(plan: PipelinePlan, machine: Machine) -> float:
    """The predicted time of a program's arithmetic where each part of it takes as many threads as pay."""
    waking, hertz = 1e-6 * machine.fitted.wake_us, machine.ghz * 1e9
    total = 0.0
    for stage, times in repeated(plan.program.stages):
        alone = plan.task_count * stage_cycles(stage, plan, machine) / hertz
        shared = alone / machine.threads
        if isinstance(stage, Contraction):
            shared = plan.task_count * stage.multiplications / (machine.fitted.kernel_share * peak(plan, machine))
        total += times * min(alone, waking + shared)
    return total
