"""Prints the packages that pyproject.toml says a build needs, one a line."""

import pathlib
import tomllib

pyproject = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())
print(*pyproject["build-system"]["requires"], sep="\n")
