"""Elementwise work behind convolutions that are computed as others, whose results are put together.

It is done on each of those, where it is their epilogue, and not on what is put together: behind transposed
convolutions, and where a result of other dimensions than a kernel gives is transposed. All that the work reads beside
the convolution is the same for all of its places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxpr_as_fun, no_effects
from jax.extend.core.primitives import broadcast_in_dim_p, custom_jvp_call_p

from jax_nano.jaxpr.candidates import Candidates
from jax_nano.jaxpr.dataflow import Dataflow, variables
from jax_nano.jaxpr.inline import Atom, body_of, type_of
from jax_nano.jaxpr.legality import ELEMENTWISE, is_source
from jax_nano.jaxpr.private import ClosedJaxpr
from jax_nano.jaxpr.weights import strided_weights
from jax_nano.lowering.simple_convolutions import Convolve, Work, parts_of

ROUNDS = 2  # a result may be transposed, and what is, be several convolutions
Values = dict[Atom, Any]


def work_on_parts(jaxpr: Jaxpr) -> Jaxpr:
    """Moves elementwise work on convolutions before what their parts are put together by."""
    for _ in range(ROUNDS):
        chains = _chains(jaxpr)
        if not chains:
            break
        moved = {i for chain in chains for i in chain.places}
        at = {chain.places[-1]: chain for chain in chains}
        eqns: list[JaxprEqn] = []
        for i, eqn in enumerate(jaxpr.eqns):
            if i in at:
                eqns.extend(at[i].eqns())
            elif i not in moved:
                eqns.append(eqn)
        jaxpr = jaxpr.replace(eqns=eqns)
    return jaxpr


def _chains(jaxpr: Jaxpr) -> list[Chain]:
    """The chains of a program, each of a convolution with its work."""
    weights = strided_weights(jaxpr)
    convolutions = [(i, parts) for i, eqn in enumerate(jaxpr.eqns) if (parts := parts_of(eqn, weights))]
    if not convolutions:
        return []
    flow = Dataflow(jaxpr)
    candidates = Candidates(flow, every_prologue=False)
    chains = [Chain(jaxpr, _places(flow, candidates, i), flow, parts) for i, parts in convolutions]
    return [chain for chain in chains if chain.work]


def _places(flow: Dataflow, candidates: Candidates, convolution: int) -> tuple[int, ...]:
    """The places of a convolution and of the longest work on it that makes one value.

    Functions with derivatives of their own are part of it where nothing is lost by calling the convolution as another
    such: where its operands are not moved or widened, which it could read through.
    """
    eqn = flow.eqns[convolution]
    makers = [i for i in map(flow.maker, eqn.invars) if i is not None]
    may_call = not any(is_source(flow.eqns[i]) for i in makers)
    places, own, longest = [convolution], set(eqn.outvars), 1
    for candidate in candidates.epilogue(convolution):
        work = flow.eqns[candidate.place]
        if candidate.illegal or not is_work(flow, work, own, eqn) or (has_own_derivative(work) and not may_call):
            break
        places.append(candidate.place)
        own |= set(work.outvars)
        longest = len(places) if candidate.is_end else longest
    return tuple(places[:longest])


def is_work(flow: Dataflow, eqn: JaxprEqn, own: set[Var], convolution: JaxprEqn) -> bool:
    """Is true for elementwise work on a convolution's result and on what is the same for all of its places."""
    shape = type_of(convolution.outvars[0]).shape
    _, _, (_, _, *spatial) = convolution.params["dimension_numbers"]
    if not is_free_of_shapes(eqn) or type_of(eqn.outvars[0]).shape != shape:
        return False
    return all(is_same_everywhere(flow, x, shape, spatial) for x in variables(eqn.invars) if x not in own)


def is_same_everywhere(flow: Dataflow, x: Var, shape: Sequence[int], spatial: Sequence[int]) -> bool:
    """Is true for numbers, and for arrays that repeat themselves along the spatial dimensions of this shape."""
    sizes = type_of(x).shape
    if sizes == tuple(shape):
        place = flow.maker(x)
        eqn = flow.eqns[place] if place is not None else None
        if eqn is None or eqn.primitive is not broadcast_in_dim_p or len(eqn.invars) > 1:
            return False
        source = type_of(eqn.invars[0]).shape
        return all(
            size == 1 or d not in spatial for d, size in zip(eqn.params["broadcast_dimensions"], source, strict=True)
        )
    return not sizes or (len(sizes) == len(shape) and all(sizes[d] == 1 for d in spatial))


def is_free_of_shapes(eqn: JaxprEqn) -> bool:
    """Is true for elementwise equations that mean the same for arrays of any shape."""
    body = body_of(eqn)
    if body:
        return not body.constvars and all(map(is_free_of_shapes, body.eqns))
    is_of_number = eqn.primitive is broadcast_in_dim_p and type_of(eqn.invars[0]).ndim == 0
    return eqn.primitive.name in ELEMENTWISE or is_of_number


