"""What an attention in a program is made of. Labels of axes are their places in the second product's probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

from jax.extend.core import JaxprEqn

from jax_nano.ir.score_function import ScoreFunction
from jax_nano.jaxpr.attention.axis_labels import Label, Labeled, Labels


class NoAttention(Exception):
    """A softmax is not one of attention, or one that no kernel computes; its text says why."""


@dataclass(frozen=True)
class Mask:
    """Truth values, broadcast to the scores; where they hold, or where they do not if `inverted`, pairs are visible.

    Attributes:
      value: they.
      inverted: pairs are visible where they do not hold.
      fill: the score of the other pairs.
      keeps: that is added to scores, of which something is left: rows whose keys are all hidden differ.
      added: it is added to scores.
    """

    value: Labeled
    inverted: bool = False
    fill: float = 0.0
    keeps: bool = False
    added: bool = False


@dataclass(frozen=True)
class Scores:
    """How scores are made, from the softmax back to the first product."""

    scale: float = 1.0
    bias: Labeled | None = None
    masks: tuple[Mask, ...] = ()
    equations: tuple[JaxprEqn, ...] = ()  # that make them


@dataclass(frozen=True)
class Roles:
    """The axes of the probabilities: of the batch, of heads of keys, of the queries, and of heads that share keys."""

    batch: tuple[int, ...]
    head: Label
    query: int
    member: Label
    key: int

    @property
    def rows(self) -> tuple[int, ...]:
        """All but that of the keys, as the result has them."""
        names = (*self.batch, self.query, self.head, self.member)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class Softmax:
    """A softmax: the label of its axis, its scores, and its equations. Labels are the axes of the second product's."""

    axis: int
    scores: Labeled
    equations: tuple[JaxprEqn, ...]


FEATURE = -1
"""The label of the axis of a query's, a key's or a value's elements, where it has to be told from axes of size 1."""


@dataclass(frozen=True)
class Derivative:
    """The derivative of an attention: the cotangent of its result, and the products that make the gradients.

    `products` has, for "query", "key", "value" and "bias", the equation and the labels of its result; that of the bias
    is a sum, or moves scores' gradients.
    """

    cotangent: Labeled
    products: dict[str, tuple[JaxprEqn, Labels]]


@dataclass(frozen=True)
class Match:
    """An attention in a program."""

    scores: Scores
    roles: Roles
    query: Labeled
    key: Labeled
    value: Labeled
    product: JaxprEqn  # the second one
    out: Labels  # of its result: None is the axis of the values' elements
    causal: bool = False
    window: tuple[int, int] | None = None
    key_lengths: Labeled | None = None
    one_more: bool = False  # key_lengths are those of the last visible key
    masks: tuple[Mask, ...] = field(default=())  # that are neither of these
    derivative: Derivative | None = None
    score: ScoreFunction | None = None  # where scores are more than scale, bias and masks
    score_arrays: tuple[Labeled, ...] = ()
