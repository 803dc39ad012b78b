"""Times products in jax_nano, XLA, NumPy and, where it is installed, PyTorch, under the machine's own roof."""

import argparse
import pathlib

from benchmarks import compare, plot, report, roof, suite
from benchmarks.suites import SUITES


def main() -> None:
    """Measures, prints a table, writes a JSON file and a plot, and compares with an earlier file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    kinds = [kind for each in SUITES.values() for kind in each.kinds]
    parser.add_argument("sizes", nargs="*", metavar="SIZE",
                        help="512 for a cube, 1x4096x4096 for M x N x K (default: those of each type)")  # fmt: skip
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--types", nargs="+", choices=kinds, metavar="TYPE", default=kinds,
                        help=f"of {', '.join(kinds)} (default: all)")  # fmt: skip
    parser.add_argument("--turns", type=int, default=7, help="of each library at each size; the best one counts")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_name("results"))
    parser.add_argument("--compare", type=pathlib.Path, metavar="JSON", help="an earlier file of results")
    arguments = parser.parse_args()
    try:
        earlier = report.load(arguments.compare) if arguments.compare else None
        chosen = [SUITES[name] for name in dict.fromkeys(arguments.suites)]
        cases = [
            (each, case)
            for each in chosen
            for case in each.cases([kind for kind in arguments.types if kind in each.kinds], arguments.sizes)
        ]
    except (OSError, ValueError) as error:
        parser.error(str(error))

    found = report.circumstances()
    report.print_circumstances(found)
    limits = roof.measure(arguments.turns)
    report.print_roof(limits)
    report.print_header(suite.installed())
    rows = []
    for each, case in cases:
        rows.append(suite.measure(each, case, arguments.turns))
        report.print_row(rows[-1], suite.installed())
    results = report.Results(found, limits, rows)
    written = report.save(results, arguments.output)
    print(written)
    if picture := plot.save(results, written.with_suffix(".png")):
        print(picture)
    if earlier:
        compare.print_comparison(earlier, results)


if __name__ == "__main__":
    main()
