"""Attention found in programs: a product, scale, bias and masks, a softmax over the keys, a product.

Every value is followed back from the second product, its axes by their places in the probabilities. Where anything is
in doubt, nothing is matched, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var
from jax.lax import DotAlgorithmPreset, Precision

from jax_nano.ir.program import Unfusable
from jax_nano.jaxpr.attention.axis_labels import Equations, Label, Labeled, Labels
from jax_nano.jaxpr.attention.derivative import find_derivative
from jax_nano.jaxpr.attention.masks import MaskReader
from jax_nano.jaxpr.attention.parts import Mask, Match, NoAttention, Roles, Scores, Softmax
from jax_nano.jaxpr.attention.scores import elementwise_sources, with_score_function
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.primitives import PRODUCTS

FLOATS = ("float64", "float32", "bfloat16", "float16")
HIDES = -1e8  # a constant score of at most this hides a pair; of f16, the least number does
SWALLOWED = 1 << 16  # scores of which nothing is left where a constant that hides them is added to them
PRECISIONS = {
    "bfloat16": (DotAlgorithmPreset.BF16_BF16_F32,),
    "float16": (DotAlgorithmPreset.F16_F16_F32,),
    "float32": (DotAlgorithmPreset.F32_F32_F32,),
    "float64": (DotAlgorithmPreset.F64_F64_F64,),
}


class Matcher:
    """Matches the attention that ends in a product."""

    def __init__(self, equations: Equations):
        self.equations = equations

    def match(self, product: JaxprEqn) -> Match | None:
        """The attention that ends in a product; None where neither operand is a softmax.

        Raises:
          NoAttention: there is a softmax, but no attention around it that a kernel computes.
        """
        for operand in (0, 1):
            softmax = self.softmax(product.invars[operand])
            if softmax:
                return self.around(product, operand, softmax)
        return None

    def softmax(self, probabilities: Atom) -> Softmax | None:
        """The softmax that makes a value; None where there is none."""
        e = self.equations
        result = e.moved(Labeled(probabilities, tuple(range(type_of(probabilities).ndim))))
        division = e.maker(result.atom)
        if division is None or division.primitive.name != "div" or None in result.labels:
            return None
        numerator, denominator = (e.moved(x) for x in e.operands(division, result.labels))
        exponential, total = e.maker(numerator.atom), e.maker(denominator.atom)
        if not exponential or exponential.primitive.name != "exp" or not total or total.primitive.name != "reduce_sum":
            return None
        missing = [label for label in result.labels if label is not None and label not in denominator.labels]
        if len(missing) != 1 or len(total.params["axes"]) != 1:
            return None
        (axis,) = missing
        if e.moved(self.reduced(total, denominator.labels, axis)) != numerator:
            return None
        scores, equations = self.less_maximum(exponential, numerator.labels, axis)
        chain = [*self.between(probabilities, result.atom), division, exponential, total, *equations]
        chain += self.between(division.invars[0], numerator.atom) + self.between(division.invars[1], denominator.atom)
        return Softmax(axis, scores, (*chain, *self.between(total.invars[0], numerator.atom)))

    def reduced(self, eqn: JaxprEqn, labels: Labels, axis: int) -> Labeled:
        """What a reduction over one axis, of a label, is of: by the labels of its result."""
        (place,) = eqn.params["axes"]
        return Labeled(eqn.invars[0], (*labels[:place], axis, *labels[place:]))

    def less_maximum(self, exponential: JaxprEqn, labels: Labels, axis: int) -> tuple[Labeled, list[JaxprEqn]]:
        """What is exponentiated, without its maximum where that is subtracted."""
        e, (given,) = self.equations, exponential.invars
        less = e.moved(Labeled(given, labels))
        found = e.maker(less.atom)
        if not found or found.primitive.name != "sub" or None in less.labels:
            return Labeled(given, labels), []
        scores, maximum = e.operands(found, less.labels)
        eqn, maximum = self.maximum(maximum)
        if eqn is None or e.moved(self.reduced(eqn, maximum.labels, axis)) != e.moved(scores):
            return Labeled(given, labels), []
        equations = [
            found,
            *self.equations.moves(given, less.atom),
            eqn,
            *self.between(found.invars[1], eqn.outvars[0]),
        ]
        return scores, [*equations, *self.equations.moves(eqn.invars[0], e.moved(scores).atom)]

    def maximum(self, x: Labeled) -> tuple[JaxprEqn | None, Labeled]:
        """The reduction over one axis that a maximum comes from, and its result."""
        e = self.equations
        while True:
            x = e.moved(x, also=("stop_gradient",))
            eqn = e.maker(x.atom)
            if eqn and eqn.primitive.name == "reduce_max" and len(eqn.params["axes"]) == 1:
                return eqn, x
            others = [y for y in e.operands(eqn, x.labels) if not self.is_lowest(y)] if eqn else []
            if eqn is None or eqn.primitive.name != "max" or len(others) != 1:
                return None, x
            (x,) = others

    def is_lowest(self, x: Labeled) -> bool:
        """Whether a value is minus infinity."""
        number = self.equations.vector(x)
        return number is not None and number.label is None and float(number.numbers) == -np.inf

    def between(self, last: Atom, first: Atom) -> list[JaxprEqn]:
        """The equations of one operand that lead from a value to a later one: those that move it, and `max`."""
        found, x = [], last
        while x is not first and (eqn := self.equations.maker(x)):
            found.append(eqn)
            x = next((y for y in eqn.invars if isinstance(y, Var) and self.equations.maker(y)), eqn.invars[0])
        return found

    # Around the softmax.

    def around(self, product: JaxprEqn, operand: int, softmax: Softmax) -> Match:
        """The attention around a softmax, which is an operand of the second product.

        Raises:
          NoAttention: there is none, or none that a kernel computes.
        """
        reason = "no product makes its scores, or what is done to them is not elementwise"
        for scores, first, labels in self.origins(softmax.scores, Scores()):
            try:
                match = self.of_products((product, operand), (first, labels), softmax.axis, scores)
            except NoAttention as why:
                reason = str(why)
                continue
            try:
                self.check_uses([*softmax.equations, *match.scores.equations], product)
            except NoAttention:
                derivative = find_derivative(self.equations, match, softmax, Labeled(first.outvars[0], labels))
                if not derivative:
                    raise
                match = replace(match, derivative=derivative)
            return match
        return self.scored(product, operand, softmax, reason)

    def scored(self, product: JaxprEqn, operand: int, softmax: Softmax, reason: str) -> Match:
        """The attention around a softmax whose scores are any elementwise function of the first product.

        Raises:
          NoAttention: there is none.
        """
        for first in elementwise_sources(self.equations, softmax.scores):
            try:
                found = self.of_products((product, operand), (first.eqn, first.labels), softmax.axis, Scores())
                match, inner = with_score_function(self.equations, found, softmax.scores, first)
            except (NoAttention, Unfusable) as why:
                reason = str(why)
                continue
            self.check_uses([*softmax.equations, *inner], product)
            return match
        raise NoAttention(reason)

    def origins(self, x: Labeled, scores: Scores) -> Iterator[tuple[Scores, JaxprEqn, Labels]]:
        """Every way back to a product: how scores are made of it, the product, and the labels of its axes."""
        e = self.equations
        before = e.moved(x)
        scores = replace(scores, equations=(*scores.equations, *self.equations.moves(x.atom, before.atom)))
        eqn = e.maker(before.atom)
        if eqn is None:
            return
        if eqn.primitive in PRODUCTS:
            if None not in before.labels:
                yield replace(scores, equations=(*scores.equations, eqn)), eqn, before.labels
            return
        scores = replace(scores, equations=(*scores.equations, eqn))
        for rest, step in self.steps(eqn, before.labels, scores):
            yield from self.origins(rest, step)

    def steps(self, eqn: JaxprEqn, labels: Labels, scores: Scores) -> Iterator[tuple[Labeled, Scores]]:
        """What an equation on the way may be: a mask, a bias, a scale."""
        operands = self.equations.operands(eqn, labels)
        match eqn.primitive.name:
            case "select_n" if is_where(eqn) and scores.scale == 1 and not scores.bias:
                which, otherwise, then = operands
                for hidden, rest, inverted in ((otherwise, then, False), (then, otherwise, True)):
                    if (fill := self.fill(hidden)) is not None:
                        yield rest, replace(scores, masks=(*scores.masks, Mask(which, inverted, fill)))
            case "add" if scores.scale == 1 and not scores.bias:
                for bias, rest in (operands[::-1], operands):
                    if mask := self.additive_mask(bias):
                        yield rest, replace(scores, masks=(*scores.masks, mask))
                    if not mask or mask.keeps:
                        yield rest, replace(scores, bias=bias)
            case "mul":
                for factor, rest in (operands[::-1], operands):
                    if number := self.equations.number(factor):
                        yield rest, replace(scores, scale=scores.scale * number)
            case "div":
                if number := self.equations.number(operands[1]):
                    yield operands[0], replace(scores, scale=scores.scale / number)

    def additive_mask(self, x: Labeled) -> Mask | None:
        """What is added to scores as a mask, where it is 0 or hides them."""
        dtype, x = type_of(x.atom).dtype, self.equations.moved(x)
        eqn = self.equations.maker(x.atom)
        if not eqn or not is_where(eqn):
            return None
        which, otherwise, then = self.equations.operands(eqn, x.labels)
        for hidden, rest, inverted in ((otherwise, then, False), (then, otherwise, True)):
            if (fill := self.fill(hidden)) is not None and self.equations.number(rest) == 0:
                is_least = dtype == np.float16
                keeps = not is_least and -fill * float(jnp.finfo(dtype).eps) < 4 * SWALLOWED
                return Mask(which, inverted, fill, keeps, added=True)
        return None

    def fill(self, x: Labeled) -> float | None:
        """A constant score that hides a pair: finite, as rows of such scores average all values. None of others."""
        number, dtype = self.equations.number(x), type_of(x.atom).dtype
        if number is None or not np.isfinite(number):
            return None
        is_least = dtype == np.float16 and number <= float(np.finfo(np.float16).min)
        return number if number <= HIDES or is_least else None

    def of_products(
        self, last: tuple[JaxprEqn, int], first: tuple[JaxprEqn, Labels], key: int, scores: Scores
    ) -> Match:
        """The attention of two products.

        Raises:
          NoAttention: their axes, types or precision are none that a kernel has.
        """
        (second, operand), (product, labels) = last, first
        (contracted, batched) = second.params["dimension_numbers"]
        other = 1 - operand
        if tuple(contracted[operand]) != (key,):
            raise NoAttention("the softmax is over another axis than the second product's sum")
        queries, keys, roles = first_operands(product, labels, key, tuple(batched[operand]))
        value = second.invars[other]
        batch = dict(zip(batched[other], batched[operand], strict=True))
        value_labels = tuple(key if i in contracted[other] else batch.get(i) for i in range(type_of(value).ndim))
        if value_labels.count(None) != 1:
            raise NoAttention("values have several axes, or none")
        out = [*batched[operand]]
        free = [i for i in range(type_of(second.invars[operand]).ndim) if i not in (*out, key)]
        parts: list[list[Label]] = [[*free], [None]]
        out += parts[operand] + parts[other]
        match = Match(scores, roles, queries, keys, Labeled(value, value_labels), second, tuple(out))
        return self.with_types(MaskReader(self.equations).read(match), product)

    def with_types(self, match: Match, product: JaxprEqn) -> Match:
        """The match with operands of one type, before lossless conversions if need be.

        Raises:
          NoAttention: there is none that a kernel computes in.
        """
        dtype = str(type_of(match.product.outvars[0]).dtype)
        found = [self.in_type(x, dtype) for x in (match.query, match.key, match.value)]
        if dtype not in FLOATS or None in found:
            types = ", ".join(str(type_of(x.atom).dtype) for x in (match.query, match.key, match.value))
            raise NoAttention(f"queries, keys and values are {types}, and the result is {dtype}; use one type")
        for eqn in (product, match.product):
            precision = eqn.params["precision"]
            allowed = (None, *PRECISIONS[dtype], Precision.DEFAULT, Precision.HIGHEST, DotAlgorithmPreset.DEFAULT)
            each = precision if isinstance(precision, tuple) else (precision,)
            if any(x not in allowed for x in each):
                raise NoAttention(f"a product is asked for with precision {precision}")
        query, key, value = (x for x in found if x)
        return replace(match, query=query, key=key, value=value)

    def in_type(self, x: Labeled, dtype: str) -> Labeled | None:
        """A value in a type: as it is, or before it was widened."""
        if str(type_of(x.atom).dtype) == dtype:
            return x
        eqn = self.equations.maker(x.atom)
        if eqn and eqn.primitive.name == "convert_element_type" and str(type_of(eqn.invars[0]).dtype) == dtype:
            return Labeled(eqn.invars[0], x.labels)
        return None

    def check_uses(self, inner: Sequence[JaxprEqn], last: JaxprEqn) -> None:
        """Checks that values on the way are used there alone.

        Raises:
          NoAttention: one is used elsewhere.
        """
        known = {id(eqn) for eqn in (*inner, last)}
        for eqn in inner:
            for out in eqn.outvars:
                users = self.equations.users.get(out, [])
                others = [user for user in users if user is None or id(user) not in known]
                if others and not self.equations.is_constant(out):
                    names = sorted({user.primitive.name if user else "the caller" for user in others})
                    raise NoAttention(f"what {eqn.primitive} makes is used by {' and '.join(names)} as well")


def is_where(eqn: JaxprEqn) -> bool:
    """Is true for a choice between two values by truth values."""
    return eqn.primitive.name == "select_n" and len(eqn.invars) == 3 and type_of(eqn.invars[0]).dtype == np.bool_


def first_operands(
    product: JaxprEqn, labels: Labels, key: int, batch: tuple[int, ...]
) -> tuple[Labeled, Labeled, Roles]:
    """Queries and keys of the first product, by the labels of its result, and the roles of its axes.

    Raises:
      NoAttention: its axes are none of attention.
    """
    contracted, batched = product.params["dimension_numbers"]
    position = len(batched[0])
    found = []
    for operand, x in enumerate(product.invars):
        names: list[Any] = [None] * type_of(x).ndim
        for place, axis in enumerate(batched[operand]):
            names[axis] = labels[place]
        for axis in range(len(names)):
            if axis not in batched[operand] and axis not in contracted[operand]:
                names[axis] = labels[position]
                position += 1
        found.append(Labeled(x, tuple(names)))
    shared = labels[: len(batched[0])]
    if len(contracted[0]) != 1:
        raise NoAttention("scores are sums over several axes")
    if set(shared) != set(batch):
        raise NoAttention("the products have other batch dimensions")
    keys = [x for x in found if key in x.labels]
    queries = [x for x in found if key not in x.labels]
    if len(keys) != 1 or set(keys[0].labels) - {None} != {*shared, key}:
        raise NoAttention("keys have further axes")
    rows = [label for label in queries[0].labels if label is not None and label not in shared]
    if not 1 <= len(rows) <= 2 or any(isinstance(x, Literal) for x in product.invars):
        raise NoAttention(f"queries have {len(rows)} axes of their own; kernels know queries and heads that share keys")
    sizes = dict(zip(queries[0].labels, type_of(queries[0].atom).shape, strict=True))
    query = max(rows, key=lambda label: sizes[label])
    member = next((label for label in rows if label != query), None)
    heads = tuple(label for label in shared if label is not None)
    head = heads[-1] if len(heads) > 1 or (member is not None and heads) else None
    leading = heads[:-1] if head is not None else heads
    return queries[0], keys[0], Roles(leading, head, query, member, key)
