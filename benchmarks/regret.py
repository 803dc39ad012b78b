"""Measures the cost model: predicted against measured times, and what trusting it costs.

For each shape the model's choice and its other candidates are timed in turns, and the fastest of these once more beside
the choice, since the best of several noisy times is partly luck. Regret is the chosen plan's time over the fastest
one's in these turns, less one, and not below zero. Memory is retained: page faults would cost more than plans differ.
"""

import argparse
import itertools
import json
import math
import pathlib
import random
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import matplotlib.pyplot as plt

from benchmarks import report
from benchmarks.measured import Product
from jax_nano import retain_memory
from jax_nano.machine import host
from jax_nano.machine.host import target
from jax_nano.runtime.compiler import compile_plan
from jax_nano.runtime.kernel import processor_for
from jax_nano.runtime.kernels import kernel_for
from jax_nano.runtime.tuning import measure_kernels, tune
from jax_nano.schedule.cost import estimate

SIZES = (1, 4, 16, 33, 64, 100, 128, 256, 384, 512, 768, 1000, 1024, 2048, 3072, 4096)
TYPES = (("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("f64", "f64"), ("s8", "s32"))
MOST_GFLOP = 4.0
SMALLEST_SECONDS = 5e-6  # below, a call of a compiled program costs more than the product


class Row(NamedTuple):
    """One shape: its label, predicted and measured seconds of the choice, and the best candidate's."""

    label: str
    predicted: float
    chosen: float
    best: float

    @property
    def regret(self) -> float:
        """What trusting the model cost, as a share of the best time."""
        return max(0.0, self.chosen / self.best - 1)


def products(count: int) -> Iterator[Product]:
    """Products of mixed shapes, types and layouts, the same ones every time."""
    draw = random.Random(0)
    grid = [c for c in itertools.product(SIZES, repeat=3) if 1e-4 < 2e-9 * math.prod(c) < MOST_GFLOP]
    for _ in range(count):
        (m, n, k), (dtype, out), kind = draw.choice(grid), draw.choice(TYPES), draw.choice(("nn", "nt", "tn"))
        yield Product(f"{dtype}>{out}", kind, m, n, k)


def measure(product: Product) -> Row:
    """Times the candidates of one product."""
    machine, dot = host.machine(), product.dot
    choice, fastest = kernel_for(dot).plan, tune(dot, machine, target(machine)).seconds[0][0]
    kernels = [compile_plan(dot, plan, processor_for(plan, machine)) for plan in (choice, fastest)]
    chosen, best = measure_kernels(kernels)
    return Row(str(product), estimate.seconds(choice, machine).total, chosen, best)


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """Predicted against measured times, and the regrets in order."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    left.loglog([1e6 * r.predicted for r in rows], [1e6 * r.chosen for r in rows], ".", alpha=0.6)
    ends = [1e6 * f(r.chosen for r in rows) for f in (min, max)]
    left.plot(ends, ends, color="gray", linewidth=1)
    left.set(xlabel="predicted (µs)", ylabel="measured (µs)", title="Plans that the model chose")
    right.plot([100 * r for r in sorted(row.regret for row in rows)])
    right.set(xlabel="products, in order", ylabel="regret (%)", title="Slower than the best candidate by")
    figure.savefig(path, dpi=140)


def main() -> None:
    """Measures, prints a row for each product and a summary, writes a plot and a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regret", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many products")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_name("results"))
    arguments = parser.parse_args()
    retain_memory(1 << 30)
    found = report.circumstances()
    report.print_circumstances(found)
    rows = []
    for product in products(arguments.count):
        rows.append(measure(product))
        row = rows[-1]
        print(f"{row.label:28s} predicted {1e6 * row.predicted:10.1f} us  chosen {1e6 * row.chosen:10.1f}  "
              f"best {1e6 * row.best:10.1f}  regret {100 * row.regret:5.1f} %", flush=True)  # fmt: skip
    kept = [row for row in rows if row.best > SMALLEST_SECONDS]
    regrets = [row.regret for row in kept]
    print(f"{len(kept)} products: regret {100 * statistics.mean(regrets):.1f} % in the mean, "
          f"{100 * max(regrets):.1f} % at worst; measured over predicted "
          f"{statistics.median(row.chosen / row.predicted for row in kept):.2f} in the median")  # fmt: skip
    arguments.output.mkdir(exist_ok=True)
    plot(kept, arguments.output / "regret.png")
    (arguments.output / "regret.json").write_text(
        json.dumps({**found, "rows": [row._asdict() for row in rows]}, indent=1)
    )


if __name__ == "__main__":
    main()
