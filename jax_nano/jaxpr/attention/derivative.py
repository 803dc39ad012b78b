"""The derivative of an attention in a program that JAX differentiated: what reads its probabilities beside the result.

That is elementwise work on dP = dO V^T and the probabilities, whose outcome dS goes into products with keys and with
queries and, with a bias, into sums over what that is broadcast over; and the product of the probabilities and dO. How
JAX writes the work differs from version to version: so it is not matched, but computed, for a few elements, and
compared with the derivative of a softmax.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jax.extend.core import JaxprEqn, Var

from jax_nano.jaxpr.attention.axis_labels import Equations, Label, Labeled, Labels
from jax_nano.jaxpr.attention.parts import FEATURE, Derivative, Match, Softmax
from jax_nano.jaxpr.attention.tiny_values import Tiny, TinyValues, Unreadable
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.primitives import PRODUCTS

MOST_EQUATIONS = 80  # equations of a derivative
SEED = 0


def find_derivative(equations: Equations, match: Match, softmax: Softmax, first: Labeled) -> Derivative | None:
    """The derivative that reads what a match computes on the way; None where something else does.

    Args:
      equations: the program.
      match: the attention.
      softmax: its softmax.
      first: the result of its first product.
    """
    finder = _Finder(equations, match, softmax, first)
    try:
        return finder.find()
    except Unreadable:
        return None


@dataclass(frozen=True)
class _Finder:
    equations: Equations
    match: Match
    softmax: Softmax
    first: Labeled

    @property
    def rows(self) -> tuple[int, ...]:
        """The labels of queries, and of heads that share keys."""
        roles = self.match.roles
        return (roles.query,) if roles.member is None else (roles.query, roles.member)

    def find(self) -> Derivative | None:
        """The derivative, if it is one.

        Raises:
          Unreadable: it has work that is not computed for a few elements.
        """
        inner = (*self.softmax.equations, *self.match.scores.equations)
        work, ends, sums = self.reached(inner)
        made = {out for eqn in (*inner, *work) for out in eqn.outvars}
        outside = dict.fromkeys(x for eqn in work for x in eqn.invars if isinstance(x, Var) and x not in made)
        products = [(x, eqn) for x in outside if (eqn := self.product_behind(x))]
        if len({id(eqn) for _, eqn in products}) != 1:
            return None
        for cotangent, labels in self.cotangents(products[0][1]):
            with contextlib.suppress(Unreadable):
                change = Labeled(products[0][1].outvars[0], labels)
                if found := self.classified((ends, sums), made, cotangent, change):
                    return found
        return None

    def reached(self, inner: Sequence[JaxprEqn]) -> tuple[list[JaxprEqn], list[JaxprEqn], list[JaxprEqn]]:
        """(work, products, sums) that values on the way flow into, beside the attention itself.

        With a bias, sums are over other axes than that of the keys, or values that the caller has.

        Raises:
          Unreadable: the caller has some, or there is too much.
        """
        sums: list[JaxprEqn] = []
        known = {id(eqn) for eqn in (*inner, self.match.product)}
        left = [out for eqn in inner for out in eqn.outvars if not self.equations.is_constant(out)]
        work: list[JaxprEqn] = []
        ends: list[JaxprEqn] = []
        while left:
            x = left.pop()
            for user in self.equations.users.get(x, []):
                if len(work) > MOST_EQUATIONS:
                    raise Unreadable
                if user is None:
                    sums.append(self.maker_of_bias(x, work))
                    continue
                if id(user) in known:
                    continue
                known.add(id(user))
                if self.is_sum_over_others(user):
                    sums.append(user)
                elif user.primitive in PRODUCTS:
                    ends.append(user)
                else:
                    work.append(user)
                    left += user.outvars
        return work, ends, sums

    def maker_of_bias(self, x: Var, work: Sequence[JaxprEqn]) -> JaxprEqn:
        """The equation that may make the gradient of a bias, which the caller has.

        Raises:
          Unreadable: there is no bias, or the value is one of the attention's own.
        """
        found = [eqn for eqn in work if x in eqn.outvars]
        if not found or not self.match.scores.bias:
            raise Unreadable
        return found[0]

    def is_sum_over_others(self, eqn: JaxprEqn) -> bool:
        """Whether an equation may make the gradient of a bias, as it adds up all scores' over axes but the keys'."""
        scores = self.softmax.scores
        if eqn.primitive.name != "reduce_sum" or not self.match.scores.bias:
            return False
        axes, shape = eqn.params["axes"], type_of(scores.atom).shape
        return type_of(eqn.invars[0]).shape == shape and scores.labels.index(self.match.roles.key) not in axes

    def product_behind(self, x: Var) -> JaxprEqn | None:
        """The product that a value is the result of, perhaps moved."""
        eqn = self.equations.maker(self.equations.moved(Labeled(x, (None,) * type_of(x).ndim)).atom)
        return eqn if eqn and eqn.primitive in PRODUCTS else None

    def labels_of(self, x: Atom, known: Labeled) -> Labels | None:
        """The labels of a value that is a known one, perhaps moved: FEATURE where that has none; of size 1, any."""
        given = self.equations.moved(Labeled(x, tuple(range(type_of(x).ndim))))
        right = self.equations.moved(Labeled(known.atom, tuple(FEATURE if i is None else i for i in known.labels)))
        if given.atom is not right.atom:
            return None
        found = dict(zip(given.labels, right.labels, strict=True))
        return tuple(found.get(axis) for axis in range(type_of(x).ndim))

    def cotangents(self, product: JaxprEqn) -> Iterator[tuple[Labeled, Labels]]:
        """Ways to read dP = dO V^T: (dO, the labels of dP)."""
        contracted, batched = product.params["dimension_numbers"]
        for operand in (0, 1):
            values = self.labels_of(product.invars[operand], self.match.value)
            if values is None or [values[i] for i in contracted[operand]] != [FEATURE]:
                continue
            other = product.invars[1 - operand]
            labels: list[Label] = [None] * type_of(other).ndim
            for axis, place in zip(batched[1 - operand], batched[operand], strict=True):
                labels[axis] = values[place]
            free = [i for i in range(len(labels)) if i not in (*batched[1 - operand], *contracted[1 - operand])]
            for rows in itertools.permutations(self.rows):
                if len(rows) == len(free):
                    named = dict(zip(free, rows, strict=True))
                    full = tuple(named.get(i, label) for i, label in enumerate(labels))
                    parts = [full[i] for i in batched[1 - operand]], [full[i] for i in free], [self.match.roles.key]
                    order = (parts[0], *(parts[1:] if operand else parts[:0:-1]))
                    yield Labeled(other, full), tuple(label for part in order for label in part)

    def classified(
        self, found_ends: tuple[Sequence[JaxprEqn], Sequence[JaxprEqn]], made: set[Var], cotangent: Labeled,
        change: Labeled,
    ) -> Derivative | None:  # fmt: skip
        """The derivative whose products and sums these are; None where one of them is something else."""
        values, (ends, sums) = self.tiny(change), found_ends
        p, slope = values.probabilities, values.slope
        found: dict[str, tuple[JaxprEqn, Labels]] = {}
        for eqn in ends:
            inside = [i for i in (0, 1) if isinstance(eqn.invars[i], Var) and eqn.invars[i] in made]
            if len(inside) != 1:
                return None
            x, y = values.of(eqn.invars[inside[0]]), eqn.invars[1 - inside[0]]
            is_slope, is_p = (aligned_equal(x, right) for right in (slope, p))
            for name, matches, known, summed in (
                ("query", is_slope, self.match.key, {self.match.roles.key}),
                ("key", is_slope, self.match.query, set(self.rows)),
                ("value", is_p, cotangent, set(self.rows)),
            ):
                labels = self.labels_of(y, known) if matches else None
                if labels and (out := product_labels(eqn, inside[0], (x.labels, labels), summed)):
                    if name in found:
                        return None
                    found[name] = (eqn, out)
                    break
            else:
                return None
        for eqn in sums:
            labels = self.labels_of_bias(eqn, values)
            if labels is None or "bias" in found:
                return None
            found["bias"] = (eqn, labels)
        return Derivative(cotangent, found) if found else None

    def labels_of_bias(self, eqn: JaxprEqn, values: _Values) -> Labels | None:
        """The labels of what an equation makes, if that is the gradient of the bias; None where it is not.

        It has the axes of queries and of keys, and beside them only such as the bias has.
        """
        roles, bias, slope = self.match.roles, self.match.scores.bias, values.bias_slope
        assert bias
        labels = values.of(eqn.outvars[0]).labels
        names = {label for label in labels if label is not None}
        of_bias = set(self.equations.unconverted(bias).labels)
        groups = set(roles.batch), {roles.head, roles.member}
        if not {roles.query, roles.key} <= names or any(names & group and not of_bias & group for group in groups):
            return None
        summed = tuple(axis for axis, label in enumerate(slope.labels) if label not in names)
        kept = tuple(label for label in slope.labels if label in names)
        return labels if aligned_equal(values.of(eqn.outvars[0]), Tiny(slope.array.sum(summed), kept)) else None

    def tiny(self, change: Labeled) -> _Values:
        """A few elements of everything."""
        rng, roles = np.random.default_rng(SEED), self.match.roles
        names = [*roles.batch, roles.head, roles.member, roles.query, roles.key]
        sizes = {name: 2 + (name == roles.key) for name in names if name is not None}
        tiny = TinyValues(self.equations.makers, sizes)
        for x in (self.first, change, *(mask.value for mask in self.match.scores.masks), self.match.scores.bias):
            if x and isinstance(x.atom, Var):
                tiny.give(x.atom, x.labels, rng)
        assert isinstance(self.first.atom, Var)
        given_atoms = list(tiny.values)
        further = TinyValues(self.equations.makers, sizes, dict(tiny.values))
        given = tiny.values[self.first.atom]
        further.values[self.first.atom] = Tiny(given.array + 1, given.labels)
        assert isinstance(change.atom, Var)
        p, slope = expected(tiny, further, self.softmax, tiny.values[change.atom])
        bias = self.match.scores.bias
        if bias is None or not isinstance(bias.atom, Var):
            return _Values(tiny, p, slope, slope)
        more = TinyValues(self.equations.makers, sizes, {x: tiny.values[x] for x in given_atoms})
        more.values[bias.atom] = Tiny(more.values[bias.atom].array + 1, more.values[bias.atom].labels)
        _, bias_slope = expected(tiny, more, self.softmax, tiny.values[change.atom])
        return _Values(tiny, p, slope, bias_slope)


@dataclass(frozen=True)
class _Values:
    """A few elements of the program's values, of the probabilities, and of dS, as they ought to be."""

    of: TinyValues
    probabilities: Tiny
    slope: Tiny
    bias_slope: Tiny  # for the bias in the place of the first product


