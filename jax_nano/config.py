"""Every environment variable that jax_nano reads, and the one place that reads them.

Variables are read when they are needed, not when jax_nano is imported. One that is empty counts as not set. A value
that means nothing is warned of once, and the default stands in for it; but a target that no processor has is an error
of whatever asks for it.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

ON = frozenset({"1", "on", "yes", "true"})
OFF = frozenset({"0", "off", "no", "false"})
DIGITS = 15  # of a number at most


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    name: str
    kind: str  # one of KINDS
    default: str  # as it would be written; empty where there is none
    meaning: str  # one line

    def __post_init__(self):
        valid = {_SWITCH: self.default in ("0", "1"), _NUMBER: self.default.isdecimal()}
        if self.kind not in KINDS or not valid.get(self.kind, True):
            raise ValueError(f"{self.name}: the default {self.default!r} is no {self.kind}")


_SWITCH, _NAME, _DIRECTORY, _NUMBER = KINDS = ("switch", "name", "directory", "number")
_ALL = (
    ("JAX_NANO", _SWITCH, "1", "0 turns all of jax_nano off: XLA computes everything"),
    ("JAX_NANO_TARGET", _NAME, "", "the instruction set to use, such as avx2; else the best that the processor has"),
    ("JAX_NANO_AUTOTUNE", _SWITCH, "0", "1 measures the best plans for each product when it is first compiled"),
    ("JAX_NANO_THREADS", _NUMBER, "0", "how many threads of a process compute products; 0: one for each core"),
    ("JAX_NANO_DUMP", _DIRECTORY, "", "where to write each kernel's plan, MLIR, LLVM IR, assembly and object code"),
    ("JAX_NANO_CACHE", _SWITCH, "1", "0 neither reads nor writes kernels on disk"),
    ("JAX_NANO_CACHE_DIR", _DIRECTORY, "", "where kernels and calibrations stand; else jax_nano within XDG_CACHE_HOME"),
    ("JAX_NANO_CACHE_MIB", _NUMBER, "512", "how much kernels on disk may take; those used longest ago are removed"),
    ("JAX_NANO_PERF", _SWITCH, "0", "1 has perf name kernels: LLVM writes them under ~/.debug/jit"),
    ("XLA_FLAGS", _NAME, "", "XLA's own; read for xla_cpu_small_while_loop_byte_threshold: see docs/performance.md"),
    ("XDG_CACHE_HOME", _DIRECTORY, "~/.cache", "where programs keep such files; counts if it is an absolute path"),
)
VARIABLES = {name: Variable(name, kind, default, meaning) for name, kind, default, meaning in _ALL}


def enabled() -> bool:
    """Whether jax_nano does anything at all."""
    return switch("JAX_NANO")


def text(name: str) -> str:
    """The value of a variable, or its default."""
    variable = VARIABLES[name]
    return os.environ.get(name) or variable.default


def switch(name: str) -> bool:
    """Whether a switch is on."""
    value = text(name).lower()
    if value in ON | OFF:
        return value in ON
    default = VARIABLES[name].default
    warn(f"{name}={value} is neither 0 nor 1; jax_nano takes it for {default}")
    return default == "1"


def number(name: str) -> int:
    """The value of a number."""
    value, default = text(name), VARIABLES[name].default
    if value.isdecimal() and len(value) <= DIGITS:
        return int(value)
    warn(f"{name}={value} is not a whole number of at most {DIGITS} digits; jax_nano takes it for {default}")
    return int(default)


def directory(name: str) -> Path | None:
    """The directory that a variable names; None where it names none.

    Raises:
      RuntimeError: it begins with ~, and there is no home.
    """
    value = text(name)
    return Path(value).expanduser() if value else None


@functools.cache
def warn(message: str) -> None:
    """Warns, once in a process; logs it where warnings are errors, as no product fails of what is warned of here."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        logging.getLogger("jax_nano").warning("%s", message)


def storage() -> Path:
    """Where jax_nano keeps kernels and calibrations.

    Raises:
      OSError: the environment names no place, and there is no home.
    """
    try:
        if (root := directory("JAX_NANO_CACHE_DIR")) is not None:
            return root
        base = directory("XDG_CACHE_HOME")
        return (base if base and base.is_absolute() else Path.home() / ".cache") / "jax_nano"
    except RuntimeError as no_home:
        raise OSError(f"{no_home} Set JAX_NANO_CACHE_DIR") from no_home


def summary() -> dict[str, str]:
    """The value of each variable and where it comes from."""
    result = {}
    for variable in VARIABLES.values():
        given = os.environ.get(variable.name)
        value = given or variable.default or "not set"
        result[variable.name] = f"{value} ({'environment' if given else 'default'})"
    return result


def markdown() -> str:
    """The table of docs/configuration.md."""
    lines = ["| variable | kind | default | meaning |", "|---|---|---|---|"]
    for variable in VARIABLES.values():
        default = f"`{variable.default}`" if variable.default else ""
        lines.append(f"| `{variable.name}` | {variable.kind} | {default} | {variable.meaning} |")
    return "\n".join(lines) + "\n"
