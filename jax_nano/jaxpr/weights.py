"""Weights of a program: arrays that stand for others in memory, and how they stride over it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jax.extend.core import Jaxpr, JaxprEqn

from jax_nano.ir.axes import Operand
from jax_nano.jaxpr.dataflow import variables
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.legality import WEIGHTS
from jax_nano.jaxpr.operands import VIEWS, apply_view, element_type, is_exact, is_strided, panel_view
from jax_nano.jaxpr.primitives import nano_unpack_p
from jax_nano.jaxpr.strided_views import NoView, StridedView


@dataclass(frozen=True)
class StridedWeight:
    """A weight, moved perhaps.

    Attributes:
      view: of the matrices that it stands for; of panels, by what strides mean there.
      dtype: that of its elements.
      columns_last: whether kernels read it only where its columns are the result's last dimension.
    """

    view: StridedView
    dtype: str
    columns_last: bool

    @property
    def is_operand(self) -> bool:
        """Is true where each dimension has a single stride."""
        return all(len(dim) <= 1 for dim in self.view.dims)

    @property
    def operand(self) -> Operand:
        """The weight as an operand."""
        strides = tuple(dim[0].stride if dim else 0 for dim in self.view.dims)
        return Operand(shape=self.view.shape, strides=strides, dtype=self.dtype)


def strided_weights(jaxpr: Jaxpr) -> dict[Atom, StridedWeight]:
    """The weights of a program, and what only moves or widens them: those that are operands."""
    found: dict[Atom, StridedWeight] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive in WEIGHTS:
            found[eqn.outvars[0]] = _weight(eqn)
            continue
        weight = next((found[x] for x in variables(eqn.invars[:1]) if x in found), None)
        if moved := weight and _moved(eqn, weight):
            found[eqn.outvars[0]] = moved
    return {x: weight for x, weight in found.items() if weight.is_operand}


def _weight(eqn: JaxprEqn) -> StridedWeight:
    """The matrices of an equation of WEIGHTS."""
    (out,) = eqn.outvars
    dtype = element_type(out)
    if eqn.primitive is nano_unpack_p:
        return StridedWeight(panel_view(eqn), dtype, not is_strided(eqn))
    in_place = eqn.params["bits"] == 4 or eqn.params["group"] is not None or len(eqn.invars) > len(("values", "scales"))
    return StridedWeight(StridedView.of(type_of(out).shape), dtype, in_place)


def _moved(eqn: JaxprEqn, weight: StridedWeight) -> StridedWeight | None:
    """A weight seen through an equation; None where no strides describe that."""
    if is_exact(eqn):
        return replace(weight, dtype=element_type(eqn.outvars[0]))
    if eqn.primitive not in VIEWS:
        return None
    try:
        return replace(weight, view=apply_view(eqn, weight.view))
    except NoView:
        return None
