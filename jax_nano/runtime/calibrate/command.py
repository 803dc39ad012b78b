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
from jax_nano.machine.measured import Measured, applied, without_reference

NOT_CALIBRATED = f"not calibrated: {calibration.COMMAND}"
NONE = "-"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `python -m jax_nano calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="measure this machine, and make plans by that: some seconds",
        description="Measures what the cost model wants to know of this machine, and keeps it for this processor and "
        "number of threads: later processes make plans by that. Run it where nothing else runs, and before `tune`.",
    )
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
    rows = [
        ("as the cost model counts", "assumed", "measured", ""),
        *(("  " + fact, *rest) for fact, *rest in counted(machine, applied(machine, measured))),
        ("as measured", "", "", ""),
        *(("  " + fact, "", found, unit) for fact, found, unit in measured_rows(measured)),
    ]
    lines = [f"{fact:40}{assumed:>10}{found:>10}  {unit}".rstrip() for fact, assumed, found, unit in rows]
    if idle := without_reference(machine, measured):
        facts = ", ".join(WORDS[name] for name in idle)
        lines.append(f"not applied, as the cost model's coefficients are those of {machine.fitted.processor}, "
                     f"where these were not measured: {facts}")  # fmt: skip
    return "\n".join(lines)


def counted(table: Machine, here: Machine) -> Iterator[tuple[str, str, str, str]]:
    """(fact, assumed, measured, unit) of what plans depend on, of two machines; of instructions, where they differ."""
    for fact, name, assumed, found, unit in (
        ("clock under vector load", "per_ns", table.ghz, here.ghz, "GHz"),
        ("L2", "l2_gb_per_s", table.l2_bytes_per_cycle, here.l2_bytes_per_cycle, "bytes a cycle"),
        ("LLC", "llc_gb_per_s", table.l3_gb_per_s, here.l3_gb_per_s, "GB/s"),
        ("LLC, prefetched", "llc_gb_per_s", table.l3_stream_bytes_per_cycle, here.l3_stream_bytes_per_cycle,
         "bytes a cycle"),
        ("memory, one thread", "memory_gb_per_s", table.memory_gb_per_s[0], here.memory_gb_per_s[0], "GB/s"),
        ("memory, all", "memory_all_gb_per_s", table.memory_gb_per_s[1], here.memory_gb_per_s[1], "GB/s"),
        ("waking a thread", "wake_us", table.fitted.wake_us, here.fitted.wake_us, "us"),
        ("handing out a task", "task_us", table.fitted.task_us, here.fitted.task_us, "us"),
        ("a custom call", "call_us", table.fitted.call_us, here.fitted.call_us, "us"),
    ):  # fmt: skip
        yield fact, f"{assumed:g}", f"{found:g}" if name in here.measured else NONE, unit
    for isa in table.isas:
        before, after = table.cores[isa.name], here.cores[isa.name]
        rates = {f"loads, {isa.name}": (before.loads_per_cycle, after.loads_per_cycle)}
        for dot in isa.dots:
            rates[f"{dot.name}, {isa.name}"] = before.rate(dot.name)[0], after.rate(dot.name)[0]
        for fact, (assumed, found) in rates.items():
            if assumed != found:
                yield fact, f"{assumed:g}", f"{found:g}", "a cycle"


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


def measured_rows(measured: Measured) -> Iterator[tuple[str, str, str]]:
    """(fact, measured, unit) of all that was measured, as it was."""
    for key, rate in measured.per_ns.items():
        yield f"{key}, one thread", f"{rate:g}", "a ns"
        if key in measured.all_per_ns:
            yield f"{key}, all", f"{measured.all_per_ns[key]:g}", "a ns"
    for name in measured.names:
        if name in WORDS:
            unit = next(unit for end, unit in UNITS.items() if name.endswith(end))
            yield WORDS[name], f"{getattr(measured, name):g}", unit
