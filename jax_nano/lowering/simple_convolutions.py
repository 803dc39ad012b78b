"""Convolutions as others that kernels compute: without a dilated input, into results that end with channels.

Input dilation puts zeros between the places of an image. No product with them is computed: the places of the result
fall into classes, by their residue, each of which sees its own taps and all places of the image, a convolution without
dilation. The results of all classes are interleaved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn

from jax_nano.ir.axes import Operand
from jax_nano.ir.convolution import Convolution
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.ir.dtypes import dtype_name
from jax_nano.jaxpr.convolutions import convolution_of, has_dilated_input, has_kernel_order, is_in_order
from jax_nano.jaxpr.inline import Atom, inline_calls, type_of
from jax_nano.jaxpr.primitives import CONVOLUTIONS
from jax_nano.jaxpr.weights import StridedWeight, strided_weights
from jax_nano.lowering.channels_last import has_image_of_places, has_scattered_image, pays_with_channels_last
from jax_nano.lowering.written_transpose import written_transpose

Params = dict[str, Any]
Convolve = Callable[[Array, Array], Array]
Work = Callable[[Array, Sequence[int]], Array]  # on a part of the result, whose dimension i is the result's order[i]


def simpler(params: Params, convolution: Convolution, weight: StridedWeight | None = None) -> Convolve | None:
    """A function of the operands that computes a convolution by others; None where it is simple enough.

    Args:
      params: of lax.conv_general_dilated.
      convolution: what is known of it without the dilation of its input.
      weight: its kernel, where that is read as it is kept.

    Raises:
      UnsupportedDot: there are too many others.
    """
    if has_dilated_input(params) or not has_kernel_order(convolution):
        return _by_residues(params) if convolution.result.strides[-1] == 1 else _with_channels_last(params)
    if not weight and pays_with_channels_last(convolution):
        return _with_channels_last(params)
    if has_scattered_image(convolution) or (not weight and has_image_of_places(convolution)):
        return _with_image_in_order(params)
    return None if is_in_order(convolution) else _with_kernel_in_order(params, convolution)


def parts_of(eqn: JaxprEqn, weights: Mapping[Atom, StridedWeight]) -> Callable[[Work], Convolve] | None:
    """Computes a convolution by others whose results are put together, with work on each before that.

    Gives None where no kernel computes it, or one does as it is.
    """
    described = _description(eqn, weights)
    if not described or is_product(type_of(eqn.invars[1]), eqn.params):
        return None
    convolution, weight = described
    if convolution.result.strides[-1] == 1:
        is_spread = 1 < math.prod(eqn.params["lhs_dilation"]) <= MOST_CONVOLUTIONS
        return partial(_by_residues, eqn.params) if is_spread else None
    is_moved = weight.columns_last if weight else pays_with_channels_last(convolution)
    is_moved = is_moved or has_dilated_input(eqn.params) or not has_kernel_order(convolution)
    return partial(_with_channels_last, eqn.params) if is_moved else None


def simplify_convolutions(jaxpr: Jaxpr) -> Jaxpr:
    """Puts others in the place of each convolution that kernels do not compute as it is."""
    return inline_calls(jaxpr, partial(_simpler_body, weights=strided_weights(jaxpr)))


def _simpler_body(eqn: JaxprEqn, weights: Mapping[Atom, StridedWeight]) -> Jaxpr | None:
    described = _description(eqn, weights)
    if not described:
        return None
    convolution, weight = described
    lhs, rhs = (type_of(x) for x in eqn.invars)
    if any(part is not None for aval in (lhs, rhs) for part in aval.sharding.spec):
        return None  # explicitly: the type of the result says how
    try:
        if is_product(rhs, eqn.params):
            others = _as_product(eqn.params)
        elif weight and weight.columns_last and convolution.result.strides[-1] != 1:
            others = _with_channels_last(eqn.params)
        else:
            others = simpler(eqn.params, convolution, weight)
    except UnsupportedDot:
        return None
    plain = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in (lhs, rhs)]
    return others and jax.make_jaxpr(others)(*plain).jaxpr


def _description(
    eqn: JaxprEqn, weights: Mapping[Atom, StridedWeight]
) -> tuple[Convolution, StridedWeight | None] | None:
    """A convolution that has a kernel, by itself or as others, and the weight that it reads as that is kept."""
    if eqn.primitive not in CONVOLUTIONS or eqn.params.get("out_sharding") is not None:
        return None
    avals = [type_of(x) for x in (*eqn.invars, *eqn.outvars)]
    if not all(isinstance(size, int) for aval in avals for size in aval.shape):
        return None
    lhs, rhs, out = avals
    image, kernel = (Operand.row_major(aval.shape, dtype_name(aval.dtype)) for aval in (lhs, rhs))
    weight = weights.get(eqn.invars[1])
    try:
        convolution = convolution_of(image, kernel, out, eqn.params)
        convolution.dot()
    except UnsupportedDot:
        return None
    kept = weight and convolution_of(image, weight.operand, out, eqn.params)
    if weight and kept and is_in_order(kept):
        return kept, weight
    return convolution, None


def is_product(rhs: ShapedArray, params: Params) -> bool:
    """Is true where each place sees itself alone: one tap, no strides, no padding, no groups."""
    _, rhs_spec, _ = params["dimension_numbers"]
    one_tap = all(rhs.shape[d] == 1 for d in rhs_spec[2:])
    in_place = all(s == d == 1 and p == (0, 0) for s, d, p in zip(
        params["window_strides"], params["lhs_dilation"], map(tuple, params["padding"]), strict=True
    ))  # fmt: skip
    return one_tap and in_place and params["feature_group_count"] == params["batch_group_count"] == 1


def _as_product(params: Params) -> Convolve:
    """The convolution as a product of matrices."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]

    def convolve(lhs: Array, rhs: Array) -> Array:
        matrix = lax.squeeze(rhs, rhs_spec[2:])
        contracting = (lhs_spec[1],), (int(rhs_spec[1] > rhs_spec[0]),)
        result = lax.dot_general(
            lhs, matrix, (contracting, ((), ())), params["precision"], params["preferred_element_type"]
        )
        dims = [d for d in range(lhs.ndim) if d != lhs_spec[1]] + [lhs_spec[1]]  # of lhs, whose places result's are
        of_lhs = dict(zip(out_spec, lhs_spec, strict=True))
        return lax.transpose(result, [dims.index(of_lhs[d]) for d in range(lhs.ndim)])

    return convolve


