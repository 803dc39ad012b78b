"""Scores of attention in programs that are made by other work than scale, bias and masks: score functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from jax_nano.ir.program import OPERATIONS
from jax_nano.jaxpr.attention.axis_labels import Equations, Labeled, Labels
from jax_nano.jaxpr.attention.parts import Match
from jax_nano.jaxpr.attention.program import accumulator
from jax_nano.jaxpr.attention.score_reader import ScoreReader
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.primitives import PRODUCTS
from jax_nano.jaxpr.program_reader import operation_name

MOST = 100  # equations between a product and a softmax


@dataclass(frozen=True)
class Source:
    """A product that scores are made of, and the labels of its axes."""

    eqn: JaxprEqn
    labels: Labels


def elementwise_sources(equations: Equations, scores: Labeled) -> Iterator[Source]:
    """The products that scores are made of by elementwise work, of which each has all their axes."""
    left, seen = [scores], set()
    while left and len(seen) < MOST:
        x = equations.moved(left.pop(0))
        eqn = equations.maker(x.atom)
        if eqn is None or x.atom in seen:
            continue
        seen.add(x.atom)
        if eqn.primitive in PRODUCTS and None not in x.labels:
            yield Source(eqn, x.labels)
        elif operation_name(eqn) in OPERATIONS:
            operands = equations.operands(eqn, x.labels)
            left += [where_repeated(y) for y in operands if isinstance(y.atom, Var)]


def where_repeated(x: Labeled) -> Labeled:
    """An operand without labels where it is repeated."""
    sizes = zip(x.labels, type_of(x.atom).shape, strict=True)
    return Labeled(x.atom, tuple(label if size > 1 else None for label, size in sizes))


def with_score_function(
    equations: Equations, match: Match, scores: Labeled, source: Source
) -> tuple[Match, list[JaxprEqn]]:
    """A match with its score function, and the equations that it is read from.

    Raises:
      Unfusable: what is done to scores is no elementwise program.
    """
    roles = match.roles
    score = Labeled(source.eqn.outvars[0], source.labels)
    reader = ScoreReader(equations, score, (roles.query, roles.key), {})
    program = reader.program(scores, jnp.dtype(accumulator(type_of(match.query.atom).dtype)))
    function, arrays = reader.function(program, "score")
    return replace(match, score=function, score_arrays=tuple(arrays)), [*reader.visited, source.eqn]
