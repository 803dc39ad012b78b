"""Fits the cost model's coefficients to measured candidates, and writes jax_nano/machine/fitted.py.

    python tools/fit_cost_model.py                    every processor of benchmarks/data
    python tools/fit_cost_model.py znver5 --report    the figures of one, as it is now, and nothing written

A coefficient is moved up and down as long as that lowers the loss, by steps that grow where they help and shrink where
they do not. Moving away from where the fit began costs a little, so that coefficients that the products say nothing
of stay. The loss of a product is how much slower a plan is that the model likes than the best one (all plans, each
weighed by how near the model puts it to its favourite: so it changes smoothly), and, with less weight, how far
predicted ratios of plans and predicted times are from measured ones. Every other product is held out. Spreads are those
of fits to resampled products.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import measured  # noqa: E402
from benchmarks.measured import Measured, Recording  # noqa: E402
from jax_nano.machine.coefficients import Evidence, Fitted  # noqa: E402
from jax_nano.machine.fitted import FITTED  # noqa: E402
from jax_nano.machine.isa import Machine  # noqa: E402
from jax_nano.schedule.cost import estimate  # noqa: E402

TARGET = ROOT / "jax_nano" / "machine" / "fitted.py"
APART = (
    "far_pieces_share", "window_run_cycles", "window_placing_cycles", "packed_place_cycles",
    "strided_place_cycles", "transposed_cycles", "aliased_channel_cycles", "short_run_cycles",
    "softmax_wait", "attention_line_cycles",
    "stage_cycles", "pipeline_call_us", "pipeline_wake_us", "pipeline_block_share", "far_pipeline_block_share",
    "operation_us", "function_cycles", "library_us", "library_share", "kernel_us", "kernel_share", "fresh_byte_ns",
    "interruption_us", "parallel_us", "call_us", "piece_us",
    "inline_products_per_cycle", "inline_l1_bytes_per_cycle", "inline_l2_bytes_per_cycle",
)  # fmt: skip
NAMES = tuple(f.name for f in fields(Fitted) if f.name not in ("processor", "evidence", *APART))
# Where a fit begins: what was found by hand on Zen 5, one after the other, in products chosen so that little else
# matters in them; and for what was found on Sapphire Rapids, a line's way from L2 or the LLC in cycles, by its order.
PRIOR: dict[str, float] = {
    "block_overhead_cycles": 20,
    "latency_slack": 1.2,
    "load_exposed_share": 0.03,
    "port_conflict_share": 0.5,
    "overlap_exposed_share": 0.1,
    "ragged_share": 0.01,
    "resident_share": 0.67,
    "l2_line_share": 0.5,
    "l2_run_cycles": 1,
    "far_run_cycles": 3.5,
    "tile_conflict_cycles": 2,
    "conflict_miss_cycles": 1.5,
    "aliasing_4k_cycles": 10,
    "out_row_cycles": 6,
    "followed_pages": 64,
    "lost_run_cycles": 20,
    "lost_line_cycles": 20,
    "out_conflict_cycles": 60,
    "prefetch_bytes": 16 << 10,
    "memory_share": 0.75,
    "rhs_evicted_share": 0.5,
    "lhs_evicted_share": 0.25,
    "row_change_bytes": 32,
    "stream_overhead_bytes": 128,
    "run_overhead_bytes": 64,
    "unpacked_lhs_wait": 1.3,
    "followed_lhs_wait_share": 0.3,
    "first_panel_wait_share": 0.5,
    "packing_bandwidth_share": 0.72,
    "lost_fetch_cycles": 5,
    "overlapped_fetch": 1.5,
    "overlapped_work": 1.5,
    "packing_exposed_share": 0.1,
    "lhs_prefetch_gap_share": 0.4,
    "far_run_overhead_bytes": 256,
    "prefetched_run_share": 0.6,
    "wake_us": 2.0,
    "task_us": 0.2,
    "imbalance_share": 0.06,
}
WHOLE = frozenset(f.name for f in fields(Fitted) if f.type == "int")
# What can be, whatever the products seem to say: an accumulator waits for its own last update, and of a cache, other
# things than one panel take a part.
BOUNDS = {"latency_slack": (1.0, 2.0), "resident_share": (0.4, 0.8)}
LITTLE = 0.05  # of any coefficient: less is as good as nothing
NEAR = 0.06  # how near to its favourite, as a logarithm, the model must put a plan for that to count as chosen
MOST_LOST = 1.5  # of a plan's logarithm over the best: beyond, worse is not worse
SPREAD_WEIGHT, LEVEL_WEIGHT = 0.3, 0.02
PRIOR_WEIGHT = 0.0005  # of the squared logarithm of how far a coefficient is from where it began
LARGEST_STEP, SMALLEST_STEP = 2.0, 0.02
RESAMPLED, RESAMPLED_SWEEPS = 8, 2


class Target(NamedTuple):
    """A product with the logarithms of its candidates' measured seconds."""

    product: Measured
    logs: tuple[float, ...]

    @classmethod
    def of(cls, product: Measured) -> Target:
        """The best of all sweeps, once what set a whole sweep apart is taken out, between resident and cold operands.

        How far down the second-best lies is worth something, too: one good number may be luck.
        """
        rows = [[math.log(t) for t in (*each.resident, *each.cold)] for each in product.candidates]
        levels = [statistics.median(column) for column in zip(*rows, strict=True)]
        level = statistics.mean(levels)
        even = [sorted(x - own + level for x, own in zip(row, levels, strict=True)) for row in rows]
        return cls(product, tuple(0.75 * row[0] + 0.25 * row[-1] for row in even))

    def regret(self, favourite: int) -> float:
        """What choosing a candidate costs, as a share of the best one's time: of the best of each."""
        best = [min(each.resident) for each in self.product.candidates]
        return best[favourite] / min(best) - 1


