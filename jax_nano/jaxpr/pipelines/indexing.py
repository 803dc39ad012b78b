"""Gathers and scatters as slices at run-time indices: one, or a loop of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core.primitives import dynamic_slice_p, dynamic_update_slice_p
from jax.lax import GatherScatterMode

Params = Mapping[str, Any]


class Slices(NamedTuple):
    """Slices of an array that begin at indices.

    Attributes:
      shape: of the array.
      sizes: of a slice, by the array's dimensions.
      dropped: dimensions of size 1 that the other side, the result of a gather or the updates, does not have.
      starts: the dimensions that indices are of, in their order.
      batch: dimensions that are a batch, each with which dimension of the indices counts it.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    dropped: tuple[int, ...]
    starts: tuple[int, ...]
    batch: tuple[tuple[int, int], ...]

    @property
    def kept(self) -> list[int]:
        """The sizes that the other side has."""
        return [size for dim, size in enumerate(self.sizes) if dim not in self.dropped]

    def begin(self, indices: Array) -> list[Array]:
        """All starts, dimension by dimension: int32 arrays of the shape of the indices without their last dimension."""
        shape = indices.shape[:-1]
        found = [jnp.zeros(shape, jnp.int32) for _ in self.shape]
        for number, dim in enumerate(self.starts):
            found[dim] = as_int32(indices[..., number])
        for dim, axis in self.batch:
            found[dim] = lax.broadcasted_iota(jnp.int32, shape, axis)
        return found

    def are_inside(self, starts: Sequence[Array]) -> Array:
        """Whether a slice is inside the array as a whole."""
        inside = jnp.ones(starts[0].shape, bool)
        for dim in self.starts:
            inside &= (starts[dim] >= 0) & (starts[dim] <= self.shape[dim] - self.sizes[dim])
        return inside

    def read(self, x: Array, starts: Sequence[Array]) -> Array:
        """One slice, moved to where there is room."""
        return dynamic_slice_p.bind(x, *starts, slice_sizes=self.sizes)


def as_int32(indices: Array) -> Array:
    """Indices of any type; those that are too large or too small for int32 stay beyond an array."""
    info, most = jnp.iinfo(indices.dtype), jnp.iinfo(jnp.int32).max
    if info.max > most:
        indices = jnp.minimum(indices, jnp.asarray(most, indices.dtype))
    if info.min < -most:
        indices = jnp.maximum(indices, jnp.asarray(-most, indices.dtype))
    return indices.astype(jnp.int32)


def gather(params: Params) -> Callable[..., Array]:
    """lax.gather."""
    numbers, mode = params["dimension_numbers"], GatherScatterMode.from_any(params["mode"])

    def program(x: Array, indices: Array) -> Array:
        batch = tuple(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
        dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        slices = Slices(x.shape, tuple(params["slice_sizes"]), dropped, numbers.start_index_map, batch)
        starts = slices.begin(indices)
        shape = starts[0].shape
        flat = [start.reshape(-1) for start in starts]
        if flat[0].shape[0] == 1:
            found = slices.read(x, [start[0] for start in flat])
        else:
            _, found = lax.scan(lambda _, at: (None, slices.read(x, at)), None, flat)
        found = found.reshape(*shape, *slices.kept)
        if mode == GatherScatterMode.FILL_OR_DROP:
            inside = slices.are_inside(starts).reshape(*shape, *(1 for _ in slices.kept))
            found = jnp.where(inside, found, fill_value(params["fill_value"], x.dtype))
        others = [axis for axis in range(found.ndim) if axis not in numbers.offset_dims]
        return found.transpose(places_of([*others, *numbers.offset_dims]))

    return program


def places_of(order: Sequence[int]) -> list[int]:
    """The inverse of a permutation."""
    return [order.index(axis) for axis in range(len(order))]


def fill_value(value: Any, dtype: Any) -> Any:
    """What stands for slices that are not inside: NaN, the smallest integer, the largest unsigned one, or true."""
    if value is not None:
        return jnp.asarray(value, dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(jnp.nan, dtype)
    if jnp.issubdtype(dtype, jnp.bool_):
        return jnp.ones((), dtype)
    info = jnp.iinfo(dtype)
    return jnp.asarray(info.max if jnp.issubdtype(dtype, jnp.unsignedinteger) else info.min, dtype)


def scatter(params: Params, combine: Callable[[Array, Array], Array] | None) -> Callable[..., Array]:
    """lax.scatter, where `combine` is None, and its like; slices that are not inside are dropped."""
    numbers, mode = params["dimension_numbers"], GatherScatterMode.from_any(params["mode"])
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    batch = tuple(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))

    def program(x: Array, indices: Array, updates: Array) -> Array:
        windows = iter(updates.shape[axis] for axis in numbers.update_window_dims)
        sizes = tuple(1 if dim in dropped else next(windows) for dim in range(x.ndim))
        slices = Slices(x.shape, sizes, dropped, numbers.scatter_dims_to_operand_dims, batch)
        starts = slices.begin(indices)
        others = [axis for axis in range(updates.ndim) if axis not in numbers.update_window_dims]
        flat = [start.reshape(-1) for start in starts]
        each = updates.transpose([*others, *numbers.update_window_dims]).reshape(flat[0].shape[0], *sizes)
        inside = slices.are_inside(starts).reshape(-1)
        is_checked = mode == GatherScatterMode.FILL_OR_DROP

        def step(x: Array, at: tuple[list[Array], Array, Array]) -> tuple[Array, None]:
            begin, value, fits = at
            if combine or is_checked:
                old = slices.read(x, begin)
                value = combine(old, value) if combine else value
                value = jnp.where(fits, value, old) if is_checked else value
            return dynamic_update_slice_p.bind(x, value, *begin), None

        if flat[0].shape[0] == 1:
            return step(x, ([start[0] for start in flat], each[0], inside[0]))[0]
        return lax.scan(step, x, (flat, each, inside))[0]

    return program
