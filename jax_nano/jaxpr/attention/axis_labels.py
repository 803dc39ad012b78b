"""Axes followed through equations: which axis of one value each axis of another is, and what is known along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import (
    broadcast_in_dim_p,
    convert_element_type_p,
    reshape_p,
    squeeze_p,
    transpose_p,
)

from jax_nano.ir.dtypes import WIDENS, dtype_name
from jax_nano.jaxpr.inline import Atom, type_of

Label = int | None  # of an axis; None of one of size 1, or one along which nothing changes
Labels = tuple[Label, ...]
COMPARISONS = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}  # and what they are with operands exchanged
ROUNDED = {"f64", "f32", "bf16", "f16"}  # types between which a program may round where a kernel does not


@dataclass(frozen=True)
class Labeled:
    """A value, and what each of its axes is."""

    atom: Atom
    labels: Labels


@dataclass(frozen=True)
class Vector:
    """Numbers along one axis, or one number: known while a program is traced."""

    label: Label
    numbers: np.ndarray

    @property
    def first(self) -> int | None:
        """The first one, where each is one more than the one before."""
        x = self.numbers
        if self.label is None or not np.issubdtype(x.dtype, np.integer):
            return None
        return int(x[0]) if np.array_equal(x, np.arange(x[0], x[0] + x.size)) else None


class Equations:
    """A jaxpr as who makes each value, and who uses it."""

    def __init__(self, jaxpr: Jaxpr):
        self.makers: dict[Var, JaxprEqn] = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
        self.users: dict[Var, list[JaxprEqn | None]] = {}  # None is the caller
        for eqn in (*jaxpr.eqns, None):
            for x in eqn.invars if eqn else jaxpr.outvars:
                if isinstance(x, Var):
                    self.users.setdefault(x, []).append(eqn)
        consts = getattr(jaxpr, "consts", ())
        self.constants: Mapping[Var, Any] = (
            dict(zip(jaxpr.constvars, consts, strict=True)) if len(consts) == len(jaxpr.constvars) else {}
        )

    def maker(self, x: Atom) -> JaxprEqn | None:
        """Who makes a value."""
        return self.makers.get(x) if isinstance(x, Var) else None

    def step(self, x: Labeled) -> Labeled | None:
        """What a value was before it was moved, repeated or converted; None where it was not."""
        eqn = self.maker(x.atom)
        if eqn is None or len(eqn.invars) != 1 or len(eqn.outvars) != 1:
            return None
        (before,) = eqn.invars
        labels = labels_before(eqn, x.labels)
        return None if labels is None else Labeled(before, labels)

    def moved(self, x: Labeled, also: Sequence[str] = ()) -> Labeled:
        """What a value was before all that, but for conversions that change numbers by more than rounding of floats.

        `also` names primitives that leave values alone.
        """
        while True:
            before = self.step(x)
            eqn = self.maker(x.atom)
            if before is not None and not keeps_numbers(before.atom, x.atom):
                return x
            if before is None and eqn is not None and eqn.primitive.name in also:
                before = Labeled(eqn.invars[0], x.labels)
            if before is None:
                return x
            x = before

    def unconverted(self, x: Labeled) -> Labeled:
        """What a value was before it was moved or repeated, in its type."""
        while (before := self.step(x)) and type_of(before.atom).dtype == type_of(x.atom).dtype:
            x = before
        return x

    def moves(self, last: Atom, first: Atom) -> list[JaxprEqn]:
        """The equations of one operand that move a value from `first` to `last`."""
        found, x = [], last
        while x is not first and (eqn := self.maker(x)):
            found.append(eqn)
            x = eqn.invars[0]
        return found

    def vector(self, x: Labeled) -> Vector | None:
        """The numbers of a value along its axis, where they are known; None where there are more axes."""
        if isinstance(x.atom, Literal):
            return Vector(None, np.asarray(x.atom.val)) if np.ndim(x.atom.val) == 0 else None
        if x.atom in self.constants:
            return known(np.asarray(self.constants[x.atom]), x.labels)
        eqn = self.maker(x.atom)
        if eqn is None:
            return None
        if eqn.primitive.name == "iota":
            axis = eqn.params["dimension"]
            return Vector(x.labels[axis], np.arange(eqn.params["shape"][axis]).astype(eqn.params["dtype"]))
        if before := self.step(x):
            found = self.vector(before)
            return found and Vector(found.label, found.numbers.astype(type_of(x.atom).dtype))
        return self.computed(eqn, x.labels)

    def number(self, x: Labeled) -> float | None:
        """A number, where it is known."""
        found = self.vector(x)
        return float(found.numbers) if found is not None and found.label is None else None

    def is_constant(self, x: Var) -> bool:
        """Whether a value is one number, or numbers along one axis, that are known."""
        return self.vector(Labeled(x, (None,) * type_of(x).ndim)) is not None

    def computed(self, eqn: JaxprEqn, labels: Labels) -> Vector | None:
        """What arithmetic on known numbers gives."""
        function = ARITHMETIC.get(eqn.primitive.name)
        if not function:
            return None
        operands = [self.vector(x) for x in self.operands(eqn, labels)]
        found = [x for x in operands if x is not None]
        names = {x.label for x in found} - {None}
        if len(found) < len(operands) or len(names) > 1:
            return None
        return Vector(next(iter(names), None), function(*(x.numbers for x in found)))

    def operands(self, eqn: JaxprEqn, labels: Labels) -> list[Labeled]:
        """The operands of an elementwise equation, whose axes are those of its result, or of size 1."""
        return [Labeled(x, labels if type_of(x).ndim else ()) for x in eqn.invars]


ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "max": np.maximum,
              "min": np.minimum, "div": lambda a, b: a / b if np.issubdtype(np.result_type(a), np.inexact) else a // b,
              "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x)}  # fmt: skip


def known(numbers: np.ndarray, labels: Labels) -> Vector | None:
    """Numbers of an array as a vector, where they run along one axis at most."""
    axes = [axis for axis, size in enumerate(numbers.shape) if size > 1]
    if len(axes) > 1:
        return None
    return Vector(labels[axes[0]], numbers.reshape(-1)) if axes else Vector(None, numbers.reshape(()))


def keeps_numbers(before: Atom, after: Atom) -> bool:
    """Is true where a value has the numbers that it is converted from, but for rounding of floats."""
    names = [dtype_name(type_of(x).dtype) for x in (before, after)]
    return names[0] in (names[1], "pred") or names[1] in WIDENS.get(names[0], ()) or ROUNDED.issuperset(names)


def labels_before(eqn: JaxprEqn, labels: Labels) -> Labels | None:
    """The labels of the operand of an equation that moves, repeats or converts it; None where it does not."""
    (before,), (after,) = (map(type_of, atoms) for atoms in (eqn.invars, eqn.outvars))
    if eqn.primitive is convert_element_type_p:
        return labels
    if eqn.primitive is transpose_p:
        result: list[Label] = [None] * len(labels)
        for axis, source in enumerate(eqn.params["permutation"]):
            result[source] = labels[axis]
        return tuple(result)
    if eqn.primitive is broadcast_in_dim_p:
        places = eqn.params["broadcast_dimensions"]
        sizes = zip(before.shape, places, strict=True)
        return tuple(labels[place] if size == after.shape[place] else None for size, place in sizes)
    if eqn.primitive in (reshape_p, squeeze_p):
        kept = [label for label, size in zip(labels, after.shape, strict=True) if size > 1]
        if [size for size in before.shape if size > 1] != [size for size in after.shape if size > 1]:
            return None
        rest = iter(kept)
        return tuple(next(rest) if size > 1 else None for size in before.shape)
    return None