@dataclass
class Model:
    """The cost model on one recorded machine, with its coefficients."""

    machine: Machine
    fitted: Fitted
    call_seconds: float  # of the program around a kernel, as it was measured
    began: Fitted  # where the fit began

    def logs(self, target: Target) -> list[float]:
        """The logarithms of predicted seconds."""
        machine = replace(self.machine, fitted=self.fitted, threads=target.product.threads)
        plans = (each.plan for each in target.product.candidates)
        return [math.log(estimate.seconds(plan, machine).total + self.call_seconds) for plan in plans]

    def loss(self, target: Target) -> float:
        """How badly it does on a product."""
        predicted = self.logs(target)
        low, best = min(predicted), min(target.logs)
        weights = [math.exp((low - x) / NEAR) for x in predicted]
        lost = sum(w * min(MOST_LOST, x - best) for w, x in zip(weights, target.logs, strict=True)) / sum(weights)
        errors = [x - y for x, y in zip(target.logs, predicted, strict=True)]
        return lost + SPREAD_WEIGHT * statistics.pvariance(errors) + LEVEL_WEIGHT * statistics.mean(errors) ** 2

    def mean_loss(self, targets: Sequence[Target]) -> float:
        """How badly it does on all, and how far it is from where it began."""
        pairs = ((getattr(self.fitted, name), getattr(self.began, name)) for name in NAMES)
        far = sum(math.log((value + LITTLE) / (began + LITTLE)) ** 2 for value, began in pairs)
        return statistics.mean(map(self.loss, targets)) + PRIOR_WEIGHT * far

    def moved(self, name: str, factor: float) -> Model | None:
        """The model with one coefficient multiplied; None where it is at its bound."""
        if name == "call_seconds":
            return replace(self, call_seconds=self.call_seconds * factor)
        value = max(getattr(self.fitted, name), LITTLE) * factor
        if name in WHOLE:
            value = max(1, round(value))
        low, high = BOUNDS.get(name, (0.0, 1.0 if name.endswith("_share") else math.inf))
        value = min(high, max(low, value))
        if value == getattr(self.fitted, name):
            return None
        return replace(self, fitted=replace(self.fitted, **{name: value}))


