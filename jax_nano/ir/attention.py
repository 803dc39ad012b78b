"""Attention: a frozen description of two products and the softmax between them, of what to compute and nothing of how.

    O[b, h, g, t, :]  =  softmax over s of (scale * Q[b, h, g, t, :] . K[b, h, s, :] + bias, masked) @ V[b, h, s, :]

b runs over the batch, h over heads of keys and values, g over the query heads that share one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.dtypes import bytes_of
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.ir.pipeline import Pipeline
from jax_nano.ir.score_function import ScoreFunction

Role = Literal["query", "key", "value", "bias", "score", "mask", "query_lengths", "key_lengths", "blocks",
               "key_scales", "value_scales", "out", "cotangent", "logsumexp", "delta", "rest", "hidden",
               "average"]  # fmt: skip

MASKED = float(-0.7 * np.finfo(np.float32).max)
"""The score of a masked pair, as jax.nn has it: finite, so that a row whose keys are all masked averages V."""


class UnsupportedAttention(UnsupportedDot):
    """jax_nano has no kernel for an attention; its text says why."""


class AttentionArray(NamedTuple):
    """One of the arrays that a kernel is given."""

    role: Role
    dtype: str
    elements: int  # in memory


@dataclass(frozen=True, kw_only=True)
class ScoreArray:
    """An array that broadcasts to the scores."""

    dtype: str
    elements: int  # in memory
    strides: tuple[int, int, int, int, int]  # over (b, h, g, t, s), elements; 0 where it is broadcast


@dataclass(frozen=True, kw_only=True)
class BlockArray:
    """Truth values, of which each says whether a block of queries and keys is visited at all."""

    queries: int  # of a block
    keys: int
    elements: int  # in memory
    strides: tuple[int, int, int, int, int]  # over (b, h, g, blocks of queries, blocks of keys); 0 where broadcast


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Sizes, types, layouts and masks of one attention. Strides are in elements.

    Attributes:
      batch: elements of b.
      heads: heads of keys and values.
      group: query heads that share one of those.
      queries: T.
      keys: S.
      depth: D, of a query and a key.
      value_depth: Dv, of a value and a row of the result.
      dtype: the type of Q, K, V and the result.
      query: strides of Q over (b, h, g, t, d).
      key: strides of K over (b, h, s, d).
      value: strides of V over (b, h, s, d).
      out: strides of the result over (b, h, g, t, d).
      scale: the factor of the scores.
      causal: keys behind the query's own place are masked.
      window: how many keys before the query's own place, and how many behind, are not masked.
      bias: what is added to scaled scores.
      score: what becomes of scores with their bias.
      score_arrays: the arrays that it takes.
      mask: truth values; false masks a pair.
      blocks: which blocks are visited at all; pairs of the others are masked by the score function.
      query_lengths: s32[batch] says how many queries there are; rows of the others are zero.
      key_lengths: s32[batch] says how many keys there are; the others are masked.
      key_scales: keys are s8, of which this has the factors: f32, the same for all queries.
      value_scales: values are s8, likewise.
      residual: the logarithms of the sums of exponentials are a second result, (b, h, g, t) row-major, of `acc`.
    """

    batch: int
    heads: int
    group: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    dtype: str
    query: tuple[int, int, int, int, int]
    key: tuple[int, int, int, int]
    value: tuple[int, int, int, int]
    out: tuple[int, int, int, int, int]
    scale: float
    causal: bool = False
    window: tuple[int, int] | None = None
    bias: ScoreArray | None = None
    score: ScoreFunction | None = None
    score_arrays: tuple[ScoreArray, ...] = ()
    mask: ScoreArray | None = None
    blocks: BlockArray | None = None
    query_lengths: bool = False
    key_lengths: bool = False
    key_scales: ScoreArray | None = None
    value_scales: ScoreArray | None = None
    residual: bool = False

    def __post_init__(self):
        if 0 in (self.batch, self.heads, self.group, self.queries, self.keys, self.depth, self.value_depth):
            raise UnsupportedAttention("a dimension is 0: there is nothing to compute")
        if self.dtype not in ("f64", "f32", "bf16", "f16"):
            raise UnsupportedAttention(f"no kernel attends in {self.dtype} (there are f64, f32, bf16, f16)")
        if self.dtype == "f64" and (self.key_scales or self.value_scales):
            raise UnsupportedAttention("no kernel reads integers as keys of f64; use f32, bf16 or f16")
        if self.bias and self.bias.dtype not in ("f64", "f32", "bf16", "f16"):
            raise UnsupportedAttention(f"no kernel adds a bias of {self.bias.dtype} to scores; convert it to f32")
        if self.bias and self.bias.dtype == "f64" != self.dtype:
            raise UnsupportedAttention(f"a bias of f64 would be rounded to scores of {self.acc}; convert it before")
        if self.mask and self.mask.dtype != "pred":
            raise UnsupportedAttention(f"a mask of {self.mask.dtype} has no truth values; compare it with 0")
        if self.out[-1] != 1:
            raise UnsupportedAttention("rows of the result are not contiguous")
        if not math.isfinite(self.scale):
            raise UnsupportedAttention(f"scores would be scaled by {self.scale}")
        for array in self.score_arrays:
            self.check_score_array(array)

    def check_score_array(self, array: ScoreArray) -> None:
        """Checks that a kernel reads an array of the score function.

        Raises:
          UnsupportedAttention: it differs between pairs, and its elements do not fit the type of scores.
        """
        *_, rows, columns = array.strides
        exact = {"f32": ("f32", "bf16", "f16", "s8", "u8", "pred"), "f64": ("f64", "pred")}
        if rows and columns and array.dtype not in exact[self.acc]:
            raise UnsupportedAttention(
                f"an array of {array.dtype} of the score function differs between pairs of queries and keys; "
                f"convert it to {self.acc}, or index one that runs over queries and one over keys"
            )

    @property
    def acc(self) -> str:
        """The type of scores and sums."""
        return "f64" if self.dtype == "f64" else "f32"

    @property
    def key_dtype(self) -> str:
        """The type of K in memory."""
        return "s8" if self.key_scales else self.dtype

    @property
    def value_dtype(self) -> str:
        """The type of V in memory."""
        return "s8" if self.value_scales else self.dtype

    @property
    def query_heads(self) -> int:
        """All query heads."""
        return self.heads * self.group

    @property
    def arrays(self) -> tuple[AttentionArray, ...]:
        """The arrays in the order in which kernels take them, the results last."""
        rows, keys = self.batch * self.query_heads * self.queries, self.batch * self.heads * self.keys
        arrays = [
            AttentionArray("query", self.dtype, rows * self.depth),
            AttentionArray("key", self.key_dtype, keys * self.depth),
            AttentionArray("value", self.value_dtype, keys * self.value_depth),
        ]
        arrays += [AttentionArray("bias", self.bias.dtype, self.bias.elements)] if self.bias else []
        count = self.score.differentiable if self.score else 0
        score_arrays = [AttentionArray("score", array.dtype, array.elements) for array in self.score_arrays]
        arrays += score_arrays[:count]
        arrays += [AttentionArray("mask", "pred", self.mask.elements)] if self.mask else []
        arrays += [AttentionArray("query_lengths", "s32", self.batch)] if self.query_lengths else []
        arrays += [AttentionArray("key_lengths", "s32", self.batch)] if self.key_lengths else []
        arrays += score_arrays[count:]
        arrays += [AttentionArray("blocks", "pred", self.blocks.elements)] if self.blocks else []
        scales: tuple[tuple[Role, ScoreArray | None], ...]
        scales = ("key_scales", self.key_scales), ("value_scales", self.value_scales)
        arrays += [AttentionArray(role, array.dtype, array.elements) for role, array in scales if array]
        arrays.append(AttentionArray("out", self.dtype, rows * self.value_depth))
        return (*arrays, AttentionArray("out", self.acc, rows)) if self.residual else tuple(arrays)

    @property
    def arrays_of_pairs(self) -> tuple[ScoreArray, ...]:
        """Those that broadcast to the scores."""
        return tuple(filter(None, (self.bias, self.mask, *self.score_arrays)))

    @property
    def may_hide(self) -> bool:
        """Whether pairs may be hidden by what a kernel learns only as it runs."""
        return self.mask is not None or (self.score is not None and self.score.may_hide(MASKED))

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(bytes_of(array.dtype, array.elements) for array in self.arrays)

    @property
    def visible(self) -> float:
        """The share of the scores that neither the causal mask nor the window rules out."""
        return self.visited(1, 1)

    def visited(self, queries: int, keys: int) -> float:
        """The share of the scores in blocks of so many queries and keys that these do not rule out whole."""
        first = np.arange(0, self.queries, queries)
        last = np.minimum(first + queries, self.queries) - 1
        left, right = self.window or (self.queries + self.keys,) * 2
        most = np.minimum(last + min(right, 0 if self.causal else right), self.keys - 1)
        end = np.minimum(most // keys * keys + keys, self.keys)
        seen = np.maximum(end - np.maximum(first - left, 0) // keys * keys, 0)
        return float((seen * (last - first + 1)).sum()) / (self.queries * self.keys)

    @property
    def multiplications(self) -> float:
        """Of both products, without those that masks rule out."""
        pairs = self.batch * self.query_heads * self.queries * self.keys * self.visible
        return pairs * (self.depth + self.value_depth)

    @property
    def label(self) -> str:
        """Sizes and types, as names of kernels have them."""
        batch = f"b{self.batch}" if self.batch > 1 else ""
        heads = f"h{self.query_heads}" + (f"kv{self.heads}" if self.group > 1 else "")
        depth = f"d{self.depth}" + (f"v{self.value_depth}" if self.value_depth != self.depth else "")
        flags = {
            "causal": self.causal, "window": self.window, "bias": self.bias, "score": self.score, "mask": self.mask,
            "blocks": self.blocks, "lengths": self.query_lengths or self.key_lengths,
            "s8": self.key_scales,
        }  # fmt: skip
        sizes = f"{batch}t{self.queries}s{self.keys}{heads}{depth}"
        return "_".join(["attention", self.dtype, sizes, *(name for name, is_set in flags.items() if is_set)])


Problem = Dot | Attention | Grouped | Gated | Pipeline
"""What a kernel computes."""
