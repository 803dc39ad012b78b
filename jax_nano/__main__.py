"""The command line: `python -m jax_nano` with `info`, `inspect f32 512 512 512`, `calibrate`, `cache`, or with
`tune program.py` or `doctor program.py`.

What imports JAX is imported where it is needed: `tune` leaves that to the program.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from jax_nano import _native, config
from jax_nano.api import doctor_command, tune_command
from jax_nano.ir.dot import Dot, Operand, UnsupportedDot
from jax_nano.machine import host
from jax_nano.machine.host import machine_for, target
from jax_nano.machine.isa import Cache, Machine
from jax_nano.runtime import cache_command
from jax_nano.runtime.calibrate import command as calibrate_command

SUMMARY = "Shows what jax_nano does on this machine, measures for its plans, and looks after what it keeps."


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(prog="python -m jax_nano", description=SUMMARY)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, the processor, its targets and caches, and the settings")
    show = commands.add_parser("inspect", help="what becomes of C = A B")
    show.add_argument("types", help="element types: f32, f64; lhsxrhs and >out where they differ, as in bf16xf32>f32")
    for size, meaning in (("M", "rows of C"), ("N", "columns of C"), ("K", "terms of each sum")):
        show.add_argument(size, type=extent, help=meaning)
    show.add_argument("--target", help="an instruction set, of this machine or another; see info")
    show.add_argument("--show", choices=SHOWN, default="plan", help="what to print (default: %(default)s)")
    calibrate_command.add_command(commands)
    tune_command.add_command(commands)
    doctor_command.add_command(commands)
    cache_command.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        if text := COMMANDS[options.command](options):
            print(text)
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


SHOWN = {"plan": str, "mlir": lambda r: r.mlir, "llvm": lambda r: r.llvm_ir, "asm": lambda r: r.assembly}


def inspect(options: argparse.Namespace) -> str:
    """What the options ask for of one product."""
    from jax_nano.runtime.kernels import kernel_for
    from jax_nano.runtime.report import Report

    lhs, rhs, out = types(options.types)
    m, n, k = options.M, options.N, options.K
    equation = f"{lhs}[{m},{k}] x {rhs}[{k},{n}] -> {out}[{m},{n}]"
    try:
        dot = Dot.of(Operand.row_major((m, k), lhs), Operand.row_major((k, n), rhs), (((1,), (0,)), ((), ())), out)
        kernel = kernel_for(dot, options.target)
    except UnsupportedDot as reason:
        return str(Report(equation=equation, reason=str(reason)))
    return SHOWN[options.show](Report(equation=equation, problem=dot, kernel=kernel))


def extent(text: str) -> int:
    """A size as it is given.

    Raises:
      ArgumentTypeError: it is none.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no size")
    return int(text)


def types(text: str) -> tuple[str, str, str]:
    """(lhs, rhs, out) of `lhs[xrhs][>out]`."""
    if not (parts := re.fullmatch(r"(\w+?)(?:x(\w+))?(?:>(\w+))?", text)):
        raise ValueError(f"{text} does not name element types; write f32, or lhsxrhs>out")
    lhs, rhs, out = parts.groups()
    return lhs, rhs or lhs, out or lhs


def info(_: argparse.Namespace) -> str:
    """Versions, the processor, its targets and caches, and the settings."""
    from jax_nano.runtime.compiler import versions

    lines, measured = versions() | {"processor": _native.host_cpu()}, ""
    try:
        machine = host.machine()
    except UnsupportedDot as reason:
        lines["targets"] = f"none: {reason}; products run as lax.dot_general"
    else:
        lines["targets"] = targets(machine)
        if machine.note:
            lines["without"] = machine.note
        guess = f" (a guess for {machine.stands_for})" if machine.stands_for else ""
        lines["known as"] = f"{machine.name}{guess}, {machine.threads} threads"
        if reasons := str(host.topology()):
            lines["threads"] = reasons
        lines["caches"] = ", ".join(map(describe, machine.caches))
        measured = calibrate_command.section(host.detected())
    held, limit = _native.scratch()
    lines["scratch"] = f"{held >> 10} KiB held, {limit >> 20} MiB kept between calls at most"
    lines["on disk"] = cache_command.summary()
    facts = ["", measured] if measured else []
    return "\n".join([aligned(lines, 12), *facts, "", "environment:", aligned(config.summary(), 20)])


def aligned(lines: dict[str, str], width: int) -> str:
    """A line for each name, with what belongs to it."""
    return "\n".join(f"{name:{width}}{text}" for name, text in lines.items())


COMMANDS = {
    "info": info,
    "inspect": inspect,
    "cache": cache_command.command,
    "calibrate": calibrate_command.command,
    "tune": tune_command.command,
    "doctor": doctor_command.command,
}


def targets(machine: Machine) -> str:
    """A machine's instruction sets, and which is used, if JAX_NANO_TARGET does not stand in the way."""
    try:
        used = machine_for()
        chosen = target(used)
    except ValueError as error:
        return f"{', '.join(isa.name for isa in machine.isas)}; none is used: {error}"
    return ", ".join(f"{isa.name} (used)" if isa == chosen else isa.name for isa in machine.isas) + forced(used)


def forced(machine: Machine) -> str:
    """Says so where the environment chooses the target."""
    wanted = config.text("JAX_NANO_TARGET")
    if not wanted:
        return ""
    missing = all(isa.name != wanted for isa in host.machine().isas)
    return f"; JAX_NANO_TARGET is {wanted}" + (f", of {machine.name}, which does not run here" if missing else "")


def describe(cache: Cache) -> str:
    """One cache, as in `L2 1024 KiB, 16 ways`."""
    return f"L{cache.level} {cache.bytes >> 10} KiB in {cache.ways} ways" + (" (shared)" if cache.shared else "")


if __name__ == "__main__":
    main()
