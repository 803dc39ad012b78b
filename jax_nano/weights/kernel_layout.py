"""Kernels of convolutions as matrices: rows go over taps and input channels, columns over output channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class KernelLayout:
    """How a kernel's dimensions are the rows and columns of a matrix.

    Dimensions before those of `spec` count kernels, as those before (K, N) count matrices.

    Attributes:
      spec: the dimensions in their order, as in lax.conv_general_dilated's dimension numbers: "HWIO", "OIHW", "IO".
      taps: sizes of the spatial ones, in their order.
    """

    spec: str
    taps: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], spec: str) -> KernelLayout:
        """The layout of kernels of this shape.

        Raises:
          ValueError: there is no such layout, or the kernel has other dimensions.
        """
        letters = spec if isinstance(spec, str) else ""
        if len(set(letters)) != len(letters) or not {"I", "O"} <= set(letters):
            raise ValueError(
                f'kernel={spec!r}: name each dimension by a letter, input channels "I" and output channels "O", all '
                'others being spatial: "HWIO" or "OIHW", for instance'
            )
        if len(shape) < len(spec):
            raise ValueError(f'a kernel of the shape {tuple(shape)} has no dimensions "{spec}"')
        sizes = dict(zip(spec, shape[len(shape) - len(spec) :], strict=True))
        return cls(spec, tuple(sizes[letter] for letter in spec if letter not in "IO"))

    @property
    def is_transposed(self) -> bool:
        """Is true where output channels stand before input channels, as where results end with places."""
        return self.spec.index("O") < self.spec.index("I")

    @property
    def order(self) -> list[int]:
        """Which dimensions of `spec` are those of (taps, input channels, output channels)."""
        spatial = [i for i, letter in enumerate(self.spec) if letter not in "IO"]
        return [*spatial, self.spec.index("I"), self.spec.index("O")]

    def matrix(self, kernel: Array) -> Array:
        """(..., K, N) of a kernel."""
        stacked = kernel.ndim - len(self.spec)
        ordered = jnp.transpose(kernel, [*range(stacked), *(stacked + d for d in self.order)])
        return ordered.reshape(*kernel.shape[:stacked], -1, ordered.shape[-1])

    def kernel(self, matrix: Array) -> Array:
        """The kernel of (..., K, N)."""
        *stack, k, n = matrix.shape
        ordered = matrix.reshape(*stack, *self.taps, k // math.prod(self.taps), n)
        inverse = [self.order.index(d) for d in range(len(self.spec))]
        return jnp.transpose(ordered, [*range(len(stack)), *(len(stack) + d for d in inverse)])

    def shape(self, matrix: Sequence[int]) -> tuple[int, ...]:
        """The shape of the kernel of a matrix of this shape."""
        *stack, k, n = matrix
        sizes = {"I": k // math.prod(self.taps), "O": n}
        spatial = iter(self.taps)
        return (*stack, *(sizes[letter] if letter in sizes else next(spatial) for letter in self.spec))


def matrices_of(w: Array, spec: str | None) -> tuple[Array, KernelLayout | None]:
    """A weight as matrices (..., K, N), and the layout of its kernels, if it is of such.

    Raises:
      ValueError: there is no such layout, or the kernel has other dimensions.
    """
    if spec is None:
        return w, None
    layout = KernelLayout.of(w.shape, spec)
    return layout.matrix(w), layout
