"""The gradients of an attention: a frozen description of what a kernel computes of its scores a second time.

    p = exp(scale * q . k + bias - lse - rest)      ds = p * (do . v - delta)
    dQ = scale * dS K      dK = scale * dS^T Q      dV = P^T dO      dB = dS, added up where the bias is broadcast

lse are the logarithms of sums of exponentials that the attention left, delta is rowsum(dO * O) less the cotangent of
lse. One kernel has dQ, of which tasks are blocks of queries, another one dK and dV, of which they are blocks of keys,
and a third one dB: so each sum has one order, and nothing is added up by several tasks.

Masked pairs have neither p nor ds. Rows whose keys are all masked average all values: what they add to dV is the same
for all keys, and is given as `average`, with which dV begins. Beside a bias, two more numbers of each query are given:
`rest`, the logarithm of what exponentials add up to, as a large lse has lost it; and `hidden`, the probability of each
masked pair, which is in `average` for all keys, and taken from the p of those that are not masked.

Source: Dao et al., "FlashAttention" (arXiv 2205.14135), algorithm 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jax_nano.ir.attention import Attention, AttentionArray, Role, UnsupportedAttention
from jax_nano.ir.attention_spec import AttentionSpec, hides_rows

Of = Literal["queries", "keys", "bias"]
STATISTICS: tuple[Role, ...] = ("logsumexp", "delta", "rest", "hidden")
"""What may be given of each query."""


@dataclass(frozen=True, kw_only=True)
class AttentionGradient(Attention):
    """Gradients with respect to queries, to keys and values, or to the bias.

    Attributes:
      of: of which operands.
      cotangent: strides of dO over (b, h, g, t, d); those of the gradients are `out`, and of dV those of an array that
        is row-major [B, S, K, Hv], as that of dK is [B, S, K, H].
      bias_sizes: the first two sizes of dB, row-major [B | 1, N | 1, T, S]; 0 where it is not wanted.
    """

    of: Of
    cotangent: tuple[int, int, int, int, int]
    bias_sizes: tuple[int, int] = (0, 0)

    def __post_init__(self):
        super().__post_init__()
        if self.score or self.score_arrays or self.blocks or self.key_scales or self.residual:
            raise UnsupportedAttention(
                "no kernel has gradients of an attention with score function, block mask or quantized cache"
            )

    @property
    def arrays(self) -> tuple[AttentionArray, ...]:
        """The arrays in the order in which kernels take them, the results last."""
        rows, keys = self.batch * self.query_heads * self.queries, self.batch * self.heads * self.keys
        given = [array for array in super().arrays if array.role != "out"]
        query, key, value, *_ = given
        given.append(AttentionArray("cotangent", self.dtype, rows * self.value_depth))
        given += [AttentionArray(role, self.acc, rows) for role in self.statistics]
        if self.averages:
            given.append(AttentionArray("average", self.acc, keys // self.keys * self.value_depth))
        size = math.prod(self.bias_sizes) * self.queries * self.keys
        bias = (AttentionArray("bias", self.bias.dtype, size),) if self.bias else ()
        like = {"queries": (query,), "keys": (key, value), "bias": bias}[self.of]
        return (*given, *(AttentionArray("out", array.dtype, array.elements) for array in like))

    @property
    def sizes_of_bias(self) -> tuple[int, int, int]:
        """Over how many elements of the batch, heads of keys and query heads of each dB runs, and is not added up."""
        batch, heads = self.bias_sizes
        return (batch, self.heads, self.group) if heads > 1 else (batch, 1, 1)

    @property
    def statistics(self) -> tuple[Role, ...]:
        """What is given of each query."""
        unused = {"rest": not self.bias, "hidden": not (self.bias and self.averages)}
        return tuple(role for role in STATISTICS if not unused.get(role))

    @property
    def averages(self) -> bool:
        """Whether dV begins with what rows whose keys are all masked add to it."""
        return self.of == "keys" and (
            self.mask is not None or self.key_lengths or hides_rows(self.causal, self.window, self.queries, self.keys)
        )

    @property
    def multiplications(self) -> float:
        """Of the three products of dQ, the four of dK and dV, or the two of dB."""
        pairs = self.batch * self.query_heads * self.queries * self.keys * self.visible
        sums = {"queries": self.depth, "keys": self.depth + self.value_depth, "bias": 0}[self.of]
        return pairs * (self.depth + self.value_depth + sums)

    @property
    def label(self) -> str:
        """Sizes and types, as names of kernels have them."""
        return super().label.replace("attention", f"attention_gradient_of_{self.of}", 1)


def has_gradient_kernels(spec: AttentionSpec) -> bool:
    """Whether kernels have the gradients: not of score functions, block masks and quantized caches."""
    return not (spec.score or spec.blocks or spec.quantized)
