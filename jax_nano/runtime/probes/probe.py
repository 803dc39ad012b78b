"""What a probe is: a small kernel, composed, compiled and run the way products are, on the same threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, func
from jax.interpreters.mlir import make_ir_context

from jax_nano import _native
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import FFI_TYPES, NUMPY_TYPES
from jax_nano.machine.isa import Machine
from jax_nano.runtime.kernel import FORMAT, TARGET_NAME

Array = tuple[int, str]  # elements, and their type
Body = Callable[..., None]  # emits a task: its number, then the operands and the result


@dataclass(frozen=True)
class Target:
    """What a probe is compiled for, and how many of its tasks may run at once."""

    isa: str
    features: tuple[str, ...]  # LLVM's names of what it needs of a processor
    tasks: int


class Probe:
    """A kernel of some operands and one result, compiled; it is called with arrays, and gives one."""

    def __init__(self, body: Body, target: Target, arrays: Sequence[Array], machine: Machine):
        """Composes and compiles.

        Args:
          body: emits a task.
          target: what it is compiled for.
          arrays: the operands, and last the result.
          machine: has the target's instruction set.
        """
        self.arrays = tuple(arrays)
        self._compiled_for = machine.isa(target.isa).cpu, features(target), machine.name
        self._module, self._target = module(body, self.arrays), target
        self._object = _native.compile(self._module, *self._compiled_for)

    @property
    def assembly(self) -> str:
        """Assembly in AT&T syntax."""
        return _native.assembly(self._module, *self._compiled_for)

    def call(self, *operands: Any) -> jax.Array:
        """The custom call, in a program that is traced."""
        *_, (elements, dtype) = self.arrays
        call = jax.ffi.ffi_call(TARGET_NAME, jax.ShapeDtypeStruct((elements,), NUMPY_TYPES[dtype]))
        return call(*operands, **self.attributes())

    def compiled(self, *operands: Any) -> Callable[..., jax.Array]:
        """A program of the call alone, for operands such as these."""
        with jax.enable_x64(new_val=True):
            return jax.jit(self.call).lower(*operands).compile()

    def on_ones(self) -> Callable[[], jax.Array]:
        """A function that runs the probe on ones, waits, and gives the result."""
        operands = [ones(array) for array in self.arrays[:-1]]
        compiled = self.compiled(*operands)
        return lambda: compiled(*operands).block_until_ready()

    def attributes(self) -> dict[str, object]:
        """The attributes of the custom call, as handler.cc reads them."""
        *operands, result = self.arrays
        return {
            "format": np.int64(FORMAT),
            "threads": np.int64(0),
            "key": np.int64(hash((self._object, self._target, self.arrays))),
            "object": self._object,
            "features": ",".join(self._target.features),
            "symbols": "probe",
            "tasks": np.array([self._target.tasks]),
            "rounds": np.int64(1),
            "shared_bytes": np.int64(0),
            "local_bytes": np.int64(0),
            "operand_types": np.array([FFI_TYPES[dtype] for _, dtype in operands], np.int64),
            "operand_elements": np.array([elements for elements, _ in operands], np.int64),
            "result_types": np.array([FFI_TYPES[result[1]]]),
            "result_elements": np.array([result[0]]),
        }


def ones(array: Array) -> jax.Array:
    """An array of ones."""
    with jax.enable_x64(new_val=True):
        return jnp.ones(array[0], NUMPY_TYPES[array[1]])


def features(target: Target) -> str:
    """What LLVM may use beyond the instruction set's baseline, in its words."""
    return ",".join(f"+{feature}" for feature in target.features)


def module(body: Body, arrays: Sequence[Array]) -> str:
    """An MLIR module whose one public function, `probe`, is a task."""
    with make_ir_context() as context, ir.Location.unknown():
        context.allow_unregistered_dialects = True
        top = ir.Module.create()
        index, nothing = ir.IndexType.get(), memory((0, "s8"))
        arguments = [index, index, nothing, nothing, *map(memory, arrays)]
        with ir.InsertionPoint(top.body):
            function = func.FuncOp("probe", (arguments, []))
        with ir.InsertionPoint(function.add_entry_block()):
            _, task, _, _, *places = function.arguments
            body(task, *places)
            func.return_([])
        return str(top.operation.get_asm(print_generic_op_form=True))


def memory(array: Array) -> ir.Type:
    """MLIR's type of an array."""
    return ir.MemRefType.get([array[0]], element_type(array[1]))


def total(values: list[ir.Value]) -> ir.Value:
    """The sum of vectors."""
    first, *rest = values
    plus = arith.addi if isinstance(ir.VectorType(first.type).element_type, ir.IntegerType) else arith.addf
    for value in rest:
        first = plus(first, value)
    return first
