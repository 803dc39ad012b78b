"""The Pythons of this machine."""

import os
import pathlib
import shutil
import subprocess

SERIES = ("3.11", "3.12", "3.13", "3.14")


def version(series: str) -> tuple[int, ...]:
    """A series as numbers."""
    return tuple(map(int, series.split(".")))


# What makes environments, and what extensions are built with.
NEEDED = "import ensurepip, pathlib, sysconfig, venv; open(pathlib.Path(sysconfig.get_path('include')) / 'Python.h')"


def interpreter(series: str) -> str | None:
    """The Python of a series that runs and has what is NEEDED: one on the path, or pyenv's newest."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv")) / "versions"
    kept = sorted(pyenv.glob(f"{series}.*"), key=lambda folder: version(folder.name), reverse=True)
    for candidate in (shutil.which(f"python{series}"), *(str(folder / "bin" / f"python{series}") for folder in kept)):
        if candidate and not subprocess.run([candidate, "-c", NEEDED], capture_output=True, check=False).returncode:
            return candidate
    return None