def expected(tiny: TinyValues, further: TinyValues, softmax: Softmax, change: Tiny) -> tuple[Tiny, Tiny]:
    """(probabilities, dS): of the softmax of scores, and for the first product, whose results `further` has 1 more of.

    Scores are linear in those, so that their difference is how fast they change.
    """
    scores, labels = tiny(softmax.scores.atom), softmax.scores.labels
    axis = labels.index(softmax.axis)
    rate = further(softmax.scores.atom).array - scores.array
    exponentials = np.exp(scores.array - scores.array.max(axis, keepdims=True))
    p = exponentials / exponentials.sum(axis, keepdims=True)
    moved = aligned(change, labels)
    slope = rate * p * (moved - (p * moved).sum(axis, keepdims=True))
    return Tiny(p, labels), Tiny(slope, labels)


def aligned(x: Tiny, labels: Labels) -> np.ndarray:
    """An array with its axes in the order of labels; axes that it has not are of size 1.

    Raises:
      Unreadable: it has others.
    """
    kept = [axis for axis, label in enumerate(x.labels) if label is not None]
    if any(x.labels[axis] not in labels for axis in kept):
        raise Unreadable
    array = x.array.reshape([x.array.shape[axis] for axis in kept])
    names = [x.labels[axis] for axis in kept]
    array = array.transpose([names.index(label) for label in labels if label in names])
    sizes = iter(array.shape)
    return array.reshape([next(sizes) if label in names else 1 for label in labels])


