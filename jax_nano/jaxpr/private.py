"""What jax_nano needs of JAX that JAX does not promise: the one module that imports jax._src.

Each use has a test in tests/jaxpr/test_private.py, which says what broke where a version of JAX moves it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax
from jax._src import ad_checkpoint as _ad_checkpoint
from jax._src import config as _config
from jax._src import core as _core_of_jax
from jax._src import mesh as _mesh
from jax._src import sharding_impls as _sharding_impls
from jax._src.custom_partitioning_sharding_rule import sdy_sharding_rule_to_mlir
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import mlir as _registry
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.interpreters import remat as _remat
from jax._src.interpreters.partial_eval import Recompute as Recompute
from jax._src.lax.lax import ragged_dot_general_p as ragged_dot_general_p
from jax._src.lib import xla_client as _xla_client  # pyright: ignore[reportPrivateImportUsage]
from jax._src.named_sharding import UNSPECIFIED as UNSPECIFIED
from jax.extend import core as _core
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

LoweringRule = Callable[..., Any]
ClosedJaxpr = _core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]
"""A Jaxpr with its constants; in JAX 0.12, where every Jaxpr has them, another name of Jaxpr."""


def by_platform(rules: Mapping[str, LoweringRule], default: LoweringRule | None) -> LoweringRule:
    """One lowering rule for all platforms, of rules for some of them and one for the others.

    JAX itself cannot choose among rules of a primitive whose lowering is not cached, where a program is for several.
    """

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        ctx = ctx.replace(avals_out=[*ctx.avals_out])
        name, effects = str(ctx.primitive), frozenset()
        return _registry.lower_per_platform(ctx, name, dict(rules), default, effects, *operands, **params)

    return lower


def is_staged() -> bool:
    """Whether what is computed now becomes a program: it is traced by jax.jit, however many transformations between."""
    trace: Any = _core_of_jax.trace_ctx.trace
    while trace is not None and not isinstance(trace, _partial_eval.DynamicJaxprTrace):
        trace = getattr(trace, "parent_trace", None)
    return trace is not None


class ReplacedLowering:
    """A primitive's lowering, replaced by another until it is restored: jax.interpreters.mlir only registers."""

    _replaced: ClassVar[list[Primitive]] = []

    def __init__(self, primitive: Primitive, replacement: Callable[[LoweringRule], LoweringRule]):
        """Replaces the rule on CPUs by what `replacement` makes of it.

        The new one is not cached: a cached one is lowered as a function of its own, which does not see that an operand
        is a transpose.
        """
        self._primitive = primitive
        self._cacheable = primitive not in _registry._uncacheable_primitives
        rules, default = _rules_of(primitive)
        self._original = _registry._lowerings[primitive]
        ours = replacement(rules.get("cpu", default))
        mlir.register_lowering(primitive, by_platform(rules | {"cpu": ours}, default), cacheable=False)
        self._replaced.append(primitive)

    @classmethod
    def has_replaced(cls, primitive: Primitive) -> bool:
        """Whether a primitive's lowering is replaced now."""
        return primitive in cls._replaced

    def restore(self) -> None:
        """Gives the primitive back what it had."""
        self._replaced.remove(self._primitive)
        _registry._lowerings[self._primitive] = self._original
        if self._cacheable:
            _registry._uncacheable_primitives.discard(self._primitive)


@functools.cache
def _rules_of(primitive: Primitive) -> tuple[dict[str, LoweringRule], LoweringRule]:
    """The rules of a primitive on some platforms, and on all others.

    One rule that chooses among them takes their place, for good: it can be replaced while other threads lower programs.
    """
    tables = _registry._platform_specific_lowerings.values()
    found = {
        name: kept[primitive].rule for name, kept in _registry._platform_specific_lowerings.items() if primitive in kept
    }
    original = _registry._lowerings[primitive]
    _registry._lowerings[primitive] = replace(original, rule=by_platform(found, original.rule))
    for kept in [*tables]:
        kept.pop(primitive, None)
    return found, original.rule


class ReplacedTransposition:
    """The rule that transposes a primitive, replaced until it is restored; a fancy rule of JAX's would go before it."""

    def __init__(self, primitive: Primitive, rule: Callable[..., Any]):
        self._primitive = primitive
        self._original = ad.primitive_transposes[primitive]
        ad.primitive_transposes[primitive] = rule
        self._fancy = _FANCY.pop(primitive, None)

    def restore(self) -> None:
        """Gives the primitive back what it had."""
        ad.primitive_transposes[self._primitive] = self._original
        if self._fancy is not None:
            _FANCY[self._primitive] = self._fancy


