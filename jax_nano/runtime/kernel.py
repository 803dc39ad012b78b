"""A compiled product, and what the custom call needs to know of it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import jax
import numpy as np

from jax_nano import _native
from jax_nano.codegen.module import build_module, kernel_name, phase_symbols
from jax_nano.ir.dot import Dot
from jax_nano.ir.dtypes import FFI_TYPES
from jax_nano.machine.isa import Machine
from jax_nano.schedule.plan import Plan

TARGET_NAME = "jax_nano"  # of the custom call
jax.ffi.register_ffi_target(
    TARGET_NAME,
    {"instantiate": _native.instantiate_handler(), "execute": _native.execute_handler()},
    platform="cpu",
)


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
        return kernel_name(self.plan)

    @functools.cached_property
    def mlir(self) -> str:
        """The composed module, in generic form."""
        return build_module(self.plan)

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
        *operands, out = ((array.dtype, array.elements) for array in self.dot.arrays)
        return tuple(operands), out

    @functools.cached_property
    def _attributes(self) -> dict[str, object]:
        plan, (operands, (out, results)) = self.plan, self.arrays
        attributes = {
            "object": self.object,
            "features": self.processor.features.replace("+", ""),
            "symbols": ",".join(phase_symbols(plan)),
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
