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
from jax_nano.machine.host import machine_for, target
from jax_nano.machine.isa import Machine

FEW_CHANNELS = 8  # whose runs are short


def pays_with_channels_last(convolution: Convolution) -> bool:
    """Is true where packing windows of places takes longer than transposes of the image and of the result."""
    image, kernel, result = convolution.image, convolution.kernel, convolution.result
    steps, outputs = kernel.elements // kernel.shape[-1], kernel.shape[-1]
    if not convolution.ends_with_places or convolution.groups > 1 or outputs == 1 or image.strides[-1] == 1:
        return False
    if has_places_as_taps(convolution):
        return False
    machine = machine_for()
    isa, fitted = target(machine), machine.fitted
    lanes = (isa.vectors or isa).register_bytes // bytes_of("f32")
    per_cycle, _ = machine.vector_core(isa.name).rate("fma_f32")
    places = result.elements // outputs
    is_strided = any(spatial.stride > 1 for spatial in convolution.spatial)
    packing = steps * places * (fitted.strided_place_cycles if is_strided else fitted.packed_place_cycles)
    products = steps * places * outputs / (lanes * per_cycle)
    aliased = image.elements * fitted.aliased_channel_cycles if has_aliased_channels(image, machine) else 0
    if aliased > packing + products:
        return False
    moving = (image.elements + result.elements) * fitted.transposed_cycles
    idle = 0 if outputs <= lanes else -(-outputs // lanes) - outputs / lanes  # where outputs are few, steps stand there
    short = math.prod(kernel.shape[:-3]) * fitted.short_run_cycles if kernel.shape[-2] < FEW_CHANNELS else 0
    return packing > moving + places * (steps * idle / per_cycle + short)


def has_aliased_channels(image: Operand, machine: Machine) -> bool:
    """Is true where channels are whole pages apart: XLA goes through them element by element, and misses L1."""
    return bytes_of(image.dtype, image.strides[-1]) % machine.page_bytes == 0


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
