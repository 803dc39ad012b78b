"""Quantized weights: matrices of small integers that kernels multiply with floats, and how far products are off.

A weight of K x N is kept as integers q, scales s and, where asymmetric, zero points z: it stands for (q - z) * s. Each
column has one scale, or one for every group of rows. Integers of 4 bits stand eight in a word of 32, those of
neighbouring rows, where ir.packed_weight.step_bit says: kernels shift and look up pairs of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.interpreters import ad, batching, mlir, xla
from jax.typing import ArrayLike, DTypeLike

from jax_nano.ir.dtypes import INT4_PER_WORD
from jax_nano.ir.packed_weight import step_bit
from jax_nano.jaxpr.primitives import nano_dequantize_p
from jax_nano.weights.kernel_layout import KernelLayout, matrices_of
from jax_nano.weights.weight import Weight, pytree

FLOATS = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))
GROUPS = (32, 64, 128)
STEPS = 127  # on either side of 0, of 8-bit integers
_BITS = np.array([[step_bit(step)] for step in range(INT4_PER_WORD)], np.uint32)

no_derivative = (
    "a QuantizedWeight has no derivative: its integers do not change by small steps; differentiate with respect to the "
    "array that its dequantize() gives, and quantize the outcome"
)


@pytree(data=("values", "scales", "zeros"), meta=("bits", "group", "rows", "floats", "activations", "layout"))
@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedWeight(Weight):
    """A matrix of few bits, or several: `quantize` makes it. A pytree of arrays, to be handed to jitted functions.

    `jax_nano.matmul`, `conv_general_dilated` and the like multiply with the integers, and so do accelerated programs.
    To all other functions of JAX it is the array that it stands for. It has no derivative.

    Attributes:
      values: integers, (..., K, N); of 4 bits in words, (..., ceil(K / 8), N).
      scales: floats, (..., groups, N).
      zeros: zero points, likewise; None where symmetric.
      bits: of an integer, 8 or 4.
      group: rows that share a scale; None where all do.
      rows: K.
      floats: the type of what it stands for.
      activations: "int8" where products quantize the other operand as well.
      layout: of a convolution's kernels, whose rows go over taps and input channels.
    """

    values: Array
    scales: Array
    zeros: Array | None
    bits: int
    group: int | None
    rows: int
    floats: np.dtype
    activations: Literal["int8"] | None
    layout: KernelLayout | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        matrices = (*self.values.shape[:-2], self.rows, self.values.shape[-1])
        return self.layout.shape(matrices) if self.layout else matrices

    @property
    def dtype(self) -> np.dtype:
        """That of the array it stands for."""
        return self.floats

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))

    def dequantize(self) -> Array:
        """The array it stands for."""
        zeros = () if self.zeros is None else (self.zeros,)
        matrices = nano_dequantize_p.bind(
            self.values, self.scales, *zeros,
            bits=self.bits, group=self.group, rows=self.rows, dtype=self.floats, activations=self.activations,
        )  # fmt: skip
        return self.layout.kernel(matrices) if self.layout else matrices

    def __jax_array__(self) -> Array:
        return self.dequantize()


def quantize(  # noqa: PLR0913
    w: ArrayLike,
    *,
    bits: Literal[8, 4] = 8,
    group: Literal[32, 64, 128] | None = None,
    symmetric: bool = True,
    activations: Literal["int8"] | None = None,
    kernel: str | None = None,
) -> QuantizedWeight:
    """Rounds a weight to integers, which take half or a quarter of bf16's memory: products of few rows wait for that.

    Symmetric integers reach from -127 to 127, or -7 to 7, the largest magnitude of a group being the end of the range.
    Asymmetric ones reach from 0 to 255, or 15, over the group's values and 0. No weight moves by more than half a
    scale.

    A convolution's kernel is a matrix whose rows go over taps and input channels, in this order.

    Args:
      w: (..., K, N) of bf16, f16 or f32, whose products sum over K: `x @ w`; or (..., *kernel).
      bits: of an integer.
      group: rows that share a scale; by default all of a column.
      symmetric: whether 0 stands in the middle of the range.
      activations: "int8" multiplies integers with integers: products round each row of the other operand to 127 steps,
        convolutions each image.
      kernel: dimensions of a convolution's kernel, as lax.conv_general_dilated names them: "HWIO", "OIHW".

    Raises:
      TypeError: w is not of floats that kernels multiply.
      ValueError: w is no matrix and no such kernel, or has no elements, or there is no such option.
    """
    w = jnp.asarray(w)
    _check_weight(w)
    _check_options(bits, group, activations, symmetric=symmetric)
    w, layout = matrices_of(w, kernel)
    group = None if group is None or group >= w.shape[-2] else group
    values, scales, zeros = _quantize(w, bits=bits, group=group, symmetric=symmetric)
    return QuantizedWeight(
        values=values, scales=scales, zeros=zeros,
        bits=bits, group=group, rows=w.shape[-2], floats=w.dtype, activations=activations, layout=layout,
    )  # fmt: skip


def quantization_error(x: ArrayLike, w: QuantizedWeight, dtype: DTypeLike = jnp.float32) -> Array:
    """How far `jax_nano.matmul(x, w)` is, at most, from the product of x and the weight that was quantized.

    With s the scale of an element and q its integer less its zero point, the weight was within s / 2 of s |q|, and so
    elementwise, u being f32's 2**-24 and v the result's unit roundoff:

        error  <=  |x| (s / 2)  +  2 (K + 4) u |x| (s |q|)  +  v |result|

    The second term is that of sums of K products, by groups and scaled, with a rounding of each scale. Where products
    round the activations, a row x moves by half of its step, max |x| / 127: the product by at most sum(s |q|) / 2 of
    them. A weight of bf16 or f16 that is multiplied as the array it stands for (by other functions than products of
    jax_nano and accelerated programs, or along other dimensions than its rows) is rounded once more: v |x| (s |q|).

    Args:
      x: (..., M, K) or (K,), finite; for a convolution, what each place sees of the image, over taps and channels.
      w: (..., K, N), or a kernel.
      dtype: the type of the result.

    Returns:
      A bound for each element of x @ w, in f32.

    Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1, for the sums; what is
    rounded to the nearest step moves by half of it.
    """
    magnitude = jnp.abs(jnp.asarray(x).astype(jnp.float32))
    wide = replace(w, floats=jnp.dtype(jnp.float32), activations=None, layout=None).dequantize()
    scales = jnp.broadcast_to(_for_each_row(w.scales.astype(jnp.float32), w.group, w.rows), wide.shape)
    roundoff = float(jnp.finfo(jnp.float32).eps)
    rounded = scales * (0.5 * (1 + 2 * (1 << w.bits) * roundoff))
    error = jnp.matmul(magnitude, rounded + (w.rows + 4) * roundoff * jnp.abs(wide), precision="highest")
    if w.activations:
        steps = magnitude.max(-1, keepdims=True) / STEPS
        columns = (jnp.abs(wide) + rounded).sum(-2)
        moved = steps * (columns if magnitude.ndim == 1 else columns[..., None, :]) / 2
        error += moved * (1 + (w.rows + 4) * roundoff)
    result = jnp.abs(jnp.matmul(jnp.asarray(x).astype(jnp.float32), wide, precision="highest"))
    return (error + float(jnp.finfo(dtype).eps) / 2 * (result + error)) * (1 + (w.rows + 4) * roundoff)


def _check_weight(w: Array) -> None:
    if w.dtype not in FLOATS:
        raise TypeError(f"a weight of {w.dtype} cannot be quantized; convert it to bfloat16, float16 or float32")
    if w.ndim < 2 or not w.size:
        raise ValueError(
            f"a weight of the shape {w.shape} cannot be quantized; its last two dimensions have to be (K, N)"
        )


def _check_options(bits: int, group: int | None, activations: str | None, *, symmetric: bool) -> None:
    if bits not in (8, 4):
        raise ValueError(f"bits={bits}: weights are quantized to 8 or 4 bits")
    if group not in (None, *GROUPS):
        raise ValueError(f"group={group}: {', '.join(map(str, GROUPS))} rows share a scale, or all of them: None")
    if activations not in (None, "int8"):
        raise ValueError(f'activations={activations!r}: they stay as they are (None) or are quantized to "int8"')
    if activations and (group or not symmetric):
        raise ValueError('activations="int8" goes with one scale for a column: group=None and symmetric=True')


@partial(jax.jit, static_argnames=("bits", "group", "symmetric"))
def _quantize(w: Array, *, bits: int, group: int | None, symmetric: bool) -> tuple[Array, Array, Array | None]:
    rows, wide = w.shape[-2], w.astype(jnp.float32)
    grouped = _pad_rows(wide, group or rows).reshape(*w.shape[:-2], -1, group or rows, w.shape[-1])
    low, high = jnp.minimum(grouped.min(-2), 0), jnp.maximum(grouped.max(-2), 0)
    spread, steps = (jnp.maximum(high, -low), (1 << (bits - 1)) - 1) if symmetric else (high - low, (1 << bits) - 1)
    scales = jnp.where(spread > 0, spread / steps, 1)
    if w.dtype == jnp.bfloat16:  # rounded up, lest the largest weight be beyond the last step
        rounded = scales.astype(jnp.bfloat16)
        scales = jnp.where(rounded < scales, jnp.nextafter(rounded, jnp.full_like(rounded, jnp.inf)), rounded)
    wide_scales = scales.astype(jnp.float32)
    zeros = None if symmetric else jnp.clip(jnp.round(-low / wide_scales), 0, steps)
    values = jnp.round(wide / _for_each_row(wide_scales, group, rows))
    if zeros is None:
        values = jnp.clip(values, -steps, steps).astype(jnp.int8)
    else:
        values = jnp.clip(values + _for_each_row(zeros, group, rows), 0, steps).astype(jnp.uint8)
        zeros = zeros.astype(jnp.uint8)
    return (_pack_int4(values) if bits == 4 else values), scales, zeros


def _pad_rows(x: Array, multiple: int) -> Array:
    """Adds rows of zeros until there is a multiple of them."""
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, -x.shape[-2] % multiple), (0, 0)])


def _for_each_row(x: Array, group: int | None, rows: int) -> Array:
    """Repeats what belongs to a group for each of its rows; one row stands for all where there is one group."""
    return x if group is None else jnp.repeat(x, group, axis=-2)[..., :rows, :]


def _pack_int4(values: Array) -> Array:
    """Packs integers of 4 bits, eight rows in one of words."""
    codes = _pad_rows(values, INT4_PER_WORD).astype(jnp.uint32) & 15
    steps = codes.reshape(*values.shape[:-2], -1, INT4_PER_WORD, values.shape[-1])
    return (steps << _BITS).sum(-2, dtype=jnp.uint32)


def _unpack_int4(words: Array, rows: int, *, signed: bool) -> Array:
    """Unpacks the rows of integers in words."""
    codes = (words[..., None, :] >> _BITS & 15).astype(jnp.int32)
    codes = (codes ^ 8) - 8 if signed else codes
    return codes.reshape(*words.shape[:-2], -1, words.shape[-1])[..., :rows, :]


def _dequantize(  # noqa: PLR0913  the parameters of the primitive
    values: Array, scales: Array, *zeros: Array, bits: int, group: int | None, rows: int, dtype: np.dtype,
    activations: str | None,  # noqa: ARG001
) -> Array:  # fmt: skip
    if bits == 4:
        values = _unpack_int4(values, rows, signed=not zeros)
    steps = values.astype(jnp.int32)
    if zeros:
        steps -= _for_each_row(zeros[0], group, rows).astype(jnp.int32)
    return (steps.astype(jnp.float32) * _for_each_row(scales.astype(jnp.float32), group, rows)).astype(dtype)


def _abstract(values: Any, *_: Any, rows: int, dtype: np.dtype, **__: Any) -> Any:
    return values.update(shape=(*values.shape[:-2], rows, values.shape[-1]), dtype=dtype, weak_type=False)


def _jvp(primals, tangents, **params):
    if not all(type(t) is ad.Zero or jax.typeof(t).dtype == jax.dtypes.float0 for t in tangents):
        raise TypeError(no_derivative)
    out = nano_dequantize_p.bind(*primals, **params)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())


def _batch(arrays, axes, **params):
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    moved = [batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays, axes, strict=True)]
    return nano_dequantize_p.bind(*moved, **params), 0


nano_dequantize_p.def_impl(partial(xla.apply_primitive, nano_dequantize_p))
nano_dequantize_p.def_abstract_eval(_abstract)
ad.primitive_jvps[nano_dequantize_p] = _jvp
batching.primitive_batchers[nano_dequantize_p] = _batch
mlir.register_lowering(nano_dequantize_p, mlir.lower_fun(_dequantize, multiple_results=False))
