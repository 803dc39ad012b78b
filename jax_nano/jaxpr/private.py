"""What jax_nano needs of JAX that JAX does not promise: the one module that imports jax._src.

Each use has a test in tests/jaxpr/test_private.py, which says what broke where a version of JAX moves it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from jax._src.interpreters import mlir as _registry
from jax._src.interpreters.partial_eval import Recompute as Recompute
from jax._src.named_sharding import UNSPECIFIED as UNSPECIFIED
from jax.extend.core import Primitive
from jax.interpreters import mlir

LoweringRule = Callable[..., Any]


class ReplacedLowering:
    """A primitive's lowering on CPUs, replaced by another until it is restored: jax.interpreters.mlir only registers.

    The rule is not cached: a cached one is lowered as a function of its own, which does not see that an operand is a
    transpose.
    """

    def __init__(self, primitive: Primitive, replacement: Callable[[LoweringRule], LoweringRule]):
        """Replaces the rule by what `replacement` makes of it."""
        self._primitive = primitive
        self._original = _registry._platform_specific_lowerings["cpu"].get(primitive)
        self._cacheable = primitive not in _registry._uncacheable_primitives
        rule = (self._original or _registry._lowerings[primitive]).rule
        mlir.register_lowering(primitive, replacement(rule), platform="cpu", cacheable=False)

    def restore(self) -> None:
        """Gives the primitive back what it had."""
        rules = _registry._platform_specific_lowerings["cpu"]
        if self._original is None:
            del rules[self._primitive]
        else:
            rules[self._primitive] = self._original
        if self._cacheable:
            _registry._uncacheable_primitives.discard(self._primitive)


def roofline_rule(primitive: Primitive) -> Callable[..., Any]:
    """The rule by which jax.experimental.roofline counts a primitive; its module needs absl-py."""
    module = importlib.import_module("jax.experimental.roofline.roofline")
    return module._rooflines[primitive]
