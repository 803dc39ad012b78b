"""Runs a program within this process as `python program.py` would: for commands that watch it.

JAX is not imported before the program does so: programs set variables that JAX reads when it is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import pathlib
import runpy
import sys
from collections.abc import Callable
from types import TracebackType

INTERRUPTED = 130  # what a shell gives for a program that SIGINT ended


def add_program(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that name a program and those that are its own."""
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module's name, as for python")
    parser.add_argument("program", help="a file, or with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own")


def program_runner(options: argparse.Namespace) -> Callable[[], object]:
    """A function that runs the program that the options name.

    Raises:
      ValueError: there is none.
    """
    return module_runner(options) if options.module else file_runner(options)


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
