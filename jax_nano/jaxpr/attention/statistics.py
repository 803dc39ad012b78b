"""What gradient kernels of attention are given of rows beside logarithms of sums and deltas."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_nano.ir.attention import MASKED


class RowStatistics(NamedTuple):
    """The numbers of rows that ir.attention_gradient describes: [B, N, T], [B, N, T] and [B, K, Hv]."""

    rest: Array
    hidden: Array
    average: Array

    @classmethod
    def none(cls, out_ct: Array, lse: Array, heads: int) -> RowStatistics:
        """Of rows whose exponentials add up to 1, and of which none is without keys."""
        zeros = jnp.zeros_like(lse)
        return cls(zeros, zeros, jnp.zeros((out_ct.shape[0], heads, out_ct.shape[3]), lse.dtype))

    def with_blind_rows(self, out_ct: Array, lse: Array, keys: int, *, biased: bool) -> RowStatistics:
        """With what rows add to all values whose keys are all masked.

        Args:
          out_ct: cotangents of the result, [B, T, N, Hv].
          lse: logarithms of sums of exponentials, [B, N, T].
          keys: how many there are.
          biased: scores of keys that are not masked may be as small as those that are.
        """
        b, t, n, depth = out_ct.shape
        heads, zero = self.average.shape[1], jnp.zeros((), lse.dtype)
        of_pair = jnp.exp(MASKED - lse - self.rest) if biased else jnp.asarray(1 / keys, lse.dtype)
        hidden = jnp.where(lse < MASKED / 2, of_pair, zero)
        grouped = out_ct.reshape(b, t, heads, n // heads, depth), hidden.reshape(b, heads, n // heads, t)
        average = jnp.einsum("btkgv,bkgt->bkv", *grouped, preferred_element_type=lse.dtype)
        return RowStatistics(self.rest, hidden, average)
