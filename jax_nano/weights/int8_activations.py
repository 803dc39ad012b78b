"""Activations as integers: products with weights that ask for it, of rows rounded to 127 steps on either side of 0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Jaxpr, JaxprEqn, Var
from jax.extend.core.primitives import gather_p

from jax_nano.jaxpr.grouped.row_gathers import is_row_gather
from jax_nano.jaxpr.inline import inline_calls, type_of
from jax_nano.jaxpr.legality import gathering_body
from jax_nano.jaxpr.primitives import DOTS, GROUPED_PRODUCTS, nano_dequantize_p
from jax_nano.weights.quantized import STEPS, no_derivative


def quantize_activations(jaxpr: Jaxpr) -> Jaxpr:
    """Rounds the other operand of every product with a weight that asks for it.

    Those are products that sum along the weight's rows. Derivatives are those of the product that is not rounded. Where
    rows are gathered for a grouped product, each is rounded where it is stored, once for all groups that it has.
    """
    weights = {
        eqn.outvars[0]: eqn
        for eqn in jaxpr.eqns
        if eqn.primitive is nano_dequantize_p and eqn.params["activations"] == "int8"
    }
    if not weights:
        return jaxpr
    if any(eqn.primitive in GROUPED_PRODUCTS for eqn in jaxpr.eqns):
        jaxpr = inline_calls(jaxpr, gathering_body)
    gathers = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if is_row_gather(eqn)}
    return jaxpr.replace(eqns=[_with_rounded_rows(eqn, weights, gathers) for eqn in jaxpr.eqns])


def _with_rounded_rows(eqn: JaxprEqn, weights: dict[Any, JaxprEqn], gathers: dict[Any, JaxprEqn]) -> JaxprEqn:
    if eqn.primitive not in DOTS | GROUPED_PRODUCTS:
        return eqn
    x, w, *sizes = eqn.invars
    if not isinstance(w, Var) or w not in weights:
        return eqn
    numbers = eqn.params["ragged_dot_dimension_numbers" if sizes else "dimension_numbers"]
    if sizes and not numbers.rhs_group_dimensions:  # groups share out the sum, which the weight's rows are then
        return eqn
    (_, contracting), _ = numbers.dot_dimension_numbers if sizes else numbers
    along_rows, dtype = tuple(contracting) == (type_of(w).ndim - 2,), type_of(x).dtype
    if not isinstance(x, Var) or not along_rows or not jnp.issubdtype(dtype, jnp.floating):
        return eqn
    gather = gathers.get(x) if sizes and tuple(numbers.lhs_ragged_dimensions) == (0,) else None
    inputs = (*(gather.invars if gather else (x,)), *sizes, *weights[w].invars)
    given = (
        tuple(type_of(atom) for atom in inputs),
        tuple(weights[w].params.items()),
        numbers,
        eqn.params["precision"],
        jnp.dtype(type_of(eqn.outvars[0]).dtype),
    )
    call = _grouped_call(*given, gather and tuple(gather.params.items())) if sizes else _call(*given)
    return call.replace(invars=[*inputs], outvars=eqn.outvars, source_info=eqn.source_info)


@functools.lru_cache(maxsize=1024)
def _call(
    inputs: tuple[ShapedArray, ...], params: tuple[tuple[str, Any], ...], dimension_numbers, precision, dtype
) -> JaxprEqn:
    """The equation of such a product of x, integers and scales."""

    def multiply(x: Array, operands: Sequence[Array], out: Any) -> Array:
        (w,) = operands
        x = as_operand(x, w)
        return lax.dot_general(x, w, dimension_numbers, precision=precision, preferred_element_type=out)

    def operands(*arrays: Array) -> Sequence[Array]:
        return (nano_dequantize_p.bind(*arrays, **(dict(params) | {"activations": None})),)

    rounding = Rounding(lambda x: rows_of_steps(x, dimension_numbers), _scale_rows)
    return rounded_call(inputs, operands, multiply, rounding, dtype)


@functools.lru_cache(maxsize=1024)
def _grouped_call(  # noqa: PLR0913
    inputs: tuple[ShapedArray, ...], params: tuple[tuple[str, Any], ...], numbers, precision, dtype, gather
) -> JaxprEqn:
    """The equation of such a grouped product of x, the places of its rows if any, sizes of groups, integers and scales.

    Rows are found as the parameters `gather` say, if there are any.
    """

    def rows(x: Array, places: Sequence[Array]) -> Array:
        sizes = {"slice_sizes": (1, x.shape[1])}
        return gather_p.bind(x, *places, **(dict(gather) | sizes)) if gather else x

    def multiply(x: Array, operands: Sequence[Array], out: Any) -> Array:
        w, *places, sizes = operands
        found = as_operand(rows(x, places), w)  # integers are gathered as they are stored
        return lax.ragged_dot_general(found, w, sizes, numbers, precision, preferred_element_type=out)

    def operands(*arrays: Array) -> Sequence[Array]:
        places, (sizes, *weight) = arrays[: bool(gather)], arrays[bool(gather) :]
        return nano_dequantize_p.bind(*weight, **(dict(params) | {"activations": None})), *places, sizes

    def scale(total: Array, steps: Array, operands: Sequence[Array]) -> Array:
        _, *places, _ = operands
        return _scale_rows(total, rows(steps[:, None], places)[:, 0] if gather else steps, operands)

    rounding = Rounding(lambda x: rows_of_steps(x, numbers.dot_dimension_numbers), scale)
    return rounded_call(inputs, operands, multiply, rounding, dtype)


def as_operand(x: Array, w: Array) -> Array:
    """Integers in the type of the array that they are multiplied by; other arrays as they are."""
    return x.astype(w.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _scale_rows(total: Array, steps: Array, operands: Sequence[Array]) -> Array:  # noqa: ARG001
    return total * lax.expand_dims(steps, range(steps.ndim, total.ndim))


class Rounding(NamedTuple):
    """How an operand is rounded: its integers and what steps of them are worth, and sums that are scaled by those.

    Attributes:
      integers: gives the integers and the steps of an array.
      scale: gives sums of integers, by steps and the product's other operands, scaled.
    """

    integers: Callable[[Array], tuple[Array, Array]]
    scale: Callable[[Array, Array, Sequence[Array]], Array]


def rounded_call(
    inputs: tuple[ShapedArray, ...],
    operands: Callable[..., Sequence[Array]],
    multiply: Callable[[Array, Sequence[Array], Any], Array],
    rounding: Rounding,
    dtype: Any,
) -> JaxprEqn:
    """The equation of a product with an operand that is rounded, whose derivative is that of one that is not.

    Args:
      inputs: the types of the operand, and of a weight's arrays among others.
      operands: gives, of these others, those of the product, the weight as the array that it stands for first.
      multiply: gives the product of an array, or of integers, with such operands in a type.
      rounding: how the operand is rounded.
      dtype: the type of the result.
    """

    @jax.custom_jvp
    def product(x: Array, *arrays: Array) -> Array:
        integers, steps = rounding.integers(x)
        others = operands(*arrays)
        total = multiply(integers, others, jnp.float32)
        return rounding.scale(total, steps, others).astype(dtype)

    @functools.partial(product.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        tangent, *others = tangents
        if not all(isinstance(t, SymbolicZero) or t.dtype == jax.dtypes.float0 for t in others):
            raise TypeError(no_derivative)
        x, *arrays = primals
        out = product(x, *arrays)
        if isinstance(tangent, SymbolicZero):
            return out, jnp.zeros_like(out)
        return out, multiply(tangent, operands(*arrays), dtype)

    (eqn,) = jax.make_jaxpr(product)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)).eqns
    return eqn


def rows_of_steps(x: Array, dimension_numbers) -> tuple[Array, Array]:
    """Integers from -127 to 127, and what a step of each row is worth, along the product's dimensions.

    A row is all that goes into one sum; its largest magnitude is 127 steps.
    """
    (contracting, _), (batch, _) = dimension_numbers
    free = [d for d in range(x.ndim) if d not in (*contracting, *batch)]
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=tuple(contracting), keepdims=True)
    steps = jnp.where(largest == 0, 1, largest / STEPS)
    integers = jnp.round(wide / steps).astype(jnp.int8)
    return integers, lax.transpose(steps, (*batch, *free, *contracting)).reshape([x.shape[d] for d in (*batch, *free)])
