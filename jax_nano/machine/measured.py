"""Facts about a processor as they were measured on it, and what they make of the table's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from jax_nano.machine import x86
from jax_nano.machine.coefficients import Fitted
from jax_nano.machine.isa import Core, Isa, Machine

DIGITS = 2  # that are kept of what is measured: from one calibration to the next, more would differ
# By which a fact may differ from the table's before it takes its place. Of calibrations one after the other on 2 cores
# of Zen 5, what one core does differed by up to 0.07, and what threads take by more: see REFERENCES.
TOLERANCE = 0.1
THREADS_TOLERANCE = 0.5
UNITS = (0.5, 1, 2, 4)  # multiply-add instructions that begin in a cycle, on cores that were built
# What can be: far beyond the slowest and the fastest processor that jax_nano has a target for.
RANGES = {"ghz": (0.4, 10), "per_ns": (1e-3, 100), "gb_per_s": (0.1, 1e4), "ns": (0.1, 1e4), "us": (1e-3, 1e4)}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured, on one thread unless it says otherwise. None, or absent from a table: that was not.

    Raises:
      ValueError: a number cannot be one of these, or two of them contradict each other.
    """

    clock_ghz: float | None = None  # of additions that wait for each other
    per_ns: dict[str, float] = field(default_factory=dict)  # multiply-adds on registers, by `<isa> <instruction>`
    all_per_ns: dict[str, float] = field(default_factory=dict)  # by all threads together
    tile_pairs_per_ns: float | None = None  # a tile loaded from L1 and a product of tiles, as many of both
    l1_gb_per_s: float | None = None  # reading in order
    l2_gb_per_s: float | None = None
    llc_gb_per_s: float | None = None
    memory_gb_per_s: float | None = None
    memory_all_gb_per_s: float | None = None  # by all threads together
    l1_ns: float | None = None  # loads that wait for each other, of lines in random order
    l2_ns: float | None = None
    llc_ns: float | None = None
    memory_ns: float | None = None
    wake_us: float | None = None  # until another thread has begun a task
    task_us: float | None = None  # of a thread, for one of many tasks that are handed out
    call_us: float | None = None  # of a kernel's custom call, without the kernel
    page_fault_us: float | None = None  # when a page is touched for the first time

    def __post_init__(self):
        for fault in faults(vars(self)).values():
            raise ValueError(fault)

    @property
    def names(self) -> tuple[str, ...]:
        """The facts that were measured."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) not in (None, {}))


NAMES = tuple(f.name for f in fields(Measured))
TABLES = ("per_ns", "all_per_ns")
# Each level is read at most as fast as the one before it, and takes at least as long.
INWARDS = ("l1", "l2", "llc", "memory")
ORDERED = [
    *((f"{outer}_gb_per_s", f"{inner}_gb_per_s") for inner, outer in pairwise(INWARDS)),
    *((f"{inner}_ns", f"{outer}_ns") for inner, outer in pairwise(INWARDS)),
    ("memory_gb_per_s", "memory_all_gb_per_s"),
]


def consistent(facts: dict[str, Any]) -> tuple[Measured, list[str]]:
    """The facts that can be, and what is wrong with those that were left out."""
    left, refused = dict(facts), []
    while found := faults(left):
        for name, fault in found.items():
            left.pop(name, None)
            refused.append(fault)
    return Measured(**left), list(dict.fromkeys(refused))


def faults(facts: dict[str, Any]) -> dict[str, str]:
    """What is wrong with facts, by the names of those that cannot be kept."""
    found = {name: fault for name, value in facts.items() if (fault := fault_of(name, value))}
    if found:
        return found
    for lower, upper in ORDERED:
        a, b = facts.get(lower), facts.get(upper)
        if a and b and a > b * (1 + TOLERANCE):  # which of the two is wrong, no one knows
            fault = f"{lower} of {a:g} and {upper} of {b:g} contradict each other"
            found |= {lower: fault, upper: fault}
    return found


def fault_of(name: str, value: Any) -> str:
    """What is wrong with one fact; empty where it can be."""
    if name not in NAMES:
        return f"there is no fact {name}"
    if name in TABLES:
        if not isinstance(value, dict):
            return f"{name} is {value!r}, and no table"
        return next((f"{key}: {text}" for key, x in value.items() if (text := out_of_range(name, x))), "")
    return "" if value is None else out_of_range(name, value)


def out_of_range(name: str, value: Any) -> str:
    """Says so where a number cannot be."""
    low, high = next(limits for unit, limits in RANGES.items() if name.endswith(unit))
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return ""
    return f"{name} is {value!r}, which is not between {low:g} and {high:g}"


def rounded(value: float, digits: int = DIGITS) -> float:
    """The number to so many digits."""
    return float(f"{value:.{digits}g}")


# Facts that count by what they are to those of the machine that the cost model's coefficients were fitted on: products
# get less than plain reading does, and the fit says how much less. What a core computes counts as it is.
RELATIVE = ("l2_gb_per_s", "llc_gb_per_s", "memory_gb_per_s", "memory_all_gb_per_s", "wake_us", "task_us", "call_us")
REFERENCE_THREADS = 2
# By the processor that coefficients were fitted on: what was measured there as on any machine, on REFERENCE_THREADS
# virtual cores. What is not here does not count on machines with these coefficients.
#
# Zen 5 (an EPYC): the table has 32 bytes a cycle from L2, where a core reads 63. Bandwidths taken as they are make
# plans 1.02 times as slow there in the mean of 60 products, some 1.4 times. From one minute to the next, the two cores
# act as if near each other (50 GB/s together, 0.5 to 0.9 us until a thread wakes) or far (85 GB/s, 1.4 to 3.1 us): the
# table's memory is that of near ones, and waking counts as in between. Of 150 products, plans by 1 us for waking were
# as good as by the fit's 2 at 50 GB/s (by 3 us 1.01 times as slow, by 6 us 1.03); of 120 at another time, those by 3 us
# were better (0.99), those by 0.7 us worse (1.01).
#
# Sapphire Rapids: the middle of 7.5 to 9 GB/s and of 13 to 16. There, f32 multiply-adds reached 110 to 138 GFLOP/s on a
# thread, which is the table's clock, and tiles of bf16 900 to 2500, or 570 to 2050 from L1, beside busy neighbours.
REFERENCES = {
    "znver5": Measured(
        clock_ghz=4.3, per_ns={"avx512 fma_f32": 8.5}, l2_gb_per_s=270, llc_gb_per_s=120, memory_gb_per_s=45,
        memory_all_gb_per_s=48, wake_us=1.5, task_us=0.035, call_us=0.11,
    ),
    "sapphirerapids": Measured(memory_gb_per_s=8.5, memory_all_gb_per_s=15),
}  # fmt: skip


def reference(machine: Machine) -> tuple[Machine, Measured]:
    """The processor that a machine's coefficients were fitted on, by the table, and what was measured of it."""
    name = machine.fitted.processor
    table = next((there for there in x86.MACHINES if there.name == name), machine)
    return table, REFERENCES.get(name, Measured())


