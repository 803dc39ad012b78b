"""Which machine a processor is: by its name, and where nobody named it, by its vendor and its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jax_nano.machine import x86
from jax_nano.machine.isa import Isa, Machine

Has = Callable[[tuple[str, ...]], bool]  # a processor has all of these features, in LLVM's names

NAMED = {machine.name: machine for machine in x86.MACHINES}


def named(name: str) -> Machine | None:
    """The machine of a name of LLVM's, in any of its spellings; None where nobody named it."""
    name = name.replace("_", "-")
    return NAMED.get(x86.ALIASES.get(name, name))


def identify(name: str, vendor: str, has: Has) -> Machine | None:
    """The machine that a processor is, or its nearest kin, with those instructions that the processor has.

    A name counts where it can be true: of an unknown processor, LLVM names one that has some of its features. So a
    processor that has what the named one lacks is another one.

    Args:
      name: LLVM's.
      vendor: as CPUID has it.
      has: whether the processor has features.

    Returns:
      The machine, with `stands_for` set where it is a guess; None where no instruction set fits.
    """
    if not any(has(isa.features) for isa in x86.ISAS):
        return None
    machine = named(name)
    if machine and not exceeds(machine, has):
        return having(machine, has)
    return replace(having(completed(nearest(vendor, has), vendor, has), has), stands_for=name)


def exceeds(machine: Machine, has: Has) -> bool:
    """A processor has an instruction set, or instructions, that this machine lacks."""
    lacks = any(has((feature,)) for feature in machine.lacks)
    return lacks or any(has(isa.features) for isa in x86.ISAS if isa not in machine.isas)


def nearest(vendor: str, has: Has, isa: Isa | None = None) -> Machine:
    """The machine most like a processor: of its vendor, with most of its features and fewest others.

    Of several, the one that computes most: more is lost where fast units wait than where slow ones are overrated.

    Args:
      vendor: as CPUID has it.
      has: whether the processor has features.
      isa: what the machine must have.
    """
    vendor = x86.LICENSED.get(vendor, vendor)

    def kinship(machine: Machine) -> tuple[bool, int, float, str]:
        common = sum(has((feature,)) for feature in machine.features)
        return machine.vendor == vendor, 2 * common - len(machine.features), rate(machine), machine.name

    return max((machine for machine in x86.MACHINES if not isa or isa in machine.isas), key=kinship)


def rate(machine: Machine) -> float:
    """Multiply-accumulates of f32 in a second, on vectors."""
    isa = next(isa for isa in machine.isas if not isa.vectors)
    return machine.cores[isa.name].dots_per_cycle * isa.lanes("f32") * machine.ghz


def completed(kin: Machine, vendor: str, has: Has) -> Machine:
    """A machine with those instruction sets besides that a processor has: each computes as its nearest owner's."""
    isas = tuple(isa for isa in x86.ISAS if isa in kin.isas or has(isa.features))
    owners = {isa.name: kin if isa in kin.isas else nearest(vendor, has, isa) for isa in isas}
    return replace(kin, isas=isas, cores={name: owner.cores[name] for name, owner in owners.items()})


def having(machine: Machine, has: Has) -> Machine:
    """A machine with those of its instruction sets and instructions that a processor has."""
    return replace(machine, isas=tuple(available(isa, has) for isa in machine.isas if has(isa.features)))


def available(isa: Isa, has: Has) -> Isa:
    """The instruction set with those instructions and conversions whose features a processor has."""
    dots = tuple(dot for dot in isa.dots if has(dot.features))
    conversions = tuple(feature for feature in isa.conversions if has((feature,)))
    return replace(isa, dots=dots, conversions=conversions, vectors=isa.vectors and available(isa.vectors, has))
