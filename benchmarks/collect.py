"""Measures candidate plans of a few hundred products on this machine, for tools/fit_cost_model.py.

The cost model's candidates of each product are timed in turns: with operands that stay in the caches from call to call
and, where all copies together are larger than the last level, with others each time. With `--threads 1`
everything runs on one thread. Memory is retained: page faults would cost more than plans differ.
"""

import argparse
import itertools
import math
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import jax

from benchmarks import measured, report
from benchmarks.measured import Candidate, Measured, Product
from jax_nano import retain_memory
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import host
from jax_nano.machine.isa import Machine
from jax_nano.runtime.tuning import best_seconds, compile_plans, program, zeros
from jax_nano.schedule.choose import ranked_plans

TYPES = ("f32>f32", "bf16>bf16", "bf16>f32", "f16>f32", "f64>f64", "s8>s32", "u8>s32")
MOST_GFLOP = 4.0
LEAST_GFLOP = 1e-4
ODD = (3, 7, 33, 50, 100, 197, 500, 1000)  # of sizes, beside powers of two and what lies between them
CANDIDATES = 16
COLD_BYTES = 256 << 20  # of copies of the operands, at most


def draw(count: int, seed: int) -> Iterator[Product]:
    """Products of mixed shapes, types and layouts, each once: sizes from 1 to 4096."""
    rng = random.Random(seed)
    sizes = sorted({*(1 << i for i in range(13)), *(3 << i for i in range(4, 11)), *ODD})
    grid = [s for s in itertools.product(sizes, repeat=3) if LEAST_GFLOP < 2e-9 * math.prod(s) < MOST_GFLOP]
    drawn: dict[Product, None] = {}
    while len(drawn) < count:
        product = Product(rng.choice(TYPES), rng.choice(("nn", "nt", "tn")), *rng.choice(grid))
        if product not in drawn:
            drawn[product] = None
            yield product


def measure(product: Product, machine: Machine, count: int) -> Measured:
    """The candidates of one product, timed in turns.

    Raises:
      UnsupportedDot: there is none.
    """
    dot, isa = product.dot, host.target(machine)
    kernels = compile_plans(dot, ranked_plans(dot, machine, isa, count), machine)
    copies = min(256, COLD_BYTES // max(1, dot.bytes))
    sets = [zeros(kernels[0]) for _ in range(max(1, copies))]
    runs = [program(kernel, sets[0]) for kernel in kernels]
    resident = times([lambda run=run: run(*sets[0]) for run in runs])
    cold: Sequence[tuple[float, ...]] = [()] * len(runs)
    if copies * dot.bytes > 2 * machine.llc.bytes and dot.bytes > machine.l2.bytes // 2:
        turn = itertools.cycle(sets)
        cold = times([lambda run=run: run(*next(turn)) for run in runs])
    found = zip(kernels, resident, cold, strict=True)
    return Measured(product, machine.threads, tuple(Candidate(kernel.plan, *both) for kernel, *both in found))


def times(runs: Sequence[Callable[[], list[jax.Array]]]) -> list[tuple[float, ...]]:
    """The best seconds of each. A result is there before the next run begins, as its memory is its."""
    return [(seconds,) for seconds in best_seconds([lambda run=run: jax.block_until_ready(run()) for run in runs])]


def collected(arguments: argparse.Namespace) -> Iterator[Measured]:
    """Measures product after product, and says so."""
    machine = host.machine()
    machine = replace(machine, threads=arguments.threads or machine.threads)
    for number, product in enumerate(draw(arguments.count, arguments.seed)):
        try:
            result = measure(product, machine, arguments.candidates)
        except UnsupportedDot as reason:
            print(f"{product}: {reason}", flush=True)
            continue
        best = min(min(each.resident) for each in result.candidates)
        print(f"{number + 1:4d} of {arguments.count}  {product!s:28s} {len(result.candidates):3d} plans, "
              f"{1e6 * best:10.1f} us", flush=True)  # fmt: skip
        yield result


def main() -> None:
    """Measures, and writes what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collect", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many products")
    parser.add_argument("--candidates", type=int, default=CANDIDATES, help="of each product, at most")
    parser.add_argument("--seed", type=int, default=1, help="for other products")
    parser.add_argument("--threads", type=int, default=0, help="1: on one thread (default: all)")
    parser.add_argument("--output", type=pathlib.Path, help="default: benchmarks/data/<processor>.csv")
    arguments = parser.parse_args()
    if arguments.threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    retain_memory(1 << 30)
    jax.config.update("jax_enable_x64", val=True)
    found = report.circumstances()
    report.print_circumstances(found)
    machine = host.machine()
    path = arguments.output or measured.DATA / f"{machine.name}.csv"
    source = f"{report.processor()}, {machine.threads} threads; {found['versions']}; {found['date'][:10]}"
    measured.write(path, measured.describe(machine, source), collected(arguments))


if __name__ == "__main__":
    main()
