"""What the measurements came to: a table, a plot and a JSON file, each with the machine, the versions and the date."""

import datetime
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from importlib import metadata

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.products import Timing
from benchmarks.roof import Roof
from jax_nano import _native
from jax_nano.ir.dtypes import bytes_of
from jax_nano.machine import host

PACKAGES = ("jax-nano", "jax", "jaxlib", "numpy", "torch")
COLORS = {"jax_nano": "#1565c0", "XLA": "#e65100", "NumPy": "#2e7d32", "PyTorch": "#8e24aa"}


def circumstances() -> dict[str, object]:
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
        "load": round(os.getloadavg()[0], 2),  # of the minute before: results count only from an idle machine
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
    print(f"\n{'roof':24s}{'one thread':>14s}{'all threads':>14s}")
    for name, (one, all_) in roof.gflops.items():
        print(f"{name:24s}{one:14.1f}{all_:14.1f}  Gop/s")
    one, all_ = roof.read_gb_per_s
    print(f"{'read bandwidth':24s}{one:14.1f}{all_:14.1f}  GB/s", flush=True)


def print_header(libraries: Sequence[str]) -> None:
    """Column titles of the products' table."""
    print(f"\n{'GFLOP/s':20s}" + "".join(f"{name:>12s}" for name in libraries) + "   of the peak   against XLA")


def print_timing(timing: Timing) -> None:
    """One row of the products' table."""
    rates = "".join(f"{timing.gflops(name):12.1f}" for name in timing.seconds)
    share = timing.gflops("jax_nano") / timing.peak_gflops
    ratio = timing.seconds["XLA"] / timing.seconds["jax_nano"]
    print(f"{timing.dtype:5s}{timing.size!s:15s}{rates}{share:14.1%}{ratio:13.2f}x", flush=True)


def save(found: dict, roof: Roof, timings: Sequence[Timing], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the JSON file and, where there are cubes among the products, the plot; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{found['date'][:19].replace(':', '')}-{found['machine']['target']}"
    products = [
        {
            "type": t.dtype,
            "m": t.size.m,
            "n": t.size.n,
            "k": t.size.k,
            "seconds": t.seconds,
            "peak_gflops": t.peak_gflops,
        }
        for t in timings
    ]
    results = {**found, "roof": roof._asdict(), "products": products}
    written = [folder / f"{stem}.json"]
    written[0].write_text(json.dumps(results, indent=1) + os.linesep)
    if cubes := [t for t in timings if t.size.is_cube]:
        written.append(folder / f"{stem}.png")
        plot(found, roof, cubes).savefig(written[-1], dpi=150)
    return written


def plot(found: dict, roof: Roof, cubes: Sequence[Timing]) -> Figure:
    """GFLOP/s against size, a panel a type, under the roof."""
    dtypes = list(dict.fromkeys(t.dtype for t in cubes))
    figure = Figure(figsize=(1.2 + 5.4 * len(dtypes), 4.6), layout="constrained")
    machine, versions = found["machine"], found["versions"]
    figure.suptitle(f"Square matrices on {machine['processor']} ({machine['target']}), {machine['threads']} threads")
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    figure.supxlabel(f"{software}; {found['date'][:10]}", fontsize=8, color="#666666")
    for axes, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False)[0], dtypes, strict=True):
        chosen = sorted((t for t in cubes if t.dtype == dtype), key=lambda t: t.size)
        sizes = [t.size.m for t in chosen]
        peak = max(t.peak_gflops for t in chosen)
        draw_roof(axes, peak, roof.read_gb_per_s[1] / bytes_of(dtype), sizes)
        for name in chosen[0].seconds:
            rates = [t.gflops(name) for t in chosen]
            front = name == "jax_nano"
            axes.plot(
                sizes, rates, label=name, color=COLORS[name], zorder=4 if front else 3,
                marker="o", markersize=5 if front else 4, linewidth=2.2 if front else 1.4,
            )  # fmt: skip
        axes.set(xscale="log", title=dtype, xlabel="size (M = N = K)", ylabel="GFLOP/s")
        axes.set_xticks([size for size in sizes if size.bit_count() == 1] or sizes)
        axes.set_ylim(0, 1.12 * peak)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    return figure


def draw_roof(axes, peak: float, elements: float, sizes: Sequence[int]) -> None:
    """The FMA peak, and the bound where operands and result cross the memory bus (10^9 elements a second) once each."""
    axes.axhline(peak, color="#444444", linewidth=1, linestyle="--", zorder=2)
    axes.annotate(f"FMA peak, {peak:.0f}", (sizes[0], peak), (0, 3), textcoords="offset points", fontsize=8)
    size = np.geomspace(sizes[0], sizes[-1], 200)
    bound = elements * (2 * size**3) / (3 * size**2)
    below = bound < peak
    axes.plot(size[below], bound[below], color="#999999", linewidth=1, linestyle=":", label="bound from memory")
