"""The masks of an attention, told apart: by place, by lengths, and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jax_nano.ir.attention_spec import hides_rows
from jax_nano.jaxpr.attention.axis_labels import COMPARISONS, Equations, Label, Labeled
from jax_nano.jaxpr.attention.parts import Mask, Match, NoAttention, Roles
from jax_nano.jaxpr.inline import type_of

NEGATIONS = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


@dataclass(frozen=True)
class MaskReader:
    """Reads masks of a program."""

    equations: Equations

    def read(self, match: Match) -> Match:
        """The match with its masks told apart: by place, by lengths, and others."""
        roles, bounds = match.roles, {"left": np.inf, "right": np.inf}
        for mask in match.scores.masks:
            for leaf in self.leaves(mask):
                if self.is_true(leaf):
                    continue
                limits = self.limits(leaf, roles)
                lengths = None if match.key_lengths else self.lengths(leaf, roles)
                if limits:
                    side, steps = limits
                    bounds[side] = min(bounds[side], steps)
                elif lengths:
                    match = replace(match, key_lengths=lengths[0], one_more=lengths[1])
                else:
                    match = replace(match, masks=(*match.masks, leaf))
        size = max(type_of(match.query.atom).size, type_of(match.key.atom).size)
        left, right = (int(min(bound, size)) for bound in bounds.values())
        causal = right == 0
        window = (left, right) if left < size or 0 < right < size else None
        self.check_fills(match, causal, window)
        return replace(match, causal=causal, window=window)

    def check_fills(self, match: Match, causal: bool, window: tuple[int, int] | None) -> None:  # noqa: FBT001
        """Checks that rows whose keys are all hidden, if there may be any, average all values.

        They do where one constant stands for all hidden scores.

        Raises:
          NoAttention: they do not.
        """
        queries, keys = (self.size(x, label) for x, label in
                         ((match.query, match.roles.query), (match.key, match.roles.key)))  # fmt: skip
        is_by_place = not match.masks and not match.key_lengths
        if is_by_place and not hides_rows(causal, window, queries, keys):
            return
        masks = match.scores.masks
        if len({mask.fill for mask in masks}) > 1 or any(mask.added for mask in masks[:-1]):
            fills = " and ".join(f"{mask.fill:g}" for mask in masks)
            raise NoAttention(f"masks hide pairs by {fills}, one after the other; combine them into one")
        if any(mask.keeps for mask in masks):
            raise NoAttention(f"scores are left beside {masks[-1].fill:g} where all keys are hidden; use where")

    def size(self, x: Labeled, label: Label) -> int:
        """The elements of an array along an axis."""
        return type_of(x.atom).shape[x.labels.index(label)]

    def leaves(self, mask: Mask) -> Iterator[Mask]:
        """The masks that all have to hold."""
        x, inverted = self.equations.unconverted(mask.value), mask.inverted
        eqn = self.equations.maker(x.atom)
        name = eqn.primitive.name if eqn else ""
        operands = self.equations.operands(eqn, x.labels) if eqn else []
        if name == "not":
            yield from self.leaves(Mask(operands[0], not inverted))
        elif name == ("or" if inverted else "and"):
            for operand in operands:
                yield from self.leaves(Mask(operand, inverted))
        elif name == "select_n" and not inverted and len(operands) == 3 and self.equations.number(operands[1]) == 0:
            yield from self.leaves(Mask(operands[0]))  # jnp.tril
            yield from self.leaves(Mask(operands[2]))
        else:
            yield Mask(x, inverted)

    def is_true(self, mask: Mask) -> bool:
        """Whether a mask hides nothing."""
        return self.equations.number(mask.value) == (0 if mask.inverted else 1)

    def limits(self, mask: Mask, roles: Roles) -> tuple[str, int] | None:
        """(side, steps) of a mask by place: how far a visible key is from the query's own place at most."""
        compared = self.comparison(mask)
        if not compared:
            return None
        name, left, right = compared
        a, b = self.equations.vector(left), self.equations.vector(right)
        if a is None or b is None or {a.label, b.label} != {roles.query, roles.key}:
            return None
        if a.label == roles.query:
            a, b, name = b, a, COMPARISONS[name]
        if a.first is None or b.first is None:
            return None
        steps = b.first - a.first  # key - query <= steps, or >= steps
        side, steps = ("right", steps - (name == "lt")) if name in ("lt", "le") else ("left", -steps - (name == "gt"))
        return (side, steps) if steps >= 0 else None

    def lengths(self, mask: Mask, roles: Roles) -> tuple[Labeled, bool] | None:
        """The lengths of a mask of keys, and whether they are those of the last visible key."""
        compared = self.comparison(mask)
        if not compared:
            return None
        name, left, right = compared
        a, b = self.equations.vector(left), self.equations.vector(right)
        if b is not None and b.label == roles.key:
            a, left, right, name = b, right, left, COMPARISONS[name]
        if a is None or a.label != roles.key or a.first != 0 or name not in ("lt", "le"):
            return None
        found = self.equations.unconverted(right)
        inside = all(label is None or label in roles.batch for label in found.labels)
        is_right = inside and type_of(found.atom).dtype == np.int32
        return (found, name == "le") if is_right else None

    def comparison(self, mask: Mask) -> tuple[str, Labeled, Labeled] | None:
        """(operation, left, right) of a comparison that holds where pairs are visible."""
        x = mask.value
        eqn = self.equations.maker(x.atom)
        if not eqn or eqn.primitive.name not in COMPARISONS:
            return None
        left, right = self.equations.operands(eqn, x.labels)
        return NEGATIONS[eqn.primitive.name] if mask.inverted else eqn.primitive.name, left, right
