"""The gradients of an attention: a frozen description of what a kernel computes of its scores a second time.

    p = exp(scale * q . k + bias - lse - rest)      ds = p * (do . v - delta)
    dQ = scale * dS K      dK = scale * dS^T Q      dV = P^T dO      dB = dS, added up where the bias is broadcast

lse are the logarithms of sums of exponentials that the attention left, delta is rowsum(dO * O) less the cotangent of
lse. One kernel has dQ, of which tasks are blocks of queries, and another one dK and dV, of which they are blocks of
keys: so each sum has one order, and nothing is added up by several tasks.

Masked pairs have neither p nor ds. Rows whose keys are all masked average all values: what they add to dV is the same
for all keys, and is given as `average`, with which dV begins. Beside a bias, two more numbers of each query are given:
`rest`, the logarithm of what exponentials add up to, as a large lse has lost it; and `hidden`, the probability of each
masked pair, which is in `average` for all keys, and taken from the p of those that are not masked.

Source: Dao et al., "FlashAttention" (arXiv 2205.14135), algorithm 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jax_nano.ir.attention import Attention, AttentionArray, Role, UnsupportedAttention
from jax_nano.ir.attention_spec import AttentionSpec, hides_rows

Of = Literal["queries", "keys"]
STATISTICS: tuple[Role, ...] = ("logsumexp", "delta", "rest", "hidden")
"""What may be given of each query."""


@dataclass(frozen=True, kw_only=True)
class AttentionGradient(Attention):
    """Gradients with respect to queries, or to keys and values.

    Attributes:
      of: of which operands.
      cotangent: strides of dO over (b, h, g, t, d); those of the gradients are `out`, and of dV those of an array that
        is row-major [B, S, K, Hv], as that of dK is [B, S, K, H].
    """

    of: Of
    cotangent: tuple[int, int, int, int, int]

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
        like = (query,) if self.of == "queries" else (key, value)
        return (*given, *(AttentionArray("out", array.dtype, array.elements) for array in like))

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
        """Of the three products of dQ, or the four of dK and dV."""
        pairs = self.batch * self.query_heads * self.queries * self.keys * self.visible
        sums = self.depth if self.of == "queries" else self.depth + self.value_depth
        return pairs * (self.depth + self.value_depth + sums)

    @property
    def label(self) -> str:
        """Sizes and types, as names of kernels have them."""
        return super().label.replace("attention", f"attention_gradient_of_{self.of}", 1)


def has_gradient_kernels(spec: AttentionSpec) -> bool:
    """Whether kernels have the gradients: not of score functions, block masks and quantized caches."""
    return not (spec.score or spec.blocks or spec.quantized)
