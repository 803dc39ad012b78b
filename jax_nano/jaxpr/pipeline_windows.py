"""Operations over windows in a pipeline: convolutions as products, and reductions of windows.

The place of a window's element is an affine function of the result's place and of the tap, as all places are: nothing
is copied but what is padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from jax_nano.ir.dtypes import NUMPY_TYPES
from jax_nano.ir.pipeline import Access, Contraction, Kind, Place, UnsupportedPipeline
from jax_nano.ir.program import NARROW_FLOATS, Constant
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.pipeline_rules import check_precision, converted, dtype_name_of, operands_of, shape_of
from jax_nano.jaxpr.pipeline_views import View, axis_place, constant_node, identity, sliced
from jax_nano.jaxpr.pipeline_writer import PipelineWriter

REDUCED_WINDOWS: dict[str, Kind] = {
    "reduce_window_sum": "add", "reduce_window_max": "max", "reduce_window_min": "min",
}  # fmt: skip


def padded(writer: PipelineWriter, x: View, padding: float, config: Sequence[tuple[int, int, int]]) -> View:
    """lax.pad by a number: it is written, and what is padded over it; negative padding leaves elements out."""
    positive = [(max(low, 0), max(high, 0), inner) for low, high, inner in config]
    shape = [
        low + high + size + inner * max(size - 1, 0) for size, (low, high, inner) in zip(x.shape, positive, strict=True)
    ]
    if any(low or high or inner for low, high, inner in positive):
        value = writer.new_value("scratch", x.node.dtype, shape)
        number = constant_node(Constant.of(padding, x.node.dtype), shape)
        writer.write([(number, Access(value, identity(len(shape))))])
        places = [Place(low, ((axis, inner + 1),)) for axis, (low, _, inner) in enumerate(positive)]
        writer.write([(x, Access(value, tuple(places)))])
        x = writer.stored(value)
    starts = [max(-low, 0) for low, _, _ in config]
    limits = [size - max(-high, 0) for size, (_, high, _) in zip(shape, config, strict=True)]
    if any(limit <= start for start, limit in zip(starts, limits, strict=True)):
        raise UnsupportedPipeline("an array is empty")
    return sliced(x, starts, limits, None) if starts != [0] * len(shape) or limits != shape else x


def read_convolution(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.conv_general_dilated: a product whose sum runs over taps and channels.

    Its axes are the dimensions of the result, then groups, where there are some; and those of the sum.
    """
    params, out = eqn.params, type_of(eqn.outvars[0])
    check_precision(params["precision"], "a convolution")
    lhs, rhs, dtype = operands_of(operands[0], operands[1], dtype_name_of(out))
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    count, rank = groups * batch_groups, len(out_spec)
    features, channels = out.shape[out_spec[1]] // count, rhs.shape[rhs_spec[1]]
    sizes = [*out.shape, count] if count > 1 else [*out.shape]
    sizes[out_spec[1]] = features
    summed = [*(rhs.shape[dim] for dim in rhs_spec[2:]), channels]
    group = ((rank, 1),) if count > 1 else ()
    image_axis, feature_axis, channel_axis = out_spec[0], out_spec[1], len(sizes) + len(summed) - 1

    def grouped(axis: int, size: int, groups: int) -> Place:
        return Place(0, ((axis, 1), *((rank, size) for _ in group if groups > 1)))

    config = [(0, 0, 0)] * rank
    in_image, in_kernel, in_result = [Place()] * rank, [Place()] * rank, list(identity(rank))
    in_image[lhs_spec[0]] = grouped(image_axis, out.shape[out_spec[0]], batch_groups)
    in_image[lhs_spec[1]] = grouped(channel_axis, channels, groups)
    in_kernel[rhs_spec[0]] = in_result[feature_axis] = grouped(feature_axis, features, count)
    in_kernel[rhs_spec[1]] = axis_place(channel_axis)
    each = zip(params["window_strides"], params["rhs_dilation"], params["lhs_dilation"], params["padding"], strict=True)
    for dim, (stride, dilation, inner, (low, high)) in enumerate(each):
        place, tap = out_spec[2 + dim], len(sizes) + dim
        config[lhs_spec[2 + dim]] = (int(low), int(high), int(inner) - 1)
        in_image[lhs_spec[2 + dim]] = Place(0, ((place, int(stride)), (tap, int(dilation))))
        in_kernel[rhs_spec[2 + dim]] = axis_place(tap)
    image = padded(writer, lhs, 0, config)
    value = writer.new_value("scratch", dtype, out.shape)
    axes, summed = without_single(len(sizes), summed)
    accesses = [
        access.substituted([place.substituted(axes) for place in at])
        for access, at in (
            (writer.force(image), in_image),
            (writer.force(rhs), in_kernel),
            (Access(value, identity(rank)), in_result),
        )
    ]
    lhs_access, rhs_access, output = accesses
    writer.add(
        Contraction(
            sizes=tuple(sizes), summed=tuple(summed), dtype=dtype, lhs=lhs_access, rhs=rhs_access, output=output
        )
    )
    return [converted(writer.stored(value), dtype_name_of(out))]


def without_single(rank: int, summed: Sequence[int]) -> tuple[list[Place], list[int]]:
    """Axes without those of a sum that have one element, and sizes of those that are left: one at least."""
    left = [axis for axis, size in enumerate(summed) if size > 1] or [len(summed) - 1]
    axes = [axis_place(rank + left.index(axis)) if axis in left else Place() for axis in range(len(summed))]
    return [*identity(rank), *axes], [summed[axis] for axis in left]


def read_reduced_window(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.reduce_window_sum, max or min: a reduction along the axes of the window."""
    params, (x,) = eqn.params, operands
    kind, dtype = REDUCED_WINDOWS[eqn.primitive.name], operands[0].node.dtype
    wide = converted(x, "f32") if dtype in NARROW_FLOATS else x
    dilated = zip(params["padding"], params["base_dilation"], strict=True)
    config = [(int(low), int(high), int(inner) - 1) for (low, high), inner in dilated]
    image = padded(writer, wide, first_of(kind, wide.node.dtype), config)
    shape, rank = shape_of(eqn.outvars[0]), len(x.shape)
    each = zip(params["window_strides"], params["window_dilation"], strict=True)
    places = [Place(0, ((dim, int(s)), (rank + dim, int(d)))) for dim, (s, d) in enumerate(each)]
    axes, sizes = without_single(rank, params["window_dimensions"])
    windows = image.through([place.substituted(axes) for place in places], [*shape, *sizes])
    reduced = writer.reduce(windows, range(rank, rank + len(sizes)), kind)
    return [converted(reduced, dtype)]


def first_of(kind: Kind, dtype: str) -> float:
    """What a reduction begins with."""
    if kind == "add":
        return 0
    if dtype[0] == "f" or dtype in NARROW_FLOATS:
        return -math.inf if kind == "max" else math.inf
    info = np.iinfo(NUMPY_TYPES[dtype])
    return info.min if kind == "max" else info.max


WINDOW_RULES = {
    **dict.fromkeys(("conv_general_dilated", "nano_conv_general_dilated"), read_convolution),
    **dict.fromkeys(REDUCED_WINDOWS, read_reduced_window),
}
