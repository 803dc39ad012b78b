"""Kernels on disk: what one process compiled, others load.

An entry is a file `<name>-<key>.o`: the object code, as object file tools read it, how it is called (kernel.py), and a
digest of the file's name and of all that. The key stands for all that shapes the code: the product, the processor's
facts, the toolchain; so a process that finds an entry makes no plan. Entries appear whole or not at all: any number of
processes and threads may read, write and remove them at once.

The directory is the user's own: code from where another user can write would run with this user's rights, so it is
not used. Whatever fails here (no home, a full disk, a damaged entry) costs a compilation, never a product.

The environment says where it is (JAX_NANO_CACHE_DIR, else XDG_CACHE_HOME, else ~/.cache), how large it may become
(JAX_NANO_CACHE_MIB), and turns it off (JAX_NANO_CACHE=0).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator

from jax_nano import config
from jax_nano.config import warn
from jax_nano.runtime import keys
from jax_nano.runtime.toolchain import toolchain
from jax_nano.runtime.turns import turn

ENTRY = re.compile(rf"nano_\w+-[0-9a-f]{{{keys.DIGITS}}}\.o")
LOCK = "lock"  # ends the name of a file that is there while a process makes the entry
UNFINISHED = re.compile(rf"\.nano_.+\.o\.(?:[0-9a-f]+|{LOCK})")
UNFINISHED_SECONDS = 3600  # after this time an unfinished entry's writer must have died
DIGEST_BYTES = hashlib.sha256().digest_size
WINNER = "nano_winner"  # begins the name of an entry that holds no kernel, but which plan of a product won


class Unusable(Exception):
    """The cache, or an entry of it, must not be used; the text says why and what to do."""


def fetch(symbol: str, parts: tuple[object, ...], compiled: Callable[[], bytes]) -> bytes:
    """What `parts` describe: from the cache, else `compiled()`, which is then kept.

    The entry's name begins with `symbol`. `parts` are all that it depends on besides the toolchain: see
    keys.describe. Raises only what `compiled` raises.
    """
    if why_off():
        return compiled()
    entry = code = None
    with harmless():
        entry = f"{symbol}-{key(parts)}.o"
        code = load(entry)
    if code is None:
        with alone(entry) as waited:
            if entry and waited:
                with harmless():
                    code = load(entry)
            if code is None:
                code = compiled()
                with harmless():
                    if entry:
                        store(entry, code)
    return code


@contextlib.contextmanager
def alone(entry: str | None) -> Iterator[bool]:
    """Keeps other processes from making an entry in the block; gives whether one has done so meanwhile."""
    with contextlib.ExitStack() as stack:
        waited = False
        with harmless():
            if entry:
                make_directory()
                folder = stack.enter_context(open_directory())
                waited = stack.enter_context(turn(folder, f".{entry}.{LOCK}"))
        yield waited


def get(symbol: str, parts: tuple[object, ...]) -> bytes | None:
    """What was put under `parts`, on disk or in this process; None where there is nothing, or nothing to be trusted."""
    if not why_off():
        with harmless():
            if (found := load(f"{symbol}-{key(parts)}.o")) is not None:
                return found
    return _put.get((symbol, parts))


def put(symbol: str, parts: tuple[object, ...], value: bytes) -> None:
    """Keeps a few bytes under `parts`, which are all that they depend on besides the toolchain."""
    _put[symbol, parts] = value
    if not why_off():
        with harmless():
            store(f"{symbol}-{key(parts)}.o", value)


_put: dict[tuple[str, tuple[object, ...]], bytes] = {}  # what stands for the disk where there is none


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Keeps what fails in the cache from failing a product."""
    try:
        yield
    except Unusable as reason:
        warn(f"jax_nano compiles a kernel that its cache may hold: {reason}")
    except OSError:
        pass
    except Exception as error:  # noqa: BLE001
        warn(f"jax_nano cannot use its cache: {type(error).__name__}: {error}")


def key(parts: tuple[object, ...]) -> str:
    """Names what `parts` and this toolchain make.

    Raises:
      Unusable: there is no telling them from others.
    """
    try:
        return keys.digest(toolchain().digest, keys.describe(parts))
    except keys.NoLastingText as reason:
        raise Unusable(str(reason)) from reason


# Where entries are, and how they are read and written.


def why_off() -> str:
    """Why the cache is not asked at all; empty where it is."""
    if not config.switch("JAX_NANO_CACHE"):
        return f"JAX_NANO_CACHE={config.text('JAX_NANO_CACHE')}"
    return toolchain().fault


