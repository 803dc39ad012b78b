"""Calibrations: what was measured of a processor, kept in a file for it.

A file says which processor it is of, in Linux's words, and how many threads the process had. It holds numbers only;
one that makes no sense is warned of, and the table's facts stand.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import secrets
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from jax_nano import config
from jax_nano.machine.isa import Machine
from jax_nano.machine.measured import NAMES, Measured, applied

FORMAT = 1  # of a file; others are not read
CPUINFO = pathlib.Path("/proc/cpuinfo")
CPUINFO_BYTES = 1 << 14  # the first processor's part of it is shorter
TOLD = ("vendor_id", "cpu family", "model", "model name", "stepping")
DIGITS = 12
COMMAND = "python -m jax_nano calibrate"


def processor(cpu: str, threads: int) -> dict[str, str]:
    """What a calibration is of.

    Args:
      cpu: LLVM's name of the processor.
      threads: how many this process may run on.
    """
    found = {"cpu": cpu, "threads": str(threads)}
    with suppress(OSError), CPUINFO.open(errors="replace") as file:
        for line in file.read(CPUINFO_BYTES).splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name in TOLD:
                found.setdefault(name, value)
    return found


def path(of: dict[str, str]) -> pathlib.Path:
    """Where the calibration of a processor stands.

    Raises:
      OSError: the environment names no place, and there is no home.
    """
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:DIGITS]
    return config.storage() / "machines" / f"{of['cpu']}-{digest}.json"


def store(of: dict[str, str], measured: Measured) -> pathlib.Path:
    """Keeps what was measured of a processor, in the place of what was before.

    Raises:
      OSError: it cannot be written.
    """
    place = path(of)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = place.with_suffix(f".{secrets.token_hex(8)}")
    try:
        kept = {"format": FORMAT, "processor": of, "measured": asdict(measured)}
        unfinished.write_text(json.dumps(kept, indent=1) + "\n")
        unfinished.replace(place)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return place


def forget(of: dict[str, str]) -> bool:
    """Removes the calibration of a processor; False where there is none.

    Raises:
      OSError: it cannot be removed.
    """
    try:
        path(of).unlink()
    except FileNotFoundError:
        return False
    return True


def load(of: dict[str, str]) -> Measured | None:
    """What was measured of a processor; None where nothing was, or nothing that makes sense, which is warned of."""
    try:
        place = path(of)
        kept = place.read_bytes()
    except OSError:  # it is not there, or nothing can be
        return None
    try:
        return parsed(kept, of)
    except (ValueError, RecursionError) as reason:
        config.warn(f"jax_nano does not use the calibration {place}: {reason}; `{COMMAND}` makes another")
        return None


def parsed(kept: bytes, of: dict[str, str]) -> Measured:
    """Reads a file.

    Raises:
      ValueError: it is no calibration of this processor.
    """
    found: Any = json.loads(kept)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    if found.get("processor") != of:
        raise ValueError(f"it is of the processor {found.get('processor')}")
    measured = found.get("measured")
    if not isinstance(measured, dict):
        raise ValueError("it has no facts")
    if unknown := sorted(measured.keys() - set(NAMES)):
        raise ValueError(f"there are no facts {unknown}")
    return Measured(**measured)


def calibrated(machine: Machine, cpu: str) -> Machine:
    """The machine by what was measured of it; as it is where nothing was."""
    measured = load(processor(cpu, machine.threads))
    if measured is None:
        return machine
    try:
        return applied(machine, measured)
    except ValueError as reason:
        config.warn(f"jax_nano does not use its calibration: {reason}; `{COMMAND}` makes another")
        return machine
