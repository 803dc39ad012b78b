"""Estimates the main loop of every kernel for processors that are not at hand: python -m benchmarks.static

Loops of vectors run through llvm-mca, which knows how each processor schedules them, all loads being in the nearest
cache. Their cycles stand beside those of the multiply-accumulates alone in the same simulation: where the two agree,
nothing else holds the loop up. LLVM has no throughputs of tile instructions, so loops of tiles are counted, and weighed
with what jax_nano/machine holds of the units; where packing is interleaved, so is the loop that packs. The last column
has the products by the same data for vectors too: where it differs from LLVM's own cycles, one of the two is wrong
about the processor.
"""

import argparse
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jax_nano import _native
from jax_nano.ir.dot import Dot, Operand
from jax_nano.machine import host
from jax_nano.machine.isa import DotInstruction, Machine
from jax_nano.runtime.kernel import Kernel, processor_for
from jax_nano.schedule.candidates import kernel_plans
from jax_nano.schedule.cost import estimate
from jax_nano.schedule.plan import Plan

PROCESSORS = ("znver4", "znver5", "skylake-avx512", "alderlake", "sapphirerapids", "graniterapids")
WITH_VECTORS = PROCESSORS[:-1]
SIZE = 1024
ITERATIONS = 200
WIDENED = {"s16": "s8"}  # operands that instructions of wider types are there for
# What an instruction of machine/x86_isas.py becomes in assembly.
MNEMONICS = {
    "fma_f32": r"vfmadd\d+ps", "fma_f64": r"vfmadd\d+pd", "vdpbf16ps": "vdpbf16ps", "vpdpbusd": "vpdpbusd",
    "vpdpbssd": "vpdpbssd", "vpdpbuud": "vpdpbuud",
    "vpmaddwd": "vpmaddwd|vpaddd",
}  # fmt: skip
# How often an instruction takes the unit that moves elements between lanes, where it does.
# Source: LLVM 22's model of Sapphire Rapids, port 5, as llvm-mca prints it.
SHUFFLES = {"vpermt2w": 2, "vpermt2d": 1, "vpshufb": 1, "vinsert": 1, "vpunpck": 1}


class Loop(NamedTuple):
    """A main loop, by iteration."""

    plan: Plan
    products: int
    loads: int
    cycles: float
    alone: float  # cycles that the products take, were nothing else there
    published: float  # the same by the throughputs in jax_nano/machine
    packs: bool = False  # whether the next panel of B is packed beside the products


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("processors", nargs="*", metavar="PROCESSOR", help=f"of {', '.join(PROCESSORS)} (default: all)")
    print("| processor | product | instruction | block | products, loads | cycles | products alone | by machine/ |")
    print("|---|---|---|---|---|---|---|---|")
    for name in parser.parse_args().processors or PROCESSORS:
        machine = host.known(name)
        for loop in loops(machine):
            dot, instruction = loop.plan.dot, loop.plan.instruction
            share, packs = loop.alone / loop.cycles, ", packing" if loop.packs else ""
            print(
                f"| {name} | {dot.lhs} x {dot.rhs} | {instruction.name} | {loop.plan.mr} x {loop.plan.nr}{packs} | "
                f"{loop.products}, {loop.loads} | {loop.cycles:.1f} | {loop.alone:.1f} ({share:.0%}) | "
                f"{loop.published:.1f} |"
            )


def loops(machine: Machine) -> Iterator[Loop]:
    """The loops of a processor's kernels: by tiles, where it has them, and by vectors."""
    for isa in machine.isas[: 1 + bool(machine.isas[0].vectors)]:
        if not isa.vectors and machine.name not in WITH_VECTORS:
            continue
        for instruction in isa.dots:
            if instruction.lhs_offset == 0 and not instruction.name.endswith("_swapped"):
                yield from loops_of(plan_of(machine, isa.name, instruction), machine)


def plan_of(machine: Machine, isa: str, instruction: DotInstruction) -> Plan:
    """The best plan by an instruction, for a cube on one thread."""
    lhs, rhs = (WIDENED.get(dtype, dtype) for dtype in (instruction.lhs, instruction.rhs))
    a, b = (Operand.row_major((SIZE, SIZE), dtype) for dtype in (lhs, rhs))
    dot = Dot.of(a, b, (((1,), (0,)), ((), ())), instruction.acc)
    plans = kernel_plans(dot, machine, machine.isa(isa))
    return min(
        (plan for plan in plans if plan.instruction.name == instruction.name),
        key=lambda plan: estimate.seconds(plan, machine, 1).total,
    )


