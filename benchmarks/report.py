"""What the measurements came to: a table, and a JSON file with the machine, the versions and the date.

The file is an object:

    format    2; files of other numbers are not read
    date      of the beginning, in ISO 8601
    machine   processor (its own name), target (jax_nano's), threads
    load      of the minute before: results count only from an idle machine
    versions  of Python, LLVM and packages, by name
    roof      gflops (by probe: 10^9 operations a second on one thread and on all), read_gb_per_s (likewise), left_out
    rows      a list of objects, in the order of measuring:
        suite, kind, name   what was timed; together they tell a row from others
        sizes               by name, such as m, n and k
        flops, bytes        multiplications and additions; bytes of operands and result, each once
        turns               by library: the seconds of a call, for each turn
        peak, peak_gflops   the probe that was timed in the same turns, on all threads; "" and null where there is none
"""

import datetime
import json
import math
import os
import pathlib
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any, NamedTuple

from benchmarks.roof import Roof
from benchmarks.suite import Row
from jax_nano import _native
from jax_nano.machine import host

FORMAT = 2
PACKAGES = ("jax-nano", "jax", "jaxlib", "numpy", "torch")


class Results(NamedTuple):
    """All of a run."""

    found: dict[str, Any]  # date, machine, load and versions
    roof: Roof
    rows: list[Row]


def circumstances() -> dict[str, Any]:
    """Machine, versions and date."""
    versions = {"Python": platform.python_version(), "LLVM": _native.llvm_version}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {"processor": processor(), "target": host.machine().name, "threads": host.threads()},
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def processor() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_circumstances(found: dict) -> None:
    """One line for the machine, one for the versions."""
    machine, versions = found["machine"], found["versions"]
    print(f"{machine['processor']} ({machine['target']}), {machine['threads']} threads, load {found['load']}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + f"; {found['date']}")


def print_roof(roof: Roof) -> None:
    """What the machine does at most."""
    print(f"\n{'roof':32s}{'one thread':>14s}{'all threads':>14s}")
    for name, (one, all_) in roof.gflops.items():
        print(f"{name:32s}{one:14.1f}{all_:14.1f}  Gop/s")
    one, all_ = roof.read_gb_per_s
    print(f"{'read bandwidth':32s}{one:14.1f}{all_:14.1f}  GB/s")
    if roof.left_out:
        print(f"no tile instructions: {roof.left_out}")
    print(end="", flush=True)


def print_header(libraries: Sequence[str]) -> None:
    """Column titles of the rows' table."""
    print(f"\n{'GFLOP/s':32s}" + "".join(f"{name:>12s}" for name in libraries) + "   of the peak   against XLA")


def print_row(row: Row, libraries: Sequence[str]) -> None:
    """One row of the table."""
    rates = "".join(f"{or_dash(row.gflops(name), '.1f'):>12s}" for name in libraries)
    share = or_dash(row.gflops("jax_nano") / row.peak_gflops, ".1%")
    ratio = or_dash(row.seconds("XLA") / row.seconds("jax_nano"), ".2f", "x")
    print(f"{row.kind:16s}{row.name:16s}{rates}{share:>14s}{ratio:>14s}", flush=True)


def or_dash(number: float, form: str, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return "-" if math.isnan(number) else f"{number:{form}}{unit}"


def save(results: Results, folder: pathlib.Path) -> pathlib.Path:
    """Writes the JSON file into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = results.found
    path = folder / f"{found['date'][:19].replace(':', '')}-{found['machine']['target']}.json"
    rows = [
        asdict(row) | {"peak_gflops": None if math.isnan(row.peak_gflops) else row.peak_gflops} for row in results.rows
    ]
    text = json.dumps({"format": FORMAT, **found, "roof": results.roof._asdict(), "rows": rows}, indent=1)
    path.write_text(text + os.linesep)
    return path


def load(path: pathlib.Path) -> Results:
    """Reads what `save` wrote.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is something else.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} has no results of format {FORMAT}; measure them anew with `python -m benchmarks`")
    rows = [Row(**row | {"peak_gflops": row["peak_gflops"] or math.nan}) for row in found["rows"]]
    names = ("date", "machine", "load", "versions")
    return Results({name: found[name] for name in names}, Roof(**found["roof"]), rows)
