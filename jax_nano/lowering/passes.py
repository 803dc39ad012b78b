"""The passes from a program to one whose products are kernels: `print(PASSES)` shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from jax.extend.core import Jaxpr, JaxprEqn

from jax_nano.jaxpr.attention.fusion import fuse_attention
from jax_nano.jaxpr.fusion import fuse_products
from jax_nano.jaxpr.inline import inline_calls, type_of, without_repeated
from jax_nano.jaxpr.legality import inlinable
from jax_nano.jaxpr.narrow_sums import rewrite_narrow_sums
from jax_nano.jaxpr.primitives import ORIGINALS
from jax_nano.jaxpr.scatter_add import rewrite_scatter_adds
from jax_nano.lowering.pooling import simplify_pooling
from jax_nano.lowering.simple_convolutions import simplify_convolutions
from jax_nano.lowering.work_on_parts import work_on_parts
from jax_nano.runtime.report import Report, tell
from jax_nano.weights.int8_activations import quantize_activations
from jax_nano.weights.int8_images import quantize_images


@dataclass(frozen=True)
class Pass:
    """A rewrite of a jaxpr into one that takes and gives the same."""

    name: str
    run: Callable[[Jaxpr], Jaxpr] = field(repr=False)

    def __repr__(self) -> str:
        return self.name


def _tell_unfused(product: JaxprEqn, reason: str) -> None:
    """Reports a softmax before a product that is left alone."""
    types = " x ".join(f"{type_of(x).dtype}{[*type_of(x).shape]}" for x in product.invars)
    tell(Report(equation=f"attention that ends in {types}", reason=reason, otherwise="its equations"))


PASSES = [
    Pass("inline", partial(inline_calls, body=inlinable)),
    Pass("repeated_products", partial(without_repeated, primitives=ORIGINALS)),
    Pass("attention", partial(fuse_attention, unfused=_tell_unfused)),
    Pass("narrow_sums", rewrite_narrow_sums),
    Pass("scatter_add", rewrite_scatter_adds),
    Pass("int8_activations", quantize_activations),
    Pass("int8_images", quantize_images),
    Pass("work_on_parts", work_on_parts),
    Pass("simplify_convolutions", simplify_convolutions),
    Pass("simplify_pooling", simplify_pooling),
    Pass("fuse", fuse_products),
]
"""For `accelerate`."""

WHOLE_PASSES = [*PASSES[:-1], Pass("fuse_whole", partial(fuse_products, every_prologue=True))]
"""For `fused_matmul`: all elementwise work on A is fused, whether that pays or not."""


def run_passes(jaxpr: Jaxpr, passes: Sequence[Pass] = tuple(PASSES)) -> Jaxpr:
    """Runs passes one after the other."""
    for each in passes:
        jaxpr = each.run(jaxpr)
    return jaxpr
