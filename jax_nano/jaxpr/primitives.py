"""The primitives of jax_nano, without their rules."""

from __future__ import annotations

from jax.extend.core import Primitive
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p

from jax_nano.jaxpr.private import ragged_dot_general_p

nano_dot_general_p = Primitive("nano_dot_general")
"""lax.dot_general_p's double: the same parameters, types, errors and derivatives."""


nano_conv_general_dilated_p = Primitive("nano_conv_general_dilated")
"""lax.conv_general_dilated_p's double, likewise."""


nano_ragged_dot_general_p = Primitive("nano_ragged_dot_general")
"""lax.ragged_dot_general_p's double, likewise."""


nano_transpose_p = Primitive("nano_transpose")
"""lax.transpose_p's double, whose result is in memory: products do not read through it."""


DOUBLES = {
    dot_general_p: nano_dot_general_p,
    conv_general_dilated_p: nano_conv_general_dilated_p,
    ragged_dot_general_p: nano_ragged_dot_general_p,
}
"""What stands in the place of JAX's primitives in programs whose products are jax_nano's."""


nano_region_p = Primitive("nano_region")
"""Computes its parameter `region` of its operands; `limits` and `upcoming` tell of the program around it."""


nano_unpack_p = Primitive("nano_unpack")
"""The matrices in panels (..., N / width, K / vnni, width, vnni), with parameters k and n; see ir.packed_weight."""


ORIGINALS = {primitive: original for original, double in DOUBLES.items() for primitive in (original, double)}
"""JAX's primitives by themselves and their doubles."""
DOTS = frozenset({dot_general_p, nano_dot_general_p})
CONVOLUTIONS = frozenset({conv_general_dilated_p, nano_conv_general_dilated_p})
PRODUCTS = DOTS | CONVOLUTIONS
GROUPED_PRODUCTS = frozenset({ragged_dot_general_p, nano_ragged_dot_general_p})
FUSED_PRODUCTS = PRODUCTS | GROUPED_PRODUCTS
"""The products that regions are made of."""


nano_dequantize_p = Primitive("nano_dequantize")
"""The floats that integers, scales and zero points stand for: a product that reads them computes on the integers."""


nano_attention_p = Primitive("nano_attention")
"""Attention of [B, T, N, H] to [B, S, K, H] and [B, S, K, Hv], with parameter `spec`, an AttentionSpec.

Behind these operands stand those of `spec.extras`: a bias and a mask that broadcast to [B, N, T, S], lengths [B]. The
results are [B, T, N, Hv] and, if asked for, the logarithms of the sums of exponentials, [B, N, T].
"""
nano_attention_p.multiple_results = True

nano_attention_tangent_p = Primitive("nano_attention_tangent")
"""The tangents of nano_attention's results, linear in those of its operands.

Its operands are those of nano_attention, both results of that, and the tangents of those that have any.
"""
nano_attention_tangent_p.multiple_results = True

nano_loop_p = Primitive("nano_loop")
"""A loop that is a kernel, its parameter `kernel`; only loops that are lowered become that."""
nano_loop_p.multiple_results = True

nano_attention_gradient_p = Primitive("nano_attention_gradient")
"""Gradients of an attention without bias, mask and lengths, with parameters `spec` and `of`; see ir.attention_gradient.

Its operands are queries, keys, values, cotangents [B, T, N, Hv], and logarithms of sums of exponentials and deltas
[B, N, T]; its results the gradients of queries, or of keys and of values.
"""
nano_attention_gradient_p.multiple_results = True