def _bind(lhs: Array, rhs: Array, params: Params, **changes: Any) -> Array:
    params = params | changes
    return lax.conv_general_dilated(
        lhs, rhs, params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"],
        params["dimension_numbers"], params["feature_group_count"], params["batch_group_count"],
        params["precision"], params["preferred_element_type"],
    )  # fmt: skip


def _as_it_is(part: Array, order: Sequence[int]) -> Array:  # noqa: ARG001
    return part


def _with_channels_last(params: Params, work: Work = _as_it_is) -> Convolve:
    """The convolution into a result that ends with channels, which is transposed then."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    rank = len(out_spec)
    last = (0, rank - 1, *range(1, rank - 1))
    numbers = lax.ConvDimensionNumbers(lhs_spec, rhs_spec, last)
    permutation = tuple(last[out_spec.index(d)] for d in range(rank))
    order = [permutation.index(d) for d in range(rank)]

    def convolve(lhs: Array, rhs: Array) -> Array:
        return lax.transpose(work(_bind(lhs, rhs, params, dimension_numbers=numbers), order), permutation)

    return convolve


def _with_image_in_order(params: Params) -> Convolve:
    """The convolution of an image that ends with channels: groups of them stand in lanes."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    rank = len(lhs_spec)
    numbers = lax.ConvDimensionNumbers((0, rank - 1, *range(1, rank - 1)), rhs_spec, out_spec)

    def convolve(lhs: Array, rhs: Array) -> Array:
        moved = written_transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
        return _bind(moved, rhs, params, dimension_numbers=numbers)

    return convolve


