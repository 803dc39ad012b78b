"""Probes: small kernels that do one thing as fast as the machine can, compiled and run as products are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func
from jax.interpreters.mlir import make_ir_context

from jax_nano import _native
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import FFI_TYPES, NUMPY_TYPES
from jax_nano.machine import host
from jax_nano.machine.isa import Machine

Array = tuple[int, str]  # elements, and their type


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A kernel whose tasks each do the same work: they read one operand, of ones, and write a piece of the result."""

    name: str
    isa: str
    features: tuple[str, ...]  # LLVM's names of what it needs of a processor
    operand: Array
    result: Array  # of a task
    body: Callable[[ir.Value, ir.Value, ir.Value], None]  # emits a task: (its number, the operand, the result)
    multiplies: str = ""  # the type of what it multiplies, "8 bits" for bytes of any sign
    gflop: float = 0.0  # of a task; a multiplication and an addition are two


def runs_here(probe: Probe) -> bool:
    """Whether this processor has what a probe needs, and Linux grants this process tiles if they are among that."""
    return host.has(probe.features) and not ("amx-tile" in probe.features and _native.tiles_denied())


def runnable(probe: Probe, tasks: int) -> Callable[[], Any]:
    """Compiles a probe; the function returned runs it in so many tasks, waits, and gives the result."""
    code = _native.compile(module(probe, tasks), *processor(probe, host.machine_for(probe.isa)))
    elements, dtype = tasks * probe.result[0], probe.result[1]
    attributes = {
        "key": np.int64(hash((code, tasks))),
        "object": code,
        "features": ",".join(probe.features),
        "symbols": "probe",
        "tasks": np.array([tasks]),
        "rounds": np.int64(1),
        "shared_bytes": np.int64(0),
        "local_bytes": np.int64(0),
        "operand_types": np.array([FFI_TYPES[probe.operand[1]]]),
        "operand_elements": np.array([probe.operand[0]]),
        "result_types": np.array([FFI_TYPES[dtype]]),
        "result_elements": np.array([elements]),
    }
    with jax.enable_x64(new_val=True):
        ones = jnp.ones(probe.operand[0], NUMPY_TYPES[probe.operand[1]])
        call = jax.ffi.ffi_call("jax_nano", jax.ShapeDtypeStruct((elements,), NUMPY_TYPES[dtype]))
        compiled = jax.jit(lambda x: call(x, **attributes)).lower(ones).compile()
    return lambda: compiled(ones).block_until_ready()


def assembly(probe: Probe, machine: Machine) -> str:
    """A probe as LLVM compiles it for a machine, which need not be this one."""
    return _native.assembly(module(probe, tasks=1), *processor(probe, machine))


def processor(probe: Probe, machine: Machine) -> tuple[str, str, str]:
    """What to compile a probe for: LLVM's names of the baseline, of what it needs beyond, and of the machine."""
    return machine.isa(probe.isa).cpu, ",".join(f"+{feature}" for feature in probe.features), machine.name


def module(probe: Probe, tasks: int) -> str:
    """An MLIR module whose one public function, `probe`, is a task."""
    elements, dtype = probe.result
    with make_ir_context() as context, ir.Location.unknown():
        context.allow_unregistered_dialects = True
        top = ir.Module.create()
        index, nothing = ir.IndexType.get(), memory((0, "s8"))
        arguments = [index, index, nothing, nothing, memory(probe.operand), memory((tasks * elements, dtype))]
        with ir.InsertionPoint(top.body):
            function = func.FuncOp("probe", (arguments, []))
        with ir.InsertionPoint(function.add_entry_block()):
            _, task, _, _, source, destination = function.arguments
            probe.body(task, source, destination)
            func.return_([])
        return str(top.operation.get_asm(print_generic_op_form=True))


def memory(array: Array) -> ir.Type:
    """MLIR's type of an array."""
    return ir.MemRefType.get([array[0]], element_type(array[1]))
