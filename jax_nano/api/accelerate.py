"""Acceleration: a function with every product in it computed by jax_nano."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from jax_nano import config
from jax_nano.lowering import attention as attention  # the rules of what attention becomes
from jax_nano.lowering import attention_gradient as attention_gradient
from jax_nano.lowering import loops as loops  # and of loops
from jax_nano.lowering.programs import accelerated_program

F = TypeVar("F", bound=Callable[..., Any])


def accelerate(f: F) -> F:
    """Computes f by jax_nano's kernels: `fast = jax.jit(jax_nano.accelerate(model))`.

    The result has f's signature and values and composes with jit, grad, vmap, scan and the rest on either side.
    Products, convolutions and grouped products in f become kernels, with the elementwise work around them where that
    pays, attention and loops one kernel each; at any depth of jit, scan, while, cond, remat, custom derivatives and
    shard_map. All of f becomes one kernel where it is so small that calls would take longer than arithmetic. What
    jax_nano has no kernel for runs as before; `jax_nano.inspect` says why. Where JAX_NANO=0 is in the environment when
    it is called, or traced by jit, it is f.

    Args:
      f: any function that JAX can trace. Arrays among its arguments and results may stand in any pytree; all else
        reaches it, and is returned, as it is.

    Returns:
      The function, to be jitted by its user.
    """
    fast = accelerated_program(f)

    @functools.wraps(f)
    def accelerated_unless_off(*args: Any, **kwargs: Any) -> Any:
        return (fast if config.enabled() else f)(*args, **kwargs)

    return cast(F, accelerated_unless_off)
