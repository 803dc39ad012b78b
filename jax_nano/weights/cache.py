"""Key-value caches of 8-bit integers with a scale for each head and token, which attention reads as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jax_nano.weights.weight import Weight

FLOATS = tuple(map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32)))
STEPS = 127  # on either side of 0


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scales"), meta_fields=("floats",))
@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedCache(Weight):
    """Keys or values of 8 bits: `quantize_cache` makes it. A pytree of arrays, for jit, scan and donation.

    `jax_nano.dot_product_attention` takes it as key or value, and reads its integers. To all other functions of JAX it
    is the array that it stands for, values * scales.

    Attributes:
      values: int8 (B, S, K, H).
      scales: float32 (B, S, K): what a step of each token's head is.
      floats: the type of what it stands for.
    """

    values: Array
    scales: Array
    floats: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array it stands for."""
        return self.values.shape

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
        return (self.values.astype(jnp.float32) * self.scales[..., None]).astype(self.floats)

    def __jax_array__(self) -> Array:
        return self.dequantize()

    def update(self, tokens: ArrayLike, index: ArrayLike) -> QuantizedCache:
        """The cache with tokens (B, tokens, K, H) from an index on, as lax.dynamic_update_slice has it.

        Where the cache is donated, or carried by a loop, that is done in place.

        Raises:
          ValueError: tokens of another shape.
        """
        tokens = jnp.asarray(tokens)
        if tokens.ndim != self.ndim or tokens.shape[:-3] + tokens.shape[-2:] != self.shape[:-3] + self.shape[-2:]:
            raise ValueError(f"tokens of shape {tokens.shape} have no place in a cache of {self.shape}")
        part, axis = quantize_cache(tokens), self.ndim - 3
        put = partial(lax.dynamic_update_slice_in_dim, start_index=index, axis=axis)
        return replace(self, values=put(self.values, part.values), scales=put(self.scales, part.scales))


def quantize_cache(x: ArrayLike) -> QuantizedCache:
    """Rounds keys or values to integers from -127 to 127, by the largest magnitude of each token's head.

    No number moves by more than half a scale: 1 / 254 of the largest of its head.

    Args:
      x: (B, S, K, H), or (S, K, H), of bf16, f16 or f32; zeros make an empty cache.

    Raises:
      TypeError: x is of another type.
      ValueError: x has other dimensions.
    """
    x = jnp.asarray(x)
    if x.dtype not in FLOATS:
        raise TypeError(f"a cache of {x.dtype} is not quantized; give bfloat16, float16 or float32")
    if x.ndim not in (3, 4):
        raise ValueError(f"a cache is (B, S, K, H) or (S, K, H); this has the shape {x.shape}")
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(-1)
    scales = jnp.where(largest > 0, largest / STEPS, 1.0)
    values = jnp.clip(jnp.round(wide / scales[..., None]), -STEPS, STEPS).astype(jnp.int8)
    return QuantizedCache(values=values, scales=scales, floats=x.dtype)
