"""The products that users call: functions of jax.numpy and jax.lax, computed by jax_nano.

Each has the signature, promotion, result types and errors of its namesake, whose code it runs with jax_nano's product
in place of lax.dot_general. A product that jax_nano has no kernel for runs as the namesake's would; `jax_nano.inspect`
says which do, and why. With JAX_NANO=0 in the environment all do. `precision`, `preferred_element_type` and
`out_sharding` mean what they mean there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun
from jax.typing import ArrayLike, DTypeLike

from jax_nano import config
from jax_nano.lowering import loops as loops  # whose lowering loops of products have
from jax_nano.lowering.dot_general import nano
from jax_nano.lowering.experimental import register_sparse_rules
from jax_nano.lowering.region import accelerated
from jax_nano.weights.weight import Weight

Sharding = jax.sharding.NamedSharding | jax.sharding.PartitionSpec | None


def compiled(f: Callable[..., Array], *static: str, fused: bool = False) -> Callable[..., Array]:
    """Gives f jax_nano's products. Outside of a program it is compiled; inside one its equations become part of it.

    Where jax_nano is turned off it is f, of the arrays that weights stand for.

    Args:
      f: a function of arrays.
      *static: names of its parameters that are no arrays.
      fused: whether it does more than a product, which kernels of products do as well.
    """

    @functools.wraps(f)
    def unpacking(*operands: Any, **params: Any) -> Array:
        return f(*(x.__jax_array__() if isinstance(x, Weight) else x for x in operands), **params)

    of_arrays, of_weights = (jax.jit(product, static_argnames=static) for product in (nano(f), accelerated(unpacking)))

    def compiled(*operands: Any, **params: Any) -> Array:
        if not config.enabled():
            return unpacking(*operands, **params)
        product = of_weights if fused or _has_weights(operands) else of_arrays
        leaves = jax.tree.leaves(operands)
        if any(isinstance(x, Tracer) for x in leaves):
            register_sparse_rules()
            (result,) = jaxpr_as_fun(product.trace(*operands, **params).jaxpr)(*leaves)
            return result
        return product(*operands, **params)

    return compiled


def _has_weights(operands: Sequence[Any]) -> bool:
    return any(isinstance(x, Weight) for x in operands)


_dot_general = compiled(lax.dot_general, "dimension_numbers", "precision", "preferred_element_type", "out_sharding")
_matmul = compiled(jnp.matmul, "precision", "preferred_element_type", "out_sharding")
_dot = compiled(jnp.dot, "precision", "preferred_element_type", "out_sharding")
_tensordot = compiled(jnp.tensordot, "axes", "precision", "preferred_element_type", "out_sharding")
_inner = compiled(jnp.inner, "precision", "preferred_element_type")
_vecdot = compiled(jnp.vecdot, "axis", "precision", "preferred_element_type")


def hashable(x: Any) -> Any:
    """Makes tuples of lists, ranges and NumPy arrays, at any depth."""
    if isinstance(x, np.ndarray):
        return hashable(x.tolist())
    return tuple(map(hashable, x)) if type(x) in (list, range, tuple) else x


def dot_general(  # noqa: PLR0913  its namesake's
    lhs: ArrayLike,
    rhs: ArrayLike,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    *,
    out_sharding: Sharding = None,
) -> Array:
    """Contracts any dimensions of two arrays: jax.lax.dot_general.

    Args:
      lhs: an array.
      rhs: an array.
      dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`, sequences of dimensions; paired
        dimensions have equal sizes.
      precision: how exact; a lax.DotAlgorithm or preset that kernels do not follow runs as lax.dot_general.
      preferred_element_type: the type of the result; by default that of the operands.
      out_sharding: the sharding of the result under explicit sharding.

    Returns:
      The batch dimensions, then what is left of lhs, then what is left of rhs.

    Raises:
      TypeError: dimensions do not exist, repeat or differ in size, or the types do not go together.
    """
    return _dot_general(
        lhs, rhs, dimension_numbers=hashable(dimension_numbers), precision=hashable(precision),
        preferred_element_type=preferred_element_type, out_sharding=out_sharding,
    )  # fmt: skip


def matmul(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Sharding = None,
) -> Array:
    """Multiplies matrices, broadcasting leading dimensions: jax.numpy.matmul.

    Args:
      a: `(..., M, K)` or `(K,)`.
      b: `(..., K, N)` or `(K,)`.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.
      out_sharding: as in `dot_general`.

    Returns:
      `(..., M, N)`, without M or N where a or b is a vector.

    Raises:
      ValueError: an operand is a scalar, or leading dimensions do not broadcast.
      TypeError: the contracted sizes differ, or an operand is not an array.
    """
    return _matmul(
        a, b, precision=hashable(precision), preferred_element_type=preferred_element_type, out_sharding=out_sharding
    )


def dot(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Sharding = None,
) -> Array:
    """Multiplies arrays, stacking leading dimensions: jax.numpy.dot.

    Args:
      a: `(..., K)` or a scalar.
      b: `(..., K, N)`, `(K,)` or a scalar.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.
      out_sharding: as in `dot_general`.

    Returns:
      a's leading dimensions, then b's, then N; the elementwise product where an operand is a scalar.

    Raises:
      TypeError: the contracted sizes differ, or an operand is not an array.
    """
    return _dot(
        a, b, precision=hashable(precision), preferred_element_type=preferred_element_type, out_sharding=out_sharding
    )


def inner(
    a: ArrayLike,
    b: ArrayLike,
    *,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Sums products over the last dimension of both arrays: jax.numpy.inner.

    Args:
      a: `(..., K)` or a scalar.
      b: `(..., K)` or a scalar.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.

    Returns:
      a's leading dimensions, then b's; the elementwise product where an operand is a scalar.

    Raises:
      TypeError: the last sizes differ, or an operand is not an array.
    """
    return _inner(a, b, precision=hashable(precision), preferred_element_type=preferred_element_type)


def tensordot(  # noqa: PLR0913  its namesake's
    a: ArrayLike,
    b: ArrayLike,
    axes: int | Sequence[int] | Sequence[Sequence[int]] = 2,
    *,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Sharding = None,
) -> Array:
    """Contracts the given axes of two arrays: jax.numpy.tensordot.

    Args:
      a: an array.
      b: an array.
      axes: how many of a's last and b's first dimensions to contract, or the dimensions of a and of b.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.
      out_sharding: as in `dot_general`.

    Returns:
      What is left of a, then what is left of b.

    Raises:
      TypeError: axes do not fit the arrays, or contracted sizes differ.
    """
    return _tensordot(
        a, b, axes=hashable(axes), precision=hashable(precision),
        preferred_element_type=preferred_element_type, out_sharding=out_sharding,
    )  # fmt: skip


def vecdot(
    x1: ArrayLike,
    x2: ArrayLike,
    /,
    *,
    axis: int = -1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """Multiplies vectors, the first one conjugated, along an axis, broadcasting the others: jax.numpy.vecdot.

    Args:
      x1: `(..., K, ...)`.
      x2: `(..., K, ...)`.
      axis: where K stands in both.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.

    Returns:
      The broadcast of both shapes without the axis.

    Raises:
      ValueError: the sizes along the axis differ, or the others do not broadcast.
    """
    return _vecdot(x1, x2, axis=axis, precision=hashable(precision), preferred_element_type=preferred_element_type)


def einsum(  # noqa: PLR0913  its namesake's
    subscripts,
    /,
    *operands,
    out: None = None,
    optimize: str | bool | list[tuple[int, ...]] = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    _dot_general: Callable[..., Array] = dot_general,
    out_sharding: Sharding = None,
) -> Array:
    """Sums products of named dimensions: jax.numpy.einsum, in all its calling conventions.

    Args:
      subscripts: such as `"bqhd,bkhd->bhqk"`.
      *operands: an array for each group of names.
      out: not supported by JAX.
      optimize: how the order of contractions is found, or the path itself.
      precision: as in `dot_general`.
      preferred_element_type: as in `dot_general`.
      _dot_general: the product to build it from.
      out_sharding: as in `dot_general`.

    Returns:
      The array whose dimensions are those named after the arrow, or those named once.

    Raises:
      ValueError: the subscripts do not fit the operands.
    """
    weights = _has_weights((subscripts, *operands))
    if weights and not config.enabled():
        subscripts, *operands = (x.__jax_array__() if isinstance(x, Weight) else x for x in (subscripts, *operands))
    product = accelerated(jnp.einsum) if weights else jnp.einsum
    return product(
        subscripts, *operands, out=out, optimize=optimize, precision=precision,
        preferred_element_type=preferred_element_type, _dot_general=_dot_general, out_sharding=out_sharding,
    )  # fmt: skip
