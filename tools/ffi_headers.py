"""Prints the folder of XLA's FFI headers that the extension is built with: those of the oldest JAX it supports.

A runtime takes handlers that are not newer than itself, so one build with the oldest headers serves all versions. Where
no jaxlib of that series is installed, its wheel is downloaded once, and the headers are taken out of it.

usage: python tools/ffi_headers.py [FOLDER]    (where to keep them; by default build/ffi)
"""

import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
OLDEST = "0.10"  # the series; its releases have the same version of the interface
PREFIX = "jaxlib/include/"
HEADERS = PREFIX + "xla/ffi/api/"


def download(folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel of the oldest jaxlib; any platform's has the same headers.

    Raises:
      SystemExit: pip could not.
    """
    wanted = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_27_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", str(folder), f"jaxlib=={OLDEST}.*"]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"jaxlib {OLDEST}, whose headers jax_nano is built with, cannot be downloaded: {' '.join(command)}")
    return next(folder.glob("jaxlib-*.whl"))


def extract(wheel: pathlib.Path, target: pathlib.Path) -> None:
    """Takes the headers out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(HEADERS):
                file = target / name.removeprefix(PREFIX)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def installed() -> pathlib.Path | None:
    """The headers of the jaxlib at hand, where that is of the oldest series: a build in isolation asks for it."""
    try:
        distribution = importlib.metadata.distribution("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = pathlib.Path(str(distribution.locate_file(PREFIX)))
    return folder if distribution.version.startswith(f"{OLDEST}.") and folder.exists() else None


def main() -> None:
    """Prints the folder."""
    if found := installed():
        print(found)
        return
    kept = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "ffi"
    target = kept / OLDEST
    if not (target / HEADERS.removeprefix(PREFIX) / "ffi.h").exists():
        with tempfile.TemporaryDirectory() as folder:
            extract(download(pathlib.Path(folder)), target)
    print(target)


if __name__ == "__main__":
    main()
