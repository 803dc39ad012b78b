"""Costs for jax.experimental.roofline: once this module is imported, it counts jax_nano's products like lax's.

It stands apart because jax.experimental.roofline needs absl-py, which JAX itself does not bring.
"""

from __future__ import annotations

from jax.experimental.roofline import register_roofline
from jax.experimental.roofline.roofline import _rooflines as _rules
from jax.extend.core.primitives import dot_general_p

from jax_nano.jaxpr.primitives import nano_dot_general_p

register_roofline(nano_dot_general_p)(_rules[dot_general_p])
