"""Which convolutions of images that end with places are worth transposing, so that channels are neighbours in memory.

Places can stand in lanes where the result ends with them; then windows are packed in panels, element by element of each
tap. Where image and result end with channels, windows are read in place, and output channels stand in lanes, but both
arrays are transposed by XLA. Which takes less time follows from how many elements are packed, and how many transposed.
"""

from __future__ import annotations

import math

from jax_nano.ir.axes import Operand
from jax_nano.ir.convolution import Convolution
from jax_nano.ir.dtypes import bytes_of

PAGE_BYTES = 4 << 10
# Cycles on Zen 5 with f32, which 30 convolutions with 3 to 256 channels took there beside their arithmetic. Of 16 bits,
# all of them take about half, and so do products.
PACKED_CYCLES = 0.22  # that an element takes to be packed in panels of places
STRIDED_CYCLES = 0.8  # of places that are no neighbours
TRANSPOSED_CYCLES = 0.8  # that it takes XLA to transpose one
ALIASED_CYCLES = 7  # that it takes where all channels compete for the same lines, if XLA computes the image on the way
SHORT_RUN_CYCLES = 6  # of a place, for each row of a kernel of few channels, read in place
FEW_CHANNELS = 8
LANES = 16  # for output channels; where there are fewer, steps of the sum can stand there
REGISTERS_PER_CYCLE = 2  # of products


def pays_with_channels_last(convolution: Convolution) -> bool:
    """Is true where packing windows of places takes longer than transposes of the image and of the result."""
    image, kernel, result = convolution.image, convolution.kernel, convolution.result
    steps, outputs = kernel.elements // kernel.shape[-1], kernel.shape[-1]
    if not convolution.ends_with_places or convolution.groups > 1 or outputs == 1 or image.strides[-1] == 1:
        return False
    if has_places_as_taps(convolution):
        return False
    places = result.elements // outputs
    is_strided = any(spatial.stride > 1 for spatial in convolution.spatial)
    packing = steps * places * (STRIDED_CYCLES if is_strided else PACKED_CYCLES)
    products = steps * places * outputs / (LANES * REGISTERS_PER_CYCLE)
    if has_aliased_channels(image) and image.elements * ALIASED_CYCLES > packing + products:
        return False
    moving = (image.elements + result.elements) * TRANSPOSED_CYCLES
    idle = 0 if outputs <= LANES else -(-outputs // LANES) - outputs / LANES
    short = math.prod(kernel.shape[:-3]) * SHORT_RUN_CYCLES if kernel.shape[-2] < FEW_CHANNELS else 0
    return packing > moving + places * (steps * idle / REGISTERS_PER_CYCLE + short)


def has_aliased_channels(image: Operand) -> bool:
    """Is true where channels are whole pages apart: XLA goes through them element by element, and misses L1."""
    return bytes_of(image.dtype, image.strides[-1]) % PAGE_BYTES == 0


def has_scattered_image(convolution: Convolution) -> bool:
    """Is true where neither channels nor places that follow one another in the image can be read as runs."""
    image, kernel = convolution.image, convolution.kernel
    if image.strides[-1] == 1 or kernel.shape[-2] == 1 or convolution.ends_with_places:
        return False
    return convolution.groups > 1 or any(spatial.stride > 1 for spatial in convolution.spatial)


def has_image_of_places(convolution: Convolution) -> bool:
    """Is true where places are neighbours in the image, and channels are in the result: windows would be transposed."""
    image, kernel = convolution.image, convolution.kernel
    if image.strides[-1] == 1 or kernel.shape[-2] == 1 or convolution.ends_with_places:
        return False
    return 1 in image.strides[1:-1] and not has_places_as_taps(convolution)


def has_places_as_taps(convolution: Convolution) -> bool:
    """Is true for the gradient of a kernel: its taps are places, and more than the places of its result."""
    return math.prod(convolution.kernel.shape[:-2]) > math.prod(convolution.result.shape[1:-1])
