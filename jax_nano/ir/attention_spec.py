"""What the primitive of attention is told beside its operands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from jax_nano.ir.score_function import ScoreFunction

SCALES = "key_scales", "value_scales"


def hides_rows(causal: bool, window: tuple[int, int] | None, queries: int, keys: int) -> bool:  # noqa: FBT001  as fields
    """Is true where masks by place hide all keys from some query: it averages all values.

    Args:
      causal: keys behind the query's own place are masked.
      window: how many keys before and behind that are not; negative where those next to it are, too.
      queries: how many there are.
      keys: how many there are, at least one.
    """
    if window is None:
        return False
    left, right = window
    right = min(right, 0) if causal else right
    return right < 0 or left + right < 0 or queries - 1 - left >= keys


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Scale, masks and results of an attention, and which operands it has.

    Attributes:
      scale: the factor of the scores.
      causal: keys behind the query's own place are masked.
      window: how many keys before the query's own place, and how many behind, are not masked.
      bias: there is an operand that is added to scores.
      score: what becomes of scores then, before masks; its arrays are operands.
      mask: there is one of truth values.
      blocks: there is one that says which blocks of so many queries and keys are visited at all.
      query_lengths: there is one that says how many queries there are.
      key_lengths: there is one that says how many keys there are.
      quantized: keys and values are integers, and there are two that have their scales.
      residual: the logarithms of the sums of exponentials are a second result.
    """

    scale: float
    causal: bool = False
    window: tuple[int, int] | None = None
    bias: bool = False
    score: ScoreFunction | None = None
    mask: bool = False
    blocks: tuple[int, int] | None = None
    query_lengths: bool = False
    key_lengths: bool = False
    quantized: bool = False
    residual: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        """The operands behind queries, keys and values."""
        names = tuple(name for name in ("mask", "query_lengths", "key_lengths") if getattr(self, name))
        arrays, count = self.score_arrays, self.score.differentiable if self.score else 0
        blocks = ("blocks",) if self.blocks else ()
        return ("bias",) * self.bias + arrays[:count] + names + arrays[count:] + blocks + SCALES * self.quantized

    def with_operands(self, names: Collection[str]) -> AttentionSpec:
        """It with the operands of some names, beside those of a score function."""
        return replace(
            self,
            bias="bias" in names,
            mask="mask" in names,
            query_lengths="query_lengths" in names,
            key_lengths="key_lengths" in names,
        )

    @property
    def score_arrays(self) -> tuple[str, ...]:
        """The names of the score function's arrays, among `extras`."""
        return tuple(f"score{i}" for i in range(len(self.score.arrays))) if self.score else ()

    def is_of_scores(self, name: str) -> bool:
        """Whether an operand broadcasts to the scores, or to their blocks."""
        return self.is_of_pairs(name) or name == "blocks"

    def is_of_pairs(self, name: str) -> bool:
        """Whether an operand broadcasts to the scores."""
        return name in ("bias", "mask", *self.score_arrays)

    @property
    def differentiable(self) -> int:
        """How many operands have derivatives: the first ones."""
        return 3 + self.bias + (self.score.differentiable if self.score else 0)
