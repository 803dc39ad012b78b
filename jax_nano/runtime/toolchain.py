"""Which jax_nano and which compiler make code of a plan: what kernels on disk were made by has to be what runs.

A wheel carries the digest of its sources, made when it was built. Elsewhere sources change as they are saved, so they
are read, once, when the cache is first used; if one was saved after jax_nano was loaded, those on disk are not those
that run, and this process does without the cache.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

import jaxlib.version

import jax_nano
from jax_nano import _native

CHANGED = "jax_nano's sources were changed while it runs"
UNREADABLE = "jax_nano's own files cannot be read"


class NoDigest(Exception):
    """There is no telling what kernels on disk were made by; the text says why."""


@dataclass(frozen=True)
class Toolchain:
    """A digest of what makes code of a plan, or why there is none."""

    digest: str = ""
    fault: str = ""


@functools.cache
def toolchain() -> Toolchain:
    """The toolchain of this process."""
    try:
        return Toolchain(digest=toolchain_digest())
    except NoDigest as reason:
        return Toolchain(fault=str(reason))


def toolchain_digest() -> str:
    """A digest of jax_nano and its extension, of LLVM, and of jaxlib's MLIR.

    Raises:
      NoDigest: sources cannot be read, or are not those that run.
    """
    digest = hashlib.sha256(f"{_native.llvm_version} {jaxlib.version.__version__}".encode())
    digest.update((wheel_digest() or sources_digest(Path(jax_nano.__file__).parent, jax_nano.LOADED_NS)).encode())
    try:
        for library in _native.libraries:  # too large to read
            status = Path(library).stat()
            digest.update(f"{library} {status.st_size} {status.st_mtime_ns}".encode())
    except OSError as error:
        raise NoDigest(UNREADABLE) from error
    return digest.hexdigest()


def wheel_digest() -> str:
    """The digest that CMakeLists.txt made of the sources of a wheel; empty where this is none."""
    try:
        return f"wheel {importlib.import_module('jax_nano._build_info').SOURCES}"
    except ImportError:
        return ""


def sources_digest(package: Path, loaded_ns: int) -> str:
    """A digest of a package's Python sources and of the extension.

    Args:
      package: its folder.
      loaded_ns: when the sources that run were read, in nanoseconds since the epoch.

    Raises:
      NoDigest: a file cannot be read, or became what it is after that time.
    """
    digest = hashlib.sha256()
    try:
        for file in (*sorted(package.rglob("*.py")), Path(_native.__file__)):
            if file.stat().st_ctime_ns > loaded_ns:
                raise NoDigest(CHANGED)
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    except OSError as error:
        raise NoDigest(UNREADABLE) from error
    return f"sources {digest.hexdigest()}"
