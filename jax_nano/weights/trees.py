"""Whole pytrees of parameters: the weights of a model packed or quantized, and the arrays that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_nano.weights.weight import Weight

SPATIAL = {2: "", 4: "HW", 5: "DHW"}  # by dimensions; of three, kernels of attention are more frequent than of audio
EXPERTS_RANK = 3  # of the matrices of experts in one array
CHANNELS_LAST = frozenset({"kernel", "w"})  # of flax and keras, of haiku
CHANNELS_FIRST = frozenset({"weight"})  # of equinox


def kernel_spec(name: str, array: Any) -> str | None:
    """The dimensions of a weight of matrix products or convolutions, by the names that libraries give them.

    Kernels that have one input channel for each output channel are those of depthwise convolutions as a rule, which are
    read as they lie.

    Args:
      name: of a leaf: its keys, joined by "/".
      array: the leaf.

    Returns:
      As `pack` takes it: "IO" or "HWIO" of `kernel` (flax, keras) and `w` (haiku), "OI" or "OIHW" of `weight`
      (equinox), "IO" or "OI" also of a stack of experts, one of whose keys has that word; None for all else.
    """
    parts = [part for part in name.split("/") if part not in ("value", "raw_value")]  # flax.nnx's variables hold those
    rank = getattr(array, "ndim", 0)
    spatial = "" if rank == EXPERTS_RANK and "expert" in name.lower() else SPATIAL.get(rank)
    if not parts or spatial is None or not jnp.issubdtype(array.dtype, jnp.floating):
        return None
    if parts[-1] in CHANNELS_LAST:
        spec = f"{spatial}IO"
    elif parts[-1] in CHANNELS_FIRST:
        spec = f"OI{spatial}"
    else:
        return None
    return None if spatial and array.shape[spec.index("I")] == 1 else spec


def map_kernels(f: Callable[..., Any], params: Any, spec: Callable[[str, Any], str | None] = kernel_spec) -> Any:
    """Packs or quantizes the weights among a model's parameters: `map_kernels(jax_nano.pack, params)`.

    Kernels of feature groups look like others, and a table that is looked up may be called like a weight: leave them
    out by `spec`.

    Args:
      f: takes an array and `kernel`: `pack`, `quantize`, or a functools.partial of it.
      params: a pytree.
      spec: says which leaves are weights, and what their dimensions are, by their names and themselves.

    Returns:
      The pytree, with what f makes of weights in their place.
    """

    def of_leaf(path: Any, leaf: Any) -> Any:
        found = None if isinstance(leaf, Weight) else spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        return leaf if found is None else f(leaf, kernel=found)

    return jax.tree_util.tree_map_with_path(of_leaf, params, is_leaf=_is_weight)


def as_arrays(params: Any) -> Any:
    """The arrays that weights stand for, in their places: what libraries take that look at shapes and types.

    Inside of accelerated functions, products read the weights all the same: `model.apply(as_arrays(params), x)`.

    Args:
      params: a pytree.
    """
    return jax.tree.map(lambda x: x.__jax_array__() if isinstance(x, Weight) else x, params, is_leaf=_is_weight)


def _is_weight(x: Any) -> bool:
    return isinstance(x, Weight)
