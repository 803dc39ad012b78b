"""The gradients of an attention: a frozen description of what a kernel computes of its scores a second time.

    p = exp(scale * q . k - lse)      ds = scale * p * (do . v - delta)
    dQ = dS K                         dK = dS^T Q      dV = P^T dO

lse are the logarithms of sums of exponentials that the attention left, delta is rowsum(dO * O) less the cotangent of
lse. One kernel has dQ, of which tasks are blocks of queries, and another one dK and dV, of which they are blocks of
keys: so each sum has one order, and nothing is added up by several tasks.

Source: Dao et al., "FlashAttention" (arXiv 2205.14135), algorithm 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jax_nano.ir.attention import Attention, AttentionArray, UnsupportedAttention
from jax_nano.ir.attention_spec import AttentionSpec, hides_rows


@dataclass(frozen=True, kw_only=True)
class AttentionGradient(Attention):
    """Gradients with respect to queries, or to keys and values.

    Attributes:
      of: of which operands.
      cotangent: strides of dO over (b, h, g, t, d); those of the gradients are `out`, and of dV those of an array that
        is row-major [B, S, K, Hv], as that of dK is [B, S, K, H].
    """

    of: Literal["queries", "keys"]
    cotangent: tuple[int, int, int, int, int]

    def __post_init__(self):
        super().__post_init__()
        of_pairs = self.arrays_of_pairs or self.score or self.blocks
        if of_pairs or self.query_lengths or self.key_lengths or self.key_scales or self.residual:
            raise UnsupportedAttention(
                "no kernel has gradients of an attention with bias, score function, mask, lengths or quantized cache"
            )

    @property
    def arrays(self) -> tuple[AttentionArray, ...]:
        """The arrays in the order in which kernels take them, the results last."""
        rows, keys = self.batch * self.query_heads * self.queries, self.batch * self.heads * self.keys
        query = AttentionArray("query", self.dtype, rows * self.depth)
        key, value = (AttentionArray("key", self.dtype, keys * self.depth),
                      AttentionArray("value", self.dtype, keys * self.value_depth))  # fmt: skip
        statistics = (AttentionArray("logsumexp", self.acc, rows), AttentionArray("delta", self.acc, rows))
        given = (query, key, value, AttentionArray("cotangent", self.dtype, rows * self.value_depth), *statistics)
        like = (query,) if self.of == "queries" else (key, value)
        return (*given, *(AttentionArray("out", array.dtype, array.elements) for array in like))

    @property
    def multiplications(self) -> float:
        """Of the three products of dQ, or the four of dK and dV."""
        pairs = self.batch * self.query_heads * self.queries * self.keys * self.visible
        sums = self.depth if self.of == "queries" else self.depth + self.value_depth
        return pairs * (self.depth + self.value_depth + sums)

    @property
    def label(self) -> str:
        """Sizes and types, as names of kernels have them."""
        return super().label.replace("attention", f"attention_gradient_of_{self.of}", 1)


def has_gradient_kernels(spec: AttentionSpec, queries: int, keys: int) -> bool:
    """Whether kernels have the gradients: no operands but queries, keys, values; no score function; no blind query."""
    return not (spec.extras or spec.score or hides_rows(spec.causal, spec.window, queries, keys))
