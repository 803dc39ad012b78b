"""Operations over windows in a pipeline: convolutions as products, and reductions of windows.

The place of a window's element is an affine function of the result's place and of the tap, as all places are: nothing
is copied but what is padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jax_nano.ir.dtypes import NUMPY_TYPES
from jax_nano.ir.pipeline import Access, Contraction, Kind, Place, UnsupportedPipeline
from jax_nano.ir.program import NARROW_FLOATS, Constant
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.pipelines.rules import check_precision, converted, dtype_name_of, operands_of, shape_of
from jax_nano.jaxpr.pipelines.views import View, axis_place, constant_node, identity, sliced
from jax_nano.jaxpr.pipelines.writer import PipelineWriter

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


@dataclass(frozen=True)
class ConvolutionAxes:
    """The axes of a convolution: dimensions of the result, groups of several features, and those of its sum.

    Groups of one feature each are a dimension of the result.

    Attributes:
      sizes: of the axes of the result.
      summed: of those of the sum: taps and channels.
      image: places in the padded image, by all axes.
      kernel: places in the kernel.
      result: places in the result.
    """

    sizes: list[int]
    summed: list[int]
    image: list[Place]
    kernel: list[Place]
    result: list[Place]

    @classmethod
    def of(cls, params: Mapping[str, Any], kernel: Sequence[int], out: Sequence[int]) -> ConvolutionAxes:
        """Those of a lax.conv_general_dilated, with the shapes of the kernel and of the result."""
        lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
        groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
        count, rank, feature = groups * batch_groups, len(out_spec), out_spec[1]
        features, channels = out[feature] // count, kernel[rhs_spec[1]]
        sizes, group = [*out], feature
        if count > 1 and features > 1:
            sizes[feature], group = features, rank
            sizes.append(count)
        taps = [kernel[dim] for dim in rhs_spec[2:]]
        channel = len(sizes) + len(taps)

        def grouped(axis: int, size: int, *, wanted: bool) -> Place:
            return Place(0, ((axis, 1), (group, size))) if wanted else axis_place(axis)

        found = cls(sizes, [*taps, channels], [Place()] * rank, [Place()] * rank, list(identity(rank)))
        found.image[lhs_spec[0]] = grouped(out_spec[0], out[out_spec[0]], wanted=batch_groups > 1)
        found.image[lhs_spec[1]] = grouped(channel, channels, wanted=groups > 1)
        found.kernel[rhs_spec[0]] = found.result[feature] = grouped(feature, features, wanted=group != feature)
        found.kernel[rhs_spec[1]] = axis_place(channel)
        for dim, (stride, dilation) in enumerate(zip(params["window_strides"], params["rhs_dilation"], strict=True)):
            place, tap = out_spec[2 + dim], len(sizes) + dim
            found.image[lhs_spec[2 + dim]] = Place(0, ((place, int(stride)), (tap, int(dilation))))
            found.kernel[rhs_spec[2 + dim]] = axis_place(tap)
        return found


def read_convolution(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.conv_general_dilated: a product whose sum runs over taps and channels."""
    params, out = eqn.params, type_of(eqn.outvars[0])
    check_precision(params["precision"], "a convolution")
    lhs, rhs, dtype = operands_of(operands[0], operands[1], dtype_name_of(out))
    axes = ConvolutionAxes.of(params, rhs.shape, out.shape)
    spatial, config = params["dimension_numbers"][0][2:], [(0, 0, 0)] * len(lhs.shape)
    for dim, (low, high), dilation in zip(spatial, params["padding"], params["lhs_dilation"], strict=True):
        config[dim] = (int(low), int(high), int(dilation) - 1)
    image, kernel = writer.force(padded(writer, lhs, 0, config)), writer.force(rhs)
    value = writer.new_value("scratch", dtype, out.shape)
    left, summed = without_single(len(axes.sizes), axes.summed)

    def along(access: Access, places: Sequence[Place]) -> Access:
        return access.substituted([place.substituted(left) for place in places])

    writer.add(
        Contraction(
            sizes=tuple(axes.sizes), summed=tuple(summed), dtype=dtype, lhs=along(image, axes.image),
            rhs=along(kernel, axes.kernel), output=along(Access(value, identity(len(out.shape))), axes.result),
        )
    )  # fmt: skip
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
    if dtype == "pred":
        raise UnsupportedPipeline("a window of truth values")
    info = np.iinfo(NUMPY_TYPES[dtype])
    return info.min if kind == "max" else info.max


WINDOW_RULES = {
    **dict.fromkeys(("conv_general_dilated", "nano_conv_general_dilated"), read_convolution),
    **dict.fromkeys(REDUCED_WINDOWS, read_reduced_window),
}