def directory() -> pathlib.Path:
    """Where the kernels are.

    Raises:
      OSError: the environment names no place, and there is no home.
    """
    return config.storage() / "kernels"


def make_directory() -> None:
    """Makes the directory, for this user alone.

    Raises:
      OSError: it cannot be made.
    """
    path = directory()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def limit_bytes() -> int:
    """How much the cache may hold."""
    return config.number("JAX_NANO_CACHE_MIB") << 20


@contextlib.contextmanager
def open_directory() -> Iterator[int]:
    """A descriptor of the directory: what was found private stays what is worked in, whatever becomes of its name.

    Raises:
      Unusable: others could have written there.
      OSError: it cannot be opened; FileNotFoundError where it is not there.
    """
    path = directory()
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if fault := fault_of(os.fstat(folder)):
            raise Unusable(f"{path} {fault}; remove it, or set JAX_NANO_CACHE_DIR to a directory of your own")
        yield folder
    finally:
        os.close(folder)


def fault_of(status: os.stat_result) -> str:
    """How another user could have written to a file or directory; empty where none could."""
    if status.st_uid != os.geteuid():
        return f"belongs to another user ({status.st_uid})"
    return "is writable by other users" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def within(folder: int, more_flags: int = 0) -> Callable[[str, int], int]:
    """An opener of files in a directory; those it creates are the user's alone."""
    return lambda name, flags: os.open(name, flags | more_flags, 0o600, dir_fd=folder)


def seal_of(entry: str, code: bytes) -> bytes:
    """What stands behind the code in an entry."""
    return hashlib.sha256(entry.encode() + code).digest()


def load(entry: str) -> bytes | None:
    """The code of an entry, or None where the file is not what was stored under this name.

    Raises:
      Unusable: others could have written to it.
      OSError: it cannot be read, or is not there.
    """
    # Without O_NONBLOCK, a named pipe would be waited for.
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    with open_directory() as folder, open(entry, "rb", opener=within(folder, flags)) as file:
        status = os.fstat(file.fileno())
        if fault := fault_of(status):
            raise Unusable(f"{entry} {fault}; it will be replaced. `python -m jax_nano cache --clear` removes all")
        content = file.read() if stat.S_ISREG(status.st_mode) else b""
        code, seal = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if seal != seal_of(entry, code):
            return None
        with contextlib.suppress(OSError):
            os.utime(file.fileno())  # the time of last use
        return code


def store(entry: str, code: bytes) -> None:
    """Writes an entry, or replaces it; removes the entries used longest ago where the cache has become too large.

    Raises:
      Unusable, OSError: it could not be written.
    """
    make_directory()
    unfinished = f".{entry}.{secrets.token_hex(8)}"
    with open_directory() as folder:
        try:
            with open(unfinished, "xb", opener=within(folder)) as file:
                file.write(code + seal_of(entry, code))
            os.replace(unfinished, entry, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            remove(folder, unfinished)
            raise
        allowance.spend(len(code), folder)


# How large the cache is, and how it is kept so.


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kernel on disk, or the winner of a measurement."""

    name: str
    bytes: int
    used: float  # seconds since the epoch

    @property
    def is_winner(self) -> bool:
        """Whether it says which plan won, and is no kernel."""
        return self.name.startswith(f"{WINNER}-")


def entries(folder: int) -> list[Entry]:
    """What is in the directory, the last used first. What dead writers left is removed on the way."""
    found = []
    with os.scandir(folder) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                status = file.stat(follow_symlinks=False)
                if ENTRY.fullmatch(file.name):
                    found.append(Entry(file.name, status.st_size, status.st_mtime))
                elif UNFINISHED.fullmatch(file.name) and time.time() - status.st_mtime > UNFINISHED_SECONDS:
                    remove(folder, file.name)
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def remove(folder: int, name: str) -> None:
    """Removes a file, if it is still there and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)


def sweep(folder: int, limit: int) -> int:
    """Where the cache holds more than `limit` bytes, brings it to three quarters of that; returns what it holds."""
    found = entries(folder)
    held = sum(entry.bytes for entry in found)
    if held > limit:
        while found and held > limit * 3 // 4:
            entry = found.pop()
            remove(folder, entry.name)
            held -= entry.bytes
    return held


class Allowance:
    """How much this process may store before it measures the cache again, which takes longer the more is in it."""

    def __init__(self):
        self.bytes = 0

    def spend(self, size: int, folder: int) -> None:
        """Counts what was stored. Four processes that each use up a quarter of what is free keep to the limit."""
        self.bytes -= size
        if self.bytes < 0:
            limit = limit_bytes()
            self.bytes = (limit - sweep(folder, limit)) // 4


allowance = Allowance()
