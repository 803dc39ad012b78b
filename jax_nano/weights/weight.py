"""Weights: arrays kept in another form, which functions of JAX take for the array they stand for."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.export import register_pytree_node_serialization
from jax.typing import ArrayLike

from jax_nano.weights.kernel_layout import KernelLayout

W = TypeVar("W", bound="Weight")


def pytree(data: Sequence[str], meta: Sequence[str]) -> Callable[[type[W]], type[W]]:
    """Registers a dataclass of weights as a pytree, also for exported programs that are written to disk.

    Args:
      data: the fields that are pytrees.
      meta: those that are compared, and become JSON: numbers, texts, None, types of elements and layouts of kernels.
    """

    def register(cls: type[W]) -> type[W]:
        jax.tree_util.register_dataclass(cls, data, meta)
        register_pytree_node_serialization(
            cls, serialized_name=f"jax_nano.{cls.__name__}", serialize_auxdata=write, deserialize_auxdata=json.loads,
            from_children=lambda aux_data, children: cls(**dict(zip(data, children, strict=True)), **read(aux_data)),
        )  # fmt: skip
        return cls

    def write(values: Sequence[Any]) -> bytes:
        return json.dumps([to_json(x) for x in values]).encode()

    def read(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(meta, map(from_json, values), strict=True))

    return register


def to_json(value: Any) -> Any:
    """A field of a weight as JSON has it."""
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    return {"layout": [value.spec, value.taps]} if isinstance(value, KernelLayout) else value


def from_json(value: Any) -> Any:
    """What to_json was given."""
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return jnp.dtype(value["dtype"])
    spec, taps = value["layout"]
    return KernelLayout(spec, tuple(taps))


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
