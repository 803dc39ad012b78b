"""Products that need not be in a loop, before and behind it.

What a step makes of constants and its elements of xs alone, as `x @ w` of a recurrent network, is made of all xs at
once, before the loop. What a step only adds up, as gradients of weights, is one product behind it, over all steps:

    c = c + a.T @ b     in each step, with a and b as elements of ys     c = c + einsum("tij,tik->jk", a, b)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Var, jaxpr_as_fun

from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.pipelines.scans import Scan
from jax_nano.jaxpr.primitives import DOTS
from jax_nano.jaxpr.private import ClosedJaxpr

EMPTY = jax.make_jaxpr(lambda: ())().jaxpr
MOST_BYTES = 1 << 28  # of what steps leave to products behind the loop, or take from those before
# Of one operand: of a sum, they are the sum of their results.
LINEAR = ("transpose", "reshape", "squeeze", "reduce_sum")


@dataclass(frozen=True)
class Sum:
    """What each step adds to a carried value that it does not use otherwise: a product or a sum of elements.

    Attributes:
      number: which of the carried values, of which there may be several sums.
      first: the product, or the first reduction.
      chain: linear equations that make of its result what is added.
    """

    number: int
    first: JaxprEqn
    chain: tuple[JaxprEqn, ...]

    @property
    def operands(self) -> list[Any]:
        """What a step has to leave."""
        return list(self.first.invars)

    def total(self, *arrays: Array) -> Array:
        """What all steps add, of the operands of all steps."""
        result = total(self.first, *arrays)
        for eqn in self.chain:
            result = eqn.primitive.bind(result, **eqn.params)
        return result


@dataclass(frozen=True)
class MovedLoop:
    """A scan in three parts.

    Attributes:
      before: (constants, elements of xs) -> further elements of xs.
      scan: the loop, with those, without the sums, and with operands of their products among its ys.
      sums: what is added up behind it.
      sources: for the operands of each sum: ("x", which of xs) or ("y", which of ys).
      kept: which carried values are carried still.
      ys: how many ys the program wants.
    """

    before: Jaxpr
    scan: Scan
    sums: tuple[Sum, ...]
    sources: tuple[tuple[tuple[str, int], ...], ...]
    kept: tuple[int, ...]
    ys: int

    @property
    def moves(self) -> bool:
        """Whether anything stands outside of the loop."""
        return bool(self.before.outvars or self.sums)

    def avals(self, operands: Sequence[Any], scan: Scan) -> list[Any]:
        """The types of the operands of the loop that is left, of those of the scan."""
        constants, start, xs = scan.split(operands)
        made = [type_of(x) for x in self.before.outvars]
        more = [ShapedArray((scan.length, *x.shape), x.dtype) for x in made]
        return [*constants, *(start[i] for i in self.kept), *xs, *more]

    def __call__(self, run: Callable[..., Sequence[Array]], carries: int, *operands: Array) -> list[Array]:
        """The results of the scan.

        Args:
          run: the loop that is left, of its operands.
          carries: how many values the scan carries.
          *operands: of the scan.
        """
        constants = operands[: self.scan.constants]
        start, xs = operands[len(constants) : len(constants) + carries], operands[len(constants) + carries :]
        made: Sequence[Array] = []
        if self.before.outvars:
            step = jaxpr_as_fun(ClosedJaxpr(self.before, ()))
            axes = [None] * len(constants) + [0] * len(xs)
            made = jax.vmap(step, axes)(*constants, *xs)
        found = list(run(*constants, *(start[i] for i in self.kept), *xs, *made))
        ys = found[len(self.kept) :]
        final: list[Any] = list(start)
        for i, value in zip(self.kept, found, strict=False):
            final[i] = value
        for each, sources in zip(self.sums, self.sources, strict=True):
            arrays = [(xs if kind == "x" else ys)[i] for kind, i in sources]
            final[each.number] = final[each.number] + each.total(*arrays)
        return [*final, *ys[: self.ys]]


def total(eqn: JaxprEqn, *arrays: Array) -> Array:
    """The sum over all steps of products, or of elements, of the operands of all steps."""
    if eqn.primitive not in DOTS:  # as a product with ones, so that it is a kernel
        (x,) = arrays
        axes = (0, *(axis + 1 for axis in eqn.params["axes"]))
        ones = jnp.ones([x.shape[axis] for axis in axes], x.dtype)
        return lax.dot_general(ones, x, ((tuple(range(len(axes))), axes), ((), ())))
    params = dict(eqn.params)
    (a_k, b_k), (a_b, b_b) = params["dimension_numbers"]
    contracted = [(0, *(i + 1 for i in k)) for k in (a_k, b_k)]
    batch = [tuple(i + 1 for i in dims) for dims in (a_b, b_b)]
    params["dimension_numbers"] = tuple(contracted), tuple(batch)
    return eqn.primitive.bind(*arrays, **params)


def move_products(scan: Scan) -> MovedLoop:
    """The scan with products before and behind it. Calls in its step are inlined already."""
    constants, start, xs = scan.split(scan.jaxpr.invars)
    before = products_before(scan, {*constants, *xs})
    sums = list(sums_behind(scan))
    jaxpr = scan.jaxpr
    summed = {each.number for each in sums}
    kept = tuple(i for i in range(scan.carries) if i not in summed)
    outs, ys = jaxpr.outvars[: scan.carries], list(jaxpr.outvars[scan.carries :])
    wanted, sources = len(ys), []
    for each in sums:
        pair = []
        for x in each.operands:
            if x in xs:
                pair.append(("x", xs.index(x)))
            else:
                places = [i for i, y in enumerate(ys) if y is x]
                pair.append(("y", places[0] if places else len(ys)))
                ys += [] if places else [x]
        sources.append(tuple(pair))
    made = [*before.outvars]
    inner = trimmed(
        jaxpr, [*constants, *(start[i] for i in kept), *xs, *made], [*(outs[i] for i in kept), *ys], {*made}
    )
    rest = replace(scan, jaxpr=inner, carries=len(kept))
    return MovedLoop(before, rest, tuple(sums), tuple(sources), kept, wanted)


def trimmed(jaxpr: Jaxpr, invars: Sequence[Any], outvars: Sequence[Atom], known: set[Any]) -> Jaxpr:
    """The jaxpr of other results, with the equations that they need beside what is known."""
    needed = {x for x in outvars if isinstance(x, Var)} - known
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if any(out in needed for out in eqn.outvars) or eqn.effects:
            eqns.append(eqn)
            needed |= {x for x in eqn.invars if isinstance(x, Var)} - known
    info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return jaxpr.replace(invars=list(invars), outvars=list(outvars), eqns=eqns[::-1], debug_info=info)


def products_before(scan: Scan, given: set[Any]) -> Jaxpr:
    """The jaxpr of the products that a step makes of `given` alone: constants and elements of xs."""
    _, _, xs = scan.split(scan.jaxpr.invars)
    known, moving, found = set(given), set(xs), []
    for eqn in scan.jaxpr.eqns:
        if eqn.effects or not all(x in known for x in eqn.invars if isinstance(x, Var)):
            continue
        known.update(eqn.outvars)
        if any(x in moving for x in eqn.invars if isinstance(x, Var)):
            moving.update(eqn.outvars)
            if eqn.primitive in DOTS and is_worth_it(eqn, moving):
                found.append(eqn.outvars[0])
    size = scan.length * sum(bytes_of(x) for x in found)
    constants, _, xs = scan.split(scan.jaxpr.invars)
    return trimmed(scan.jaxpr, [*constants, *xs], found if size <= MOST_BYTES else [], set())


def is_worth_it(eqn: JaxprEqn, moving: set[Any]) -> bool:
    """Whether a product of all steps at once is one larger product: one operand is the same in each step."""
    return sum(x in moving for x in eqn.invars if isinstance(x, Var)) == 1


def bytes_of(x: Atom) -> int:
    """The size of an array."""
    aval = type_of(x)
    return math.prod(aval.shape) * aval.dtype.itemsize


def sums_behind(scan: Scan) -> list[Sum]:
    """The carried values that only add up products."""
    jaxpr = scan.jaxpr
    _, start, xs = scan.split(jaxpr.invars)
    makers = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    uses: dict[Any, int] = {}
    for atoms in (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars):
        for x in atoms:
            if isinstance(x, Var):
                uses[x] = uses.get(x, 0) + 1
    found: list[list[Sum]] = []
    for number, (before, after) in enumerate(zip(start, jaxpr.outvars, strict=False)):
        terms = addends(after, makers, uses)
        added = [x for x in terms if x is not before]
        if uses.get(before) != 1 or not added or len(added) == len(terms):
            continue
        each = [sum_of(x, makers, uses, number) for x in added]
        sums = [x for x in each if x and all(isinstance(operand, Var) for operand in x.operands)]
        if len(sums) < len(added) or any(type_of(x) != type_of(before) for x in added):
            continue
        left = sum(bytes_of(x) for one in sums for x in one.operands if x not in xs)
        if scan.length * left <= MOST_BYTES:
            found.append(sums)
    left = {x for sums in found for each in sums if each.first.primitive in DOTS for x in each.operands}
    return [
        each
        for sums in found
        if all(each.first.primitive in DOTS or left.issuperset(each.operands) for each in sums)
        for each in sums
    ]


def addends(x: Atom, makers: dict[Any, JaxprEqn], uses: dict[Any, int]) -> list[Atom]:
    """What a value is the sum of, through sums that nobody else reads."""
    eqn = makers.get(x) if isinstance(x, Var) and uses.get(x) == 1 else None
    if eqn is None or eqn.primitive.name not in ("add", "add_any"):
        return [x]
    return [each for operand in eqn.invars for each in addends(operand, makers, uses)]


def sum_of(x: Atom, makers: dict[Any, JaxprEqn], uses: dict[Any, int], number: int) -> Sum | None:
    """What is added is made by: a product, or else a reduction of floats, and linear equations behind it."""
    chain: list[JaxprEqn] = []
    while isinstance(x, Var) and uses.get(x) == 1 and x in makers:
        eqn = makers[x]
        if eqn.primitive in DOTS:
            return Sum(number, eqn, tuple(chain[::-1]))
        if eqn.primitive.name not in LINEAR:
            break
        chain.append(eqn)
        x = eqn.invars[0]
    reductions = [place for place, eqn in enumerate(chain) if eqn.primitive.name == "reduce_sum"]
    if not reductions or type_of(chain[0].outvars[0]).dtype.name not in ("float32", "float64"):
        return None
    return Sum(number, chain[reductions[-1]], tuple(chain[: reductions[-1]][::-1]))
