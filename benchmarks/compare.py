"""Compares two files of results: python -m benchmarks.compare earlier.json later.json

Ratios are times as fast as earlier, of the best turns. Beside jax_nano stand XLA and the probe of the peak, whose code
is the same in both runs unless versions differ: where they moved too, it was the machine. A row has become slower, or
faster, where the best turns differ by more than the noise of both runs together, noise being how much longer a run's
median turn took than its best one.
"""

import argparse
import pathlib
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import report
from benchmarks.report import Results, or_dash
from benchmarks.suite import Row


@dataclass(frozen=True)
class Pair:
    """A row of both runs."""

    earlier: Row
    later: Row

    def ratio(self, library: str = "jax_nano") -> float:
        """How many times as fast a library has become; NaN where one run lacks it."""
        return self.earlier.seconds(library) / self.later.seconds(library)

    @property
    def peak_ratio(self) -> float:
        """How many times as fast the processor's own peak was; NaN where there is none."""
        return self.later.peak_gflops / self.earlier.peak_gflops

    @property
    def noise(self) -> float:
        """By what share the ratio may differ from 1."""
        return self.earlier.noise("jax_nano") + self.later.noise("jax_nano")

    @property
    def is_slower(self) -> bool:
        """Whether jax_nano has become slower by more than noise."""
        return 1 / self.ratio() > 1 + self.noise

    @property
    def is_faster(self) -> bool:
        """Whether jax_nano has become faster by more than noise."""
        return self.ratio() > 1 + self.noise


def pairs(earlier: Results, later: Results) -> list[Pair]:
    """The rows that both runs have, in the order of the later one."""
    before = {row.key: row for row in earlier.rows}
    return [Pair(before[row.key], row) for row in later.rows if row.key in before]


def print_comparison(earlier: Results, later: Results) -> None:
    """A row for each that both runs have, geometric means, and what has become slower or faster."""
    found = pairs(earlier, later)
    print(f"\ncompared with {earlier.found['date']}")
    for line in differences(earlier.found, later.found):
        print(f"note: {line}")
    if not found:
        print("the two have no row in common")
        return
    print(f"\n{'times as fast':32s}{'earlier us':>12s}{'now us':>12s}{'jax_nano':>10s}{'noise':>8s}"
          f"{'XLA':>8s}{'peak':>8s}")  # fmt: skip
    for pair in found:
        before, now = (1e6 * row.seconds("jax_nano") for row in (pair.earlier, pair.later))
        mark = "  slower" if pair.is_slower else "  faster" if pair.is_faster else ""
        print(f"{pair.later.kind:16s}{pair.later.name:16s}{before:12.1f}{now:12.1f}{pair.ratio():10.2f}{pair.noise:8.1%}"
              f"{or_dash(pair.ratio('XLA'), '.2f'):>8s}{or_dash(pair.peak_ratio, '.2f'):>8s}{mark}")  # fmt: skip
    means = (mean(p.ratio() for p in found), mean(p.ratio("XLA") for p in found), mean(p.peak_ratio for p in found))
    ours, xla, peak = (or_dash(value, ".3f") for value in means)
    print(f"geometric means of {len(found)} in common: jax_nano {ours}, XLA {xla}, peak {peak}")
    for word, chosen in (("slower", [p for p in found if p.is_slower]), ("faster", [p for p in found if p.is_faster])):
        names = ", ".join(f"{pair.later.kind} {pair.later.name} ({pair.ratio():.2f})" for pair in chosen)
        print(f"{word} by more than noise: {names or 'none'}")


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean of those that are numbers; NaN where none is."""
    numbers = [ratio for ratio in ratios if ratio == ratio]
    return statistics.geometric_mean(numbers) if numbers else float("nan")


def differences(earlier: dict, later: dict) -> list[str]:
    """In what the circumstances of two runs differ, beside their dates."""
    tables = [found["machine"] | found["versions"] for found in (earlier, later)]
    names = dict.fromkeys([*tables[0], *tables[1]])
    return [
        f"{name} was {tables[0].get(name, 'absent')}, and is {tables[1].get(name, 'absent')}"
        for name in names
        if tables[0].get(name) != tables[1].get(name)
    ]


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Compares two files of results.")
    parser.add_argument("earlier", type=pathlib.Path)
    parser.add_argument("later", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        print_comparison(report.load(arguments.earlier), report.load(arguments.later))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
