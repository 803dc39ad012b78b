"""Runs elementwise kernels over arrays: the emitted vectors, compiled for a target and called through XLA's FFI."""

import functools
import hashlib

import jax
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, func, memref
from jax.interpreters.mlir import make_ir_context

import jax_nano  # noqa: F401  registers the FFI target
from jax_nano import _native
from jax_nano.codegen.index import index
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.types import element_type
from jax_nano.codegen.vector import evaluate as evaluation
from jax_nano.ir.dtypes import FFI_TYPES, NAMES, NUMPY_TYPES
from jax_nano.jaxpr.inline import inline_calls
from jax_nano.jaxpr.program_reader import program_of
from jax_nano.machine import host
from jax_nano.runtime.kernel import FORMAT

TARGETS = [isa.name for isa in host.machine().isas]
IEEE = 0x1F80  # MXCSR as a program starts with: no exception traps, to nearest even, subnormal numbers kept


def run(emit, operands, results, target, *, subnormals=True, lanes=None):
    """Calls emit([vectors]) -> [vectors] on registers' worth of equally long arrays, one after the other.

    Args:
      emit: what to emit; hashable, and the same kernel wherever it is equal.
      operands: arrays of any shape, all the same.
      results: the short names of the results' types.
      target: the instruction set.
      subnormals: whether subnormal numbers are numbers; in XLA's programs they are zeros.
      lanes: elements in a vector; by default, as many as fill a register with the widest type.
    """
    flat = [np.ravel(x) for x in operands]
    types = tuple(NAMES[x.dtype] for x in flat)
    lanes = lanes or lanes_of(target, *types, *results)
    count = -(-flat[0].size // lanes) * lanes
    padded = [np.pad(x, (0, count - x.size), mode="edge") for x in flat]
    with jax.enable_x64(True):
        outs = executable(emit, types, tuple(results), target, count, lanes, subnormals)(*padded)
    return [np.asarray(out)[: flat[0].size].reshape(np.shape(operands[0])) for out in outs]


def program(f, *arrays):
    """Reads f, as it is for one element of each array, as a Program."""
    closed = jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct((), x.dtype) for x in arrays))
    jaxpr = inline_calls(closed.jaxpr)
    return program_of(jaxpr.invars, jaxpr.eqns, jaxpr.outvars)


def evaluate(program, operands, target, **options):
    """Runs a Program on arrays, one for each of its inputs."""
    results = [program.dtype(number) for number in program.results]
    return run(functools.partial(evaluation.evaluate, program), operands, results, target, **options)


def lanes_of(target, *types):
    """How many elements of the widest of some types fill a register."""
    return host.machine().isa(target).register_bytes // max(np.dtype(NUMPY_TYPES[name]).itemsize for name in types)


@functools.cache
def executable(emit, operands, results, target, count, lanes, subnormals):
    text = module(emit, operands, results, count, lanes, subnormals)
    machine = host.machine()
    isa = machine.isa(target)
    code = _native.compile(text, isa.cpu, ",".join(f"+{feature}" for feature in isa.features), machine.name)
    types = {**FFI_TYPES, "pred": 1, "s16": 3, "s64": 5, "u16": 7, "u32": 8, "u64": 9}
    attributes = {
        "format": np.int64(FORMAT),
        "threads": np.int64(0),
        "key": np.frombuffer(hashlib.sha256(repr((code, operands, results)).encode()).digest()[:8], np.int64)[0],
        "object": code,
        "features": ",".join(isa.features),
        "symbols": "kernel",
        "tasks": np.array([1]),
        "rounds": np.int64(1),
        "shared_bytes": np.int64(0),
        "local_bytes": np.int64(8),
        "operand_types": np.array([types[name] for name in operands]),
        "operand_elements": np.full(len(operands), count),
        "result_types": np.array([types[name] for name in results]),
        "result_elements": np.full(len(results), count),
    }
    call = jax.ffi.ffi_call("jax_nano", [jax.ShapeDtypeStruct((count,), NUMPY_TYPES[name]) for name in results])
    arguments = [jax.ShapeDtypeStruct((count,), NUMPY_TYPES[name]) for name in operands]
    return jax.jit(lambda *x: call(*x, **attributes)).lower(*arguments).compile()


def assembly(emit, operands, results, target, features=()):
    """The assembly of a kernel."""
    isa, lanes = host.machine().isa(target), lanes_of(target, *operands, *results)
    text = module(emit, operands, results, 4 * lanes, lanes, False)
    return _native.assembly(text, isa.cpu, ",".join(f"+{x}" for x in (*isa.features, *features)), host.machine().name)


def module(emit, operands, results, count, lanes, subnormals):
    with make_ir_context() as context, ir.Location.unknown():
        context.allow_unregistered_dialects = True
        top = ir.Module.create()
        word, byte = ir.IndexType.get(), ir.IntegerType.get_signless(8)
        arrays = [ir.MemRefType.get([count], element_type(name)) for name in (*operands, *results)]
        with ir.InsertionPoint(top.body):
            function = func.FuncOp("kernel", ([word, word, *[ir.MemRefType.get([8], byte)] * 2, *arrays], []))
        with ir.InsertionPoint(function.add_entry_block()):
            _, _, _, local, *buffers = function.arguments
            if subnormals:
                with_subnormals(local)
            with for_range(0, count, lanes) as loop:
                outs = emit([load(buffer, loop.i, lanes) for buffer in buffers[: len(operands)]])
                for out, buffer in zip(outs, buffers[len(operands) :], strict=True):
                    store(out, buffer, loop.i)
            if subnormals:
                control("llvm.x86.sse.ldmxcsr", local, 4)
            func.return_([])
        top.operation.verify()
        return str(top.operation.get_asm(print_generic_op_form=True))


def with_subnormals(local):
    """Sets the processor to keep subnormal numbers; `local` holds how it was."""
    words = memref.view(ir.MemRefType.get([2], element_type("s32")), local, index(0), [])
    memref.store(arith.constant(element_type("s32"), IEEE), words, [index(0)])
    control("llvm.x86.sse.stmxcsr", local, 4)
    control("llvm.x86.sse.ldmxcsr", local, 0)


def control(intrinsic, local, offset):
    """Reads or writes MXCSR at a byte of `local`."""
    address = arith.index_cast(
        ir.IntegerType.get_signless(64),
        arith.addi(memref.extract_aligned_pointer_as_index(local), index(offset)),
    )
    pointer = ir.Operation.create("llvm.inttoptr", [ir.Type.parse("!llvm.ptr")], [address]).result
    attributes = {
        "intrin": ir.StringAttr.get(intrinsic),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 0]),
        "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
    }
    ir.Operation.create("llvm.call_intrinsic", [], [pointer], attributes)
