"""Values: what the variables of a region stand for, by what is read in memory.

An array is read by strides; a weight besides by what its integers stand for. Work is what elements of other arrays than
the product make; an element is one of the product, or of what is made of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.core import ShapedArray
from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import broadcast_in_dim_p, convert_element_type_p, reshape_p, squeeze_p, transpose_p

from jax_nano.ir.dot import Scaling, row_major_strides
from jax_nano.ir.dtypes import FLOAT8, PACKED_INT4, dtype_name
from jax_nano.ir.packed_weight import Panels
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.strided_views import NoView, View

# What each type can be converted to without rounding.
LOSSLESS = {
    **dict.fromkeys(("bf16", "f16"), ("f32",)),
    **dict.fromkeys(("s8", "u8"), ("s32", "s16", "f32", "bf16", "f16")),
    **dict.fromkeys(FLOAT8, ("f32", "bf16", "f16")),
}
VIEWS = frozenset({broadcast_in_dim_p, reshape_p, squeeze_p, transpose_p})


@dataclass(frozen=True)
class Array:
    """One of the arrays that are read, by strides, converted as equations say one after the other."""

    source: int
    view: View
    conversions: tuple[JaxprEqn, ...] = ()
    panels: Panels | None = None  # what the view's strides mean, where they do not count elements
    weight: Weight | None = None
    work: Work | None = None  # whose first input it is

    @property
    def beside(self) -> list[Array]:
        """What else work on it reads."""
        return [array for _, array in self.work.inputs[1:]] if self.work else []

    def moved(self, eqn: JaxprEqn) -> Array:
        """The array as a view of it has it."""
        weight = self.weight and replace(self.weight, parameters=tuple(x.moved(eqn) for x in self.weight.parameters))
        return replace(self, view=viewed(eqn, self.view), weight=weight)


@dataclass(frozen=True)
class Weight:
    """What floats an array of integers stands for.

    Rows that share words are seen as if each had its own.
    """

    eqn: JaxprEqn  # which dequantizes them
    dtype: str  # of the integers
    parameters: tuple[Array, ...]  # the first group's scales, and zero points if any, repeated along the sum

    @property
    def is_scaled(self) -> bool:
        """Whether integers have to be scaled before they are summed."""
        return self.eqn.params["group"] is not None or len(self.parameters) > 1

    @property
    def is_in_place(self) -> bool:
        """Whether only B can be read so, with the sum along the weight's own rows."""
        return self.is_scaled or self.dtype in PACKED_INT4

    def scaling(self, stored: Sequence[ShapedArray]) -> Scaling | None:
        """How sums of B are scaled, by parameters of these types, if they are."""
        if not stored:
            return None
        rows, columns = type_of(self.eqn.outvars[0]).shape[-2:]
        return Scaling(
            group_size=self.eqn.params["group"] or rows,
            stride=columns,
            arrays=tuple((dtype_name(x.dtype), math.prod(x.shape)) for x in stored),
        )


@dataclass(frozen=True)
class Work:
    """A value of a program of other arrays than the product: what it makes of elements at one place of all inputs."""

    atom: Atom
    inputs: tuple[tuple[Var, Array], ...]

    @property
    def view(self) -> View:
        """Its shape."""
        return View.of(self.inputs[0][1].view.shape)

    def moved(self, eqn: JaxprEqn) -> Work:
        """The same of a view of all inputs."""
        return replace(self, inputs=tuple((value, array.moved(eqn)) for value, array in self.inputs))

    def on_largest(self) -> Array:
        """The input that has the most elements in memory, with the work on it."""
        inputs = sorted(self.inputs, key=lambda of: of[1].view.elements, reverse=True)
        return replace(inputs[0][1], work=replace(self, inputs=tuple(inputs)))


@dataclass(frozen=True)
class Element:
    """A value of the program. `view` says where in a row-major C it belongs; without one, it belongs everywhere."""

    atom: Atom
    view: View | None = None


def element_type(x: Atom) -> str:
    """The short name of the type of an array's elements."""
    return dtype_name(type_of(x).dtype)


def is_exact(eqn: JaxprEqn) -> bool:
    """Whether an equation is a conversion that rounds nothing."""
    if eqn.primitive is not convert_element_type_p:
        return False
    return element_type(eqn.outvars[0]) in LOSSLESS.get(element_type(eqn.invars[0]), ())


def check_elements(array: Array) -> None:
    """Sees to it that an array's elements are what it stands for.

    Raises:
      NoView: they are not.
    """
    if array.panels or array.weight:
        raise NoView("packed weights are read by products alone")


def moved(eqn: JaxprEqn, value: Array | Work | Element) -> Array | Work | Element:
    """What a view makes of a value.

    Raises:
      NoView: no strides say it.
    """
    if value.view is None:
        return value
    if isinstance(value, Element):
        view = viewed(eqn, value.view)
        if math.prod(view.shape) != math.prod(value.view.shape):
            raise NoView("the product is broadcast")
        return Element(value.atom, view)
    return value.moved(eqn)


def viewed(eqn: JaxprEqn, view: View) -> View:
    """What the equation of a view, one of VIEWS, makes of its operand.

    Raises:
      NoView: no strides say it.
    """
    (out,) = eqn.outvars
    if eqn.params.get("sharding") is not None or len(eqn.invars) > 1:
        raise NoView("a sharding or a size that is not known")
    match eqn.primitive:
        case p if p is transpose_p:
            return view.transposed(eqn.params["permutation"])
        case p if p is broadcast_in_dim_p:
            return view.broadcast(type_of(out).shape, eqn.params["broadcast_dimensions"])
    return view.reshaped(type_of(out).shape)


def unpacked(eqn: JaxprEqn, value: Array | Work | Element) -> Array:
    """The matrices in an array of panels.

    Raises:
      NoView: the panels have been moved.
    """
    (x,) = eqn.invars
    if not isinstance(value, Array) or value.conversions or value.view != View.of(type_of(x).shape):
        raise NoView("a packed weight is moved or converted before it is unpacked")
    return Array(value.source, unpacked_view(eqn), panels=panels_of(type_of(x)))


def unpacked_view(eqn: JaxprEqn) -> View:
    """The matrices in an array of panels, by what strides mean there."""
    panels, shape = panels_of(type_of(eqn.invars[0])), type_of(eqn.outvars[0]).shape
    batch = [panels.rows * panels.columns * stride for stride in row_major_strides(shape[:-2])]
    return View.of(shape, (*batch, 1, panels.rows))


def panels_of(array: ShapedArray) -> Panels:
    """How the matrices in an array of panels lie."""
    *batch, count, groups, width, group = array.shape
    return Panels(matrices=math.prod(batch), rows=groups * group, columns=count * width, width=width, vnni=group)