def fit(model: Model, targets: Sequence[Target], sweeps: int, seed: int = 0) -> Model:
    """Moves one coefficient after the other, in random orders, as long as that lowers the loss."""
    rng, loss = random.Random(seed), model.mean_loss(targets)
    steps = dict.fromkeys((*NAMES, "call_seconds"), 0.5)
    for _ in range(sweeps):
        names = [name for name in steps if steps[name] > SMALLEST_STEP]
        rng.shuffle(names)
        for name in names:
            model, found = better(model, targets, name, steps[name], loss)
            steps[name] = min(LARGEST_STEP, 1.5 * steps[name]) if found < loss else 0.6 * steps[name]
            loss = found
    return model


def better(model: Model, targets: Sequence[Target], name: str, step: float, loss: float) -> tuple[Model, float]:
    """The model with a coefficient moved up or down, where that lowers the loss; and its loss."""
    for factor in (math.exp(step), math.exp(-step)):
        moved = model.moved(name, factor)
        if moved and (found := moved.mean_loss(targets)) < loss:
            return moved, found
    return model, loss


def refit(model: Model, targets: Sequence[Target], seed: int) -> Fitted:
    """Coefficients fitted to as many products, drawn with replacement."""
    rng = random.Random(seed)
    return fit(model, rng.choices(targets, k=len(targets)), RESAMPLED_SWEEPS, seed).fitted


def evidence(model: Model, targets: Sequence[Target]) -> tuple[tuple[str, Evidence], ...]:
    """How well each coefficient is known: its spread among refits, and how many products depend on it."""
    with ProcessPoolExecutor() as pool:
        refits = list(pool.map(functools.partial(refit, model, targets), range(1, RESAMPLED + 1)))
    spreads = {name: statistics.pstdev(getattr(each, name) for each in refits) for name in NAMES}
    return tuple((name, Evidence(spread=spreads[name], count=dependent(model, targets, name))) for name in NAMES)


def dependent(model: Model, targets: Sequence[Target], name: str) -> int:
    """How many products have a candidate whose predicted time a coefficient changes."""
    moved = model.moved(name, 1.2) or model.moved(name, 0.8)
    assert moved
    return sum(model.logs(target) != moved.logs(target) for target in targets)


class Figures(NamedTuple):
    """How well a model does on some products."""

    products: int
    mean: float  # regret
    median: float
    worst: float
    worst_product: str
    ratio: float  # of measured to predicted times of the chosen plans, in the median

    @classmethod
    def of(cls, model: Model, targets: Sequence[Target]) -> Figures:
        """Lets it choose among the candidates of each."""
        predicted = [model.logs(target) for target in targets]
        chosen = [logs.index(min(logs)) for logs in predicted]
        regrets = [target.regret(i) for target, i in zip(targets, chosen, strict=True)]
        worst = max(range(len(regrets)), key=regrets.__getitem__)
        ratios = [math.exp(t.logs[i] - p[i]) for t, p, i in zip(targets, predicted, chosen, strict=True)]
        return cls(len(targets), statistics.mean(regrets), statistics.median(regrets), regrets[worst],
                   str(targets[worst].product.product), statistics.median(ratios))  # fmt: skip

    def __str__(self) -> str:
        return (f"{self.products} products: regret {self.mean:.1%} in the mean, {self.median:.1%} in the median, "
                f"{self.worst:.0%} at worst ({self.worst_product}); measured / predicted {self.ratio:.2f}")  # fmt: skip


def noise_floor(recording: Recording, draws: int = 10) -> float:
    """The regret of choosing by what plans take in truth, in the mean, where times are as noisy as those recorded.

    Truth is simulated: the mean of all sweeps, drawn together by what noise spreads it; noise has the deviation between
    sweeps once their levels are taken out.

    Raises:
      ValueError: there is one sweep only.
    """
    rng, regrets = random.Random(0), []
    for product in recording.products:
        rows = [[math.log(t) for t in each.resident] for each in product.candidates]
        sweeps = len(rows[0])
        if sweeps < 2:
            raise ValueError("noise is seen between sweeps, and there is one only")
        levels = [statistics.mean(column) for column in zip(*rows, strict=True)]
        even = [[x - level for x, level in zip(row, levels, strict=True)] for row in rows]
        means = [statistics.mean(row) for row in even]
        noise = math.sqrt(statistics.mean(statistics.variance(row) for row in even))
        spread = statistics.pvariance(means)
        kept = math.sqrt(max(0.0, 1 - noise**2 / sweeps / spread)) if spread else 0.0
        for _ in range(draws):
            timed = [min(kept * mean + rng.gauss(0, noise) for _ in range(sweeps)) for mean in means]
            regrets.append(math.exp(timed[means.index(min(means))] - min(timed)) - 1)
    return statistics.mean(regrets)


