"""Convolutions that XLA computes faster than kernels do, by what the cost model expects of both."""

from __future__ import annotations

from typing import Any

from jax.lax import DotAlgorithm, DotAlgorithmPreset

from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.jaxpr.convolutions import has_dilated_input
from jax_nano.machine import host
from jax_nano.runtime.kernel import Kernel
from jax_nano.schedule.cost.eigen import one_channel_seconds

Params = dict[str, Any]
CHANNELS_LAST = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)  # NHWC, HWIO, NHWC, as lax.ConvDimensionNumbers


def check_convolution(dot: Dot, kernel: Kernel, params: Params) -> None:
    """Leaves a convolution to XLA where that is expected to be faster.

    Args:
      dot: what the kernel computes.
      kernel: of which the cost model has predicted the time.
      params: of the convolution's equation.

    Raises:
      UnsupportedDot: XLA's code is expected to take less time.
    """
    if not has_fast_path(dot, params):
        return
    _, places, _, steps = dot.sizes
    expected, predicted = one_channel_seconds(places, steps, host.machine()), kernel.description.predicted_seconds
    if expected < predicted:
        raise UnsupportedDot(
            f"XLA is expected to take {1e6 * expected:.0f} us for this sum into one channel, a kernel "
            f"{1e6 * predicted:.0f} us"
        )


def has_fast_path(dot: Dot, params: Params) -> bool:
    """Is true for convolutions of f32 images that end with channels, into one channel: XLA has Eigen compute those."""
    numbers = tuple(map(tuple, params["dimension_numbers"]))
    simple = not has_dilated_input(params) and set(params["rhs_dilation"]) == {1} and not dot.b
    rounded = isinstance(params["precision"], DotAlgorithm | DotAlgorithmPreset)
    into_one = dot.sizes[2] == 1 and (dot.lhs, dot.rhs) == ("f32", "f32") and not dot.panels
    return numbers == CHANNELS_LAST and simple and into_one and dot.window is not None and not rounded
