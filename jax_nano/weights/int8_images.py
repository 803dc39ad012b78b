"""Images as integers: convolutions with kernels that ask for it, of images rounded to 127 steps on either side of 0.

All places of an image are in many sums: so an image has one step, where rows of a product have one each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Primitive, Var
from jax.extend.core.primitives import reshape_p, transpose_p

from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.primitives import CONVOLUTIONS, nano_dequantize_p
from jax_nano.weights.int8_activations import Rounding, as_operand, rounded_call
from jax_nano.weights.quantized import STEPS

Params = tuple[tuple[str, Any], ...]
View = tuple[Primitive, Params]


def quantize_images(jaxpr: Jaxpr) -> Jaxpr:
    """Rounds the image of every convolution whose kernel asks for it; derivatives are those of images as they are.

    Where several images make one of the result, by batch groups, they stay as they are; and with feature groups, as
    narrow ones are computed with channels in the lanes, which sums of integers are not.
    """
    asked = any(eqn.primitive is nano_dequantize_p and eqn.params["activations"] == "int8" for eqn in jaxpr.eqns)
    if not asked or not any(eqn.primitive in CONVOLUTIONS for eqn in jaxpr.eqns):
        return jaxpr
    made: dict[Atom, JaxprEqn] = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    return jaxpr.replace(eqns=[_with_rounded_image(eqn, made) for eqn in jaxpr.eqns])


def _with_rounded_image(eqn: JaxprEqn, made: Mapping[Atom, JaxprEqn]) -> JaxprEqn:
    if eqn.primitive not in CONVOLUTIONS or eqn.params["batch_group_count"] * eqn.params["feature_group_count"] > 1:
        return eqn
    x, _ = eqn.invars
    weight, views = _weight_of(eqn, made)
    if weight is None or not isinstance(x, Var) or not jnp.issubdtype(type_of(x).dtype, jnp.floating):
        return eqn
    inputs = (x, *weight.invars)
    call = _call(
        tuple(type_of(atom) for atom in inputs),
        tuple(weight.params.items()),
        views,
        tuple(eqn.params.items()),
        jnp.dtype(type_of(eqn.outvars[0]).dtype),
    )
    return call.replace(invars=[*inputs], outvars=eqn.outvars, source_info=eqn.source_info)


def _weight_of(eqn: JaxprEqn, made: Mapping[Atom, JaxprEqn]) -> tuple[JaxprEqn | None, tuple[View, ...]]:
    """The weight that a convolution's kernel is, if it asks for integers, and what moves it, in its order."""
    views, maker = [], made.get(eqn.invars[1])
    while maker and maker.primitive in (reshape_p, transpose_p) and len(maker.invars) == 1:
        views.append((maker.primitive, tuple(maker.params.items())))
        maker = made.get(maker.invars[0])
    is_asked = maker and maker.primitive is nano_dequantize_p and maker.params["activations"] == "int8"
    return maker if is_asked else None, tuple(reversed(views))


@functools.lru_cache(maxsize=1024)
def _call(
    inputs: tuple[ShapedArray, ...], weight_params: Params, views: tuple[View, ...], params: Params, dtype
) -> JaxprEqn:
    """The equation of such a convolution of an image, integers and scales."""
    given = dict(params)
    numbers = given["dimension_numbers"]

    def kernel(*arrays: Array) -> tuple[Array]:
        w = nano_dequantize_p.bind(*arrays, **(dict(weight_params) | {"activations": None}))
        for primitive, view in views:
            w = primitive.bind(w, **dict(view))
        return (w,)

    def convolve(x: Array, operands: Sequence[Array], out: Any) -> Array:
        (w,) = operands
        x = as_operand(x, w)
        return lax.conv_general_dilated(
            x, w, given["window_strides"], given["padding"], given["lhs_dilation"], given["rhs_dilation"],
            numbers, precision=given["precision"], preferred_element_type=out,
        )  # fmt: skip

    rounding = Rounding(lambda x: images_of_steps(x, numbers), lambda total, steps, _: total * steps)
    return rounded_call(inputs, kernel, convolve, rounding, dtype)


def images_of_steps(x: Array, dimension_numbers: lax.ConvDimensionNumbers) -> tuple[Array, Array]:
    """Integers from -127 to 127, and what a step of each image is worth, along the result's dimension of the batch.

    The largest magnitude of an image is 127 steps.
    """
    (batch, *_), _, (to, *_) = dimension_numbers
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=[d for d in range(x.ndim) if d != batch], keepdims=True)
    steps = jnp.where(largest == 0, 1, largest / STEPS)
    integers = jnp.round(wide / steps).astype(jnp.int8)
    return integers, lax.expand_dims(steps.reshape(-1), [d for d in range(x.ndim) if d != to])
