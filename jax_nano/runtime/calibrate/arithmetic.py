"""Probes of what a core computes: its clock, multiply-accumulate instructions on vectors and on tiles."""

from __future__ import annotations

from typing import NamedTuple

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref

from jax_nano.codegen.index import Index, Values, add, index, mul
from jax_nano.codegen.load_store import load, store
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.nanokernel import MULTIPLY_ADD, TileNanokernel
from jax_nano.codegen.registers import zeros
from jax_nano.codegen.types import element_type
from jax_nano.machine.isa import DotInstruction, Isa, Machine
from jax_nano.runtime.probe import Probe, Target, total

CHAINS = 12  # accumulators in flight: latency (at most 6 cycles) times throughput (at most 2 a cycle); they fit AVX2
TILE_CHAINS = 4  # of the eight tiles: two of A and two of B feed them
LOADED_PIECES = 8  # of four tiles each, loaded in turn: 32 KiB, which L1 holds
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

    def target(self, tasks: int) -> Target:
        """What a probe of it is compiled for."""
        return Target(self.isa.name, (*self.isa.features, *self.dot.features), tasks)


def multiply_adds(unit: Unit, tasks: int, steps: int) -> Probe:
    """The instruction on registers: `steps` times on each of CHAINS accumulators, in each task."""
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
    """The instruction on tiles: `steps` times on each of TILE_CHAINS accumulators, of two tiles of A and two of B.

    Where these are `loaded` anew in every step, from L1, there are as many loads as products.
    """
    dot = unit.dot
    nanokernel = TileNanokernel(instruction=dot, lhs_is_packed=True, rhs_is_packed=True)
    rows, lanes, depth = dot.shape
    kinds = [(dot.lhs, rows, depth)] * 2 + [(dot.rhs, depth // dot.vnni, lanes * dot.vnni)] * 2
    four = sum(height * width for _, height, width in kinds)  # elements
    pieces = LOADED_PIECES if loaded else 1

    def tiles(source: MatrixRef, piece: Index) -> list[ir.Value]:
        places = [add(mul(piece, four), i * four // 4) for i in range(4)]
        return [
            nanokernel.load_tile(nanokernel.tile(*kind), source, at, kind[2])
            for kind, at in zip(kinds, places, strict=True)
        ]

    def step(acc: Values, held: list[ir.Value]) -> Values:
        a, b = held[:2], held[2:]
        return [nanokernel.multiply_add(acc[2 * i + j], a[i], b[j]) for i in (0, 1) for j in (0, 1)]

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        source, out = MatrixRef(operand, 0, (depth, 1), dot.lhs), MatrixRef(result, 0, (lanes, 1), dot.acc)
        held = [] if loaded else tiles(source, 0)
        zero_tiles = [nanokernel.zero_tile() for _ in range(TILE_CHAINS)]
        with for_range(0, max(1, steps // pieces), carry=zero_tiles) as loop:
            with for_range(0, pieces, carry=loop.carry) as inner:
                inner.next = step(inner.carry, tiles(source, inner.i) if loaded else held)
            loop.next = inner.results
        for i, tile in enumerate(loop.results):
            nanokernel.store_tile(tile, out.advance(mul(task, TILE_CHAINS * rows * lanes)), i * rows, 0)

    arrays = [(pieces * four, dot.lhs), (tasks * TILE_CHAINS * rows * lanes, dot.acc)]
    return Probe(body, unit.target(tasks), arrays, unit.machine)