def loops_of(plan: Plan, machine: Machine) -> Iterator[Loop]:
    """The main loop of a plan's kernel, and its cycles; and the one that packs beside its products, if any does."""
    assembly = Kernel.of(plan.dot, plan, processor_for(plan, machine), b"").assembly
    name = plan.instruction.name
    mnemonic = name if plan.instruction.tiles else next(m for start, m in MNEMONICS.items() if name.startswith(start))
    product = re.compile(rf"\t(?:\{{vex\}}\t)?(?:{mnemonic})\t")
    bodies = main_loops(assembly, product)
    if plan.instruction.tiles:
        yield tile_loop(min(bodies, key=len), plan, machine)
        if plan.overlap_packing:
            yield tile_loop(max(bodies, key=len), plan, machine)._replace(packs=True)
        return
    body, core = bodies[0], machine.cores[plan.isa]
    products = [line for line in body if product.match(line)]
    loads = [line for line in body if "(" in line and not re.match(r"\t(?:lea|prefetch)", line)]
    count = plan.mr * plan.nr // plan.instruction.shape[1] * plan.unroll
    cycles, alone = cycles_of(body, machine), cycles_of(on_registers(products), machine)
    published = max(count / core.rate(name)[0], len(products) / core.vector_per_cycle)
    yield Loop(plan, count, len(loads), cycles, alone, published)


def tile_loop(body: list[str], plan: Plan, machine: Machine) -> Loop:
    """A loop of tiles, and the cycles of the unit that it keeps busy most."""
    names = Counter(line.split("\t")[1] for line in body)
    tiles, vectors = machine.cores[plan.isa], machine.vector_core(plan.isa)
    memory = [line for line in body if "(" in line and not re.match(r"\t(?:lea|prefetch)", line)]
    stores = sum(line.endswith(")") for line in memory)
    products, tile_loads = names[plan.instruction.name], names["tileloadd"]
    loads = len(memory) - stores - tile_loads
    shuffles = sum(count * names[name] for name in names for start, count in SHUFFLES.items() if name.startswith(start))
    alone = products / tiles.dots_per_cycle
    fed = tile_loads / tiles.loads_per_cycle + loads / vectors.loads_per_cycle
    cycles = max(alone, fed, stores / vectors.stores_per_cycle, shuffles / vectors.shuffles_per_cycle)
    return Loop(plan, products, tile_loads + loads, cycles, alone, alone)


def on_registers(products: list[str]) -> list[str]:
    """The instructions with the least written register as their sources: only accumulators are waited for."""
    written = Counter(line.rsplit("%", 1)[1] for line in products)
    kind = products[0].rsplit("%", 1)[1][:3]
    source = "%" + min((f"{kind}{i}" for i in range(16 if kind == "ymm" else 32)), key=lambda name: written[name])
    return [re.sub(r"^(\t(?:\{vex\}\t)?\w+\t).*(, %\w+)$", rf"\1{source}, {source}\2", line) for line in products]


def main_loops(assembly: str, product: re.Pattern) -> list[list[str]]:
    """The instructions of the innermost loops that multiply most."""
    found = []
    for label, body in re.findall(r"^(\.LBB\w+):(.*?)(?=^\.L)", assembly, re.M | re.S):
        lines = [line for line in body.splitlines() if re.match(r"\t[a-z{]", line)]
        ends = [i for i, line in enumerate(lines) if re.match(rf"\tj\w+\t{re.escape(label)}\b", line)]
        if ends:
            found.append(lines[: ends[-1] + 1])
    products = [sum(bool(product.match(line)) for line in lines) for lines in found]
    return [lines for lines, count in zip(found, products, strict=True) if count == max(products)]


def cycles_of(lines: list[str], machine: Machine) -> float:
    """The cycles that an iteration of a loop takes by llvm-mca."""
    command = [llvm_mca(), f"-mcpu={machine.tune or machine.name}", f"-iterations={ITERATIONS}", "-"]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if not found:
        raise ValueError(f"llvm-mca does not take this loop:\n{done.stderr}")
    return int(found[1]) / ITERATIONS


def llvm_mca() -> str:
    """The program, of the LLVM that compiles kernels."""
    beside = Path(_native.libraries[1]).resolve().parent.parent / "bin" / "llvm-mca"
    found = str(beside) if beside.exists() else shutil.which("llvm-mca-22")
    if not found:
        raise FileNotFoundError("no llvm-mca: install LLVM 22's tools (on Debian, llvm-22)")
    return found


if __name__ == "__main__":
    main()
