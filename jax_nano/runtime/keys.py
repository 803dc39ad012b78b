"""Keys of what is kept on disk: texts that tell values apart, in every process alike, and their digests."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import numbers
import operator
from collections.abc import Callable

DIGITS = 32


class NoLastingText(Exception):
    """A value has no text that is the same in every process; this says why."""


def digest(*texts: str) -> str:
    """Names what these texts stand for."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:DIGITS]


def describe(value: object) -> str:
    """A text that tells a value from others, and is the same in every process.

    Fields that take no part in comparison take none here.

    Raises:
      NoLastingText: there is no such text for a value of this type.
    """
    kind = type(value)
    if kind is int or kind is str or kind is float or value is None:  # nearly all of a product
        return repr(value)
    if dataclasses.is_dataclass(kind):
        return f"{kind.__name__}{describe(_fields(kind)(value))}"
    match value:
        case tuple():
            return f"({', '.join(map(describe, value))})"
        case numbers.Integral():
            return repr(int(value))
        case str():
            return repr(str(value))
        case float():
            return repr(float(value))
    raise NoLastingText(
        f"its plan has a value of type {kind.__name__}, which has no lasting text; "
        "make plans of numbers, strings, tuples and dataclasses"
    )


@functools.cache
def _fields(kind: type) -> Callable[[object], tuple[object, ...]]:
    """Gives the fields of a dataclass that are compared, in order."""
    names = [field.name for field in dataclasses.fields(kind) if field.compare]
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)
