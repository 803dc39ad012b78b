"""Runs pytest with another build of the extension: `python tools/with_extension.py EXTENSION [PYTEST_ARGUMENT]...`.

An editable install finds the extension in one place only, so this loads the other one before anything asks for it.
"""

import importlib.util
import pathlib
import sys

import pytest

NAME = "jax_nano._native"
ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Returns pytest's exit code."""
    extension, *arguments = sys.argv[1:]
    spec = importlib.util.spec_from_file_location(NAME, pathlib.Path(extension).resolve())
    if spec is None or spec.loader is None:
        raise SystemExit(f"{extension} is no extension module")
    sys.path.insert(0, str(ROOT))
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return pytest.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
