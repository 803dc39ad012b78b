"""What this machine can do at most: multiply-accumulate instructions on registers, and reads from memory.

The probes are small kernels. They are compiled and run the way products are, on the same threads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, func, vector
from jax.interpreters.mlir import make_ir_context

from benchmarks.timing import best_of
from jax_nano import _native
from jax_nano.codegen.index import add, mul
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import FFI_TYPES, bytes_of
from jax_nano.machine import host

CHAINS = 12  # accumulators in flight: latency (at most 5 cycles) times throughput (at most 2 a cycle); they fit AVX2
STEPS = 1 << 20
READ_BYTES = 512 << 20  # beyond any cache
READ_LANES = 8  # of f32: a register of AVX2
READ_STREAMS = 8

Body = Callable[[ir.Value, ir.Value, ir.Value], None]  # emits a task: (its number, the operand, the result)


DTYPES = {"f64": jnp.float64, "f32": jnp.float32, "bf16": jnp.bfloat16, "s8": jnp.int8, "s32": jnp.int32}

Array = tuple[int, str]  # elements, and their type


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One multiply-accumulate instruction on full registers."""

    name: str
    isa: str
    features: tuple[str, ...]  # LLVM's names of what it needs of a processor
    operand: Array  # a register
    acc: Array
    emit: Callable[[ir.Value, ir.Value, ir.Value], ir.Value]  # (acc, a, b) -> acc

    def gflop(self, tasks: int) -> float:
        """The work of a run; a multiplication and an addition are two."""
        return 2e-9 * self.operand[0] * CHAINS * STEPS * tasks


def fma(isa: str, dtype: str, lanes: int) -> Probe:
    """A fused multiply-add."""
    features = {"avx512": ("avx512f",), "avx2": ("avx2", "fma")}[isa]
    register = lanes, dtype
    return Probe(name=f"{dtype} fma, {isa}", isa=isa, features=features, operand=register, acc=register,
                 emit=lambda acc, a, b: vector.fma(a, b, acc))  # fmt: skip


