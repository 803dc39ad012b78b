"""What this machine can do at most: multiply-accumulate instructions on registers and tiles, and reads from memory."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from benchmarks.probe import Probe, runnable, runs_here
from benchmarks.tile_probes import tile_probes
from benchmarks.timing import best_of
from jax_nano.codegen.index import add, mul
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.nanokernel import MULTIPLY_ADD
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import BITS, bytes_of
from jax_nano.machine import host
from jax_nano.machine.host import target
from jax_nano.machine.isa import DotInstruction, Isa
from jax_nano.machine.x86 import AMX, AVX2, AVX512

CHAINS = 12  # accumulators in flight: latency (at most 5 cycles) times throughput (at most 2 a cycle); they fit AVX2
STEPS = 1 << 20
READ_BYTES = 512 << 20  # beyond any cache
READ_LANES = 8  # of f32: a register of AVX2
READ_STREAMS = 8


class Roof(NamedTuple):
    """Rates on one thread and on all."""

    gflops: dict[str, tuple[float, float]]  # by probe
    read_gb_per_s: tuple[float, float]
    left_out: str  # why there are no tile instructions; empty where there are


def vector_probe(isa: Isa, instruction: DotInstruction) -> Probe:
    """An instruction on full registers, STEPS times on each of CHAINS accumulators."""
    columns, acc = instruction.shape[1], instruction.acc
    lanes = columns * instruction.vnni

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        a, b = load(operand, 0, lanes), load(operand, lanes, lanes)
        with for_range(0, STEPS, carry=[zeros(columns, element_type(acc))] * CHAINS) as loop:
            loop.next = [MULTIPLY_ADD[instruction.name](c, a, b) for c in loop.carry]
        store(total(loop.results), result, mul(task, columns))

    types = instruction.lhs if instruction.lhs == instruction.rhs else f"{instruction.lhs} x {instruction.rhs}"
    return Probe(
        name=f"{types} {instruction.name}, {isa.name}",
        isa=isa.name,
        features=(*isa.features, *instruction.features),
        operand=(2 * lanes, instruction.lhs),
        result=(columns, acc),
        body=body,
        multiplies="8 bits" if BITS[instruction.lhs] == 8 else instruction.lhs,
        gflop=2e-9 * lanes * CHAINS * STEPS,
    )


def vector_probes(isa: Isa) -> list[Probe]:
    """A probe of each instruction, apart from those that differ from another one by signs only.

    Where a product is added by another instruction, LLVM would make the product of constant operands once.
    """
    seen: dict[tuple, DotInstruction] = {}
    for dot in isa.dots:
        if dot.lhs_offset == 0 and dot.operations == 1:
            seen.setdefault((dot.shape, dot.acc, dot.features), dot)
    return [vector_probe(isa, dot) for dot in seen.values()]


PROBES = (*tile_probes(AMX), *vector_probes(AVX512), *vector_probes(AVX2))


def peak_probe(types: Sequence[str]) -> Probe | None:
    """The probe that bounds a product: the best instruction of the target that multiplies the first type it can.

    On registers, or on tiles from L1: no product from memory is faster than that.

    Args:
      types: of what may be multiplied, by preference, in the words of Probe.multiplies.
    """
    isa = target(host.machine())
    names = {isa.name, isa.vectors.name if isa.vectors else isa.name}
    for dtype in types:
        for probe in PROBES:
            if probe.isa in names and probe.multiplies == dtype and runs_here(probe):
                return probe
    return None


def measure(turns: int) -> Roof:
    """Measures all that this processor has."""
    both = 1, host.threads()
    gflops = {}
    for probe in filter(runs_here, PROBES):
        seconds = best_of([runnable(probe, tasks) for tasks in both], turns)
        gflops[probe.name] = tuple(tasks * probe.gflop / s for tasks, s in zip(both, seconds, strict=True))
    seconds = best_of([runnable(reading(tasks), tasks) for tasks in both], turns)
    return Roof(gflops, (READ_BYTES / seconds[0] / 1e9, READ_BYTES / seconds[1] / 1e9), why_no_tiles())


def why_no_tiles() -> str:
    """Why tile instructions are not measured; empty where they are."""
    if any(probe.isa == AMX.name for probe in filter(runs_here, PROBES)):
        return ""
    return host.machine().note or "this processor has no AMX"


def reading(tasks: int) -> Probe:
    """Reads READ_BYTES once, a share in each task, summing them."""
    elements = READ_BYTES // bytes_of("f32")
    body = partial(read, share=elements // tasks)
    return Probe(name="read", isa="avx2", features=("avx2",), operand=(elements, "f32"), result=(READ_LANES, "f32"),
                 body=body)  # fmt: skip


def read(task: ir.Value, operand: ir.Value, result: ir.Value, *, share: int) -> None:
    """Sums a task's share of the operand."""
    start, step = mul(task, share), READ_STREAMS * READ_LANES
    carry = [zeros(READ_LANES, element_type("f32"))] * READ_STREAMS
    with for_range(start, add(start, share // step * step), step, carry) as loop:
        streams = enumerate(loop.carry)
        loop.next = [arith.addf(c, load(operand, add(loop.i, i * READ_LANES), READ_LANES)) for i, c in streams]
    store(total(loop.results), result, mul(task, READ_LANES))


def total(values: list[ir.Value]) -> ir.Value:
    """The sum of vectors."""
    first, *rest = values
    plus = arith.addi if isinstance(ir.VectorType(first.type).element_type, ir.IntegerType) else arith.addf
    for value in rest:
        first = plus(first, value)
    return first
