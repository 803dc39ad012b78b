"""Probes of what a core computes: its clock, multiply-accumulate instructions on vectors and on tiles."""

from __future__ import annotations

from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref

from jax_nano.codegen.index import Index, Values, add, divmod_, index, mul
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.nanokernel import MULTIPLY_ADD, TileNanokernel
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.runtime.probes.probe import Probe, Target, total

CHAINS = 12  # accumulators in flight: latency (at most 6 cycles) times throughput (at most 2 a cycle); they fit AVX2
SIDE = 2  # tiles of a block of C, each way: four products for four tiles of A and B, the most that eight tiles allow
RESIDENT = 4  # steps whose tiles are gone through again and again: 16 KiB, in L1 of every processor with tiles
ADDITIONS = 64  # in a row, so that the loop around them does not count


def chain(machine: Machine, tasks: int, steps: int) -> Probe:
    """Additions that wait for each other, ADDITIONS in each step: one takes a cycle on every x86-64 processor.

    Source: Agner Fog, Instruction tables (agner.org/optimize): ADD r, r has a latency of 1.
    """

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        increment, first = (memref.load(operand, [index(i)]) for i in (0, 1))
        with for_range(0, steps, carry=[first]) as loop:
            value = loop.carry[0]
            for _ in range(ADDITIONS // 2):  # an exclusive or between, so that they are not one multiplication
                value = arith.xori(arith.addi(value, increment), increment)
            loop.next = [value]
        memref.store(loop.results[0], result, [task])

    return Probe(body, Target(machine.isas[-1].name, (), tasks), [(2, "s64"), (tasks, "s64")], machine)


class Unit(NamedTuple):
    """An instruction of one of a machine's instruction sets."""

    machine: Machine
    isa: Isa
    dot: DotInstruction

    @property
    def chains(self) -> int:
        """Accumulators of a probe, each of which takes the instruction once in a step."""
        return SIDE * SIDE if self.dot.tiles else CHAINS

    def steps(self, seconds: float) -> int:
        """How many a task of about so many seconds has, by what is assumed of the machine."""
        per_second = 1e9 * self.machine.ghz * self.machine.cores[self.isa.name].rate(self.dot.name)[0]
        return max(1, int(seconds * per_second / self.chains))

    def probe(self, tasks: int, steps: int) -> Probe:
        """The instruction on registers: `steps` times on each accumulator, in each task."""
        return (tile_products if self.dot.tiles else multiply_adds)(self, tasks, steps)

    def target(self, tasks: int) -> Target:
        """What a probe of it is compiled for."""
        return Target(self.isa.name, (*self.isa.features, *self.dot.features), tasks)


def units(machine: Machine) -> list[Unit]:
    """A machine's instructions whose rates may differ, best instruction set first: see distinct."""
    return [Unit(machine, isa, dot) for isa in machine.isas for dot in distinct(isa)]


def distinct(isa: Isa) -> list[DotInstruction]:
    """The instructions whose rates may differ: one of those that differ by signs only.

    Those that take two operations are left out: LLVM would make the product of constant operands once.
    """
    found: dict[tuple, DotInstruction] = {}
    for dot in isa.dots:
        if dot.operations == 1:
            found.setdefault((dot.shape, dot.acc, dot.features), dot)
    return list(found.values())


def multiply_adds(unit: Unit, tasks: int, steps: int) -> Probe:
    """A vector instruction on registers, on CHAINS accumulators."""
    dot = unit.dot
    _, lanes, depth = dot.shape
    wide = lanes * depth

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        a, b = load(operand, 0, wide), load(operand, wide, wide)
        with for_range(0, steps, carry=[zeros(lanes, element_type(dot.acc))] * CHAINS) as loop:
            loop.next = [MULTIPLY_ADD[dot.name](acc, a, b) for acc in loop.carry]
        store(total(loop.results), result, mul(task, lanes))

    return Probe(body, unit.target(tasks), [(2 * wide, dot.lhs), (tasks * lanes, dot.acc)], unit.machine)


def tile_products(unit: Unit, tasks: int, steps: int, *, loaded: bool = False) -> Probe:
    """An instruction on tiles, on a block of SIDE x SIDE accumulators; operands lie as kernels pack them.

    Where these are `loaded` in every step, from L1, there are as many loads as products: no product from memory is
    faster than that loop.
    """
    dot = unit.dot
    nano = TileNanokernel(instruction=dot, lhs_is_packed=True, rhs_is_packed=True)
    rows, lanes, depth = dot.shape
    tile, out = rows * depth, SIDE * SIDE * rows * lanes  # elements: of a tile of A or B, of what a task writes
    shapes = [(dot.lhs, rows, depth)] * SIDE + [(dot.rhs, depth // dot.vnni, lanes * dot.vnni)] * SIDE

    def tiles(operand: ir.Value, step: Index) -> list[ir.Value]:
        source, first = MatrixRef(operand, 0, (depth, 1), dot.lhs), mul(step, 2 * SIDE)
        places = [mul(add(first, i), tile) for i in range(2 * SIDE)]
        return [
            nano.load_tile(nano.tile(*shape), source, place, shape[2])
            for shape, place in zip(shapes, places, strict=True)
        ]

    def products(acc: Values, a: list[ir.Value], b: list[ir.Value]) -> Values:
        return [nano.multiply_add(acc[SIDE * i + j], a[i], b[j]) for i in range(SIDE) for j in range(SIDE)]

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        held = [] if loaded else tiles(operand, 0)
        with for_range(0, steps, carry=[nano.zero_tile() for _ in range(SIDE * SIDE)]) as loop:
            both = held or tiles(operand, divmod_(loop.i, RESIDENT)[1])
            loop.next = products(loop.carry, both[:SIDE], both[SIDE:])
        target = MatrixRef(result, mul(task, out), (lanes, 1), dot.acc)
        for i, value in enumerate(loop.results):
            nano.store_tile(value, target, i * rows, 0)

    return Probe(body, unit.target(tasks), [(RESIDENT * 2 * SIDE * tile, dot.lhs), (tasks * out, dot.acc)],
                 unit.machine)  # fmt: skip
