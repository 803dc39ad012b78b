"""Runs the part of the tests that faces JAX for pairs of Python and JAX, each in an environment of its own.

usage: python tools/matrix.py [PAIR ...] [-- PYTEST ARGUMENT ...]

A pair is written 3.13-0.12; `oldest` and `newest` name those; by default all of Python 3.11 to 3.14 that are found (on
the path, or pyenv's) with all of JAX 0.10 to 0.12 that support them. Environments stay in .venvs, for the next time.
"""

import dataclasses
import pathlib
import subprocess
import sys

from pythons import SERIES, interpreter, version

ROOT = pathlib.Path(__file__).parents[1]
OLDEST_PYTHON = {"0.10": "3.11", "0.11": "3.12", "0.12": "3.12"}  # that each JAX has wheels for
FACING_JAX = ("api", "external", "jaxpr", "lowering", "runtime", "weights", "csrc")  # folders of tests/


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Python and JAX, by their series."""

    python: str
    jax: str

    def __str__(self) -> str:
        return f"{self.python}-{self.jax}"

    @property
    def environment(self) -> pathlib.Path:
        """Its virtual environment."""
        return ROOT / ".venvs" / f"{self}"


def found() -> list[Pair]:
    """All pairs that this machine can run, the oldest first."""
    pythons = [series for series in SERIES if interpreter(series)]
    return sorted(
        Pair(python, jax)
        for python in pythons
        for jax, least in OLDEST_PYTHON.items()
        if version(python) >= version(least)
    )


def chosen(names: list[str]) -> list[Pair]:
    """The pairs that are asked for.

    Raises:
      SystemExit: a name is no pair, or its Python is not there.
    """
    there = found()
    if not names:
        return there
    by_name = {str(pair): pair for pair in there} | {"oldest": there[0], "newest": there[-1]}
    if unknown := [name for name in names if name not in by_name]:
        sys.exit(f"no such pair here: {', '.join(unknown)} (there are {', '.join(by_name)})")
    return [by_name[name] for name in names]


def prepare(pair: Pair) -> pathlib.Path:
    """Makes the pair's environment, with jax_nano as it is now; returns its Python."""
    python = pair.environment / "bin" / "python"
    if not python.exists():
        subprocess.run([str(interpreter(pair.python)), "-m", "venv", str(pair.environment)], check=True)
    install = [str(python), "-m", "pip", "install", "-q"]
    requirements = subprocess.run(
        [str(python), "tools/build_requirements.py"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    pinned = f"jax=={pair.jax}.*"
    subprocess.run([*install, *requirements, pinned], check=True, cwd=ROOT)
    subprocess.run([*install, "--no-build-isolation", "-e", ".[examples,test]", pinned], check=True, cwd=ROOT)
    return python


def run(pair: Pair, arguments: list[str]) -> bool:
    """Runs the tests for one pair; whether they passed."""
    print(f"== Python {pair.python}, JAX {pair.jax}", flush=True)
    folders = [f"tests/{name}" for name in FACING_JAX]
    command = [str(prepare(pair)), "-m", "pytest", "-q", *(arguments or ["-n", "2"]), *folders]
    return subprocess.run(command, check=False, cwd=ROOT).returncode == 0


def main() -> None:
    """Runs the pairs asked for, and says which failed."""
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    names, arguments = given[:split], given[split + 1 :]
    results = {pair: run(pair, arguments) for pair in chosen(names)}
    for pair, passed in results.items():
        print(f"Python {pair.python}, JAX {pair.jax}: {'passed' if passed else 'FAILED'}")
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