def without_reference(machine: Machine, measured: Measured) -> tuple[str, ...]:
    """The facts that do not count, as there is nothing that this machine's coefficients could compare them with."""
    _, there = reference(machine)
    return tuple(name for name in RELATIVE if name in measured.names and name not in there.names)


def applied(machine: Machine, measured: Measured) -> Machine:
    """The machine with what was measured in the place of the table's facts, where it differs by more than noise."""
    ghz = settled(vector_ghz(machine, measured), machine.ghz)
    cores = {name: core_of(machine, name, measured, ghz) for name in machine.cores}
    idle = without_reference(machine, measured)
    names = tuple(name for name in measured.names if name not in idle)
    facts = {**bandwidths(machine, measured, ghz), "ghz": ghz, "measured": names}
    return replace(machine, **facts, cores=cores, fitted=thread_coefficients(machine, measured))


def thread_coefficients(machine: Machine, measured: Measured) -> Fitted:
    """The coefficients with what threads and calls take here."""
    _, there = reference(machine)
    changes: dict[str, Any] = {}
    for name, tolerance in (("wake_us", THREADS_TOLERANCE), ("task_us", THREADS_TOLERANCE), ("call_us", TOLERANCE)):
        if times := ratio(getattr(measured, name), getattr(there, name)):
            fitted = getattr(machine.fitted, name)
            changes[name] = settled(fitted * times, fitted, tolerance)
    return replace(machine.fitted, **changes)


def vector_isa(machine: Machine) -> Isa:
    """The best instruction set on vectors, whose clock is the machine's."""
    best = machine.isas[0]
    return best.vectors or best


