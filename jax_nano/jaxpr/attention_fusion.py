"""Attention in programs: what attention_match.py finds becomes one equation, on the axes of the primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.extend.core.primitives import custom_jvp_call_p

from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.jaxpr.attention_match import Matcher
from jax_nano.jaxpr.attention_parts import Mask, Match, NoAttention
from jax_nano.jaxpr.axis_labels import Equations, Label, Labeled
from jax_nano.jaxpr.inline import Atom, body_of, inline_calls, type_of
from jax_nano.jaxpr.legality import inlinable, is_plain_jit
from jax_nano.jaxpr.primitives import PRODUCTS, nano_attention_p

SMALL = 40  # equations of a function that is read through, like softmax, where, or tril

Unfused = Callable[[JaxprEqn, str], None]  # is told of a softmax before a product that is left alone, and why


def fuse_attention(jaxpr: Jaxpr, unfused: Unfused = lambda *_: None) -> Jaxpr:
    """Puts nano_attention in the place of each attention. Jaxprs in equations stay as they are.

    Args:
      jaxpr: a program.
      unfused: is told of what looks like attention and is none that a kernel computes.
    """
    products = [eqn for eqn in jaxpr.eqns if eqn.primitive in PRODUCTS]
    if len(products) < 2 or "exp" not in names_in(jaxpr):
        return jaxpr
    inlined = without_unused(inline_calls(jaxpr, small_body))
    matcher = Matcher(Equations(inlined))
    found: dict[int, Match] = {}
    for place, eqn in enumerate(inlined.eqns):
        if eqn.primitive in PRODUCTS:
            try:
                if match := matcher.match(eqn):
                    found[place] = match
            except NoAttention as reason:
                unfused(eqn, str(reason))
    if not found:
        return jaxpr
    eqns: list[JaxprEqn] = []
    for place, eqn in enumerate(inlined.eqns):
        eqns += replacement(found[place], matcher.equations) if place in found else [eqn]
    return without_unused(inlined.replace(eqns=eqns))


def names_in(jaxpr: Jaxpr) -> set[str]:
    """The names of the primitives of a jaxpr and of the functions that it calls."""
    names = {eqn.primitive.name for eqn in jaxpr.eqns}
    return names.union(*(names_in(body) for eqn in jaxpr.eqns if (body := body_of(eqn))))


def small_body(call: JaxprEqn) -> Jaxpr | None:
    """The body of a call that is read through: of a jit, of a softmax, and of all that regions hold."""
    if body := inlinable(call):
        return body
    body = body_of(call)
    if body is None or body.constvars or len(body.eqns) > SMALL or body.effects:
        return None
    if call.primitive is custom_jvp_call_p:
        return body if {"exp", "reduce_sum"} <= names_in(body) else None
    return body if is_plain_jit(call) and not {p.name for p in PRODUCTS} & names_in(body) else None


def without_unused(jaxpr: Jaxpr) -> Jaxpr:
    """The jaxpr without equations that nobody uses."""
    used = {x for x in jaxpr.outvars if isinstance(x, Var)}
    eqns: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(out in used for out in eqn.outvars):
            eqns.append(eqn)
            used |= {x for x in eqn.invars if isinstance(x, Var)}
    return jaxpr if len(eqns) == len(jaxpr.eqns) else jaxpr.replace(eqns=eqns[::-1])


def replacement(match: Match, equations: Equations) -> list[JaxprEqn]:
    """The equations that make the result of a match."""
    call = Call(match, equations)
    atoms = call.atoms
    traced = jax.make_jaxpr(call)(*map(type_of, atoms))
    (result,) = match.product.outvars
    names: dict[Var, Atom] = dict(zip(traced.jaxpr.invars, atoms, strict=True))
    return list(renamed(traced.jaxpr, names, result, match.product))


def renamed(jaxpr: Jaxpr, names: dict[Var, Atom], result: Var, product: JaxprEqn) -> Iterator[JaxprEqn]:
    """The equations of a traced program, of other variables, at the place of a product."""
    for eqn in jaxpr.eqns:
        invars = [names.get(x, x) if isinstance(x, Var) else x for x in eqn.invars]
        outvars = [result if out is jaxpr.outvars[0] else Var(out.aval) for out in eqn.outvars]
        names |= dict(zip(eqn.outvars, outvars, strict=True))
        yield eqn.replace(invars=invars, outvars=outvars, source_info=product.source_info)


@dataclass(frozen=True)
class Call:
    """Makes the result of a match out of its arrays."""

    match: Match
    equations: Equations

    @property
    def labeled(self) -> list[Labeled]:
        """Its arrays: queries, keys, values, then bias, masks and lengths as far as there are any."""
        match, scores = self.match, self.match.scores
        bias = [self.source(scores.bias)] if scores.bias else []
        masks = [self.source(mask.value) for mask in match.masks]
        return [match.query, match.key, match.value, *bias, *masks, *filter(None, [match.key_lengths])]

    def source(self, x: Labeled) -> Labeled:
        """What an array was before it was repeated."""
        return self.equations.unconverted(x)

    @property
    def atoms(self) -> list[Atom]:
        """Its arrays in the program."""
        return [x.atom for x in self.labeled]

    @property
    def sizes(self) -> dict[Label, int]:
        """The sizes of axes."""
        arrays = self.match.query, self.match.key
        pairs = (zip(x.labels, type_of(x.atom).shape, strict=True) for x in arrays)
        return {label: size for each in pairs for label, size in each if label is not None}

    def extent(self, *labels: Label) -> int:
        """How many elements there are along axes."""
        return math.prod(self.sizes[label] for label in labels if label is not None)

    def __call__(self, *arrays: Array) -> Array:
        """Computes it."""
        match, roles = self.match, self.match.roles
        query, key, value, *extras = arrays
        b, n, k = self.extent(*roles.batch), self.extent(roles.head, roles.member), self.extent(roles.head)
        order = (*roles.batch, roles.query, roles.head, roles.member)
        query = ordered(query, match.query.labels, order).reshape(b, self.extent(roles.query), n, -1)
        keys = (*roles.batch, roles.key, roles.head)
        key, value = (
            ordered(x, labeled.labels, keys).reshape(b, self.extent(roles.key), k, -1)
            for x, labeled in ((key, match.key), (value, match.value))
        )
        named = self.extras(extras)
        spec = AttentionSpec(
            scale=match.scores.scale, causal=match.causal, window=match.window, **dict.fromkeys(named, True)
        )
        (out,) = nano_attention_p.bind(query, key, value, *(named[name] for name in spec.extras), spec=spec)
        out = out.reshape(*(self.sizes[label] for label in roles.rows), out.shape[-1])
        places = (*roles.rows, None)
        return moved(out, [places.index(label) for label in match.out])

    def extras(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """Bias, mask and lengths, as the primitive takes them."""
        match, left = self.match, list(zip(arrays, self.labeled[3:], strict=True))
        named: dict[str, Array] = {}
        if match.scores.bias:
            x, labeled = left.pop(0)
            named["bias"] = self.scores(x, labeled)
        if match.masks:
            masks = [self.mask(mask, *left.pop(0)) for mask in match.masks]
            named["mask"] = masks[0]
            for mask in masks[1:]:
                named["mask"] = named["mask"] & mask
        if match.key_lengths:
            x, labeled = left.pop(0)
            lengths = aligned(x, labeled.labels, match.roles.batch) + match.one_more
            sizes = [self.sizes[label] for label in match.roles.batch]
            named["key_lengths"] = jnp.broadcast_to(lengths, sizes).reshape(-1)
        return named

    def mask(self, mask: Mask, x: Array, labeled: Labeled) -> Array:
        """A mask that holds where pairs are visible."""
        x = self.scores(x, labeled)
        return ~x if mask.inverted else x

    def scores(self, x: Array, labeled: Labeled) -> Array:
        """An array that broadcasts to the scores, as one that broadcasts to [B, N, T, S]."""
        roles = self.match.roles
        groups = roles.batch, (roles.head, roles.member), (roles.query,), (roles.key,)
        labels = [label for group in groups for label in group if label is not None]
        x, shape = aligned(x, labeled.labels, labels), []
        for group in groups:
            kept = [label for label in group if label is not None]
            axes = [labels.index(label) for label in kept]
            if any(x.shape[axis] > 1 for axis in axes):
                sizes = [self.sizes[labels[i]] if i in axes else size for i, size in enumerate(x.shape)]
                x = jnp.broadcast_to(x, sizes)
            shape.append(math.prod(x.shape[axis] for axis in axes))
        return x.reshape(shape)


def ordered(x: Array, labels: Sequence[Label], order: Sequence[Label]) -> Array:
    """An array with its axes in an order, and the one without a label last."""
    return moved(x, [*(labels.index(label) for label in order if label is not None), labels.index(None)])


def aligned(x: Array, labels: Sequence[Label], order: Sequence[Label]) -> Array:
    """An array with an axis for each label, of size 1 where it has none."""
    kept = [axis for axis, label in enumerate(labels) if label in order and x.shape[axis] > 1]
    x = x.reshape([x.shape[axis] for axis in kept])
    names = [labels[axis] for axis in kept]
    present = [label for label in order if label in names]
    x = moved(x, [names.index(label) for label in present])
    sizes = dict(zip(present, x.shape, strict=True))
    return x.reshape([sizes.get(label, 1) for label in order])


def moved(x: Array, permutation: Sequence[int]) -> Array:
    """A transpose, where anything moves."""
    return x if list(permutation) == sorted(permutation) else x.transpose(permutation)
