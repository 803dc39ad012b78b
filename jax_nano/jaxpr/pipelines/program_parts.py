"""The parts of a program around operations that no pipeline has.

x -> a -> sort -> b -> y      in three parts: a, sort, b; what does not depend on the sort stands with a
x -> c ------------^
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var

from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.pipelines.loop_motion import EMPTY


@dataclass(frozen=True, eq=False)
class Part:
    """Some equations of a program.

    Attributes:
      jaxpr: those, of what they read from other parts, giving what others read.
      is_readable: whether each may be in a pipeline; otherwise none may.
    """

    jaxpr: Jaxpr
    is_readable: bool


def parts_of(jaxpr: Jaxpr, is_readable: Callable[[JaxprEqn], bool]) -> list[Part]:
    """The parts of a program, in an order in which each has what it reads: as few as can be."""
    levels: dict[Var, int] = {}  # how many parts that are not readable a value depends on, one after the other
    found: dict[tuple[int, bool], list[JaxprEqn]] = {}
    for eqn in jaxpr.eqns:
        level, readable = max((levels.get(x, 0) for x in _variables(eqn.invars)), default=0), is_readable(eqn)
        found.setdefault((level, not readable), []).append(eqn)
        levels |= dict.fromkeys(eqn.outvars, level + (not readable))
    return [Part(_own(jaxpr, eqns), not other) for (_, other), eqns in sorted(found.items(), key=lambda x: x[0])]


def _own(jaxpr: Jaxpr, eqns: Sequence[JaxprEqn]) -> Jaxpr:
    """Equations of a program as one of their own."""
    inside, made = set(map(id, eqns)), [out for eqn in eqns for out in eqn.outvars]
    given = dict.fromkeys(x for eqn in eqns for x in _variables(eqn.invars))
    others = [x for eqn in jaxpr.eqns if id(eqn) not in inside for x in _variables(eqn.invars)]
    wanted = {*others, *_variables(jaxpr.outvars)}
    return EMPTY.replace(
        invars=[x for x in given if x not in {*made}], eqns=list(eqns), outvars=[x for x in made if x in wanted]
    )


def single(eqn: JaxprEqn) -> Jaxpr:
    """One equation as a program of its own."""
    return EMPTY.replace(invars=list(dict.fromkeys(_variables(eqn.invars))), eqns=[eqn], outvars=list(eqn.outvars))


def run_parts(jaxpr: Jaxpr, parts: Sequence[Part], run: Callable[..., Sequence[Any]], *arrays: Any) -> list[Any]:
    """The results of a program.

    Args:
      jaxpr: the program.
      parts: of it.
      run: computes the results of a part, of that and its arguments.
      *arrays: the program's arguments.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.invars, arrays, strict=True))
    for part in parts:
        results = run(part, *(values[x] for x in part.jaxpr.invars))
        values |= dict(zip(part.jaxpr.outvars, results, strict=True))
    return [values[x] if isinstance(x, Var) else np.asarray(x.val, type_of(x).dtype) for x in jaxpr.outvars]


def _variables(atoms: Sequence[Any]) -> list[Var]:
    return [x for x in atoms if isinstance(x, Var)]
