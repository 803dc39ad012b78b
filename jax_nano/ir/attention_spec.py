"""What the primitive of attention is told beside its operands."""

from __future__ import annotations

from dataclasses import dataclass


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
