"""Inspection: what becomes of every product in a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jax_nano.jaxpr.rewrite import arrays, merge_arrays
from jax_nano.lowering import convolution as convolution  # the rules of convolutions, which the rewrite binds
from jax_nano.lowering import grouped as grouped  # the rules of what grouped products become
from jax_nano.lowering import loops as loops  # whose lowering is among what is inspected
from jax_nano.lowering.dot_general import nano
from jax_nano.runtime.report import Reports, reports


def inspect(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Reports:
    """Shows what becomes of every product, convolution, attention and loop in f under jax_nano, without running it.

    The program is lowered as `install()` would have it: what `install` takes in it, and what jax_nano's own functions
    and `accelerate` put there, at any depth of jit, scan, cond, remat, custom derivatives, shard_map and the like. A
    function that the program calls several times through one jit is compiled once and reported once. Where XLA
    partitions the program over devices, it is compiled, and products are reported as one device has them.

    Args:
      f: a function, jitted or not; also jax.grad of one, or a single product such as `jax_nano.matmul`.
      *args: its arguments; a jax.ShapeDtypeStruct may stand for an array.
      **kwargs: likewise.

    Returns:
      A sequence with a `Report` for each; printed, it is a readable summary.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))

    def of_arrays(*values):
        args, kwargs = tree.unflatten(merge_arrays(leaves, values))
        return nano(f)(*args, **kwargs)

    with reports() as collected:
        lowered = jax.jit(of_arrays).trace(*arrays(leaves)).lower(lowering_platforms=("cpu",))
    if any(report.is_of_shards for report in collected):
        lowered.compile()
    return Reports(each for report in collected for each in (report.shards or [report]))
