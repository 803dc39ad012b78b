"""The primitive nano_transpose: lax.transpose to every transformation, whose result products read as it is.

They read through lax.transpose. Behind lax.optimization_barrier they would not, but there XLA copies the array before
it transposes that, in three times the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax import Array, lax
from jax.extend.core.primitives import transpose_p
from jax.interpreters import ad, batching, mlir, xla

from jax_nano.ir.dot import UnsupportedDot
from jax_nano.jaxpr.primitives import nano_transpose_p
from jax_nano.lowering.partition import devices_to_partition


def written_transpose(x: Array, permutation: Sequence[int]) -> Array:
    """The transposed array, in memory as it is seen."""
    return nano_transpose_p.bind(x, permutation=tuple(permutation))


def _lower(ctx: mlir.LoweringRuleContext, x: mlir.ir.Value, *, permutation: tuple[int, ...]):
    """Lowers it as a transpose behind reshapes, which XLA drops, and through which no rule of a product looks.

    Where XLA partitions the program, no product's rule looks anyway, and shardings would be lost in reshapes.
    """
    write = _transpose if _is_partitioned(ctx) else _flat_transpose
    return mlir.lower_fun(write, multiple_results=False)(ctx, x, permutation=permutation)


def _is_partitioned(ctx: mlir.LoweringRuleContext) -> bool:
    try:
        return devices_to_partition(ctx) > 1
    except UnsupportedDot:
        return True


def _transpose(x: Array, *, permutation: tuple[int, ...]) -> Array:
    return lax.transpose(x, permutation)


def _flat_transpose(x: Array, *, permutation: tuple[int, ...]) -> Array:
    moved = lax.transpose(x, permutation)
    return lax.reshape(lax.reshape(moved, (moved.size,)), moved.shape)


def _batched(operands: Sequence[Array], dims: Sequence[int], *, permutation: tuple[int, ...]) -> tuple[Array, int]:
    (x,), (dim,) = operands, dims
    others = [d for d in range(x.ndim) if d != dim]
    return written_transpose(x, (dim, *(others[d] for d in permutation))), 0


def _cotangent(cotangent: Any, _: Any, *, permutation: tuple[int, ...]) -> list[Array]:
    inverse = [permutation.index(d) for d in range(len(permutation))]
    return [written_transpose(cotangent, inverse)]


nano_transpose_p.def_impl(partial(xla.apply_primitive, nano_transpose_p))
nano_transpose_p.def_effectful_abstract_eval(transpose_p.abstract_eval)
ad.deflinear2(nano_transpose_p, _cotangent)
batching.primitive_batchers[nano_transpose_p] = _batched
mlir.register_lowering(nano_transpose_p, _lower)
