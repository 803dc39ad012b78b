"""Arrays of the shape of a product's operand, such as scales, over the dimensions of its result."""

from __future__ import annotations

from dataclasses import replace

from jax.extend.core import JaxprEqn

from jax_nano.jaxpr.grouped.dimensions import GroupedDimensions
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.operands import OfGroups, StridedArray
from jax_nano.jaxpr.primitives import CONVOLUTIONS, GROUPED_PRODUCTS
from jax_nano.jaxpr.strided_views import NoView, StridedView, SubDim, coalesce


def along_sums(eqn: JaxprEqn, operand: int, array: StridedArray) -> StridedArray:
    """An array of the shape of operand 0 or 1, the same for all of a sum, over the product's dimensions.

    Raises:
      NoView: it is not the same.
    """
    if eqn.primitive in CONVOLUTIONS:
        return _along_channels(eqn, array)
    if any(part.stride for d in _contracted(eqn, operand) for part in array.view.dims[d]):
        raise NoView("scales differ along the sum")
    return first_of_sums(eqn, operand, array)


def first_of_sums(eqn: JaxprEqn, operand: int, array: StridedArray) -> StridedArray:
    """The first element of each sum of an array of the shape of operand 0 or 1, over the product's dimensions."""
    if eqn.primitive in GROUPED_PRODUCTS:
        return _along_groups(eqn, operand, array)
    contracting, batch = (dims[operand] for dims in eqn.params["dimension_numbers"])
    dims = array.view.dims
    free = [dims[d] for d in range(len(dims)) if d not in (*contracting, *batch)]
    sizes = type_of(eqn.outvars[0]).shape[len(batch) :]
    sizes = sizes[: len(sizes) - len(free)] if operand else sizes[len(free) :]
    repeated = [coalesce([SubDim(size, 0)]) for size in sizes]
    of_c = (*repeated, *free) if operand else (*free, *repeated)
    return replace(array, view=StridedView((*(dims[d] for d in batch), *of_c)))


def _contracted(eqn: JaxprEqn, operand: int) -> tuple[int, ...]:
    if eqn.primitive in GROUPED_PRODUCTS:
        dims = dimensions_of(eqn)
        return dims.rhs_contract if operand else dims.lhs_contract
    return eqn.params["dimension_numbers"][0][operand]


def _along_channels(eqn: JaxprEqn, array: StridedArray) -> StridedArray:
    """An array of a kernel's shape, the same for all of a sum, over the dimensions of a convolution's result.

    Raises:
      NoView: it is not the same.
    """
    _, (outputs, *summed), (_, channels, *_) = eqn.params["dimension_numbers"]
    if any(part.stride for d in summed for part in array.view.dims[d]):
        raise NoView("scales differ along the sum")
    dims = [coalesce([SubDim(size, 0)]) for size in type_of(eqn.outvars[0]).shape]
    dims[channels] = array.view.dims[outputs]
    return replace(array, view=StridedView(tuple(dims)))


def _along_groups(eqn: JaxprEqn, operand: int, array: StridedArray) -> StridedArray:
    """An array of the shape of an operand of a grouped product, over the dimensions of a group's product.

    Raises:
      NoView: the groups' arrays do not follow one another by one stride.
    """
    dims, of = dimensions_of(eqn), array.view.dims
    rows = len(dims.lhs_free)
    repeated = [coalesce([SubDim(size, 0)]) for size in type_of(eqn.outvars[0]).shape]
    if operand == 0:
        return replace(array, view=StridedView((*(of[d] for d in dims.lhs_free), *repeated[rows:])))
    view = StridedView((*repeated[:rows], *(of[d] for d in dims.rhs_free)))
    return replace(array, view=view, groups=matrices_of_groups(array.view, dims))


def matrices_of_groups(view: StridedView, dims: GroupedDimensions) -> OfGroups:
    """How groups have their matrices in an array of B's shape.

    Raises:
      NoView: they do not follow one another by one stride.
    """
    assert dims.group is not None
    parts = view.dims[dims.group]
    if len(parts) > 1:
        raise NoView("the matrices of groups do not follow one another by one stride")
    return OfGroups(parts[0].size, parts[0].stride) if parts else OfGroups(1, 0)


def dimensions_of(eqn: JaxprEqn) -> GroupedDimensions:
    """The dimensions of a grouped product."""
    lhs, rhs, *_ = (type_of(x).ndim for x in eqn.invars)
    return GroupedDimensions.of(eqn.params["ragged_dot_dimension_numbers"], lhs, rhs)
