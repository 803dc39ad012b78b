"""Runs machine code in a process of its own, whose death can be looked at.

python -m amx.child LIBRARY FUNCTION CONFIG BEFORE: calls BEFORE(), unless it is empty; installs AMX; prints the result
of FUNCTION(configuration).
"""

import ctypes
import faulthandler
import os
import resource
import subprocess
import sys
from pathlib import Path

from . import emulator


def run(
    library: ctypes.CDLL, function: str, config: bytes = bytes(64), before: str = ""
) -> subprocess.CompletedProcess:
    """Runs a function of a library in a child.

    Args:
      before: one of the library's functions, or "faulthandler" to enable that.
    """
    root = Path(__file__).parents[__name__.count(".")]
    command = [sys.executable, "-m", __name__, library._name, function, config.hex(), before]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def main(library: str, function: str, config: str, before: str) -> None:
    """What happens in the child."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    loaded = ctypes.CDLL(library)
    if before == "faulthandler":
        faulthandler.enable()
    elif before:
        loaded[before]()
    emulator.install()
    sys.stdout.write(str(loaded[function](bytes.fromhex(config))))


if __name__ == "__main__":
    main(*sys.argv[1:])
