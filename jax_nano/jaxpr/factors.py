"""Factors of a region: which dimensions of its arrays belong together, as an einsum names them; and its shards.

A shard of a region is the region of shards: its equations hold for them with the sizes that they name changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import broadcast_in_dim_p, reshape_p, squeeze_p, transpose_p

from jax_nano.ir.program import OPERATIONS
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.primitives import DOTS, nano_dequantize_p, nano_unpack_p
from jax_nano.jaxpr.program_reader import SYNONYMS

Place = tuple[Atom, int]  # a dimension of a value
ELEMENTWISE = frozenset({*OPERATIONS, *SYNONYMS})


class NoFactors(Exception):
    """An equation does not hold for shards; this says which."""


@dataclass(eq=False)
class Factors:
    """The dimensions of a region's values, by what belongs together.

    Attributes:
      sums: dimensions that the product sums over.
      fixed: those of which each device has all.
      panels: those that count panels, with the width of a panel and the dimension of columns that they make.
    """

    sums: list[Place] = field(default_factory=list)
    fixed: list[Place] = field(default_factory=list)
    panels: list[tuple[Place, int, Place]] = field(default_factory=list)
    parents: dict[Place, Place] = field(default_factory=dict)

    def find(self, place: Place) -> Place:
        """What stands for all that belongs together with a dimension."""
        while place in self.parents:
            place = self.parents[place]
        return place

    def join(self, a: Place, b: Place) -> None:
        """Says that two dimensions belong together; those of size 1 stand alone."""
        sizes = {type_of(atom).shape[i] for atom, i in (a, b)}
        if 1 in sizes or isinstance(a[0], Literal) or isinstance(b[0], Literal):
            return
        if len(sizes) > 1:
            raise NoFactors(f"dimensions of {sizes} elements")
        if (x := self.find(a)) != (y := self.find(b)):
            self.parents[x] = y


def factors_of(jaxpr: Jaxpr) -> Factors:
    """The factors of a region without calls.

    Raises:
      NoFactors: an equation does not hold for shards.
    """
    factors = Factors()
    for eqn in jaxpr.eqns:
        _read(factors, eqn)
    return factors


def _read(factors: Factors, eqn: JaxprEqn) -> None:
    """Adds what an equation says."""
    (out,) = eqn.outvars
    if eqn.primitive in DOTS:
        _read_product(factors, eqn)
    elif eqn.primitive is nano_unpack_p:
        _read_panels(factors, eqn)
    elif eqn.primitive is nano_dequantize_p:
        _read_integers(factors, eqn)
    else:
        for x, pairs in _pairs(eqn):
            for i, j in pairs:
                factors.join((x, i), (out, j))


def _pairs(eqn: JaxprEqn) -> list[tuple[Atom, list[tuple[int, int]]]]:
    """The dimensions of the operands of an equation, each with that of the result which is the same."""
    x, shape = eqn.invars[0], type_of(eqn.outvars[0]).shape
    if eqn.primitive is broadcast_in_dim_p and len(eqn.invars) == 1:
        return [(x, [*enumerate(eqn.params["broadcast_dimensions"])])]
    if eqn.primitive is transpose_p:
        return [(x, [(i, j) for j, i in enumerate(eqn.params["permutation"])])]
    if eqn.primitive in (reshape_p, squeeze_p) and len(eqn.invars) == 1:
        before, after = ([i for i, n in enumerate(sizes) if n > 1] for sizes in (type_of(x).shape, shape))
        if [type_of(x).shape[i] for i in before] == [shape[j] for j in after]:
            return [(x, [*zip(before, after, strict=True)])]
    elif eqn.primitive.name in ELEMENTWISE and all(_broadcasts(type_of(x).shape, shape) for x in eqn.invars):
        return [(x, [(i, i) for i in range(type_of(x).ndim)]) for x in eqn.invars]
    raise NoFactors(eqn.primitive.name)


def _broadcasts(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Whether an operand is a scalar, or has the result's dimensions or 1."""
    return not shape or (len(shape) == len(result) and all(n in (1, m) for n, m in zip(shape, result, strict=True)))


