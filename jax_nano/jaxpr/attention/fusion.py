"""Attention in programs: what match.py finds becomes one equation, on the axes of the primitive."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.extend.core.primitives import custom_jvp_call_p

from jax_nano.ir.attention_spec import AttentionSpec
from jax_nano.jaxpr.attention.axis_labels import Equations, Label, Labeled
from jax_nano.jaxpr.attention.axis_order import aligned, moved, ordered
from jax_nano.jaxpr.attention.backward import Backward
from jax_nano.jaxpr.attention.match import Matcher
from jax_nano.jaxpr.attention.parts import FEATURE, Mask, Match, NoAttention
from jax_nano.jaxpr.attention.program import accumulator
from jax_nano.jaxpr.fusion import has_known_sizes
from jax_nano.jaxpr.inline import Atom, body_of, inline_calls, type_of, without_unused
from jax_nano.jaxpr.legality import inlinable, is_plain_jit
from jax_nano.jaxpr.primitives import PRODUCTS, nano_attention_p
from jax_nano.jaxpr.varying import like, varying_alike

# Multiplications. What has fewer takes less time than a call, and in a loop may be XLA's own code.
WORTH_A_CALL = 1 << 13
SMALL = 40  # equations of a function that is read through, like softmax, where, or tril

Unfused = Callable[[JaxprEqn, str], None]  # is told of a softmax before a product that is left alone, and why


def fuse_attention(jaxpr: Jaxpr, unfused: Unfused = lambda *_: None) -> Jaxpr:
    """Puts nano_attention in the place of each attention. Jaxprs in equations stay as they are.

    Args:
      jaxpr: a program.
      unfused: is told of what looks like attention and is none that a kernel computes.
    """
    products = [eqn for eqn in jaxpr.eqns if eqn.primitive in PRODUCTS]
    is_there = len(products) > 1 and "exp" in names_in(jaxpr)
    if not is_there or not has_known_sizes(jaxpr):
        return jaxpr
    inlined = without_unused(inline_calls(jaxpr, small_body))
    matcher = Matcher(Equations(inlined))
    found: dict[int, Match] = {}
    failed: dict[int, str] = {}
    for place, eqn in enumerate(inlined.eqns):
        if eqn.primitive in PRODUCTS:
            try:
                if (match := matcher.match(eqn)) and Call(match, matcher.equations).multiplications >= WORTH_A_CALL:
                    found[place] = match
            except NoAttention as reason:
                failed[place] = str(reason)
    derived = [eqn for match in found.values() if match.derivative for eqn, _ in match.derivative.products.values()]
    for place, reason in failed.items():
        if not any(inlined.eqns[place] is eqn for eqn in derived):
            unfused(inlined.eqns[place], reason)
    if not found:
        return jaxpr
    return without_unused(inlined.replace(eqns=replaced(inlined.eqns, found, matcher.equations)))


def replaced(eqns: Sequence[JaxprEqn], found: dict[int, Match], equations: Equations) -> list[JaxprEqn]:
    """Equations with those of attention in place: at a place, what ends there, and gradients before the first of them.

    What attention was made of stays, and has no use.
    """
    calls = {place: Call(match, equations) for place, match in found.items()}
    gradients = {
        id(product): calls[place]
        for place, match in found.items()
        if match.derivative
        for product, _ in match.derivative.products.values()
    }
    written: set[int] = set()
    result: list[JaxprEqn] = []
    for place, eqn in enumerate(eqns):
        call = gradients.get(id(eqn))
        if place in calls:
            result += calls[place].forward()
        elif call is None:
            result.append(eqn)
        elif id(call) not in written:
            written.add(id(call))
            result += call.backward()
    return result


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


def traced(
    f: Callable[..., Sequence[Array]], atoms: Sequence[Atom], results: Sequence[Var], like: JaxprEqn
) -> Iterator[JaxprEqn]:
    """The equations that make `results` by a function of values, named as a product is."""
    jaxpr = jax.make_jaxpr(f)(*map(type_of, atoms)).jaxpr
    names: dict[Var, Atom] = dict(zip(jaxpr.invars, atoms, strict=True))
    outs = dict(zip(jaxpr.outvars, results, strict=True))
    for eqn in jaxpr.eqns:
        invars = [names.get(x, x) if isinstance(x, Var) else x for x in eqn.invars]
        outvars = [outs.get(out) or Var(out.aval) for out in eqn.outvars]
        names |= dict(zip(eqn.outvars, outvars, strict=True))
        yield eqn.replace(invars=invars, outvars=outvars, source_info=like.source_info)


@dataclass(frozen=True, eq=False)
class Call:
    """Makes the result of a match out of its arrays, and the gradients if it has any."""

    match: Match
    equations: Equations

    @property
    def labeled(self) -> list[Labeled]:
        """Its arrays: queries, keys, values, then bias, masks, lengths and arrays of scores if any."""
        match, scores = self.match, self.match.scores
        bias = [self.source(scores.bias)] if scores.bias else []
        masks = [self.source(mask.value) for mask in match.masks]
        return [match.query, match.key, match.value, *bias, *masks, *filter(None, [match.key_lengths]),
                *match.score_arrays]  # fmt: skip

    @property
    def multiplications(self) -> int:
        """Of both products, masked or not."""
        roles = self.match.roles
        elements = type_of(self.match.query.atom).size // self.extent(*roles.rows) if self.extent(*roles.rows) else 0
        return 2 * elements * self.extent(*roles.rows) * self.extent(roles.key)

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

    @functools.cached_property
    def sums(self) -> Var:
        """The logarithms of sums of exponentials, for the gradients."""
        roles, query = self.match.roles, type_of(self.match.query.atom)
        shape = (self.extent(*roles.batch), self.extent(roles.head, roles.member), self.extent(roles.query))
        return Var(like(type_of(self.match.product.outvars[0]), shape, accumulator(query.dtype)))

    def forward(self) -> Iterator[JaxprEqn]:
        """The equations of the result."""
        results = [*self.match.product.outvars, *([self.sums] if self.match.derivative else [])]
        return traced(self.attend, self.atoms, results, self.match.product)

    def backward(self) -> Iterator[JaxprEqn]:
        """The equations of the gradients."""
        derivative = self.match.derivative
        assert derivative
        atoms = [*self.match.product.outvars, self.sums, derivative.cotangent.atom, *self.atoms]
        products = [eqn for eqn, _ in derivative.products.values()]
        return traced(self.gradients, atoms, [eqn.outvars[0] for eqn in products], products[0])

    def operands(self, arrays: Sequence[Array]) -> tuple[list[Array], AttentionSpec]:
        """The operands of the primitive, and its parameter."""
        match, roles = self.match, self.match.roles
        query, key, value, *extras = arrays
        n, k = self.extent(roles.head, roles.member), self.extent(roles.head)
        b = self.extent(*roles.batch)
        query = ordered(query, match.query.labels, roles.rows).reshape(b, self.extent(roles.query), n, -1)
        keys = (*roles.batch, roles.key, roles.head)
        key, value = (
            ordered(x, labeled.labels, keys).reshape(b, self.extent(roles.key), k, -1)
            for x, labeled in ((key, match.key), (value, match.value))
        )
        named = self.extras(extras)
        spec = AttentionSpec(
            scale=match.scores.scale, causal=match.causal, window=match.window,
            residual=match.derivative is not None, score=match.score,
        ).with_operands(named)  # fmt: skip
        return [query, key, value, *(named[name] for name in spec.extras)], spec

    def attend(self, *arrays: Array) -> list[Array]:
        """The result of the second product, and the logarithms of sums if there are gradients."""
        roles = self.match.roles
        operands, spec = self.operands(arrays)
        out, *sums = nano_attention_p.bind(*varying_alike(operands), spec=spec)
        out = out.reshape(*(self.sizes[label] for label in roles.rows), out.shape[-1])
        places = (*roles.rows, None)
        return [moved(out, [places.index(label) for label in self.match.out]), *sums]

    def gradients(self, out: Array, sums: Array, cotangent: Array, *arrays: Array) -> list[Array]:
        """The results of the products that make gradients."""
        match, roles, derivative = self.match, self.match.roles, self.match.derivative
        assert derivative
        operands, spec = self.operands(arrays)
        shape = (*operands[0].shape[:-1], -1)
        out = ordered(out, match.out, roles.rows).reshape(shape)
        cotangent = ordered(cotangent, derivative.cotangent.labels, roles.rows).reshape(shape).astype(out.dtype)
        names = ("query", "key", "value", *(["bias"] if spec.bias else []))
        backward = Backward(spec, tuple(name in derivative.products for name in names))
        found = backward(operands, (out, sums), (cotangent, jnp.zeros(sums.shape, sums.dtype)))
        keys = (*roles.batch, roles.key, roles.head)
        named: dict[str, Array | None] = dict(zip(names, found, strict=False))
        results = []
        for name, (eqn, labels) in derivative.products.items():
            places = [label for label in (roles.rows if name == "query" else keys) if label is not None]
            x = named[name]
            assert x is not None
            if name == "bias":
                results.append(self.of_bias(x, labels).astype(type_of(eqn.outvars[0]).dtype))
                continue
            x = x.reshape(*(self.sizes[label] for label in places), x.shape[-1])
            x = moved(x, [(*places, FEATURE).index(label) for label in labels])
            results.append(x.astype(type_of(eqn.outvars[0]).dtype))
        return results

    def of_bias(self, x: Array, labels: Sequence[Label]) -> Array:
        """The gradient of a bias, [B | 1, N | 1, T, S], with axes of some labels, added up over the others."""
        roles = self.match.roles
        groups = roles.batch, (roles.head, roles.member), (roles.query,), (roles.key,)
        order = [label for group in groups for label in group if label is not None]
        shape = [
            self.sizes[label] if size > 1 else 1
            for size, group in zip(x.shape, groups, strict=True)
            for label in group
            if label is not None
        ]
        x = x.reshape(shape).sum([axis for axis, label in enumerate(order) if label not in labels], keepdims=True)
        places = [order.index(label) for label in labels if label is not None]
        kept = x.transpose(*places, *(axis for axis in range(x.ndim) if axis not in places))
        sizes = iter(kept.shape)
        return kept.reshape([1 if label is None else next(sizes) for label in labels])

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
            lengths = aligned(x, labeled.labels, match.roles.batch)
            if match.one_more:  # of the greatest number, one more would be the least
                lengths = jnp.minimum(lengths, self.extent(match.roles.key) - 1) + 1
            sizes = [self.sizes[label] for label in match.roles.batch]
            named["key_lengths"] = jnp.broadcast_to(lengths, sizes).reshape(-1)
        for number, (x, labeled) in enumerate(left):
            named[f"score{number}"] = self.scores(x, labeled)
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
