"""Convolutions of JAX as descriptions of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

from jax.core import ShapedArray

from jax_nano.ir.axes import Operand
from jax_nano.ir.convolution import Convolution, Spatial
from jax_nano.ir.dtypes import dtype_name

Params = dict[str, Any]
# Elements of an image to those of a kernel that is worth moving. On Zen 5, with kernels of 256 x 256 x 3 x 3 and 128 x
# 128 x 3 x 3 left as they are, one image of 14 x 14 takes 0.7 and one of 28 x 28 takes 0.6 to 1.0 of the time.
SMALL_KERNELS = 4


def convolution_of(lhs: Operand, rhs: Operand, out: ShapedArray, params: Params) -> Convolution:
    """A lax.conv_general_dilated of arrays that lie like this in memory, but for the dilation of its input."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    sizes = zip(params["window_strides"], params["rhs_dilation"], params["padding"], strict=True)
    return Convolution(
        image=lhs.transposed((lhs_spec[0], *lhs_spec[2:], lhs_spec[1])),
        kernel=rhs.transposed((*rhs_spec[2:], rhs_spec[1], rhs_spec[0])),
        result=Operand.row_major(out.shape, dtype_name(out.dtype)).transposed(
            (out_spec[0], *out_spec[2:], out_spec[1])
        ),
        spatial=tuple(Spatial(stride=int(s), dilation=int(d), padding=int(low)) for s, d, (low, _) in sizes),
        groups=int(params["feature_group_count"]),
        batch_groups=int(params["batch_group_count"]),
    )


def has_dilated_input(params: Params) -> bool:
    """Is true where zeros stand between the places of the image."""
    return any(count > 1 for count in params["lhs_dilation"])


def is_simple(convolution: Convolution, params: Params) -> bool:
    """Is true for what a kernel computes as it is."""
    return has_kernel_order(convolution) and not has_dilated_input(params) and is_in_order(convolution)


def has_kernel_order(convolution: Convolution) -> bool:
    """Is true where the result ends with channels, or with places that can stand in lanes."""
    return convolution.result.strides[-1] == 1 or convolution.ends_with_places


def is_in_order(convolution: Convolution) -> bool:
    """Is true where taps and input channels follow one another in the kernel's memory, as runs of the image want it.

    In the gradient of a kernel, places are the taps, and channels, the batch, are no neighbours in the image: of those
    taps there are many, and they stay as they are. Where channels are no neighbours in the image, they may also be
    around the taps: that takes longer to pack, but no longer than to move a kernel that is large beside the image.
    """
    kernel, result = convolution.kernel, convolution.result
    taps, places = math.prod(kernel.shape[:-2]), math.prod(result.shape[1:-1])
    if taps > places and convolution.image.strides[-1] != 1:
        return True
    steps = [(stride, size) for size, stride in zip(kernel.shape[:-1], kernel.strides[:-1], strict=True) if size > 1]
    if convolution.image.strides[-1] != 1 and kernel.elements * SMALL_KERNELS > convolution.image.elements:
        steps.sort(reverse=True)
    return all(outer == inner * size for (outer, _), (inner, size) in itertools.pairwise(steps))
