"""Matrix products with elementwise work on the accumulators, and on A."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params
from jax.typing import ArrayLike

from jax_nano import config
from jax_nano.ir.program import OPERATIONS
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.operands import VIEWS, apply_view
from jax_nano.jaxpr.program_reader import SYNONYMS
from jax_nano.jaxpr.strided_views import NoView, StridedView
from jax_nano.lowering import loops as loops  # whose lowering loops of products have
from jax_nano.lowering.region import accelerated_whole

# Primitives that call a function, by name: JAX has no public objects for some of them.
CALLS = frozenset({
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint",
})  # fmt: skip
# Primitives that make each element of their result of the same elements of their operands.
ELEMENTWISE = frozenset({
    *OPERATIONS, *SYNONYMS, "stop_gradient", "name", "optimization_barrier",
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "clz", "complex", "conj",
    "cosh", "digamma", "erf_inv", "igamma", "igamma_grad_a", "igammac", "imag", "lgamma", "nextafter", "polygamma",
    "population_count", "random_gamma_grad", "real", "reduce_precision", "regularized_incomplete_beta", "sinh", "tan",
    "zeta",
})  # fmt: skip


def fused_matmul(  # noqa: PLR0913  one parameter for each thing that a user may give
    x: ArrayLike,
    w: ArrayLike,
    *extras: ArrayLike,
    epilogue: Callable[..., Array] | None = None,
    prologue: Callable[..., Array] | None = None,
    prologue_extras: Sequence[ArrayLike] = (),
    precision: lax.PrecisionLike = None,
) -> Array:
    """Multiplies matrices, and works on each element of the product while it is in registers.

    `fused_matmul(x, w, bias, epilogue=lambda acc, bias: jax.nn.gelu(acc + bias))` is `gelu(x @ w + bias)` in one
    kernel, differentiable and batchable like the two. What kernels have no vector code for, such as `lgamma`, is
    computed from the product afterwards; `jax_nano.inspect` says where a kernel begins and ends.

    A prologue is work on each element of `x` on its way into the product, which saves an array in memory:

        def normalized(x, mean, rstd, gamma):
            return (x - mean) * rstd * gamma

        fused_matmul(x, w, prologue=normalized, prologue_extras=(mean, rstd, gamma))  # mean, rstd: (M, 1); gamma: (K,)

    It may be done several times for an element: each task that computes other columns does it for itself. So what
    takes long, such as `exp` or `tanh`, is worth the while only with few columns, up to some hundred.

    Args:
      x: `(..., M, K)` or `(K,)`.
      w: `(..., K, N)` or `(K,)`; leading dimensions broadcast as in `matmul`.
      *extras: arrays for the epilogue that broadcast to the product's shape: scalars, rows `(N,)`, columns `(M, 1)`,
        arrays of its shape, with leading dimensions or without.
      epilogue: a function of the product and the extras, which JAX traces once for each set of shapes. It is given the
        sums before they are rounded: f32 for floats of 16 and 8 bits, s32 for integers of up to 16 bits, else the
        type of `x` and `w` together. Any elementwise JAX function will do, and any function of the extras alone.
        Without one, the sums are rounded to the type that `matmul` gives.
      prologue: a function of `x` and the arrays in `prologue_extras`, likewise. What it returns is multiplied, in the
        type that it gives it: a conversion to bf16 rounds.
      prologue_extras: arrays for the prologue that broadcast to the shape of `x`: scalars, rows `(K,)`, columns
        `(M, 1)`, arrays of its shape, with leading dimensions or without.
      precision: as in `dot_general`.

    Returns:
      What the epilogue returns: an array of the product's shape, `(..., M, N)`, in the type that the epilogue gives it.

    Raises:
      ValueError: an extra does not broadcast to the shape it belongs to, or the epilogue or prologue does not make each
        element of its result of the same element of its argument.
      TypeError: the contracted sizes differ, an operand is not an array, or prologue_extras is no sequence of arrays.
    """
    if not isinstance(prologue_extras, Sequence):
        raise TypeError(f"prologue_extras is a sequence of arrays, such as (row,); not {type(prologue_extras)}")
    if epilogue is None and extras:
        raise TypeError("fused_matmul takes extras for an epilogue, and there is none")
    if prologue is None and prologue_extras:
        raise TypeError("fused_matmul takes prologue_extras for a prologue, and there is none")
    _check_arrays(x, w, *extras, where="")
    _check_arrays(*prologue_extras, where=" of prologue_extras")
    how = _How(prologue, epilogue, precision, config.enabled())
    return _fused_matmul(x, w, extras, tuple(prologue_extras), how=how)


class _How(NamedTuple):
    """The work beside the product, how exactly to multiply, and whether by kernels."""

    prologue: Callable[..., Array] | None
    epilogue: Callable[..., Array] | None
    precision: lax.PrecisionLike
    enabled: bool


@partial(jax.jit, static_argnames="how", inline=True)
def _fused_matmul(x: Array, w: Array, extras, prologue_extras, *, how: _How) -> Array:
    aval = jax.typeof(x)  # where jit is disabled, x may be an array of NumPy's
    lhs = jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
    if how.prologue:
        lhs = _check_elementwise(how.prologue, "prologue", "first argument", lhs, *prologue_extras)
    product = partial(jnp.matmul, precision=how.precision)
    if how.epilogue:
        product = partial(product, preferred_element_type=_accumulator_type(jax.eval_shape(product, lhs, w).dtype))
        _check_elementwise(how.epilogue, "epilogue", "product", jax.eval_shape(product, lhs, w), *extras)

    def program(x, w, extras, prologue_extras):
        acc = product(how.prologue(x, *prologue_extras) if how.prologue else x, w)
        return how.epilogue(acc, *extras) if how.epilogue else acc

    return (accelerated_whole(program) if how.enabled else program)(x, w, extras, prologue_extras)


def _check_arrays(*values: Any, where: str) -> None:
    """Checks that values are arrays, as jax.numpy does.

    Raises:
      TypeError: one is not.
    """
    for position, value in enumerate(values):
        if not isinstance(value, ArrayLike) and not hasattr(value, "__jax_array__"):
            raise TypeError(
                f"fused_matmul requires ndarray or scalar arguments, got {type(value)} at position {position}{where}."
            )


def _accumulator_type(dtype: Any) -> Any:
    """The type of the sums of products of this type."""
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        return np.dtype(np.float32)
    return np.dtype(np.int32) if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4 else dtype


def _check_elementwise(f: Callable[..., Array], name: str, of: str, array: jax.ShapeDtypeStruct, *extras: Array) -> Any:
    """Checks that extras broadcast and that an epilogue or prologue is elementwise; gives what it makes of an array.

    Raises:
      ValueError: they do not, or it is not.
    """
    for i, extra in enumerate(extras):
        try:
            fits = np.broadcast_shapes(np.shape(extra), array.shape) == array.shape
        except ValueError:
            fits = False
        if not fits:
            kind, columns = ("extra", "N") if name == "epilogue" else ("prologue_extra", "K")
            raise ValueError(
                f"{kind} {i} has the shape {np.shape(extra)}, which does not broadcast to the {of}'s, {array.shape}; "
                f"extras are scalars, rows ({columns},), columns (M, 1) or arrays of the {of}'s shape"
            )
    closed, result = jax.make_jaxpr(f, return_shape=True)(array, *extras)
    shape = getattr(result, "shape", None)
    if shape != array.shape:
        given = f"an array of the shape {shape}" if shape is not None else f"a {type(result).__name__}"
        raise ValueError(f"the {name} returns {given}; it has to return one of the {of}'s shape, {array.shape}")
    whole = StridedView.of(array.shape)
    places = {closed.jaxpr.invars[0]: whole}
    try:
        _follow_places(closed.jaxpr, places, of)
        (out,) = closed.jaxpr.outvars
        if isinstance(out, Var) and places.get(out, whole) != whole:
            raise NoView(f"elements of the {of} change their places")
    except NoView as reason:
        instead = "do that to the result instead" if name == "epilogue" else "do that before"
        raise ValueError(f"the {name} is not elementwise: {reason}; {instead}") from None
    return result


def _follow_places(jaxpr: Jaxpr, places: dict[Var, StridedView], of: str) -> None:
    """Notes for each value that is made of an array, which errors call `of`, where its elements belong in that.

    Raises:
      NoView: an element is made of others than the one at its place.
    """
    for eqn in jaxpr.eqns:
        found = {places[x] for x in eqn.invars if isinstance(x, Var) and x in places}
        if not found:
            continue
        if len(found) > 1:
            raise NoView(f"{eqn.primitive} combines elements from different places of the {of}")
        (place,) = found
        if eqn.primitive.name in CALLS:
            (inner,) = jaxprs_in_params(eqn.params)
            own = _places_of(inner.invars, eqn.invars, places)
            _follow_places(inner, own, of)
            places |= _places_of(eqn.outvars, inner.outvars, own)
        elif eqn.primitive in VIEWS:
            places[eqn.outvars[0]] = apply_view(eqn, place)
        elif eqn.primitive.name not in ELEMENTWISE:
            raise NoView(f"{eqn.primitive} is no elementwise operation")
        else:
            places |= dict.fromkeys(eqn.outvars, place)
        if any(type_of(x).shape != places[x].shape for x in eqn.outvars if x in places):
            raise NoView(f"{eqn.primitive} broadcasts the {of}")


def _places_of(
    targets: Sequence[Var], sources: Sequence[Atom], places: dict[Var, StridedView]
) -> dict[Var, StridedView]:
    """The places of values that stand for others."""
    pairs = zip(targets, sources, strict=True)
    return {target: places[x] for target, x in pairs if isinstance(x, Var) and x in places}
