"""What would make a profiled program faster, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from jax_nano import _native
from jax_nano.ir.dot import Dot
from jax_nano.machine import calibration
from jax_nano.machine.isa import Machine
from jax_nano.runtime.program_profile import KernelUse, ProgramProfile
from jax_nano.runtime.tuning import name_of
from jax_nano.schedule.cost.estimate import seconds as estimate
from jax_nano.schedule.plan import Plan

WORTH = 0.05  # of the computing time: what takes less is not spoken of
FAR = 0.5  # of the roof: kernels below may have better plans


def advice(profile: ProgramProfile, machine: Machine, *, installed: bool) -> list[str]:
    """What would help, what gains most first as far as that is known."""
    if not profile.kernels:
        return [nothing_ran(profile, installed=installed)]
    lines = [*of_memory(profile), *of_accelerate(profile), *of_weights(profile, machine), *of_tuning(profile)]
    if not is_calibrated(machine):
        lines.append("`python -m jax_nano calibrate` measures this machine once; plans then follow what it found")
    return lines


def nothing_ran(profile: ProgramProfile, *, installed: bool) -> str:
    """Why there are no kernels."""
    if profile.left:
        return "nothing had a kernel that would be faster; the reasons stand above"
    if installed:
        return "the program has no products, convolutions, attention or loops of them; jax_nano computes nothing else"
    return "no product went to jax_nano: leave out --as-is, or wrap the model in jax_nano.accelerate"


def of_memory(profile: ProgramProfile) -> Iterator[str]:
    """On results made of fresh pages, which the system clears."""
    if profile.system_seconds > WORTH * profile.seconds:
        yield (
            f"the system took {profile.system_seconds:.2f} s, most of it to clear fresh pages: "
            "jax_nano.retain_memory(1 << 30), before the first computation, keeps freed memory for later results"
        )


def of_accelerate(profile: ProgramProfile) -> Iterator[str]:
    """On elementwise work that could be part of kernels."""
    fusions = sum(seconds for name, (_, seconds) in profile.others.items() if "fusion" in name or "wrapped" in name)
    accelerated = any(use.report.fused or use.report.stopped for use in profile.kernels)
    if fusions > WORTH * profile.computing_seconds and not accelerated:
        yield (
            f"XLA's elementwise work takes {fusions / profile.computing_seconds:.0%} of the time: "
            "jax.jit(jax_nano.accelerate(f)) makes what stands around products a part of their kernels"
        )


def of_weights(profile: ProgramProfile, machine: Machine) -> Iterator[str]:
    """On weights that are packed again in every run, or that products wait for."""
    for use in worth_speaking_of(profile):
        plan, problem = use.report.plan, use.report.problem
        if not isinstance(plan, Plan) or not isinstance(problem, Dot) or problem.window or use.runs < 2:
            continue
        rows, columns = problem.sizes[1], problem.sizes[2]
        if use.roof.waits_for_memory and rows < columns and problem.rhs in ("f32", "bf16", "f16"):
            yield (
                f"{name_of(problem)}: waits for B to arrive from memory; if that is a weight, "
                "jax_nano.quantize(w, bits=8) or bits=4 leaves a half to an eighth of its bytes"
            )
            continue
        cost = estimate(plan, machine)
        if plan.rhs in ("per_task", "per_round") and cost.packing > WORTH * (cost.compute + cost.packing):
            share = cost.packing / (cost.compute + cost.packing)
            yield (
                f"{name_of(problem)}: packs its operands in every run, {share:.0%} of its time by the cost model; if B "
                "is a weight, jax_nano.pack(w) does that once"
            )


def of_tuning(profile: ProgramProfile) -> Iterator[str]:
    """On kernels that are far from the roof by a plan that nobody measured."""
    far = [use for use in worth_speaking_of(profile) if use.share_of_roof < FAR and not is_measured(use)]
    if far:
        share = sum(use.seconds for use in far) / profile.computing_seconds
        yield (
            f"kernels with {share:.0%} of the time are below {FAR:.0%} of the roof: "
            "`python -m jax_nano tune` on the program measures other plans for them"
        )


def worth_speaking_of(profile: ProgramProfile) -> list[KernelUse]:
    """Kernels that take more than a little of the time."""
    return [use for use in profile.kernels if use.seconds > WORTH * profile.computing_seconds]


def is_measured(use: KernelUse) -> bool:
    """Whether its plan is the winner of a measurement."""
    return "measured" in use.report.plan.why


def is_calibrated(machine: Machine) -> bool:
    """Whether this machine was measured."""
    try:
        return calibration.path(calibration.processor(_native.host_cpu(), machine.threads)).exists()
    except OSError:
        return True  # there is no place to keep it