_FANCY: dict[Primitive, Callable[..., Any]] = getattr(_ad, "fancy_transposes", {})


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


def implementation_of_keys(dtype: Any) -> Any:
    """What an element type of random keys does: seed, split, fold_in, random_bits and key_shape, on words."""
    return dtype._impl


def roofline_rule(primitive: Primitive) -> Callable[..., Any] | None:
    """The rule by which jax.experimental.roofline counts a primitive, if it does; its module needs absl-py."""
    module = importlib.import_module("jax.experimental.roofline.roofline")
    return module._rooflines.get(primitive)


Partition = Callable[[Any, Any, Any, Any, bytes], tuple[bytes, Any, Any]]


def register_partitioner(target: str, partition: Partition) -> None:
    """Registers how XLA's partitioner replaces custom calls of a target by programs of one device's shards.

    Shardy propagates shardings by the call's rule, so that the other callbacks, which do so without it, are not asked.
    """

    def replicated(*_: Any) -> Any:
        return _xla_client.HloSharding.replicate()

    _xla_client.register_custom_call_partitioner(
        target, lambda sharding, *_: sharding, partition, replicated, can_side_effecting_have_replicated_sharding=True
    )


def is_shardy_used() -> bool:
    """Whether Shardy propagates shardings, as by default."""
    return _config.use_shardy_partitioner.value


def partitioned_call(
    ctx: mlir.LoweringRuleContext, target: str, operands: Sequence[mlir.ir.Value], name: str, rule: Any
) -> list[mlir.ir.Value]:
    """A custom call that XLA partitions.

    Args:
      ctx: whose `avals_out` are the results.
      target: of `register_partitioner`.
      operands: its operands.
      name: what the partitioner is told.
      rule: an SdyShardingRule, by which shardings are propagated.
    """
    types = [_registry.aval_to_ir_type(ctx.module_context, aval) for aval in ctx.avals_out]
    op = _registry.custom_call(target, result_types=types, operands=[*operands], backend_config=name)
    attribute = sdy_sharding_rule_to_mlir(rule, [x.type for x in operands], types)
    op.attributes["sdy.sharding_rule"] = attribute
    pairs = zip(op.results, ctx.avals_out, strict=True)
    return [_registry.lower_with_sharding_in_types(ctx, x, aval) for x, aval in pairs]


def spec_of(sharding: Any, mesh: Any) -> jax.sharding.PartitionSpec:
    """What axes of a mesh an array is sharded by.

    Args:
      sharding: as XLA has it.
      mesh: the whole mesh.

    Raises:
      ValueError: it is by no whole axes.
    """
    try:
        return _sharding_impls.parse_flatten_op_sharding(sharding, mesh)[0]
    except (AssertionError, IndexError, NotImplementedError, StopIteration, ValueError) as reason:
        raise ValueError(f"{sharding} is by no whole axes of {mesh}") from reason


def xla_sharding(sharding: jax.sharding.NamedSharding, ndim: int) -> Any:
    """A sharding as XLA has it."""
    return sharding._to_xla_hlo_sharding(ndim)


def tuple_sharding(shape: Any, shardings: Sequence[Any]) -> Any:
    """The sharding of several results."""
    return _xla_client.HloSharding.tuple_sharding(shape, [*shardings]) if shape.is_tuple() else shardings[0]


def shard_program(f: Callable[..., Any], avals: Sequence[Any], mesh: Any, backend: Any) -> bytes:
    """The program that one device of a mesh runs, with collectives over all of its axes."""
    context = mlir.SPMDAxisContext(mesh, frozenset(mesh.axis_names))
    apart = _mesh.use_abstract_mesh(_mesh.empty_abstract_mesh)  # from that of the whole program
    with apart, _core_of_jax.extend_axis_env_nd(mesh.shape.items()):
        closed = jax.make_jaxpr(f, axis_env=[*mesh.shape.items()])(*avals)
        module = _registry.build_mlir_module_helper(
            closed, name="shard", platforms=("cpu",), backend=backend, axis_context=context
        )
    return _registry.module_to_bytecode(module)