@dataclass(frozen=True)
class Chain:
    """A convolution and elementwise work on it, all of which leads to one value.

    Attributes:
      jaxpr: the program.
      places: of its equations: the convolution's, then those of the work.
      flow: of the program.
      parts: computes the convolution with work on its parts.
    """

    jaxpr: Jaxpr
    places: tuple[int, ...]
    flow: Dataflow
    parts: Callable[[Work], Convolve]

    @property
    def convolution(self) -> JaxprEqn:
        """Its equation."""
        return self.jaxpr.eqns[self.places[0]]

    @cached_property
    def work(self) -> list[JaxprEqn]:
        """The equations of the work."""
        return [self.jaxpr.eqns[i] for i in self.places[1:]]

    @cached_property
    def broadcasts(self) -> list[JaxprEqn]:
        """The equations that make values of the result's shape, for the work."""
        own = {out for i in self.places for out in self.jaxpr.eqns[i].outvars}
        read = dict.fromkeys(x for eqn in self.work for x in variables(eqn.invars) if x not in own)
        shape = type_of(self.convolution.outvars[0]).shape
        makers = [self.flow.maker(x) for x in read if type_of(x).shape == shape]
        return [self.flow.eqns[i] for i in makers if i is not None]

    @cached_property
    def inputs(self) -> list[Var]:
        """All that is read: image, kernel, and arrays beside."""
        eqns = [self.convolution, *self.broadcasts, *self.work]
        own = {out for eqn in eqns for out in eqn.outvars}
        return list(dict.fromkeys(x for eqn in eqns for x in variables(eqn.invars) if x not in own))

    def eqns(self) -> list[JaxprEqn]:
        """The equations in its place."""
        inner = jax.make_jaxpr(self.function())(*(jax.ShapeDtypeStruct(type_of(x).shape, type_of(x).dtype)
                                                  for x in self.inputs)).jaxpr  # fmt: skip
        values: Values = dict(zip(inner.invars, self.inputs, strict=True))
        (result,), (final,) = inner.outvars, self.work[-1].outvars
        eqns = []
        for eqn in inner.eqns:
            invars = [values.get(x, x) if isinstance(x, Var) else x for x in eqn.invars]
            outvars = [final if out is result else Var(out.aval) for out in eqn.outvars]
            values |= dict(zip(eqn.outvars, outvars, strict=True))
            eqns.append(eqn.replace(invars=invars, outvars=outvars, source_info=self.convolution.source_info))
        return eqns

    def function(self) -> Callable[..., Array]:
        """Computes the chain of its inputs; functions with derivatives of their own keep those."""

        def by_parts(*arrays: Array) -> Array:
            values: Values = dict(zip(self.inputs, arrays, strict=True))
            lhs, rhs = (_value(x, values) for x in self.convolution.invars)
            return self.parts(lambda part, order: self.on_part(part, order, values))(lhs, rhs)

        if not any(map(has_own_derivative, self.work)):
            return by_parts
        eqns = [*self.broadcasts, self.convolution, *self.work]
        whole = self.jaxpr.replace(
            constvars=[], invars=self.inputs, outvars=eqns[-1].outvars, eqns=eqns, effects=no_effects
        )

        def as_it_was(*arrays: Array) -> Array:
            (result,) = jaxpr_as_fun(ClosedJaxpr(whole, ()))(*arrays)
            return result

        function = jax.custom_jvp(by_parts)
        function.defjvp(lambda primals, tangents: jax.jvp(as_it_was, primals, tangents))
        return function

    def on_part(self, part: Array, order: Sequence[int], values: Values) -> Array:
        """The work on a part of the result, whose dimension i is the result's order[i]."""
        values, rank = dict(values), len(order)
        to = [list(order).index(d) for d in range(rank)]
        for eqn in self.broadcasts:
            dims = [to[d] for d in eqn.params["broadcast_dimensions"]]
            turned = sorted(range(len(dims)), key=dims.__getitem__)
            source = lax.transpose(_value(eqn.invars[0], values), turned)
            values[eqn.outvars[0]] = lax.broadcast_in_dim(source, part.shape, sorted(dims))
        beside = [x for x in self.inputs if type_of(x).ndim == rank and any(x in eqn.invars for eqn in self.work)]
        values |= {x: lax.transpose(values[x], order) for x in beside}
        values[self.convolution.outvars[0]] = part
        for eqn in self.work:
            evaluate(eqn, values, part.shape)
        return values[self.work[-1].outvars[0]]


def _value(x: Atom, values: Values) -> Any:
    return values[x] if isinstance(x, Var) else np.asarray(x.val, type_of(x).dtype)


def evaluate(eqn: JaxprEqn, values: Values, shape: Sequence[int]) -> None:
    """Evaluates an elementwise equation on arrays of another shape."""
    operands = [_value(x, values) for x in eqn.invars]
    body = body_of(eqn)
    if body:
        inner: Values = dict(zip(body.invars, operands, strict=True))
        for each in body.eqns:
            evaluate(each, inner, shape)
        (x,) = body.outvars
        values[eqn.outvars[0]] = inner[x] if isinstance(x, Var) else lax.broadcast(_value(x, inner), shape)
    elif eqn.primitive is broadcast_in_dim_p:
        values[eqn.outvars[0]] = lax.broadcast(operands[0], shape)
    else:
        values[eqn.outvars[0]] = eqn.primitive.bind(*operands, **eqn.params)


def has_own_derivative(eqn: JaxprEqn) -> bool:
    """Is true where an equation calls a function with a derivative of its own."""
    body = body_of(eqn)
    return eqn.primitive is custom_jvp_call_p or (body is not None and any(map(has_own_derivative, body.eqns)))
