"""Convolutions as products: M runs over images and places, N over output channels, K over taps and input channels.

The loops of A go over the image more than once, with strides that overlap: see ir.window.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax_nano.ir.axes import Axis, Loops, Operand
from jax_nano.ir.dot import Dot, UnsupportedDot
from jax_nano.ir.window import Bound, Window

PLACES_IN_LANES = 8  # in a run, at least: shorter ones leave most lanes to masks
PLACES_OF_ONE_ROW = 4  # in a run of one output channel, which is read in place: better masks than another layout
LONGEST_STEP = 4  # from place to place in a run: so many registers are loaded for one of places


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """One spatial dimension: place i of the result reads places stride * i + dilation * tap - padding of the image."""

    stride: int = 1
    dilation: int = 1  # of the kernel
    padding: int = 0  # before the first place; behind the last there is what the result's size asks for

    def __post_init__(self):
        if min(self.stride, self.dilation) < 1:
            raise UnsupportedDot(f"stride {self.stride} and dilation {self.dilation} have to be at least 1")

    def reach(self, places: int, taps: int) -> tuple[int, int]:
        """The first and the last place of the image that are read."""
        return -self.padding, (places - 1) * self.stride + (taps - 1) * self.dilation - self.padding


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution of an image with a kernel, by where their elements are in memory.

    Attributes:
      image: (batch, spatial dimensions, channels).
      kernel: (spatial dimensions, channels of a group, output channels).
      result: (batch, spatial dimensions, output channels).
      spatial: the spatial dimensions.
      groups: groups of channels, each of which makes its own output channels.
      batch_groups: groups of the batch, each of which makes its own output channels.
    """

    image: Operand
    kernel: Operand
    result: Operand
    spatial: tuple[Spatial, ...]
    groups: int = 1
    batch_groups: int = 1

    @property
    def ends_with_places(self) -> bool:
        """Is true where the result's last dimension is one of places that can stand in lanes, as runs of the image."""
        if self.batch_groups > 1:
            return False
        outputs = self.kernel.shape[-1] // self.groups
        longest = LONGEST_STEP if outputs > 1 else 1  # a single row takes less time than to put places together
        fewest = PLACES_IN_LANES if outputs > 1 else PLACES_OF_ONE_ROW
        return any(
            lhs == out == 1 and spatial.stride <= longest and places >= fewest
            for spatial, places, lhs, out in zip(
                self.spatial, self.result.shape[1:-1], self.image.strides[1:-1], self.result.strides[1:-1], strict=True
            )
        )

    def dot(self) -> Dot:
        """The product.

        Raises:
          UnsupportedDot: there is nothing to compute, or no kernel for these types.
        """
        image, kernel, result = self.image, self.kernel, self.result
        loops, window = self.as_product()
        return Dot.over(loops, (image.dtype, kernel.dtype, result.dtype), window=window)

    def as_product(self) -> tuple[Loops, Window | None]:
        """Its loops, and how A lies in memory where they go over elements more than once, or beyond them.

        Raises:
          UnsupportedDot: there is nothing to compute.
        """
        if any(0 in operand.shape for operand in (self.image, self.kernel, self.result)):
            raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
        loops, window = self.loops(), self.window()
        return (without_windows(loops), None) if is_plain(loops, window) else (loops, window)

    def loops(self) -> Loops:
        """Its loops; those over M in the order of the result."""
        m = [self._axis(self.result.shape[0], lhs=self.image.strides[0], out=self.result.strides[0])]
        m += [self._places(d) for d in range(len(self.spatial))]
        m.sort(key=lambda axis: axis.out, reverse=True)
        kernel, outputs = self.kernel, self.kernel.shape[-1] // (self.groups * self.batch_groups)
        channels = self._axis(
            kernel.shape[-2], lhs=self.image.strides[-1], rhs=kernel.strides[-2], window=self._steps(-1, 1)
        )
        n = self._axis(outputs, rhs=kernel.strides[-1], out=self.result.strides[-1])
        k = [*(self._taps(d) for d in range(len(self.spatial))), channels]
        return Loops(b=[self._group(outputs)], m=m, n=[n], k=k)

    def _axis(self, size: int, **steps: Any) -> Axis:
        return Axis(size=size, **{"window": (0,) * len(self._bounded), **steps})

    def _group(self, outputs: int) -> Axis:
        """The loop over groups of channels, or of the batch, with so many output channels each."""
        steps = {"rhs": self.kernel.strides[-1] * outputs, "out": self.result.strides[-1] * outputs}
        image, channels = self.image, self.kernel.shape[-2]
        if self.batch_groups > 1:
            return self._axis(self.batch_groups, lhs=image.strides[0] * (image.shape[0] // self.batch_groups), **steps)
        window = self._steps(-1, channels)
        return self._axis(self.groups, lhs=image.strides[-1] * channels, window=window, **steps)

    def _places(self, d: int) -> Axis:
        stride = self.spatial[d].stride
        lhs, out = self.image.strides[1 + d] * stride, self.result.strides[1 + d]
        return self._axis(self.result.shape[1 + d], lhs=lhs, out=out, window=self._steps(d, stride))

    def _taps(self, d: int) -> Axis:
        dilation = self.spatial[d].dilation
        lhs, rhs = self.image.strides[1 + d] * dilation, self.kernel.strides[d]
        return self._axis(self.kernel.shape[d], lhs=lhs, rhs=rhs, window=self._steps(d, dilation))

    def window(self) -> Window:
        """Where the image ends."""
        image = self.image
        begin = -sum(s.padding * stride for s, stride in zip(self.spatial, image.strides[1:-1], strict=True))
        bounds = []
        for d in self._bounded:
            unit = self._unit(d)
            bounds.append(Bound(begin=-self.spatial[d].padding * unit, size=image.shape[1 + d] * unit))
        return Window(elements=image.elements, begin=begin, bounds=tuple(bounds))

    @functools.cached_property
    def _bounded(self) -> list[int]:
        """The spatial dimensions in which places beyond the image are read."""
        found = []
        for d, spatial in enumerate(self.spatial):
            first, last = spatial.reach(self.result.shape[1 + d], self.kernel.shape[d])
            if first < 0 or last >= self.image.shape[1 + d]:
                found.append(d)
        return found

    def _unit(self, d: int) -> int:
        """What a place counts for in a position: along the dimension before the channels it counts elements.

        So taps and channels can be one run.
        """
        *places, channels = self.image.strides[1:]
        before_channels = channels == 1 and d == len(places) - 1 and places[d] == self.image.shape[-1]
        return places[d] if before_channels else 1

    def _steps(self, d: int, count: int) -> tuple[int, ...]:
        """How far a step of `count` places along a dimension moves in positions; of channels, where d is -1."""
        return tuple(count * (self._unit(b) if b == d else int(d == -1 and self._unit(b) > 1)) for b in self._bounded)


def is_plain(loops: Loops, window: Window) -> bool:
    """Is true where a product without windows does the same: A's places and its steps are one run each.

    There are no groups, which stand inside of C's places.
    """
    if window.bounds or window.begin or loops.b[0].size > 1:
        return False
    loops = without_windows(loops)
    whole = all(follows([axis for axis in axes if axis.size > 1]) for axes in (loops.m, loops.k))
    elements = math.prod(axis.size for axis in (*loops.m, *loops.k) if axis.lhs)
    return whole and elements == window.elements


def follows(axes: Sequence[Axis]) -> bool:
    """Is true where each axis begins where the one inside of it ends, in every array."""
    pairs = itertools.pairwise(axes)
    return all(o == i * b.size for a, b in pairs for o, i in zip(a.strides(), b.strides(), strict=True))


def without_windows(loops: Loops) -> Loops:
    """The loops of a product that goes over each element of A as it lies."""
    b, m, n, k = ([replace(axis, window=()) for axis in axes] for axes in loops)
    return Loops(b=b, m=m, n=n, k=k)
