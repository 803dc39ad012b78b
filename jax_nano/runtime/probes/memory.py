"""Probes of caches and memory: how fast a core, or all of them, read a buffer, and how long one load takes."""

from __future__ import annotations

import mmap
import time

import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref

from jax_nano.codegen.index import add, mul
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import Isa, Machine
from jax_nano.runtime.probes.probe import Probe, Target, total

STREAMS = 8  # sums in flight: additions take up to 4 cycles, and two begin in one
LINE_BYTES = 64
MOST_LINES = 1 << 20  # that a chase goes through, spread over its buffer
MOST_CHASED_BYTES = 256 << 20  # of that: what is read in between evicts it
FAULT_PAGES = 4096


def reading(machine: Machine, isa: Isa, tasks: int, size: int, times: int) -> Probe:
    """Reads `size` bytes in order, a share in each task, so many times."""
    lanes = isa.lanes("f32")
    step = STREAMS * lanes
    share = size // bytes_of("f32") // tasks // step * step

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        start, sums = mul(task, share), [zeros(lanes, element_type("f32"))] * STREAMS
        with for_range(0, times, carry=sums) as again:
            with for_range(start, add(start, share), step, again.carry) as loop:
                streams = enumerate(loop.carry)
                loop.next = [arith.addf(c, load(operand, add(loop.i, i * lanes), lanes)) for i, c in streams]
            again.next = loop.results
        store(total(again.results), result, mul(task, lanes))

    arrays = [(tasks * share, "f32"), (tasks * lanes, "f32")]
    return Probe(body, Target(isa.name, isa.features, tasks), arrays, machine)


def chasing(machine: Machine, elements: int, steps: int) -> Probe:
    """Loads that wait for each other: each gives the place of the next, from the place that is the second operand."""

    def body(task: ir.Value, links: ir.Value, start: ir.Value, result: ir.Value) -> None:
        with for_range(0, steps, carry=[memref.load(start, [task])]) as loop:
            place = arith.index_cast(ir.IndexType.get(), loop.carry[0])
            loop.next = [memref.load(links, [place])]
        memref.store(loop.results[0], result, [task])

    arrays = [(elements, "s64"), (1, "s64"), (1, "s64")]
    return Probe(body, Target(machine.isas[-1].name, (), 1), arrays, machine)


def links(size: int) -> tuple[np.ndarray, int]:
    """What a chase goes through, in `size` bytes: lines in random order, in one circle; and how many they are.

    It goes through them by what stands in the first element of each. It begins at element 0.
    """
    lines, per_line = size // LINE_BYTES, LINE_BYTES // 8
    count = min(lines, MOST_LINES)
    order = np.arange(count) * (lines // count) * per_line
    np.random.default_rng(0).shuffle(order[1:])
    found = np.zeros(lines * per_line, np.int64)
    found[order] = np.roll(order, -1)
    return found, count


def page_fault_seconds() -> float:
    """Seconds until a page that is touched for the first time is there, in the mean of some thousand."""
    with mmap.mmap(-1, FAULT_PAGES * mmap.PAGESIZE) as fresh:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            fresh.madvise(mmap.MADV_NOHUGEPAGE)
        pages = np.frombuffer(fresh, np.uint8)[:: mmap.PAGESIZE]
        start = time.perf_counter()
        pages[:] = 1
        seconds = time.perf_counter() - start
        del pages
    return seconds / FAULT_PAGES
