"""Fusion: the products of a jaxpr, each with as much of the work around it as one kernel does.

What becomes part of a product's region:
- of its operands, transposes, reshapes and broadcasts, and, where only products read them, conversions without rounding
  and weights in the form they are kept in; rows that are gathered for a grouped product;
- of operand A, elementwise work on an array of its size that only this product reads. It is done while A is packed,
  by every task that has other columns of C, which saves XLA a pass over A: prologue_candidates.py says where that pays;
- of its result, whatever is elementwise and leads to one array: a value inside of the region is used nowhere else, so
  nothing is computed twice, and a region ends before a value that has uses beside the region;
- the same views of the other arrays that the elementwise work reads. Work on those arrays themselves stays outside.

legality.py says which equations may be fused at all, and candidates.py which could be with a product. A region then
grows by one equation after the other, each of which is read once.
"""

from __future__ import annotations

from jax.extend.core import Jaxpr, JaxprEqn

from jax_nano.jaxpr.candidates import Candidates
from jax_nano.jaxpr.dataflow import Dataflow
from jax_nano.jaxpr.gated import join_gated
from jax_nano.jaxpr.grouped.index_ranges import with_known_rows
from jax_nano.jaxpr.inline import inline_calls
from jax_nano.jaxpr.legality import WEIGHTS, Reason, gathering_body
from jax_nano.jaxpr.primitives import FUSED_PRODUCTS, GROUPED_PRODUCTS, nano_region_p
from jax_nano.jaxpr.region import Limits
from jax_nano.jaxpr.region_dot import WORK_ON_B, RegionDot
from jax_nano.jaxpr.region_growth import UNREADABLE, RegionGrowth


def fuse_products(jaxpr: Jaxpr, *, every_prologue: bool = False) -> Jaxpr:
    """Puts a nano_region in the place of each product that has a kernel. Jaxprs in equations stay as they are.

    There are no kernels for sizes that are not known.

    Args:
      jaxpr: a program.
      every_prologue: whether elementwise work on A is fused however long it takes.
    """
    products = [i for i, eqn in enumerate(jaxpr.eqns) if eqn.primitive in FUSED_PRODUCTS]
    if not products or not has_known_sizes(jaxpr):
        return jaxpr
    if any(jaxpr.eqns[i].primitive in GROUPED_PRODUCTS for i in products):
        jaxpr = with_known_rows(inline_calls(jaxpr, gathering_body))
        products = [i for i, eqn in enumerate(jaxpr.eqns) if eqn.primitive in FUSED_PRODUCTS]
    fusion = _Fusion(jaxpr, every_prologue=every_prologue)
    for product in products:
        if fusion.is_left(product):
            fusion.fuse(product)
    return jaxpr.replace(eqns=with_upcoming_kernels(join_gated(fusion.eqns(), jaxpr.outvars)))


class _Fusion:
    """A jaxpr while its products are fused, in the order of the program."""

    def __init__(self, jaxpr: Jaxpr, *, every_prologue: bool):
        self._jaxpr = jaxpr
        self._flow = Dataflow(jaxpr)
        self._candidates = Candidates(self._flow, every_prologue=every_prologue)

    def eqns(self) -> list[JaxprEqn]:
        """The equations, with those regions in place that there are so far."""
        return [eqn for _, eqn in sorted(self._flow.eqns.items())]

    def is_left(self, product: int) -> bool:
        """Is false where a product has become part of another one's region, as the sum of its rows."""
        return product in self._flow.eqns and self._flow.eqns[product].primitive in FUSED_PRODUCTS

    def fuse(self, product: int) -> None:
        """Puts a region in the place of a product that has a kernel, and of what can be fused with it."""
        growth, unread = self._first_with_kernel(product)
        if growth is None:
            return
        growth, why_no_more = self._with_longest_prologue(growth)
        why_no_more = unread or why_no_more
        end = growth.longest()
        region, places = growth.region(self._jaxpr, end), growth.places(end)
        limits = Limits(prologue=why_no_more, epilogue=growth.why_ends(end))
        eqn = self._flow.eqns[product].replace(
            primitive=nano_region_p,
            params={"region": region, "limits": limits, "upcoming": ()},
            invars=list(region.jaxpr.invars),
            outvars=self._flow.eqns[places[-1]].outvars,
        )
        self._flow.replace(places, eqn, places[-1])

    def _first_with_kernel(self, product: int) -> tuple[RegionGrowth | None, Reason]:
        """The product with the most conversions of its operands that has a kernel, alone or with what comes next.

        Also says why it does not read a weight as that is kept, if there is one.
        """
        unread = ""
        for views in self._candidates.operand_views(product):
            weight = next(
                (self._primitive(i) for x in views for i in x[:1] if self._flow.eqns[i].primitive in WEIGHTS), ""
            )
            try:
                growth = RegionGrowth(self._flow, self._candidates, product, views)
            except UNREADABLE as reason:
                unread = unread or (weight and f"{weight}: {reason}")
                continue
            dots = list(growth.first_dots())
            if any(isinstance(dot, RegionDot) for dot in dots):
                return growth, "" if weight else unread
            unread = unread or (weight and f"{weight}: {dots[0]}")
        return None, ""

    def _with_longest_prologue(self, growth: RegionGrowth) -> tuple[RegionGrowth, Reason]:
        """The region with the most work on an operand that fits into it, and why there is no more, if that is known."""
        why_no_more = ""
        for operand in (0, 1):
            candidates = self._candidates.prologue(growth.product, operand)
            for places in candidates.longest_first():
                if all(isinstance(dot, RegionDot) and dot.lhs != operand for dot in growth.first_dots()):
                    why_no_more = why_no_more or f"{self._primitive(places[-1])}: {WORK_ON_B}"
                    break
                with_prologue, reason = self._with_prologue(growth, places)
                if with_prologue:
                    return with_prologue, why_no_more or candidates.reason
                why_no_more = why_no_more or f"{self._primitive(places[-1])}: {reason}"
            why_no_more = why_no_more or candidates.reason
        return growth, why_no_more

    def _with_prologue(self, growth: RegionGrowth, places: tuple[int, ...]) -> tuple[RegionGrowth | None, Reason]:
        """The region with work on an operand, or why there is none."""
        try:
            longer = RegionGrowth(self._flow, self._candidates, growth.product, growth.views, places)
        except UNREADABLE as reason:
            return None, str(reason)
        dots = list(longer.first_dots())
        return (longer, "") if any(isinstance(dot, RegionDot) for dot in dots) else (None, str(dots[0]))

    def _primitive(self, place: int) -> str:
        return str(self._flow.eqns[place].primitive)


def with_upcoming_kernels(eqns: list[JaxprEqn]) -> list[JaxprEqn]:
    """Tells the first region of a program of the kernels of all, to be compiled while the program is lowered."""
    regions = [i for i, eqn in enumerate(eqns) if eqn.primitive is nano_region_p]
    if regions:
        first = eqns[regions[0]]
        kernels = (eqns[i].params["region"].kernel for i in regions)
        upcoming = tuple(dict.fromkeys((kernel.dot, kernel.precision) for kernel in kernels))
        eqns[regions[0]] = first.replace(params=first.params | {"upcoming": upcoming})
    return eqns


def has_known_sizes(jaxpr: Jaxpr) -> bool:
    """Is true where every size is a number."""
    made = (out for eqn in jaxpr.eqns for out in eqn.outvars)
    shapes = (getattr(x.aval, "shape", ()) for x in (*jaxpr.constvars, *jaxpr.invars, *made))
    return all(isinstance(size, int) for shape in shapes for size in shape)
