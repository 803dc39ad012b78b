"""Times matrix products in jax_nano, XLA, NumPy and, where it is installed, PyTorch, under the machine's own roof."""

import argparse
import pathlib

from benchmarks import products, report, roof
from benchmarks.products import Size

CUBES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


def main() -> None:
    """Measures, prints a table, and writes a plot and a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=Size.parse, default=[Size(n, n, n) for n in CUBES], metavar="SIZE",
                        help="512 for a cube, 1x4096x4096 for M x N x K (default: cubes from 32 to 2048)")  # fmt: skip
    parser.add_argument("--types", nargs="+", choices=products.DTYPES, default=list(products.DTYPES))
    parser.add_argument("--turns", type=int, default=7, help="of each library at each size; the best one counts")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_name("results"))
    arguments = parser.parse_args()

    found = report.circumstances()
    report.print_circumstances(found)
    limits = roof.measure(arguments.turns)
    report.print_roof(limits)
    report.print_header(products.libraries())
    timings = []
    for dtype in arguments.types:
        for size in arguments.sizes:
            timings.append(products.measure(dtype, size, arguments.turns))
            report.print_timing(timings[-1])
    for path in report.save(found, limits, timings, arguments.output):
        print(path)


if __name__ == "__main__":
    main()
