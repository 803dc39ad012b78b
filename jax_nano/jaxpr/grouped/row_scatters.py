"""Scatters of rows, base.at[rows].add(y): equations that a grouped product's result goes through on its way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax import lax
from jax.extend.core import JaxprEqn, Literal, Var
from jax.extend.core.primitives import convert_element_type_p, scatter_add_p

from jax_nano.ir.grouped import RowScatter
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.operands import ElementExpr, StridedArray, element_type, is_exact, is_lossless
from jax_nano.jaxpr.strided_views import NoView, StridedView

_ROWS = lax.ScatterDimensionNumbers(
    update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)
# In the first two, XLA adds nothing beyond the ends.
_MODES = (lax.GatherScatterMode.FILL_OR_DROP, lax.GatherScatterMode.PROMISE_IN_BOUNDS, lax.GatherScatterMode.CLIP)
WIDE = {"bf16": "f32", "f16": "f32"}  # what sums are kept in until they are rounded
# Rows of an array for each that is added to it, up to which kernels copy all of it. XLA may change it in place, but
# takes some 3 ns for each element that it adds (Zen 5), in which memory moves the bytes of 15 elements of bf16.
COPIED_ROWS = 8


@dataclass(frozen=True)
class ScatteredRows:
    """Rows made of the product's elements, added to rows of an array.

    Attributes:
      rows: they.
      base: the array; None for zeros.
      targets: the array of the places where they are added.
      eqn: which adds them.
      dtype: the type of the result, perhaps a narrower one than that of the sums.
      begin: how many equations of the program make them.
    """

    rows: ElementExpr
    base: StridedArray | None
    targets: Var
    eqn: JaxprEqn
    dtype: str
    begin: int

    @property
    def arrays(self) -> tuple[Var, ...]:
        """What is read in memory, in the order in which kernels take it."""
        return (self.targets, self.base.source) if self.base else (self.targets,)

    def rounded(self, eqn: JaxprEqn) -> ScatteredRows:
        """The sums in the narrower type of a conversion.

        Raises:
          NoView: the equation is something else, or rounds what is rounded already.
        """
        return replace(self, dtype=rounded_type(eqn, self.dtype))

    def described(self, groups: int) -> RowScatter:  # noqa: ARG002  sums of chosen rows depend on it
        """As kernels know it, of a product of so many groups.

        Raises:
          UnsupportedDot: no kernel adds up rows of this type, or reads that of their places.
        """
        stored, *_ = type_of(self.eqn.outvars[0]).shape
        dtype = element_type(self.eqn.outvars[0])
        return RowScatter(
            places=element_type(self.targets), stored=stored, sum=WIDE.get(dtype, dtype), out=self.dtype,
            base=element_type(self.base.source) if self.base else None,
            beyond="nearest" if self.eqn.params["mode"] == lax.GatherScatterMode.CLIP else "no row",
        )  # fmt: skip


def rounded_type(eqn: JaxprEqn, dtype: str) -> str:
    """The narrower type that sums of a type are rounded to.

    Raises:
      NoView: the equation does something else with them, or they are rounded already.
    """
    if eqn.primitive is not convert_element_type_p:
        raise NoView("rows are worked on after they are added up")
    made = element_type(eqn.outvars[0])
    if WIDE.get(made) != dtype:
        raise NoView(f"sums of {dtype} are converted to {made}")
    return made


def is_row_scatter(eqn: JaxprEqn) -> bool:
    """Is true for a sum of the rows of two matrices, of the second at places in an array, each in a row of its own."""
    if eqn.primitive is not scatter_add_p or eqn.params["dimension_numbers"] != _ROWS:
        return False
    base, targets, rows = (type_of(x).shape for x in eqn.invars)
    return eqn.params["mode"] in _MODES and targets == (rows[0], 1) and base[1:] == rows[1:]


def scattered(eqn: JaxprEqn, values: Sequence[object], begin: int) -> ScatteredRows:
    """The sums that a scatter of rows makes.

    Raises:
      NoView: what it adds are no rows of the product, in their order, or it adds them to something else than an array.
    """
    base, targets, rows = values
    stored, columns = type_of(eqn.outvars[0]).shape
    shape = type_of(eqn.invars[2]).shape
    if not isinstance(rows, ElementExpr) or rows.view != StridedView.of(shape):
        raise NoView("what is added are no rows of the product in their order")
    if not isinstance(targets, StridedArray) or targets != StridedArray(targets.source, targets.whole):
        raise NoView("the places of rows are moved or converted")
    if isinstance(base, ElementExpr) and isinstance(base.atom, Literal) and base.atom.val == 0:
        base = None
    elif not _is_array(base, StridedView.of((stored, columns))):
        raise NoView("rows are added to something else than an array as it lies")
    elif stored > COPIED_ROWS * shape[0]:
        raise NoView(f"few of {stored} rows change, which are not copied for {shape[0]}")
    assert base is None or isinstance(base, StridedArray)
    return ScatteredRows(rows, base, targets.source, eqn, element_type(eqn.outvars[0]), begin)


def _is_array(base: object, view: StridedView) -> bool:
    """Is true for an array of this view, perhaps in a narrower type."""
    if (
        not isinstance(base, StridedArray)
        or base.view != view
        or base != StridedArray(base.source, base.view, base.conversions)
    ):
        return False
    whole = math.prod(view.shape) == type_of(base.source).size
    return whole and all(is_exact(eqn) and is_lossless(base.dtype, "f32") for eqn in base.conversions)
