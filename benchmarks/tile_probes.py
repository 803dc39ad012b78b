"""Probes of tile instructions: products from registers, and what tiles loaded from L1 reach.

A block of 2 x 2 tiles of C takes four products for two tiles of A and two of B: the most that eight tile registers
allow, so that no product from memory is faster than that loop. Operands lie as kernels pack them, tile after tile.
"""

from collections.abc import Callable, Sequence
from functools import partial

from jax.extend.mlir import ir

from benchmarks.probe import Probe
from jax_nano.codegen.index import Index, add, divmod_, mul
from jax_nano.codegen.loops import for_range
from jax_nano.codegen.matrix_ref import MatrixRef
from jax_nano.codegen.nanokernel import TileNanokernel
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine.isa import DotInstruction, Isa

STEPS = 1 << 16
RESIDENT = 4  # steps whose tiles are gone through again and again: 16 KiB, in L1 of every processor with tiles
SIDE = 2  # tiles of the block, each way

Step = Callable[[Sequence[ir.Value], Index], list[ir.Value]]  # (accumulators, number of the step) -> accumulators


def tile_probes(isa: Isa, steps: int = STEPS) -> list[Probe]:
    """Two probes of each instruction, apart from those of other signs, which the same unit runs at the same rate.

    That from L1 comes first: it is the one that bounds products.
    """
    chosen = [dot for dot in isa.dots if dot.lhs == dot.rhs and not dot.lhs.startswith("u")]
    return [make(isa, dot, steps) for dot in chosen for make in (from_l1, from_registers)]


def from_registers(isa: Isa, instruction: DotInstruction, steps: int) -> Probe:
    """Four products a step, of one tile of A and one of B that stay in registers."""

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        tiles = Tiles(instruction, operand)
        a, b = tiles.lhs(0), tiles.rhs(1)
        emit_loop(tiles, result, task, steps, lambda acc, _: [tiles.nano.multiply_add(c, a, b) for c in acc])

    return probe(isa, instruction, steps, "registers", body)


def from_l1(isa: Isa, instruction: DotInstruction, steps: int) -> Probe:
    """Four products a step, of two tiles of A and two of B that are loaded in it."""

    def body(task: ir.Value, operand: ir.Value, result: ir.Value) -> None:
        tiles = Tiles(instruction, operand)

        def step(acc: Sequence[ir.Value], number: Index) -> list[ir.Value]:
            first = mul(divmod_(number, RESIDENT)[1], 2 * SIDE)
            a = [tiles.lhs(add(first, i)) for i in range(SIDE)]
            b = [tiles.rhs(add(first, SIDE + j)) for j in range(SIDE)]
            return [tiles.nano.multiply_add(acc[SIDE * i + j], a[i], b[j]) for i in range(SIDE) for j in range(SIDE)]

        emit_loop(tiles, result, task, steps, step)

    return probe(isa, instruction, steps, "L1", body)


class Tiles:
    """An array of tiles of A and B, one after the other in memory."""

    def __init__(self, instruction: DotInstruction, operand: ir.Value):
        self.nano = TileNanokernel(instruction=instruction, lhs_is_packed=True, rhs_is_packed=True)
        rows, lanes, depth = instruction.shape
        self.elements = rows * depth
        self.source = MatrixRef(operand, 0, (depth, 1), instruction.lhs)
        self.lhs = partial(self.load, self.nano.tile(instruction.lhs, rows, depth), stride=depth)
        interleaved = lanes * instruction.vnni
        self.rhs = partial(self.load, self.nano.tile(instruction.rhs, depth // instruction.vnni, interleaved),
                           stride=interleaved)  # fmt: skip

    def load(self, kind: ir.Type, number: Index, *, stride: int) -> ir.Value:
        """One of the tiles."""
        return self.nano.load_tile(kind, self.source, mul(number, self.elements), stride)


def emit_loop(tiles: Tiles, result: ir.Value, task: ir.Value, steps: int, step: Step) -> None:
    """The loop over steps on 2 x 2 accumulators, which are stored when it is done."""
    nano = tiles.nano
    rows, lanes, _ = nano.instruction.shape
    with for_range(0, steps, carry=[nano.zero_tile() for _ in range(SIDE * SIDE)]) as loop:
        loop.next = step(loop.carry, loop.i)
    first = mul(task, SIDE * SIDE * rows * lanes)
    target = MatrixRef(result, first, (lanes, 1), nano.instruction.acc)
    for number, tile in enumerate(loop.results):
        nano.store_tile(tile, target, number * rows, 0)


def probe(isa: Isa, instruction: DotInstruction, steps: int, source: str, body: Callable) -> Probe:
    """The probe of a loop over steps of four products."""
    rows, lanes, depth = instruction.shape
    products = SIDE * SIDE * steps
    return Probe(
        name=f"{instruction.lhs} {instruction.name}, {source}",
        isa=isa.name,
        features=(*isa.features, *instruction.features),
        operand=(RESIDENT * 2 * SIDE * rows * depth, instruction.lhs),
        result=(SIDE * SIDE * rows * lanes, instruction.acc),
        body=body,
        multiplies="8 bits" if bytes_of(instruction.lhs) == 1 else instruction.lhs,
        gflop=2e-9 * rows * lanes * depth * products,
    )
