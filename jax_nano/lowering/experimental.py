"""The rules of jax.experimental.jet and jax.experimental.sparse, and of rematerialization under jax_remat3.

Each primitive of jax_nano goes by the rules of the program that it stands for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.extend.core.primitives import transpose_p

from jax_nano.jaxpr.primitives import (
    DOUBLES,
    ORIGINALS,
    nano_dequantize_p,
    nano_dot_general_p,
    nano_region_p,
    nano_transpose_p,
    nano_unpack_p,
)
from jax_nano.jaxpr.private import register_remat3_rule
from jax_nano.jaxpr.region import Region

Rewrite = Callable[[Callable[..., Any]], Callable[..., Any]]
Product = tuple[Primitive, list[Any], dict[str, Any]]  # that policies know: its types and parameters
SPARSE = "jax.experimental.sparse.transform"


def register_jet_rules(nano: Rewrite, accelerated: Rewrite) -> None:
    """Registers Taylor-mode rules: those of the programs, whose products are kernels again.

    Args:
      nano: gives a function jax_nano's products.
      accelerated: does so, and fuses what is around them.
    """

    def of_product(original: Primitive) -> Callable[..., Any]:
        def rule(primals: Sequence[Any], series: Sequence[Any], **params: Any) -> Any:
            return nano(lambda primals, series: jet.jet_rules[original](primals, series, **params))(primals, series)

        return rule

    def of_region(primals: Sequence[Any], series: Sequence[Any], *, region: Region, **_: Any) -> Any:
        return accelerated(lambda primals, series: jet.jet(region, primals, series, factorial_scaled=False))(
            primals, series
        )

    def of_linear(primitive: Primitive, primals: Sequence[Any], series: Sequence[Any], **params: Any) -> Any:
        (x,), (terms,) = primals, series
        return primitive.bind(x, **params), [primitive.bind(term, **params) for term in terms]

    def of_integers(primals: Sequence[Any], series: Sequence[Any], **params: Any) -> Any:
        """Integers have no derivative; the array is linear in the scales."""
        values, scales, *zeros = primals
        _, terms, *_ = series
        return nano_dequantize_p.bind(values, scales, *zeros, **params), [
            nano_dequantize_p.bind(values, term, *zeros, **params) for term in terms
        ]

    for original, double in DOUBLES.items():
        jet.jet_rules[double] = of_product(original)
    jet.jet_rules[nano_region_p] = of_region
    for primitive in (nano_unpack_p, nano_transpose_p):
        jet.jet_rules[primitive] = partial(of_linear, primitive)
    jet.jet_rules[nano_dequantize_p] = of_integers


def register_sparse_rules() -> None:
    """Registers the rules of `sparsify` once jax.experimental.sparse is there, which takes 100 ms to import."""
    transform = sys.modules.get(SPARSE)
    if transform is None or nano_dot_general_p in transform.sparse_rules_bcoo:
        return
    for rules in (transform.sparse_rules_bcoo, transform.sparse_rules_bcsr):
        rules.update({double: rules[original] for original, double in DOUBLES.items() if original in rules})
        rules[nano_region_p] = _sparse_region
        if transpose_p in rules:
            rules[nano_transpose_p] = rules[transpose_p]


def _sparse_region(spenv: Any, *values: Any, region: Region, **_: Any) -> Any:
    return sys.modules[SPARSE].eval_sparse(region.jaxpr, (), values, spenv)


def register_remat3_rules() -> None:
    """Registers rules of jax.checkpoint in which policies are asked about the product that a primitive stands for."""

    def of_product(original: Primitive) -> Callable[..., Product]:
        return lambda arrays, params: (original, list(map(jax.typeof, arrays)), params)

    def of_region(_: Sequence[Any], params: dict[str, Any]) -> Product:
        product = params["region"].product
        return ORIGINALS[product.primitive], [x.aval for x in product.invars], product.params

    for original, double in DOUBLES.items():
        register_remat3_rule(double, of_product(original))
    register_remat3_rule(nano_region_p, of_region)