def vector_units(machine: Machine, measured: Measured) -> float | None:
    """How many multiply-adds a cycle begins: the fewest that explain the rate without a faster clock than there is."""
    rate = measured.per_ns.get(f"{vector_isa(machine).name} fma_f32")
    if not rate or not measured.clock_ghz:
        return None
    limit = measured.clock_ghz * (1 + TOLERANCE)
    return next((units for units in UNITS if rate / units <= limit), None)


def vector_ghz(machine: Machine, measured: Measured) -> float:
    """The clock under multiply-adds on vectors; the table's where they were not measured."""
    units = vector_units(machine, measured)
    return measured.per_ns[f"{vector_isa(machine).name} fma_f32"] / units if units else machine.ghz


def bandwidths(machine: Machine, measured: Measured, ghz: float) -> dict[str, Any]:
    """The machine's facts about caches and memory, as far as they were measured, at this clock."""
    table, there = reference(machine)
    clocks = vector_ghz(table, there) / ghz  # bandwidths by the cycle are those of another clock
    found: dict[str, float] = {}
    if l2 := ratio(measured.l2_gb_per_s, there.l2_gb_per_s):
        found["l2_bytes_per_cycle"] = table.l2_bytes_per_cycle * l2 * clocks
    if llc := ratio(measured.llc_gb_per_s, there.llc_gb_per_s):
        found["l3_stream_bytes_per_cycle"] = table.l3_stream_bytes_per_cycle * llc * clocks
        found["l3_gb_per_s"] = table.l3_gb_per_s * llc
    changes: dict[str, Any] = {name: settled(value, getattr(machine, name)) for name, value in found.items()}
    one = ratio(measured.memory_gb_per_s, there.memory_gb_per_s)
    every = ratio(measured.memory_all_gb_per_s, there.memory_all_gb_per_s)
    if one and every:
        alone, limit = table.memory_gb_per_s
        here = alone * one, min(alone * REFERENCE_THREADS, limit) * every  # what few threads read is not what all can
        single, together = map(settled, here, machine.memory_gb_per_s)
        changes["memory_gb_per_s"] = single, max(single, together)
    return changes


def settled(value: float, expected: float, tolerance: float = TOLERANCE) -> float:
    """The value to three digits, unless it is the expected one but for noise: plans do not change with that."""
    return expected if math.isclose(value, expected, rel_tol=tolerance) else rounded(value, 3)


def ratio(here: float | None, there: float | None) -> float | None:
    """How many times as much it is here; None where it was not measured."""
    return here / there if here and there else None


def core_of(machine: Machine, name: str, measured: Measured, ghz: float) -> Core:
    """The throughputs of a core for an instruction set, by the cycle of the machine's clock."""
    core, isa = machine.cores[name], next((isa for isa in machine.isas if isa.name == name), None)
    if not isa:
        return core
    rates = {dot.name: rounded(rate / ghz) for dot in isa.dots if (rate := measured.per_ns.get(f"{name} {dot.name}"))}
    known = set(rates)
    if first := rates.pop(isa.dots[0].name, None):
        units = vector_units(machine, measured) if isa == vector_isa(machine) else None
        core = replace(core, dots_per_cycle=settled(units or first, core.dots_per_cycle))
    slower = {other: (rate, latency) for other, rate, latency in core.slower}
    for instruction, rate in rates.items():
        expected, latency = core.rate(instruction)
        if settled(rate, expected) != expected:
            kin = [other for other in kindred(isa, instruction) if other == instruction or other not in known]
            slower |= dict.fromkeys(kin, (rate, latency))
    return replace(
        core,
        slower=tuple((instruction, *rate) for instruction, rate in slower.items()),
        loads_per_cycle=tile_loads(isa, core, measured, ghz),
    )


def kindred(isa: Isa, instruction: str) -> list[str]:
    """The instructions that one unit computes, in as many cycles: of one shape, into sums of one type."""
    wanted = next((dot.shape, dot.acc) for dot in isa.dots if dot.name == instruction)
    return list(dict.fromkeys(dot.name for dot in isa.dots if (dot.shape, dot.acc) == wanted))


def tile_loads(isa: Isa, core: Core, measured: Measured, ghz: float) -> float:
    """Loads in a cycle: of tiles, as many as there are products by loaded tiles, where loading holds these up."""
    if not isa.vectors or not measured.tile_pairs_per_ns:
        return core.loads_per_cycle
    pairs = rounded(measured.tile_pairs_per_ns / ghz)
    return pairs if pairs < core.dots_per_cycle * (1 - TOLERANCE) else core.loads_per_cycle
