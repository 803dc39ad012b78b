"""Regions that XLA partitions: every device computes the region of its shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.jaxpr.factors import Factors, NoFactors, Place, evaluate, factors_of
from jax_nano.jaxpr.inline import inline_calls, type_of
from jax_nano.jaxpr.primitives import DOTS, nano_dot_general_p
from jax_nano.jaxpr.region import Region
from jax_nano.lowering.dot_general import partial_sum_type
from jax_nano.lowering.partition import Shards, sum_over
from jax_nano.lowering.sharding import GROUPED, Axes, ShardingRule

Fused = Callable[[Callable[..., Any]], Callable[..., Any]]


def partition_region(region: Region, fused: Fused) -> Shards:
    """What a region computes of shards.

    Args:
      region: a product and what is fused with it.
      fused: gives a function a kernel for its product and what can be fused with it.

    Raises:
      UnsupportedDot: some of it does not hold for shards.
    """
    jaxpr = inline_calls(region.jaxpr)
    try:
        factors = factors_of(jaxpr)
        rule = rule_of(jaxpr, factors)
    except NoFactors as reason:
        raise UnsupportedDot(
            f"XLA partitions this program, and shards are no part of what is fused: {reason}"
        ) from None

    def body(*arrays: Array, sums: dict[str, Axes]) -> list[Array]:
        def product(eqn: JaxprEqn, operands: list[Array]) -> Array:
            out = type_of(eqn.outvars[0]).dtype
            dtype = partial_sum_type(out) if sums else eqn.params["preferred_element_type"]
            params = eqn.params | {"preferred_element_type": dtype, "out_sharding": None}
            return sum_over(nano_dot_general_p.bind(*operands, **params), sums).astype(out)

        return fused(lambda *arrays: evaluate(jaxpr, factors, arrays, product))(*arrays)

    is_last = jaxpr.eqns[-1].primitive in DOTS  # nothing follows the sum
    return Shards(rule, body, f"region {jaxpr} {region.kernel.precision}", scatters=is_last)


def rule_of(jaxpr: Jaxpr, factors: Factors) -> ShardingRule:
    """The rule of a region.

    Raises:
      NoFactors: an array has a factor twice, or a sum is in a result.
    """
    names: dict[Place, str] = {}
    sizes: dict[str, int] = {}
    for i, (place, width, column) in enumerate(factors.panels):
        names[factors.find(place)], sizes[f"w{i}"] = f"p{i}", width
        names[factors.find(column)] = f"p{i}{GROUPED}w{i}"

    def name(x: Any, i: int) -> str:
        return names.setdefault(factors.find((x, i)), f"f{len(names)}")

    def of(x: Any) -> tuple[str, ...]:
        return tuple(name(x, i) for i in range(type_of(x).ndim))

    operands, results = tuple(map(of, jaxpr.invars)), tuple(map(of, jaxpr.outvars))
    sums = tuple(dict.fromkeys(name(*place) for place in factors.sums))
    fixed = {name(*place) for place in factors.fixed}
    if any(len({*dims}) < len(dims) for dims in (*operands, *results)):
        raise NoFactors("one array is both operands")
    if {*sums} & {x for dims in results for x in dims}:
        raise NoFactors("a sum that is in the result")
    known = {x for dims in (*operands, *results) for x in dims}
    ones = {
        x for array, dims in zip(jaxpr.invars, operands, strict=True)
        for x, n in zip(dims, type_of(array).shape, strict=True) if n == 1
    }  # fmt: skip
    fixed = (fixed | ones) & known
    return ShardingRule(
        operands=operands, results=results, sums=tuple(x for x in sums if x in known - fixed),
        fixed=tuple(sorted(fixed)), sizes=tuple(sizes.items()), even=sums,
    )  # fmt: skip
