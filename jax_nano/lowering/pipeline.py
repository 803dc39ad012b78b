"""The passes from a program to one whose products are kernels, in order."""

from __future__ import annotations

from jax.extend.core import Jaxpr

from jax_nano.jaxpr.fusion import fused, light_call
from jax_nano.jaxpr.inline import written_out
from jax_nano.jaxpr.narrow_sums import summed
from jax_nano.jaxpr.scatter_add import scattered
from jax_nano.weights.int8_activations import with_integer_activations


def optimized(jaxpr: Jaxpr, *, every_prologue: bool = False) -> Jaxpr:
    """The jaxpr with a nano_region for each product that has a kernel.

    Args:
      jaxpr: a program.
      every_prologue: whether elementwise work on A is fused however long it takes.
    """
    return fused(with_integer_activations(scattered(summed(written_out(jaxpr, light_call)))), every_prologue)
