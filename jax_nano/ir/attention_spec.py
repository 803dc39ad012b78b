"""What the primitive of attention is told beside its operands."""

from __future__ import annotations

from dataclasses import dataclass


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
      mask: there is one of truth values.
      query_lengths: there is one that says how many queries there are.
      key_lengths: there is one that says how many keys there are.
      residual: the logarithms of the sums of exponentials are a second result.
    """

    scale: float
    causal: bool = False
    window: tuple[int, int] | None = None
    bias: bool = False
    mask: bool = False
    query_lengths: bool = False
    key_lengths: bool = False
    residual: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        """The operands behind queries, keys and values."""
        names = ("bias", "mask", "query_lengths", "key_lengths")
        return tuple(name for name in names if getattr(self, name))

    @property
    def differentiable(self) -> int:
        """How many operands have derivatives: the first ones."""
        return 3 + self.bias
