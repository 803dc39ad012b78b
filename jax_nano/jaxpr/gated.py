"""Gated products: two regions of one A become one where the second reads what the first one makes, and nobody else.

To every transformation such a region is the program of both; `Region.parts` has them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jax.extend.core import JaxprEqn, Var

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.gated import COMMON, Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.jaxpr.dataflow import variables
from jax_nano.jaxpr.inline import Atom
from jax_nano.jaxpr.primitives import nano_region_p
from jax_nano.jaxpr.region import Region
from jax_nano.jaxpr.region_dot import RegionDot


def join_gated(eqns: Sequence[JaxprEqn], results: Sequence[Atom]) -> list[JaxprEqn]:
    """The equations of a program, with one region for each gated product.

    Args:
      eqns: with regions.
      results: what the program gives.
    """
    uses = Counter(x for eqn in eqns for x in variables(eqn.invars))
    uses.update(variables(results))
    left: dict[Var | int, JaxprEqn] = {}  # a region by what it makes
    for number, eqn in enumerate(eqns):
        if eqn.primitive is not nano_region_p:
            left[number] = eqn
            continue
        for x in variables(eqn.invars):
            first = left.get(x) if uses[x] == 1 else None
            if first and (joined := join(first, eqn)):
                del left[x]
                eqn = joined  # noqa: PLW2901
                break
        left[eqn.outvars[0]] = eqn
    return list(left.values())


def join(first: JaxprEqn, second: JaxprEqn) -> JaxprEqn | None:
    """The equation of two regions, the second of which reads the first one's result; None where there is no kernel."""
    one, two = first.params["region"], second.params["region"]
    if one.kernel.precision != two.kernel.precision or (kernel := gated_kernel(one, two)) is None:
        return None
    made = {out for eqn in one.jaxpr.eqns for out in eqn.outvars}
    eqns = [*one.jaxpr.eqns, *(eqn for eqn in two.jaxpr.eqns if eqn.outvars[0] not in made)]
    made |= {out for eqn in eqns for out in eqn.outvars}
    invars = dict.fromkeys(x for x in (*one.jaxpr.invars, *two.jaxpr.invars) if x not in made)
    jaxpr = two.jaxpr.replace(invars=list(invars), eqns=eqns)
    region = Region.of(jaxpr, kernel, (one, two))
    return second.replace(params=second.params | {"region": region}, invars=list(invars))


def gated_kernel(first: Region, second: Region) -> RegionDot | None:
    """What one kernel computes of two regions, if it can; its sources are variables of the program."""
    one, two = first.kernel.dot, second.kernel.dot
    if isinstance(one, Gated) or isinstance(two, Gated):
        return None
    sources = [[region.jaxpr.invars[i] for i in region.kernel.sources] for region in (first, second)]
    (held,) = first.jaxpr.outvars
    roles = [x.role for x in two.arrays[:-1]]
    places = [i for i, source in enumerate(sources[1]) if source is held]
    if len(places) != 1 or roles[places[0]] != "epilogue":
        return None
    if _common(one, sources[0]) != _common(two, sources[1]):
        return None
    try:
        gated = Gated(first=one, second=two, gate=places[0] - roles.index("epilogue"))
    except UnsupportedDot:
        return None
    *both, _ = gated.arrays_of_both([*sources[0], None], [*sources[1], None])
    return RegionDot(dot=gated, sources=tuple(both), precision=second.kernel.precision, lhs=second.kernel.lhs)


def _common(dot: Dot | Grouped, sources: Sequence[Var]) -> dict[str, Var]:
    """The arrays that both products have to read."""
    return {x.role: source for x, source in zip(dot.arrays[:-1], sources, strict=True) if x.role in COMMON}
