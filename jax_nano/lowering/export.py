"""Exported programs: of JAX's own operations, which run anywhere, unless a block asks for kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.export import DisabledSafetyCheck
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jax_nano.jaxpr.private import LoweringRule, by_platform
from jax_nano.runtime.kernel import TARGET_NAME

_keeps_kernels = jax.make_user_context(default_value=False)  # part of the keys of JAX's caches


@contextlib.contextmanager
def exporting_kernels() -> Iterator[None]:
    """Has programs that are exported in the block keep their kernels.

    By default an exported program holds JAX's own operations: it runs on all machines and platforms that it is for,
    with JAX's promises of compatibility. With kernels it computes as it does here, on processors that have the
    instruction set that they were compiled for, by a jax_nano that reads their format; elsewhere, loading it is an
    error that says so. On other platforms than CPUs it has JAX's operations all the same. A program with kernels passes
    JAX's checks only with `disabled_checks=jax_nano.export_checks()`.

        with jax_nano.exporting_kernels():
            exported = jax.export.export(jax.jit(f), disabled_checks=jax_nano.export_checks())(x)
    """
    with _keeps_kernels(True):  # noqa: FBT003
        yield


def export_checks() -> list[DisabledSafetyCheck]:
    """The safety checks that an exported program with kernels does not pass: `disabled_checks` of jax.export.export.

    JAX knows nothing of the compatibility of custom calls. That of jax_nano carries the number of its format, which is
    checked when a program is loaded.
    """
    return [DisabledSafetyCheck.custom_call(TARGET_NAME)]


def has_kernels(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether what is lowered may hold kernels: it is not exported, or with them."""
    return not ctx.module_context.lowering_parameters.for_export or _keeps_kernels.value


def unless_exported(rule: LoweringRule, otherwise: LoweringRule) -> LoweringRule:
    """The rule of a primitive that has kernels; `otherwise` in exported programs."""
    return lambda ctx, *operands, **params: (rule if has_kernels(ctx) else otherwise)(ctx, *operands, **params)


def register_lowering(primitive: Primitive, rule: LoweringRule, otherwise: LoweringRule) -> None:
    """Registers how a primitive is lowered on CPUs, and otherwise: on other platforms, and in exported programs.

    It is not cached: a cached lowering is a function of its own, which cannot see that an operand is a transpose.
    """
    rules = by_platform({"cpu": rule}, otherwise)
    mlir.register_lowering(primitive, unless_exported(rules, otherwise), cacheable=False)
