"""The command line's view of calibrations: `python -m jax_nano calibrate`, and what `info` says of them.

What imports JAX is imported where it is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from jax_nano import _native
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import calibration, host
from jax_nano.machine.isa import Machine
from jax_nano.machine.measured import Measured, applied

Row = tuple[str, str, str, str]  # fact, assumed, measured, unit
NOT_CALIBRATED = f"not calibrated: {calibration.COMMAND}"
NONE = "-"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `python -m jax_nano calibrate`."""
    parser = commands.add_parser("calibrate", help="measure this machine, and make plans by that: some seconds")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--show", action="store_true", help="what was measured, beside what would be assumed")
    instead.add_argument("--forget", action="store_true", help="make plans by the table's facts again")


def command(options: argparse.Namespace) -> str:
    """What `python -m jax_nano calibrate` prints.

    Raises:
      ValueError: there is no target for this processor, or the result cannot be kept.
    """
    try:
        machine = host.detected()
        of = calibration.processor(_native.host_cpu(), machine.threads)
        if options.forget:
            return "forgotten" if calibration.forget(of) else NOT_CALIBRATED
        if options.show:
            measured = calibration.load(of)
            return comparison(machine, measured) if measured else NOT_CALIBRATED
        measured, refused = measure(machine)
        place = calibration.store(of, measured)
    except UnsupportedDot as reason:
        raise ValueError(str(reason)) from reason
    except OSError as reason:
        raise ValueError(f"the calibration cannot be kept: {reason}") from reason
    said = [f"left out: {reason}; calibrate again where nothing else runs" for reason in refused]
    return "\n".join([comparison(machine, measured), "", *said, f"kept in {place}"])


def measure(machine: Machine) -> tuple[Measured, list[str]]:
    """See calibrate.measure, which imports JAX."""
    from jax_nano.runtime.calibrate.measure import Effort, measure

    return measure(machine, Effort())


def section(machine: Machine) -> str:
    """What `info` says: measured beside assumed, of a machine as it was detected."""
    measured = calibration.load(calibration.processor(_native.host_cpu(), machine.threads))
    return f"measured beside assumed:\n{comparison(machine, measured)}" if measured else NOT_CALIBRATED


def comparison(machine: Machine, measured: Measured) -> str:
    """A table: what plans count with, by the processors' table and by what was measured, and what else was."""
    here = applied(machine, measured)
    groups = (
        ("as the cost model counts", [row for row in counted(machine, here) if row[1] != row[2] or row[0] in SHOWN]),
        ("as measured", list(measured_rows(measured))),
    )
    lines = []
    for title, rows in groups:
        lines.append(f"{title:40}{'assumed':>10}{'measured':>10}")
        lines += [f"  {fact:38}{assumed:>10}{found:>10}  {unit}" for fact, assumed, found, unit in rows]
    return "\n".join(lines)


SHOWN = frozenset({"clock under vector load", "L2", "LLC", "LLC, prefetched", "memory, one thread", "memory, all",
                   "waking a thread", "handing out a task", "a custom call"})  # fmt: skip


def counted(table: Machine, here: Machine) -> Iterator[Row]:
    """The facts that plans depend on, of two machines."""
    for fact, assumed, found, unit in (
        ("clock under vector load", table.ghz, here.ghz, "GHz"),
        ("L2", table.l2_bytes_per_cycle, here.l2_bytes_per_cycle, "bytes a cycle"),
        ("LLC", table.l3_gb_per_s, here.l3_gb_per_s, "GB/s"),
        ("LLC, prefetched", table.l3_stream_bytes_per_cycle, here.l3_stream_bytes_per_cycle, "bytes a cycle"),
        ("memory, one thread", table.memory_gb_per_s[0], here.memory_gb_per_s[0], "GB/s"),
        ("memory, all", table.memory_gb_per_s[1], here.memory_gb_per_s[1], "GB/s"),
        ("waking a thread", table.fitted.wake_us, here.fitted.wake_us, "us"),
        ("handing out a task", table.fitted.task_us, here.fitted.task_us, "us"),
        ("a custom call", table.fitted.call_us, here.fitted.call_us, "us"),
    ):
        yield fact, f"{assumed:g}", f"{found:g}", unit
    for isa in table.isas:
        before, after = table.cores[isa.name], here.cores[isa.name]
        yield f"loads, {isa.name}", f"{before.loads_per_cycle:g}", f"{after.loads_per_cycle:g}", "a cycle"
        for name in dict.fromkeys(dot.name for dot in isa.dots):
            yield f"{name}, {isa.name}", f"{before.rate(name)[0]:g}", f"{after.rate(name)[0]:g}", "a cycle"


UNITS = {"_ghz": "GHz", "_per_ns": "a ns", "_gb_per_s": "GB/s", "_ns": "ns", "_us": "us"}
WORDS = {
    "clock_ghz": "clock",
    "tile_pairs_per_ns": "tiles loaded from L1, with a product each",
    "memory_gb_per_s": "memory read by one thread",
    "memory_all_gb_per_s": "memory read by all",
    "wake_us": "waking a thread",
    "task_us": "handing out a task",
    "call_us": "a custom call",
    "page_fault_us": "a page fault",
    **{f"{level}_gb_per_s": f"{level.upper()} read by one thread" for level in ("l1", "l2", "llc")},
    **{f"{level}_ns": f"a load from {level.upper()}" for level in ("l1", "l2", "llc")},
    "memory_ns": "a load from memory",
}


def measured_rows(measured: Measured) -> Iterator[Row]:
    """All that was measured, as it was."""
    for key, rate in measured.per_ns.items():
        yield f"{key}, one thread", NONE, f"{rate:g}", "a ns"
        if key in measured.all_per_ns:
            yield f"{key}, all", NONE, f"{measured.all_per_ns[key]:g}", "a ns"
    for name in measured.names:
        if name in WORDS:
            unit = next(unit for end, unit in UNITS.items() if name.endswith(end))
            yield WORDS[name], NONE, f"{getattr(measured, name):g}", unit
