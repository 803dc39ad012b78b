"""`python -m jax_nano tune program.py`: runs a program, and measures the plans of every product in it on the way.

The program runs as `python program.py` would have it. JAX is not imported before the program does so, unless jax_nano
is to be installed for it: programs set variables that JAX reads when it is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import pathlib
import runpy
import sys
from collections.abc import Callable
from types import TracebackType

from jax_nano import config
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.machine import host
from jax_nano.runtime import cache
from jax_nano.runtime.cache_command import count
from jax_nano.runtime.tuning_session import Session, tuning_session

INTERRUPTED = 130  # what a shell gives for a program that SIGINT ended


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
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module's name, as for python")
    parser.add_argument("program", help="a file, or with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own")


def command(options: argparse.Namespace) -> str:
    """Runs the program, and tells on standard error what was gained. The program has standard output to itself.

    Raises:
      ValueError: there is no such program, or jax_nano has nothing to measure here.
      SystemExit: the program ended by it, or by another exception, which has been shown.
    """
    check_environment()
    run = module_runner(options) if options.module else file_runner(options)
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


def file_runner(options: argparse.Namespace) -> Callable[[], object]:
    """Runs a file, or what Python takes for one: a folder or an archive with a __main__.py.

    Raises:
      ValueError: there is none.
    """
    path = pathlib.Path(options.program)
    if not path.exists():
        raise ValueError(f"there is no file {path}; name a Python program, or a module with -m")
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise ValueError(f"{path} is a folder without a __main__.py; name a Python program in it")

    def run() -> None:
        sys.argv = [options.program, *options.arguments]
        if not sys.flags.safe_path:
            sys.path[0] = str(path.resolve().parent)
        runpy.run_path(str(path.absolute()), run_name="__main__")  # Python's __file__ is absolute as well

    return run


def module_runner(options: argparse.Namespace) -> Callable[[], object]:
    """Runs a module, or a package's __main__.

    Raises:
      ValueError: there is none.
    """
    try:
        found = importlib.util.find_spec(options.program)
    except (ImportError, ValueError):  # of the package that it would be in
        found = None
    if found is None:
        raise ValueError(f"there is no module {options.program}; name one as for `python -m`, or a file without -m")

    def run() -> None:
        sys.argv = [options.program, *options.arguments]
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)

    return run


def installed(*, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """jax_nano.installed(), where that is wanted."""
    return importlib.import_module("jax_nano.api.install").installed() if wanted else contextlib.nullcontext()


def run_to_its_end(run: Callable[[], object]) -> SystemExit | None:
    """Runs the program, and gives what it ended by. Other exceptions are shown as Python shows them."""
    try:
        run()
    except SystemExit as end:
        return end
    except BaseException as error:  # noqa: BLE001  the program's own affair
        error = error.with_traceback(of_program(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        return SystemExit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # which the program may have closed
                stream.flush()
    return None


def of_program(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that lead to the program; none for an error in its syntax."""
    while traceback and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    return traceback


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
