"""A compiled product, and the description that its custom call carries: the Python side of csrc/handler.cc.

XLA's FFI hands a custom call's attributes to the handler: the object code, how to call it, which arrays it expects, and
a key. When a program is loaded, the handler links the object under that key, once in a process; when the program runs,
it finds the entry points by the key, checks the arrays and lets XLA's threads take the tasks of each phase.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jax_nano import _native
from jax_nano.codegen.module import build_module, kernel_name, phase_symbols
from jax_nano.ir.attention import Problem
from jax_nano.ir.dtypes import FFI_TYPES
from jax_nano.machine.host import thread_limit
from jax_nano.machine.isa import Machine
from jax_nano.schedule.attention.plan import AnyPlan
from jax_nano.schedule.gated.plan import GatedPlan
from jax_nano.schedule.grouped.plan import GroupedPlan

TARGET_NAME = "jax_nano"  # of the custom call
FORMAT = 1  # of its attributes: another number for each change of what they say; csrc/handler.cc has it too
SIZE_BYTES = 4  # of the size of a description behind object code
jax.ffi.register_ffi_target(
    TARGET_NAME,
    {"instantiate": _native.instantiate_handler(), "execute": _native.execute_handler()},
    platform="cpu",
)
thread_limit.apply()  # of kernels in programs from disk as well, for which no machine is looked at


@dataclass(frozen=True)
class Processor:
    """What LLVM compiles for, in its names."""

    cpu: str
    features: str
    tune: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """How object code is called, and what is known of it without its plan: loader.h has the same, and the arrays."""

    name: str  # the symbol of the computing phase
    symbols: tuple[str, ...]  # entry points, one a phase; they follow one another in every round
    tasks: tuple[int, ...]  # of each phase; they may run at once
    rounds: int
    shared_bytes: int  # scratch that all tasks see
    local_bytes: int  # scratch of each thread
    features: str  # LLVM's names of the instruction sets the code uses, separated by commas
    predicted_seconds: float

    @classmethod
    def of(cls, plan: AnyPlan, processor: Processor) -> Description:
        """The description of the code that a plan becomes."""
        return cls(
            name=kernel_name(plan),
            symbols=tuple(phase_symbols(plan)),
            tasks=tuple(plan.tasks.values()),
            rounds=plan.rounds,
            shared_bytes=plan.shared_bytes,
            local_bytes=plan.local_bytes,
            features=processor.features.replace("+", ""),
            predicted_seconds=plan.predicted_seconds,
        )

    def to_json(self) -> bytes:
        """A text to keep."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Description:
        """Reads what to_json wrote.

        Raises:
          ValueError: it is something else.
        """
        found: dict[str, Any] = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("a description is a table")
        kinds = {name: type(value) for name, value in found.items()}
        if kinds != KINDS or {*map(type, found["symbols"])} != {str} or {*map(type, found["tasks"])} != {int}:
            raise ValueError("a description has values of other types")
        found.update(symbols=tuple(found["symbols"]), tasks=tuple(found["tasks"]))
        return cls(**found)


# The types of a description's values in JSON.
KINDS = {"name": str, "symbols": list, "tasks": list, "rounds": int, "shared_bytes": int, "local_bytes": int,
         "features": str, "predicted_seconds": float}  # fmt: skip


Arrays = tuple[tuple[str, int], ...]  # types, and elements in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """One compiled product, attention or grouped product."""

    problem: Problem
    object: bytes
    description: Description
    make_plan: Callable[[], tuple[AnyPlan, Processor]]  # makes the plan that the object was compiled from

    @classmethod
    def of(cls, problem: Problem, plan: AnyPlan, processor: Processor, object: bytes) -> Kernel:
        """The kernel of a problem whose plan was compiled."""
        described = Description.of(plan, processor)
        return cls(problem=problem, object=object, description=described, make_plan=partial(tuple, (plan, processor)))

    @classmethod
    def from_bytes(cls, problem: Problem, kept: bytes, make_plan: Callable[[], tuple[AnyPlan, Processor]]) -> Kernel:
        """The kernel of a problem, of what `to_bytes` gave in another process.

        Raises:
          ValueError: that is something else.
        """
        size = int.from_bytes(kept[-SIZE_BYTES:], "little")
        code, text = kept[: -size - SIZE_BYTES], kept[-size - SIZE_BYTES : -SIZE_BYTES]
        return cls(problem=problem, object=code, description=Description.from_json(text), make_plan=make_plan)

    def to_bytes(self) -> bytes:
        """What other processes need of it: the object code, its description, and how long that is."""
        text = self.description.to_json()
        return self.object + text + len(text).to_bytes(SIZE_BYTES, "little")

    @property
    def name(self) -> str:
        """The symbol of its computing phase."""
        return self.description.name

    @functools.cached_property
    def _planned(self) -> tuple[AnyPlan, Processor]:
        return self.make_plan()

    @property
    def plan(self) -> Any:
        """How it computes, a plan of the problem's kind.

        Of a kernel found on disk, it is made when first asked for.
        """
        return self._planned[0]

    @property
    def processor(self) -> Processor:
        """What it was compiled for."""
        return self._planned[1]

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

    @functools.cached_property
    def arrays(self) -> tuple[Arrays, Arrays]:
        """The operands and the results, in order: their types and how many elements each has in memory."""
        both: list[Arrays] = [
            tuple((array.dtype, array.elements) for array in self.problem.arrays if (array.role == "out") == is_result)
            for is_result in (False, True)
        ]
        return both[0], both[1]

    @functools.cached_property
    def key(self) -> int:
        """What the handler knows it by: a digest of the code and of all that is said of it."""
        digest = hashlib.sha256(self.object)
        digest.update(repr((replace(self.description, predicted_seconds=0.0), self.arrays)).encode())
        return int.from_bytes(digest.digest()[:8], "little", signed=True)

    def attributes(self) -> dict[str, object]:
        """The attributes of the custom call, as handler.cc reads them."""
        return dict(self._attributes)

    @functools.cached_property
    def _attributes(self) -> dict[str, object]:
        described, (operands, results) = self.description, self.arrays
        return {
            "format": np.int64(FORMAT),
            "object": self.object,
            "features": described.features,
            "symbols": ",".join(described.symbols),
            "tasks": np.array(described.tasks, np.int64),
            "rounds": np.int64(described.rounds),
            "shared_bytes": np.int64(described.shared_bytes),
            "local_bytes": np.int64(described.local_bytes),
            "operand_types": np.array([FFI_TYPES[dtype] for dtype, _ in operands], np.int64),
            "operand_elements": np.array([elements for _, elements in operands], np.int64),
            "result_types": np.array([FFI_TYPES[dtype] for dtype, _ in results], np.int64),
            "result_elements": np.array([elements for _, elements in results], np.int64),
            "key": np.int64(self.key),
            "threads": np.int64(0),
        }


def processor_for(plan: AnyPlan, machine: Machine) -> Processor:
    """What to compile a plan for."""
    isa = machine.isa(plan.isa)
    dtypes = {array.dtype for array in plan.problem.arrays}
    conversions = isa.conversions if "f16" in dtypes else ()
    own = plan.features if isinstance(plan, GroupedPlan | GatedPlan) else plan.instruction.features
    extra = ",".join(f"+{feature}" for feature in (*isa.features, *conversions, *own))
    return Processor(isa.cpu, extra, machine.tune or machine.name)