def _read_product(factors: Factors, eqn: JaxprEqn) -> None:
    (lhs, rhs), (out,) = eqn.invars, eqn.outvars
    (lhs_sums, rhs_sums), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for i, j in zip(lhs_sums, rhs_sums, strict=True):
        factors.join((lhs, i), (rhs, j))
        factors.sums.append((lhs, i))
    for place, (i, j) in enumerate(zip(lhs_batch, rhs_batch, strict=True)):
        factors.join((lhs, i), (rhs, j))
        factors.join((lhs, i), (out, place))
    free = [(lhs, i) for i in range(type_of(lhs).ndim) if i not in (*lhs_sums, *lhs_batch)]
    free += [(rhs, j) for j in range(type_of(rhs).ndim) if j not in (*rhs_sums, *rhs_batch)]
    for place, dimension in enumerate(free, len(lhs_batch)):
        factors.join(dimension, (out, place))


def _read_panels(factors: Factors, eqn: JaxprEqn) -> None:
    """Panels are whole columns; their rows, and columns beyond the last, are not divided."""
    (x,), (out,) = eqn.invars, eqn.outvars
    *batch, count, _, width, _ = type_of(x).shape
    if count * width != eqn.params["n"]:
        raise NoFactors("panels that the columns do not fill")
    for i in range(len(batch)):
        factors.join((x, i), (out, i))
    factors.fixed += [(x, len(batch) + 1), (x, len(batch) + 2), (x, len(batch) + 3), (out, len(batch))]
    factors.panels.append(((x, len(batch)), width, (out, len(batch) + 1)))


def _read_integers(factors: Factors, eqn: JaxprEqn) -> None:
    """Columns are divided, and rows where there is one group of whole integers."""
    (out,) = eqn.outvars
    rows = type_of(out).ndim - 2
    divides_rows = eqn.params["bits"] == 8 and eqn.params["group"] is None
    for x in eqn.invars:
        for i in (*range(rows), rows + 1):
            factors.join((x, i), (out, i))
    if divides_rows:
        factors.join((eqn.invars[0], rows), (out, rows))
    else:
        factors.fixed += [*((x, rows) for x in eqn.invars), (out, rows)]


def evaluate(
    jaxpr: Jaxpr, factors: Factors, arrays: Sequence[Any], product: Callable[[JaxprEqn, list[Any]], Any]
) -> list[Any]:
    """The results of a region, of shards of its arrays.

    Args:
      jaxpr: of the region, without calls.
      factors: its factors.
      arrays: shards.
      product: computes the product of shards, all of it.
    """
    values: dict[Atom, Any] = dict(zip(jaxpr.invars, arrays, strict=True))
    sizes: dict[Place, int] = {}
    for x, array in zip(jaxpr.invars, arrays, strict=True):
        sizes |= {factors.find((x, i)): n for i, n in enumerate(array.shape)}
    for place, width, column in factors.panels:
        sizes[factors.find(column)] = sizes[factors.find(place)] * width

    def read(x: Atom) -> Any:
        return x.val if isinstance(x, Literal) else values[x]

    def size(x: Var, i: int) -> int:
        place = factors.find((x, i))
        return sizes[place] if place in sizes else int(type_of(x).shape[i])

    for eqn in jaxpr.eqns:
        (out,) = eqn.outvars
        inputs, local = [read(x) for x in eqn.invars], tuple(size(out, i) for i in range(type_of(out).ndim))
        if eqn.primitive in DOTS:
            values[out] = product(eqn, inputs)
        else:
            values[out] = eqn.primitive.bind(*inputs, **(eqn.params | _local_params(eqn, local)))
    return [read(x) for x in jaxpr.outvars]


def _local_params(eqn: JaxprEqn, shape: tuple[int, ...]) -> dict[str, Any]:
    """The parameters of an equation that are other ones for a result of this shape."""
    if eqn.primitive is broadcast_in_dim_p:
        return {"shape": shape}
    if eqn.primitive is reshape_p:
        return {"new_sizes": shape}
    if eqn.primitive is nano_unpack_p:
        return {"k": shape[-2], "n": shape[-1]}
    return {"rows": shape[-2]} if eqn.primitive is nano_dequantize_p else {}
