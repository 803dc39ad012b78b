"""Costs for jax.experimental.roofline: once this module is imported, it counts jax_nano's products like lax's.

It stands apart because jax.experimental.roofline needs absl-py, which JAX itself does not bring.
"""

from __future__ import annotations

from jax.experimental.roofline import register_roofline
from jax.extend.core.primitives import transpose_p

from jax_nano.jaxpr.primitives import DOUBLES, nano_transpose_p
from jax_nano.jaxpr.private import roofline_rule

for original, double in {**DOUBLES, transpose_p: nano_transpose_p}.items():
    if rule := roofline_rule(original):
        register_roofline(double)(rule)