def halves(recording: Recording) -> tuple[list[Target], list[Target]]:
    """Every other product for the fit, and those that are held out."""
    targets = [Target.of(product) for product in recording.products if len(product.candidates) > 1]
    return targets[::2], targets[1::2]


def initial(recording: Recording) -> Model:
    """The model as a fit begins, and a call that takes a little less than any product."""
    fastest = min(min(each.resident) for product in recording.products for each in product.candidates)
    fitted = replace(recording.machine.fitted, **PRIOR, evidence=())
    return Model(recording.machine, fitted, 0.8 * fastest, began=fitted)


def fitted_to(recording: Recording, sweeps: int) -> Fitted:
    """The coefficients for one machine, with their evidence; prints figures of both halves, before and after."""
    model, (training, held_out) = initial(recording), halves(recording)
    show("before", model, training, held_out)
    model = fit(model, training, sweeps)
    show("after", model, training, held_out)
    return replace(model.fitted, processor=recording.machine.name, evidence=evidence(model, training))


def show(word: str, model: Model, training: Sequence[Target], held_out: Sequence[Target]) -> None:
    """Prints the figures of both halves."""
    print(f"{model.machine.name}, {word} the fit")
    print(f"  fitted to  {Figures.of(model, training)}")
    print(f"  held out   {Figures.of(model, held_out)}", flush=True)


def source(tables: Sequence[Fitted]) -> str:
    """fitted.py."""
    return HEADER + "\n\n".join(map(table, tables)) + FOOTER.format(", ".join(t.processor.upper() for t in tables))


def table(fitted: Fitted) -> str:
    """The coefficients of one processor, as source."""
    known = dict(fitted.evidence)
    lines = [f"{fitted.processor.upper()} = known(", f"    {fitted.processor!r},".replace("'", '"')]
    for name in (*NAMES, *APART):
        value = getattr(fitted, name)
        value = str(value) if name in WHOLE else f"{value:.3g}"
        found = known.get(name)
        text = f"({value}, {found.spread:.2g}, {found.count})" if found else f"({value},)"
        lines.append(f"    {name}={text},")
    return "\n".join([*lines, ")"])


HEADER = '''"""Coefficients of the cost model, by processor: written by tools/fit_cost_model.py, not by hand.

Each is a value; its spread among fits to resampled products; and the number of products that depend on it, of those in
benchmarks/data that were not held out. Those without a spread were measured apart, or taken from a processor where they
were.
"""

from __future__ import annotations

from jax_nano.machine.coefficients import Fitted, known

'''
FOOTER = '''

FITTED = {{fitted.processor: fitted for fitted in ({0},)}}


def fitted_for(processor: str, like: str) -> Fitted:
    """The coefficients of a processor, by LLVM's name, or those of the one that it is like."""
    return FITTED.get(processor) or FITTED[like]
'''


def main() -> None:
    """Fits, and writes what was fitted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processors", nargs="*", help="of those in benchmarks/data (default: all)")
    parser.add_argument("--report", action="store_true", help="print figures only")
    parser.add_argument("--sweeps", type=int, default=10, help="over all coefficients")
    arguments = parser.parse_args()
    tables = dict(FITTED)
    for path in sorted(measured.DATA.glob("*.csv")):
        if arguments.processors and path.stem not in arguments.processors:
            continue
        recording = measured.read(path)
        if arguments.report:
            show("without", replace(initial(recording), fitted=recording.machine.fitted), *halves(recording))
            if all(len(each.resident) > 1 for product in recording.products for each in product.candidates):
                print(f"  choosing by true times, with such noise: {noise_floor(recording):.1%} in the mean")
        else:
            tables[path.stem] = fitted_to(recording, arguments.sweeps)
    if not arguments.report:
        TARGET.write_text(source([tables[name] for name in sorted(tables)]))


if __name__ == "__main__":
    main()