def aligned_equal(x: Tiny, right: Tiny) -> bool:
    """Whether two values are equal but for rounding, and neither repeats the other."""
    if {label for label in x.labels if label is not None} != {label for label in right.labels if label is not None}:
        return False
    return bool(np.allclose(aligned(x, right.labels), right.array, rtol=1e-6, atol=1e-9))


def product_labels(eqn: JaxprEqn, inside: int, labels: tuple[Labels, Labels], summed: set[int]) -> Labels | None:
    """The labels of a product's result; None where its sum is over other axes, or its batch differs.

    Args:
      eqn: the product.
      inside: which operand has the first labels.
      labels: of both operands.
      summed: the labels of the sum.
    """
    contracted, batched = eqn.params["dimension_numbers"]
    ordered = labels if inside == 0 else labels[::-1]
    sums = [[ordered[i][axis] for axis in contracted[i]] for i in (0, 1)]
    batches = [[ordered[i][axis] for axis in batched[i]] for i in (0, 1)]
    if set(sums[inside]) != summed or not agree(*sums) or not agree(*batches):
        return None
    free = [
        label
        for i in (0, 1)
        for axis, label in enumerate(ordered[i])
        if axis not in contracted[i] and axis not in batched[i]
    ]
    return (*batches[inside], *free)


def agree(a: Sequence[Label], b: Sequence[Label]) -> bool:
    """Whether axes that belong together have the same labels, as far as they have any."""
    return all(None in (x, y) or x == y for x, y in zip(a, b, strict=True))
