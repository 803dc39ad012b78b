"""What this machine can do at most: multiply-accumulate instructions on registers, and reads from memory.

The probes are small kernels. They are compiled and run the way products are, on the same threads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, vector

from benchmarks.timing import best_of
from jax_nano.codegen.index import add, mul
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine import host
from jax_nano.runtime import probe as runtime
from jax_nano.runtime.probe import Array, Target, total

CHAINS = 12  # accumulators in flight: latency (at most 5 cycles) times throughput (at most 2 a cycle); they fit AVX2
STEPS = 1 << 20
READ_BYTES = 512 << 20  # beyond any cache
READ_LANES = 8  # of f32: a register of AVX2
READ_STREAMS = 8

Body = Callable[[ir.Value, ir.Value, ir.Value], None]  # emits a task: (its number, the operand, the result)


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


def runnable(body: Body, target: Target, operand: Array, result: Array) -> Callable[[], object]:
    """Compiles a kernel of one operand (of ones) and one result; the function returned runs it and waits."""
    probe = runtime.Probe(body, target, [operand, result], host.machine())
    ones = runtime.ones(operand)
    compiled = probe.compiled(ones)
    return lambda: compiled(ones).block_until_ready()
