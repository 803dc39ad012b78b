"""Product -> object code, once per process or out of the cache; and what the custom call needs to know of it."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from jax_nano import _native, cache, emit, schedule
from jax_nano.isa import Isa, Machine
from jax_nano.plan import Plan
from jax_nano.problem import WORD_STEPS, WORDS, Dot, extent
from jax_nano.targets import host

TARGET_NAME = "jax_nano"  # of the custom call
CANDIDATES = 8  # plans that autotuning measures for a product

# XLA_FFI_DataType, from xla/ffi/api/c_api.h.
FFI_TYPES = {
    "pred": 1, "s4": 21, "s8": 2, "s16": 3, "s32": 4, "s64": 5, "u4": 22, "u8": 6, "u16": 7, "u32": 8, "u64": 9,
    "f16": 10, "f32": 11, "f64": 12, "bf16": 16,
    "f8e5m2": 19, "f8e5m2fnuz": 24, "f8e4m3": 28, "f8e4m3fn": 20, "f8e4m3fnuz": 25, "f8e4m3b11fnuz": 23, "f8e3m4": 29,
}  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """What LLVM compiles for, in its names."""

    cpu: str
    features: str
    tune: str


@dataclass(frozen=True)
class Kernel:
    """One compiled product."""

    dot: Dot
    plan: Plan
    processor: Processor
    object: bytes

    @property
    def name(self) -> str:
        """The symbol of its computing phase."""
        return emit.name(self.plan)

    @functools.cached_property
    def mlir(self) -> str:
        """The composed module, in generic form."""
        return emit.module(self.plan)

    @functools.cached_property
    def llvm_ir(self) -> str:
        """LLVM IR, optimized."""
        return _native.llvm_ir(self.mlir, self.processor.cpu, self.processor.features, self.processor.tune)

    @functools.cached_property
    def assembly(self) -> str:
        """Assembly in AT&T syntax."""
        return _native.assembly(self.mlir, self.processor.cpu, self.processor.features, self.processor.tune)

    def attributes(self) -> dict[str, object]:
        """The attributes of the custom call, as handler.cc reads them."""
        return dict(self._attributes)

    @property
    def arrays(self) -> tuple[tuple[tuple[str, int], ...], tuple[str, int]]:
        """The operands, in order, and the result: their types and how many elements each has in memory."""
        dot = self.dot
        axes = (*dot.b, *dot.m, *dot.n, *dot.k)
        lhs, rhs, out = (math.prod(axis.size for axis in axes if axis.strides()[array]) for array in range(3))
        weight = dot.rhs, dot.panels.elements if dot.panels else rhs
        if dot.rhs in WORDS:
            steps = extent(dot.k)
            weight = "u32", rhs // steps * -(-steps // WORD_STEPS)
        return ((dot.lhs, lhs), weight, *dot.extras), (dot.out, out)

    @functools.cached_property
    def _attributes(self) -> dict[str, object]:
        plan, (operands, (out, results)) = self.plan, self.arrays
        attributes = {
            "object": self.object,
            "features": self.processor.features.replace("+", ""),
            "symbols": ",".join(emit.symbols(plan)),
            "tasks": np.array(list(plan.tasks.values()), np.int64),
            "rounds": np.int64(plan.rounds),
            "shared_bytes": np.int64(plan.shared_bytes),
            "local_bytes": np.int64(plan.local_bytes),
            "operand_types": np.array([FFI_TYPES[dtype] for dtype, _ in operands], np.int64),
            "operand_elements": np.array([elements for _, elements in operands], np.int64),
            "result_types": np.array([FFI_TYPES[out]], np.int64),
            "result_elements": np.array([results], np.int64),
        }
        plain = {name: x.tolist() if isinstance(x, np.ndarray | np.generic) else x for name, x in attributes.items()}
        digest = hashlib.sha256(repr(sorted(plain.items())).encode()).digest()  # arrays print as NumPy is told to
        attributes["key"] = np.frombuffer(digest[:8], np.int64)[0]
        return attributes


def processor_for(plan: Plan, machine: Machine) -> Processor:
    """What to compile a plan for."""
    isa = machine.isa(plan.isa)
    conversions = isa.conversions if "f16" in (plan.dot.lhs, plan.dot.rhs, plan.dot.out) else ()
    extra = ",".join(f"+{feature}" for feature in (*isa.features, *conversions, *plan.instruction.features))
    return Processor(isa.cpu, extra, machine.name)


def machine_for(name: str | None = None) -> Machine:
    """The machine to compose for: this one, or another where this one lacks the instruction set asked for.

    Kernels for another machine can be looked at here, not run.

    Raises:
      UnsupportedDot: there is no target for this processor.
      ValueError: no machine has an instruction set of that name.
    """
    machine, wanted = host.machine(), name or os.environ.get("JAX_NANO_TARGET")
    if not wanted or any(isa.name == wanted for isa in machine.isas):
        return machine
    return host.elsewhere(wanted)


def target(machine: Machine, name: str | None = None) -> Isa:
    """The instruction set to use: the one named, else the one JAX_NANO_TARGET names, else the machine's best.

    Raises:
      ValueError: the machine has none of that name.
    """
    wanted = name or os.environ.get("JAX_NANO_TARGET")
    return machine.isa(wanted) if wanted else machine.isas[0]


def kernel_for(dot: Dot, target_name: str | None = None) -> Kernel:
    """The kernel of a product for a target, by default this machine's, compiled once per process.

    Raises:
      UnsupportedDot: jax_nano has no kernel for it.
      ValueError: no machine has the target asked for.
    """
    isa = target(machine_for(target_name), target_name).name
    with _locks.setdefault((dot, isa), threading.Lock()):  # who wants the same one waits; others compile beside it
        return _kernel(dot, isa)


_locks: dict[tuple[Dot, str], threading.Lock] = {}
# A forked process compiles for itself what threads, which it does not have, were about to compile.
os.register_at_fork(after_in_child=_locks.clear)


@functools.cache
def _kernel(dot: Dot, isa: str) -> Kernel:
    machine = machine_for(isa)
    plan = remembered(dot, machine.isa(isa)) or schedule.choose(dot, machine, machine.isa(isa))
    return compiled(dot, plan, processor_for(plan, machine))


def begin(dots: Iterable[Dot]) -> None:
    """Begins to compile the kernels of several products on other threads, the last first, while this one goes on.

    Who takes them from the first on meets the others in the middle, and seldom waits.
    """
    dots = list(dict.fromkeys(dots))
    others = host.threads() - 1
    if len(dots) < 2 or not others:
        return
    pool = ThreadPoolExecutor(others)
    with suppress(RuntimeError):  # no threads are to be had where the main thread has ended
        for dot in reversed(dots[1:]):
            pool.submit(kernel_for, dot)
    pool.shutdown(wait=False)  # its threads end when nothing is left to do


def remember(dot: Dot, isa: Isa, plan: Plan) -> None:
    """Has a product computed by this plan from now on, in this process and in later ones on such a processor."""
    machine = host.machine()
    named = cache.key((plan,)).encode()
    cache.put("nano_winner", ("winner", machine.name, machine.threads, isa.name, dot), named)
    _kernel.cache_clear()


def remembered(dot: Dot, isa: Isa) -> Plan | None:
    """The plan that won for a product, if that is known and still a candidate."""
    machine = host.machine()
    named = cache.get("nano_winner", ("winner", machine.name, machine.threads, isa.name, dot))
    if named is None:
        return None
    candidates = schedule.candidates(dot, machine, isa, CANDIDATES)
    winner = next((plan for plan in candidates if cache.key((plan,)).encode() == named), None)
    return winner and replace(winner, why=f"the fastest of {len(candidates)} plans measured")


def compiled(dot: Dot, plan: Plan, processor: Processor) -> Kernel:
    """The kernel of a product by a plan: out of the cache, or composed and compiled."""

    def compose() -> bytes:
        return _native.compile(emit.module(plan), processor.cpu, processor.features, processor.tune)

    return Kernel(dot, plan, processor, cache.fetch(emit.name(plan), (plan, processor), compose))
