"""Prints the packages that pyproject.toml says a build needs, one a line.

Without jaxlib, which only brings headers: tools/ffi_headers.py finds those beside any JAX.
"""

import pathlib
import tomllib

pyproject = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())
print(*(name for name in pyproject["build-system"]["requires"] if not name.startswith("jaxlib")), sep="\n")
