"""`python -m jax_nano doctor program.py`: runs a program, and says where its time goes and what would help."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import pathlib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jax_nano import config
from jax_nano.api.run_program import add_program, program_runner, run_to_its_end
from jax_nano.machine import host
from jax_nano.runtime.cache_command import count

if TYPE_CHECKING:
    from jax_nano.runtime.program_profile import KernelUse, ProgramProfile

ROWS = 12  # of kernels, and of what XLA keeps, that are shown
NAME_WIDTH = 58
SUMMED = re.compile(r"(\w+)(?: x \1 -> \1)?, summed in \w+")  # types, of which one says enough where all are the same
FEW, SHOWN_SHARE = 5, 0.005  # of XLA's operations, these are shown, and those with more of the time
MEANINGS = {"ynn_fusion": "YNNPACK (reductions, products)"}  # of operations, by XLA's names


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `python -m jax_nano doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="run a program, and say where its time goes and what would make it faster",
        description="Runs a program with every product through jax_nano, and says on standard error where its time "
        "went: its kernels and how near each is to the roof of this machine, what XLA computes, and what would help.",
    )
    parser.add_argument("--as-is", action="store_true", help="leave alone what the program does not give jax_nano")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE", help="draw the kernels under the roofline")
    add_program(parser)


def command(options: argparse.Namespace) -> str:
    """Runs the program, and tells on standard error. The program has standard output to itself.

    Raises:
      ValueError: there is no such program, jax_nano does not run here, or a picture cannot be drawn.
      SystemExit: the program ended by it, or by another exception, which has been shown.
    """
    if not config.enabled():
        raise ValueError(f"JAX_NANO={config.text('JAX_NANO')} turns jax_nano off: there is nothing to see; unset it")
    machine, run = host.machine(), program_runner(options)
    draw = picture() if options.picture else None
    profile_module = importlib.import_module("jax_nano.runtime.program_profile")
    installed = importlib.import_module("jax_nano.api.install").installed
    with profile_module.profiled(machine) as profile, contextlib.nullcontext() if options.as_is else installed():
        end = run_to_its_end(run)
    sys.stderr.write(f"\n{report(profile, installed=not options.as_is)}\n")
    if draw and profile.kernels:
        draw(profile, machine).savefig(options.picture, dpi=150)
        sys.stderr.write(f"\nroofline in {options.picture}\n")
    if end:
        raise end
    return ""


def picture():
    """What draws the roofline.

    Raises:
      ValueError: Matplotlib is not installed.
    """
    try:
        return importlib.import_module("jax_nano.api.roofline_plot").draw
    except ModuleNotFoundError as error:
        raise ValueError("pictures are drawn by Matplotlib, which is not installed: pip install matplotlib") from error


def report(profile: ProgramProfile, *, installed: bool) -> str:
    """All that is said of a program."""
    advice = importlib.import_module("jax_nano.api.advice").advice
    parts = [heading(profile), kinds_table(profile, installed=installed)]
    if profile.kernels:
        parts.append(kernels_table(profile.kernels))
    if profile.left:
        parts.append(left_list(profile))
    helps = advice(profile, host.machine(), installed=installed)
    parts.append("\n".join(["what would help:", *(f"- {line}" for line in helps or ["nothing that doctor knows of"])]))
    return "\n\n".join(parts)


def heading(profile: ProgramProfile) -> str:
    """How long it took, and how much of that is known."""
    if profile.trace.problem:
        return f"{profile.seconds:.2f} s in all; XLA's own operations were not traced: {profile.trace.problem}"
    return f"{profile.seconds:.2f} s in all, of which compiled programs computed {profile.computing_seconds:.2f} s"


def kinds_table(profile: ProgramProfile, *, installed: bool) -> str:
    """Where the time goes: a row for each kind of kernel, and for what XLA computes."""
    rows: list[tuple[str, int, float]] = []
    for kind in dict.fromkeys(use.kind for use in profile.kernels):
        uses = [use for use in profile.kernels if use.kind == kind]
        rows.append((f"kernels: {kind}", sum(use.runs for use in uses), sum(use.seconds for use in uses)))
    if profile.left_seconds:
        calls = "calls of kernels" if installed else "products and calls of kernels"
        rows.append((f"XLA: {'products' if profile.left else calls}", 0, profile.left_seconds))
    total, others = profile.computing_seconds or 1.0, list(profile.others.items())
    shown = max(FEW, sum(seconds > SHOWN_SHARE * total for _, (_, seconds) in others[:ROWS]))
    rows += [(f"XLA: {MEANINGS.get(name, name)}", *row) for name, row in others[:shown]]
    if rest := [row for _, row in others[shown:]]:
        rows.append(("XLA: others", sum(times for times, _ in rest), sum(seconds for _, seconds in rest)))
    lines = [f"{'where the time goes':40}{'runs':>9}{'time':>12}{'share':>8}"]
    lines += [
        f"{name:40}{times or '':>9}{milliseconds(seconds):>12}{seconds / total:8.0%}" for name, times, seconds in rows
    ]
    return "\n".join(lines)


def kernels_table(kernels: Iterable[KernelUse]) -> str:
    """The kernels, by time."""
    describe, kinds = importlib.import_module("jax_nano.runtime.tuning").name_of, kinds_of_reports()
    kernels = list(kernels)
    total = sum(use.seconds for use in kernels)
    lines = [f"{'kernel':{NAME_WIDTH}}{'runs':>7}{'each':>12}{'share':>7}{'GFLOP/s':>9}{'GB/s':>7}{'of roof':>9}"]
    for use in kernels[:ROWS]:
        kind = "" if use.kind == "products" else f"{kinds[use.kind]}: "
        name, each = kind + SUMMED.sub(r"\1", describe(use.report.problem)), use.seconds / use.runs
        short = name if len(name) < NAME_WIDTH else f"{name[: NAME_WIDTH - 4]}..."
        rates = f"{1e-9 * use.roof.flops / each:9.0f}{1e-9 * use.roof.bytes / each:7.1f}"
        share = f"{use.seconds / total:7.0%}"
        lines.append(f"{short:{NAME_WIDTH}}{use.runs:7}{milliseconds(each):>12}{share}{rates}{use.share_of_roof:9.0%}")
    if len(kernels) > ROWS:
        rest = kernels[ROWS:]
        lines.append(f"and {count(len(rest), 'kernel')} more, {milliseconds(sum(use.seconds for use in rest))}")
    return "\n".join(lines)


def kinds_of_reports() -> dict[str, str]:
    """One of each kind, by the plural."""
    return importlib.import_module("jax_nano.runtime.report").KINDS


def left_list(profile: ProgramProfile) -> str:
    """What runs without a kernel, and why."""
    kinds = kinds_of_reports()
    counts = Counter(kinds[report.kind] for report in profile.left)
    lines = [f"{' and '.join(count(number, kind) for kind, number in counts.items())} without a kernel:"]
    lines += [f"- {report.equation}: {report.reason}" for report in profile.left[:ROWS]]
    if len(profile.left) > ROWS:
        lines.append(f"- and {len(profile.left) - ROWS} more; jax_nano.inspect shows them all")
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """As in `1,234.5 ms`; short times with more digits."""
    digits = 1 if seconds >= 0.1 else 3
    return f"{1e3 * seconds:,.{digits}f} ms"
