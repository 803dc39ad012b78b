"""Gathers of rows, x[rows]: equations that grouped products read through."""

from __future__ import annotations

from collections.abc import Sequence

from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import gather_p

from jax_nano.ir.grouped import RowGather
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.operands import StridedArray, element_type
from jax_nano.jaxpr.strided_views import NoView, StridedView

# Whole rows of a matrix, by an array of their places.
ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
# Beyond the ends these read the nearest row: in the first mode, XLA does.
_MODES = (lax.GatherScatterMode.PROMISE_IN_BOUNDS, lax.GatherScatterMode.CLIP)


def is_row_gather(eqn: JaxprEqn) -> bool:
    """Is true for a gather of whole rows of a matrix by an array of their places, each in a row of its own."""
    if eqn.primitive is not gather_p or eqn.params["dimension_numbers"] != ROWS or eqn.params["mode"] not in _MODES:
        return False
    x, places = (type_of(operand) for operand in eqn.invars)
    return x.ndim == 2 and places.ndim == 2 and eqn.params["slice_sizes"] == (1, x.shape[1])


def gathered(eqn: JaxprEqn, values: Sequence[object]) -> StridedArray:
    """The rows that a gather finds.

    Raises:
      NoView: it gathers something else, or of arrays that are moved or converted before.
    """
    arrays = [x for x in values if isinstance(x, StridedArray) and x == StridedArray(x.source, x.whole)]
    if not is_row_gather(eqn) or len(arrays) != 2:
        raise NoView("more is gathered than rows of an array as it lies")
    x, places = arrays
    return StridedArray(x.source, StridedView.of(type_of(eqn.outvars[0]).shape), places=places.source)


def row_gather(lhs: StridedArray) -> RowGather | None:
    """How rows of A are found, where they are gathered.

    Raises:
      UnsupportedDot: there is no row, or no kernel reads the type of their places.
    """
    if not lhs.places:
        return None
    stored, elements = type_of(lhs.source).shape
    return RowGather(places=element_type(lhs.places), stored=stored, stride=elements)