def dot_bf16(acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """Instruction vdpbf16ps: pairs of bf16 products, summed in f32."""
    return ir.Operation.create("x86vector.avx512.dot", results=[acc.type], operands=[acc, a, b]).result


def dot_8bit(acc: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """Instruction vpdpbusd: fours of 8-bit products, summed in s32."""
    attributes = {
        "intrin": ir.StringAttr.get("llvm.x86.avx512.vpdpbusd.512"),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get([3, 0]),
        "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
    }
    return ir.Operation.create("llvm.call_intrinsic", [acc.type], [acc, a, b], attributes).result


PROBES = (
    fma("avx512", "f32", 16),
    fma("avx512", "f64", 8),
    fma("avx2", "f32", 8),
    fma("avx2", "f64", 4),
    Probe(name="bf16 vdpbf16ps, avx512", isa="avx512", features=("avx512f", "avx512bf16"),
          operand=(32, "bf16"), acc=(16, "f32"), emit=dot_bf16),
    Probe(name="u8 x s8 vpdpbusd, avx512", isa="avx512", features=("avx512f", "avx512vnni"),
          operand=(64, "s8"), acc=(16, "s32"), emit=dot_8bit),
)  # fmt: skip


class Roof(NamedTuple):
    """Rates on one thread and on all."""

    gflops: dict[str, tuple[float, float]]  # by probe
    read_gb_per_s: tuple[float, float]


def fma_probe(dtype: str, isa: str) -> Probe:
    """The probe of an instruction set's fused multiply-add."""
    return next(probe for probe in PROBES if probe.name == f"{dtype} fma, {isa}")


def measure(turns: int) -> Roof:
    """Measures all that this processor has."""
    both = 1, host.threads()
    gflops = {}
    for probe in PROBES:
        if host.has(probe.features):
            seconds = best_of([repeated(probe, tasks) for tasks in both], turns)
            gflops[probe.name] = tuple(probe.gflop(tasks) / s for tasks, s in zip(both, seconds, strict=True))
    seconds = best_of([reading(tasks) for tasks in both], turns)
    return Roof(gflops, (READ_BYTES / seconds[0] / 1e9, READ_BYTES / seconds[1] / 1e9))


@functools.cache
def repeated(probe: Probe, tasks: int) -> Callable[[], object]:
    """Runs the instruction STEPS times on each of CHAINS accumulators, in each task."""
    (lanes, dtype), (acc_lanes, acc) = probe.operand, probe.acc

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        a, b = load(operand, 0, lanes), load(operand, lanes, lanes)
        with for_range(0, STEPS, carry=[zeros(acc_lanes, element_type(acc))] * CHAINS) as loop:
            loop.next = [probe.emit(c, a, b) for c in loop.carry]
        store(total(loop.results), result, mul(task, acc_lanes))

    target = Target(probe.isa, probe.features, tasks)
    return runnable(body, target, (2 * lanes, dtype), (tasks * acc_lanes, acc))


def reading(tasks: int) -> Callable[[], object]:
    """Reads READ_BYTES once, a share in each task, summing them."""
    share = READ_BYTES // bytes_of("f32") // tasks
    step = READ_STREAMS * READ_LANES

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        start = mul(task, share)
        carry = [zeros(READ_LANES, element_type("f32"))] * READ_STREAMS
        with for_range(start, add(start, share // step * step), step, carry) as loop:
            streams = enumerate(loop.carry)
            loop.next = [arith.addf(c, load(operand, add(loop.i, i * READ_LANES), READ_LANES)) for i, c in streams]
        store(total(loop.results), result, mul(task, READ_LANES))

    target = Target("avx2", ("avx2",), tasks)
    return runnable(body, target, (READ_BYTES // bytes_of("f32"), "f32"), (tasks * READ_LANES, "f32"))


def total(values: list[ir.Value]) -> ir.Value:
    """The sum of vectors."""
    first, *rest = values
    plus = arith.addi if isinstance(ir.VectorType(first.type).element_type, ir.IntegerType) else arith.addf
    for value in rest:
        first = plus(first, value)
    return first


@dataclass(frozen=True)
class Target:
    """What a probe is compiled for, and how many of its tasks may run at once."""

    isa: str
    features: tuple[str, ...]
    tasks: int


def runnable(body: Body, target: Target, operand: Array, result: Array) -> Callable[[], object]:
    """Compiles a kernel of one operand (of ones) and one result; the function returned runs it and waits."""
    machine = host.machine()
    extra = ",".join(f"+{feature}" for feature in target.features)
    code = _native.compile(module(body, operand, result), machine.isa(target.isa).cpu, extra, machine.name)
    attributes = {
        "key": np.int64(hash((code, target.tasks))),
        "object": code,
        "features": ",".join(target.features),
        "symbols": "probe",
        "tasks": np.array([target.tasks]),
        "rounds": np.int64(1),
        "shared_bytes": np.int64(0),
        "local_bytes": np.int64(0),
        "operand_types": np.array([FFI_TYPES[operand[1]]]),
        "operand_elements": np.array([operand[0]]),
        "result_types": np.array([FFI_TYPES[result[1]]]),
        "result_elements": np.array([result[0]]),
    }
    with jax.enable_x64(new_val=True):
        ones = jnp.ones(operand[0], DTYPES[operand[1]])
        call = jax.ffi.ffi_call("jax_nano", jax.ShapeDtypeStruct(result[:1], DTYPES[result[1]]))
        compiled = jax.jit(lambda x: call(x, **attributes)).lower(ones).compile()
    return lambda: compiled(ones).block_until_ready()


def module(body: Body, operand: Array, result: Array) -> str:
    """An MLIR module whose one public function, `probe`, is a task."""
    with make_ir_context() as context, ir.Location.unknown():
        context.allow_unregistered_dialects = True
        top = ir.Module.create()
        index, nothing = ir.IndexType.get(), memory((0, "s8"))
        arguments = [index, index, nothing, nothing, memory(operand), memory(result)]
        with ir.InsertionPoint(top.body):
            function = func.FuncOp("probe", (arguments, []))
        with ir.InsertionPoint(function.add_entry_block()):
            _, task, _, _, source, destination = function.arguments
            body(task, source, destination)
            func.return_([])
        return str(top.operation.get_asm(print_generic_op_form=True))


def memory(array: Array) -> ir.Type:
    """MLIR's type of an array."""
    return ir.MemRefType.get([array[0]], element_type(array[1]))
