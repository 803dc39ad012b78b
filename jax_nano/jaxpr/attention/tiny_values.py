"""A few elements of each value of a program, computed in float64: enough to tell what elementwise work does.

Every axis that has a label is cut to a few elements. Conversions between floats are left out, so that programs that
round in between compare equal to those that do not; those that lose more are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var
from jax.extend.core.primitives import broadcast_in_dim_p, convert_element_type_p, reshape_p, squeeze_p, transpose_p

from jax_nano.jaxpr.attention.axis_labels import Label, Labels, keeps_numbers
from jax_nano.jaxpr.inline import Atom, type_of

FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "exp": np.exp, "log": np.log, "max": np.maximum, "min": np.minimum, "square": np.square, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "stop_gradient": np.asarray, "copy": np.asarray,
    "select_n": lambda which, *cases: np.where(which, cases[1], cases[0]),
}  # fmt: skip
REDUCTIONS = {"reduce_sum": np.sum, "reduce_max": np.max}


class Unreadable(Exception):
    """An equation is not one of those that are computed here."""


@dataclass(frozen=True)
class Tiny:
    """Some elements of a value, and the labels of its axes; those without one have one element, for all."""

    array: np.ndarray
    labels: Labels


@dataclass
class TinyValues:
    """Computes a few elements of values.

    Attributes:
      makers: who makes each value.
      sizes: how many elements each label has here.
      values: those that are given, and those that were computed.
    """

    makers: Mapping[Var, JaxprEqn]
    sizes: Mapping[int, int]
    values: dict[Var, Tiny] = field(default_factory=dict)

    def give(self, x: Var, labels: Labels, rng: np.random.Generator) -> Tiny:
        """Makes up numbers, or truth values, for a value."""
        real = type_of(x).shape
        shape = [1 if label is None or n == 1 else self.sizes[label] for label, n in zip(labels, real, strict=True)]
        is_truth = type_of(x).dtype == np.bool_
        self.values[x] = Tiny(rng.random(shape) < 0.7 if is_truth else rng.standard_normal(shape), labels)
        return self.values[x]

    def __call__(self, x: Atom) -> Tiny:
        """The elements of a value.

        Raises:
          Unreadable: they depend on something that is neither given nor computed here.
        """
        if isinstance(x, Literal):
            value = np.asarray(x.val)
            return Tiny(value if value.dtype == np.bool_ else value.astype(np.float64), (None,) * value.ndim)
        if x not in self.values:
            eqn = self.makers.get(x)
            if eqn is None or len(eqn.outvars) != 1:
                raise Unreadable
            self.values[x] = self.compute(eqn)
        return self.values[x]

    def compute(self, eqn: JaxprEqn) -> Tiny:
        """What an equation makes."""
        name, operands = eqn.primitive.name, [self(x) for x in eqn.invars]
        if name == "integer_pow":
            return Tiny(operands[0].array ** float(eqn.params["y"]), operands[0].labels)
        if name in REDUCTIONS:
            axes = tuple(int(axis) for axis in eqn.params["axes"])
            real = type_of(eqn.invars[0]).shape
            if any(real[axis] > 1 and operands[0].labels[axis] is None for axis in axes):
                raise Unreadable  # its one element stands for several
            kept = tuple(label for axis, label in enumerate(operands[0].labels) if axis not in axes)
            return Tiny(REDUCTIONS[name](operands[0].array, axis=axes), kept)
        if eqn.primitive is convert_element_type_p:
            (x,) = operands
            is_truth = eqn.params["new_dtype"] == np.bool_
            if not is_truth and not keeps_numbers(eqn.invars[0], eqn.outvars[0]):
                raise Unreadable
            return Tiny(x.array.astype(np.bool_ if is_truth else np.float64), x.labels)
        if eqn.primitive in (transpose_p, broadcast_in_dim_p, reshape_p, squeeze_p):
            return moved(eqn, operands[0])
        if name not in FUNCTIONS:
            raise Unreadable
        with np.errstate(all="ignore"):
            return Tiny(FUNCTIONS[name](*(x.array for x in operands)), common(operands))


def common(operands: Sequence[Tiny]) -> Labels:
    """The labels of what elementwise work makes.

    Raises:
      Unreadable: operands differ in labels.
    """
    labels: list[Label] = [None] * max(len(x.labels) for x in operands)
    for x in operands:
        for axis, label in enumerate(x.labels):
            if label is not None and labels[axis] not in (None, label):
                raise Unreadable
            labels[axis] = label if label is not None else labels[axis]
    return tuple(labels)


def no_labels(ndim: int) -> Labels:
    """The labels of axes along which nothing changes."""
    return (None,) * ndim


def moved(eqn: JaxprEqn, x: Tiny) -> Tiny:
    """The elements of an array that an equation moves or repeats.

    Raises:
      Unreadable: it does more than that.
    """
    before, after = type_of(eqn.invars[0]).shape, type_of(eqn.outvars[0]).shape
    if eqn.primitive is transpose_p:
        order: Sequence[Any] = eqn.params["permutation"]
        return Tiny(x.array.transpose(order), tuple(x.labels[axis] for axis in order))
    if eqn.primitive is broadcast_in_dim_p:
        places = list(eqn.params["broadcast_dimensions"])
    else:
        if [n for n in before if n > 1] != [n for n in after if n > 1]:
            raise Unreadable
        kept = [axis for axis, n in enumerate(before) if n > 1]
        x = Tiny(x.array.reshape([x.array.shape[axis] for axis in kept]), tuple(x.labels[axis] for axis in kept))
        places = [axis for axis, n in enumerate(after) if n > 1]
    shape, labels = [1] * len(after), [*no_labels(len(after))]
    for axis, place in enumerate(places):
        shape[place], labels[place] = x.array.shape[axis], x.labels[axis]
    return Tiny(x.array.reshape(shape), tuple(labels))
