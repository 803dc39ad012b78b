"""What jax_nano needs of JAX that JAX does not promise: the one module that imports jax._src.

Each use has a test in tests/jaxpr/test_private.py, which says what broke where a version of JAX moves it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

from jax._src import ad_checkpoint as _ad_checkpoint
from jax._src.interpreters import mlir as _registry
from jax._src.interpreters import remat as _remat
from jax._src.interpreters.partial_eval import Recompute as Recompute
from jax._src.lax.lax import ragged_dot_general_p as ragged_dot_general_p
from jax._src.named_sharding import UNSPECIFIED as UNSPECIFIED
from jax.extend import core as _core
from jax.extend.core import Primitive
from jax.interpreters import mlir

LoweringRule = Callable[..., Any]
ClosedJaxpr = _core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]
"""A Jaxpr with its constants; in JAX 0.12, where every Jaxpr has them, another name of Jaxpr."""


class ReplacedLowering:
    """A primitive's lowering, replaced by another until it is restored: jax.interpreters.mlir only registers."""

    _replaced: ClassVar[list[Primitive]] = []

    def __init__(self, primitive: Primitive, replacement: Callable[[LoweringRule], LoweringRule]):
        """Replaces the rule on CPUs by what `replacement` makes of it.

        The new one is not cached: a cached one is lowered as a function of its own, which does not see that an operand
        is a transpose.
        """
        self._primitive = primitive
        self._original = _registry._platform_specific_lowerings["cpu"].get(primitive)
        self._cacheable = primitive not in _registry._uncacheable_primitives
        rule = (self._original or _registry._lowerings[primitive]).rule
        mlir.register_lowering(primitive, replacement(rule), platform="cpu", cacheable=False)
        self._replaced.append(primitive)

    @classmethod
    def has_replaced(cls, primitive: Primitive) -> bool:
        """Whether a primitive's lowering is replaced now."""
        return primitive in cls._replaced

    def restore(self) -> None:
        """Gives the primitive back what it had."""
        self._replaced.remove(self._primitive)
        rules = _registry._platform_specific_lowerings["cpu"]
        if self._original is None:
            del rules[self._primitive]
        else:
            rules[self._primitive] = self._original
        if self._cacheable:
            _registry._uncacheable_primitives.discard(self._primitive)


def wrap_lowering(primitive: Primitive, wrapper: Callable[[LoweringRule], LoweringRule]) -> None:
    """Wraps the lowering that a primitive has on all platforms; whether that is cached stays as it is."""
    kept = _registry._lowerings[primitive]
    cacheable = primitive not in _registry._uncacheable_primitives
    mlir.register_lowering(primitive, wrapper(kept.rule), cacheable=cacheable)


@contextlib.contextmanager
def functions_apart(ctx: mlir.LoweringRuleContext, name: str) -> Iterator[None]:
    """Lowers functions in the block apart from those outside: none is found that was lowered there, nor the reverse.

    Args:
      ctx: of what is lowered.
      name: of the blocks of a module that share their functions.
    """
    module = ctx.module_context
    kept: dict[str, Any] = {cache: getattr(module, cache) for cache in ("lowering_cache", "cached_primitive_lowerings")}
    try:
        for cache, functions in kept.items():
            setattr(module, cache, functions.setdefault(name, {}))
        yield
    finally:
        for cache, functions in kept.items():
            setattr(module, cache, functions)


Asked = Callable[[Sequence[Any], dict[str, Any]], tuple[Primitive, list[Any], dict[str, Any]]]


def register_remat3_rule(primitive: Primitive, asked: Asked) -> None:
    """Registers the rule of jax.checkpoint under jax_remat3 for a primitive that stands for a product.

    Args:
      primitive: it has one result.
      asked: gives, for its operands and parameters, the primitive, types and parameters of the product that policies
        know.
    """
    reduce_precision = _remat.reduce_precision

    def saves(policy: Any, arrays: Sequence[Any], params: dict[str, Any]) -> bool:
        known, avals, product = asked(arrays, params)
        return policy is not None and policy(known, *avals, **product) not in (False, Recompute)

    def rule(trace: Any, *arrays: Any, **params: Any) -> Any:
        bind = partial(primitive.bind, **params)
        out = bind(*arrays)
        if not saves(trace.policy, arrays, params):
            return out, (), lambda _, *arrays: bind(*arrays)
        out = reduce_precision(out)
        return out, out, lambda out, *arrays: _ad_checkpoint.primal_left_tangent_right(out, bind(*arrays))

    # Until JAX 0.11, saving is for policies of a class; `where` is the policy in 0.10, and has it in 0.11.
    def rule_of_policy(where: Any, *arrays: Any, **params: Any) -> Any:
        policy = getattr(where, "policy", where)
        bind = partial(primitive.bind, **params)
        out = bind(*arrays)
        if not (dots_saveable and isinstance(policy, dots_saveable)) or not saves(policy, arrays, params):
            return out, bind
        return out, lambda *arrays: _ad_checkpoint.primal_left_tangent_right(out, bind(*arrays))

    dots_saveable = getattr(_ad_checkpoint, "DotsSaveable", None)
    _remat.rules[primitive] = rule_of_policy if dots_saveable else rule


def roofline_rule(primitive: Primitive) -> Callable[..., Any] | None:
    """The rule by which jax.experimental.roofline counts a primitive, if it does; its module needs absl-py."""
    module = importlib.import_module("jax.experimental.roofline.roofline")
    return module._rooflines.get(primitive)
