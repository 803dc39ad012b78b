"""Acceleration: a function with every product in it computed by jax_nano."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from jax_nano.lowering.region import accelerated

F = TypeVar("F", bound=Callable[..., Any])


def accelerate(f: F) -> F:
    """Gives f jax_nano's products: `fast = jax.jit(jax_nano.accelerate(model))`.

    The result has f's signature and values and composes with jit, grad, vmap, scan and the rest on either side. Each
    lax.dot_general in f becomes jax_nano's, at any depth of jit, scan, while, cond, remat, custom derivatives and
    shard_map. What jax_nano has no kernel for runs as before; `jax_nano.inspect` says why.

    Args:
      f: any function that JAX can trace. Arrays among its arguments and results may stand in any pytree; all else
        reaches it, and is returned, as it is.

    Returns:
      The function, to be jitted by its user.
    """
    return accelerated(f)