def _with_kernel_in_order(params: Params, convolution: Convolution) -> Convolve:
    """The convolution with a kernel in whose memory channels follow taps, and output channels those or the reverse."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    rank = len(rhs_spec)
    taps = (*rhs_spec[2:], rhs_spec[1])
    if convolution.ends_with_places:
        order, in_order = (rhs_spec[0], *taps), (0, rank - 1, *range(1, rank - 1))
    else:
        order, in_order = (*taps, rhs_spec[0]), (rank - 1, rank - 2, *range(rank - 2))
    numbers = lax.ConvDimensionNumbers(lhs_spec, in_order, out_spec)

    def convolve(lhs: Array, rhs: Array) -> Array:
        return _bind(lhs, written_transpose(rhs, order), params, dimension_numbers=numbers)

    return convolve


@dataclass(frozen=True)
class Residue:
    """A class of places along a dimension: every `step`-th from `first` on, that see every `tap_step`-th tap.

    They are those of a convolution without input dilation, of these parameters.
    """

    first: int
    step: int
    places: int
    tap: int
    tap_step: int
    taps: int
    stride: int
    dilation: int
    padding: tuple[int, int]


def residues(places: int, taps: int, size: int, dimension: dict[str, Any]) -> list[Residue]:
    """The classes of places of a dimension.

    Place o sees tap k at the place (o * stride + k * dilation - padding) / input dilation of the image, if that is one.

    Args:
      places: of the result.
      taps: of the kernel.
      size: of the image.
      dimension: stride, dilation, input_dilation and padding.
    """
    stride, dilation, spread = (dimension[name] for name in ("stride", "dilation", "input_dilation"))
    low = dimension["padding"]
    step, tap_step = spread // math.gcd(spread, stride), spread // math.gcd(spread, dilation)
    found = []
    for first in range(min(step, places)):
        seen = [k for k in range(min(tap_step, taps)) if (first * stride + k * dilation - low) % spread == 0]
        tap = seen[0] if seen else taps
        count, at = -(-(taps - tap) // tap_step), -(first * stride + tap * dilation - low) // spread
        each = -(-(places - first) // step)
        strides = step * stride // spread, tap_step * dilation // spread
        high = (each - 1) * strides[0] + (count - 1) * strides[1] + 1 - size - at
        found.append(Residue(first, step, each, tap, tap_step, count, *strides, (at, high)))
    return found


MOST_CONVOLUTIONS = 64  # convolutions in the place of one


def _by_residues(params: Params, work: Work = _as_it_is) -> Convolve:
    """The convolution as one for each class of places."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    if math.prod(params["lhs_dilation"]) > MOST_CONVOLUTIONS:
        raise UnsupportedDot(
            f"input dilation of {params['lhs_dilation']} makes more than {MOST_CONVOLUTIONS} convolutions of one"
        )

    def convolve(lhs: Array, rhs: Array) -> Array:
        places = conv_places(lhs.shape, rhs.shape, params)
        classes = [
            residues(
                places[d], rhs.shape[rhs_spec[2 + d]], lhs.shape[lhs_spec[2 + d]],
                {
                    "stride": params["window_strides"][d],
                    "dilation": params["rhs_dilation"][d],
                    "input_dilation": params["lhs_dilation"][d],
                    "padding": params["padding"][d][0],
                },
            )
            for d in range(len(places))
        ]  # fmt: skip
        order = range(lhs.ndim)
        parts = {of: work(_class(lhs, rhs, params, of), order) for of in itertools.product(*classes)}
        return _interleaved(parts, classes, [out_spec[2 + d] for d in range(len(places))], ())

    return convolve


def conv_places(lhs_shape: Sequence[int], rhs_shape: Sequence[int], params: Params) -> list[int]:
    """The spatial sizes of the result of a lax.conv_general_dilated."""
    lhs_spec, rhs_spec, _ = params["dimension_numbers"]
    result = []
    for d, (low, high) in enumerate(params["padding"]):
        size, taps = lhs_shape[lhs_spec[2 + d]], rhs_shape[rhs_spec[2 + d]]
        spread, reach = params["lhs_dilation"][d], params["rhs_dilation"][d] * (taps - 1) + 1
        span = low + high + (spread * (size - 1) + 1 if size else 0)
        result.append(max(0, (span - reach) // params["window_strides"][d] + 1))
    return result


def _class(lhs: Array, rhs: Array, params: Params, of: tuple[Residue, ...]) -> Array:
    """The places of the result that have these residues."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    if any(residue.taps == 0 for residue in of):
        shape = [0] * len(out_spec)
        shape[out_spec[0]] = lhs.shape[lhs_spec[0]] // params["batch_group_count"]
        shape[out_spec[1]] = rhs.shape[rhs_spec[0]]
        for d, residue in enumerate(of):
            shape[out_spec[2 + d]] = residue.places
        return jnp.zeros(shape, params["preferred_element_type"] or lhs.dtype)
    index = [slice(None)] * rhs.ndim
    for d, residue in enumerate(of):
        index[rhs_spec[2 + d]] = slice(residue.tap, None, residue.tap_step)
    return _bind(
        lhs, rhs[tuple(index)], params,
        window_strides=[residue.stride for residue in of],
        rhs_dilation=[residue.dilation for residue in of],
        padding=[residue.padding for residue in of],
        lhs_dilation=[1] * len(of),
    )  # fmt: skip


def _interleaved(
    parts: dict[tuple[Residue, ...], Array],
    classes: Sequence[Sequence[Residue]],
    dimensions: Sequence[int],
    chosen: tuple[Residue, ...],
) -> Array:
    """The places of all classes in their order, of those whose first residues are chosen."""
    depth = len(chosen)
    if depth == len(classes):
        return parts[chosen]
    arrays = [_interleaved(parts, classes, dimensions, (*chosen, residue)) for residue in classes[depth]]
    at, places = dimensions[depth], sum(residue.places for residue in classes[depth])
    if len(arrays) == 1:
        return arrays[0]
    most = max(residue.places for residue in classes[depth])
    padded = [
        jnp.pad(x, [(0, most - x.shape[at] if d == at else 0) for d in range(x.ndim)]) if x.shape[at] < most else x
        for x in arrays
    ]
    stacked = jnp.stack(padded, at + 1)
    shape = list(arrays[0].shape)
    shape[at] = most * len(arrays)
    return lax.slice_in_dim(stacked.reshape(shape), 0, places, axis=at)
