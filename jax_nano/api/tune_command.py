"""`python -m jax_nano tune program.py`: runs a program, and measures the plans of every product in it on the way.

The program runs as `python program.py` would have it. JAX is not imported before the program does so, unless jax_nano
is to be installed for it: programs set variables that JAX reads when it is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys

from jax_nano import config
from jax_nano.api.run_program import add_program, program_runner, run_to_its_end
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import host
from jax_nano.runtime import cache
from jax_nano.runtime.cache_command import count
from jax_nano.runtime.tuning_session import Session, tuning_session


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `python -m jax_nano tune`."""
    parser = commands.add_parser(
        "tune",
        help="run a program, and measure the best plans of every product in it",
        description="Runs a program, measures the plans of each product that jax_nano computes in it, remembers the "
        "winners for later runs, and says on standard error what that gained.",
    )
    parser.add_argument("--install", action="store_true", help="import JAX and call jax_nano.install() before it runs")
    parser.add_argument("--new", action="store_true", help="leave products alone that have a winner already")
    add_program(parser)


def command(options: argparse.Namespace) -> str:
    """Runs the program, and tells on standard error what was gained. The program has standard output to itself.

    Raises:
      ValueError: there is no such program, or jax_nano has nothing to measure here.
      SystemExit: the program ended by it, or by another exception, which has been shown.
    """
    check_environment()
    run = program_runner(options)
    with tuning_session(only_new=options.new) as session, installed(wanted=options.install):
        end = run_to_its_end(run)
    sys.stderr.write(f"{summary(session, options)}\n")
    if end:
        raise end
    return ""


def check_environment() -> None:
    """Checks that kernels can run here.

    Raises:
      ValueError: they cannot.
    """
    if not config.enabled():
        raise ValueError(f"JAX_NANO={config.text('JAX_NANO')} turns jax_nano off: nothing can be tuned; unset it")
    try:
        here = host.machine()
    except UnsupportedDot as reason:
        raise ValueError(str(reason)) from reason
    if host.machine_for() is not here:
        raise ValueError(f"JAX_NANO_TARGET={config.text('JAX_NANO_TARGET')} does not run here; choose one of `info`'s")


def installed(*, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """jax_nano.installed(), where that is wanted."""
    return importlib.import_module("jax_nano.api.install").installed() if wanted else contextlib.nullcontext()


def summary(session: Session, options: argparse.Namespace) -> str:
    """What was gained, and what is kept."""
    lines = []
    if session.tuned:
        tunings = importlib.import_module("jax_nano.runtime.tuning").Tunings
        lines.append(f"\n{tunings(session.tuned.values())}")
    if session.known:
        lines.append(f"{count(len(session.known), 'product')} had winners already")
    if not lines:
        advice = "" if options.install else "; --install has jax_nano compute the others' products too"
        lines.append(f"{options.program} ran no product through jax_nano: nothing was tuned{advice}")
    elif reason := cache.why_off():
        lines.append(f"the winners are lost with this process, as kernels on disk are off: {reason}")
    return "\n".join(lines)
