"""Weights: arrays kept in another form, which functions of JAX take for the array they stand for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


class Weight(ABC):
    """A pytree that stands for an array.

    Products of jax_nano and accelerated programs read it in its own form. All other functions get the array.
    """

    __array_ufunc__ = None  # NumPy's arrays leave operations with it to it

    @abstractmethod
    def __jax_array__(self) -> Array:
        """The array that it stands for."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """That of the array."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """That of the array."""

    @property
    def ndim(self) -> int:
        """How many dimensions the array has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements the array has."""
        return math.prod(self.shape)

    @property
    def T(self) -> Array:  # noqa: N802
        """The array with its dimensions reversed."""
        return self.__jax_array__().T

    def astype(self, dtype: Any) -> Array:
        """The array in another type."""
        return self.__jax_array__().astype(dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: FBT001  NumPy's protocol
        return np.array(self.__jax_array__(), dtype=dtype, copy=copy)

    def __matmul__(self, other: ArrayLike) -> Array:
        return jnp.matmul(self.__jax_array__(), other)

    def __rmatmul__(self, other: ArrayLike) -> Array:
        return jnp.matmul(other, self.__jax_array__())
