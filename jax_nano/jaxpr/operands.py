"""Operands: what the variables of a region stand for, by what is read in memory.

A strided array is read as it lies; a quantized one besides by what its integers stand for. An array expression is made
elementwise of arrays other than the product, an element expression of the product's elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.core import ShapedArray
from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import broadcast_in_dim_p, convert_element_type_p, reshape_p, squeeze_p, transpose_p

from jax_nano.ir.dot import Axis, Scaling, row_major_strides
from jax_nano.ir.dtypes import FLOAT8, INT4_PER_WORD, PACKED_INT4, dtype_name
from jax_nano.ir.packed_weight import Panels
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.strided_views import NoView, StridedView, SubDim, coalesce

VIEWS = frozenset({broadcast_in_dim_p, reshape_p, squeeze_p, transpose_p})
_LOSSLESS = {
    **dict.fromkeys(("bf16", "f16"), ("f32",)),
    **dict.fromkeys(("s8", "u8"), ("s32", "s16", "f32", "bf16", "f16")),
    **dict.fromkeys(FLOAT8, ("f32", "bf16", "f16")),
}


def is_lossless(source: str, target: str) -> bool:
    """Is true where products may read `source` in place of its conversion to the wider type `target`."""
    return target in _LOSSLESS.get(source, ())


@dataclass(frozen=True)
class StridedArray:
    """One of the arrays that are read, by strides, converted as equations say one after the other."""

    source: Var
    view: StridedView
    conversions: tuple[JaxprEqn, ...] = ()
    panels: Panels | None = None  # what the view's strides mean, where they do not count elements
    quantized: QuantizedOperand | None = None
    work: ArrayExpr | None = None  # of which it is the largest input, where the work on it is an operand
    groups: OfGroups | None = None  # whose rows read it, each what belongs to its group
    places: Var | None = None  # an array of the places of its rows, where the view's rows are gathered

    @property
    def whole(self) -> StridedView:
        """All of its memory, as it lies."""
        return StridedView.of(type_of(self.source).shape)

    @property
    def dtype(self) -> str:
        """The type it is read in; of a quantized operand that of its integers."""
        return self.quantized.dtype if self.quantized else element_type(self.source)

    @property
    def float_dtype(self) -> str:
        """The type of what is multiplied: what a prologue makes of it, or what its integers stand for."""
        if self.work:
            return element_type(self.work.atom)
        return element_type(self.quantized.eqn.outvars[0]) if self.quantized else element_type(self.source)

    @property
    def converted_to(self) -> list[str]:
        """The types it is converted to, one after the other."""
        return [element_type(eqn.outvars[0]) for eqn in self.conversions]

    @property
    def is_rounded(self) -> bool:
        """Is true where its conversions are not one that is lossless."""
        types = self.converted_to
        return len(types) > 1 or any(not is_lossless(self.float_dtype, dtype) for dtype in types)

    @property
    def extras(self) -> list[StridedArray]:
        """The other arrays that the work on it reads."""
        return [array for _, array in self.work.inputs[1:]] if self.work else []

    def through(self, eqn: JaxprEqn) -> StridedArray:
        """The array seen through a view.

        Raises:
          NoView: its rows are gathered, or no strides describe the result.
        """
        if self.places:
            raise NoView("rows are moved after they are gathered")
        quantized = self.quantized and self.quantized.through(eqn)
        return replace(self, view=apply_view(eqn, self.view), quantized=quantized)


@dataclass(frozen=True)
class OfGroups:
    """How the groups of a grouped product have an array: each a part of its own, or all the same where stride is 0.

    Attributes:
      count: of groups.
      stride: elements from a group's part to the next one's.
      sizes: those of the groups, where they are not the product's own.
      rows: that all groups have together, if there is a dimension of them.
    """

    count: int
    stride: int
    sizes: Var | None = None
    rows: int = 1


@dataclass(frozen=True)
class QuantizedOperand:
    """The floats that an array of integers stands for.

    Rows that share words are seen as if each had its own.
    """

    eqn: JaxprEqn  # which dequantizes them
    dtype: str  # of the integers
    parameters: tuple[StridedArray, ...]  # the first group's scales, and zero points if any, repeated along the sum

    @property
    def is_scaled(self) -> bool:
        """Is true where integers have to be scaled before they are summed."""
        return self.eqn.params["group"] is not None or len(self.parameters) > 1

    @property
    def is_in_place(self) -> bool:
        """Is true where only B can be read so, with the sum along the weight's own rows."""
        return self.is_scaled or self.dtype in PACKED_INT4

    @property
    def matrix(self) -> tuple[int, int]:
        """Its rows and columns."""
        rows, columns = type_of(self.eqn.outvars[0]).shape[-2:]
        return rows, columns

    def through(self, eqn: JaxprEqn) -> QuantizedOperand:
        """The operand seen through a view."""
        return replace(self, parameters=tuple(x.through(eqn) for x in self.parameters))

    def scaling(self, parameters: Sequence[Var]) -> Scaling | None:
        """How sums of B are scaled by parameters, if there are any."""
        if not parameters:
            return None
        rows, columns = self.matrix
        arrays = tuple((element_type(x), type_of(x).size) for x in parameters)
        return Scaling(group_size=self.eqn.params["group"] or rows, stride=columns, arrays=arrays)

    def in_words(self, axes: list[Axis]) -> list[Axis]:
        """Axes of B with strides from matrix to matrix in words, where rows share them."""
        if self.dtype not in PACKED_INT4:
            return axes
        rows, columns = self.matrix
        stored = -(-rows // INT4_PER_WORD)
        return [
            replace(axis, rhs=axis.rhs // rows * stored) if axis.rhs % (rows * columns) == 0 else axis for axis in axes
        ]


@dataclass(frozen=True)
class ArrayExpr:
    """A value made elementwise of arrays other than the product, of their elements at one place."""

    atom: Atom
    inputs: tuple[tuple[Var, StridedArray], ...]

    @property
    def view(self) -> StridedView:
        """Its shape."""
        return StridedView.of(self.inputs[0][1].view.shape)

    def through(self, eqn: JaxprEqn) -> ArrayExpr:
        """The expression of all inputs seen through a view."""
        return replace(self, inputs=tuple((value, array.through(eqn)) for value, array in self.inputs))

    def on_largest(self) -> StridedArray:
        """The input with the most elements in memory, gathered where several have as many, with the work on it."""
        inputs = sorted(self.inputs, key=lambda of: (of[1].view.elements, bool(of[1].places)), reverse=True)
        return replace(inputs[0][1], work=replace(self, inputs=tuple(inputs)))


@dataclass(frozen=True)
class ElementExpr:
    """A value made of the product's element, or of numbers alone.

    `view` says where in a row-major C the element belongs. A number has none: it belongs everywhere.
    """

    atom: Atom
    view: StridedView | None = None

    def through(self, eqn: JaxprEqn) -> ElementExpr:
        """The expression with the elements of C that a view has.

        Raises:
          NoView: C is broadcast.
        """
        if self.view is None:
            return self
        view = apply_view(eqn, self.view)
        if math.prod(view.shape) != math.prod(self.view.shape):
            raise NoView("the product is broadcast")
        return ElementExpr(self.atom, view)


Value = StridedArray | ArrayExpr | ElementExpr


def element_type(x: Atom) -> str:
    """The short name of the type of an array's elements."""
    return dtype_name(type_of(x).dtype)


def is_exact(eqn: JaxprEqn) -> bool:
    """Is true for a conversion that rounds nothing."""
    if eqn.primitive is not convert_element_type_p:
        return False
    return is_lossless(element_type(eqn.invars[0]), element_type(eqn.outvars[0]))


def check_elements(array: StridedArray) -> None:
    """Checks that an array's elements are what it stands for.

    Raises:
      NoView: they are not, belong to groups, or are gathered.
    """
    if array.places:
        raise NoView("rows are gathered beside the product")
    if array.groups:
        raise NoView("work on what belongs to groups alone")
    if array.panels or array.quantized:
        raise NoView("packed and quantized weights are operands of products alone")


def apply_view(eqn: JaxprEqn, view: StridedView) -> StridedView:
    """Applies the equation of a view, one of VIEWS, to its operand.

    Raises:
      NoView: no strides describe the result.
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


def unpack(eqn: JaxprEqn, value: Value) -> StridedArray:
    """The matrices in an array of panels.

    Raises:
      NoView: the panels have been moved or converted.
    """
    (x,) = eqn.invars
    if not isinstance(value, StridedArray) or value.conversions or value.view != StridedView.of(type_of(x).shape):
        raise NoView("a packed weight is moved or converted before it is unpacked")
    return StridedArray(value.source, panel_view(eqn), panels=None if is_strided(eqn) else panels_of(type_of(x)))


def is_strided(eqn: JaxprEqn) -> bool:
    """Is true where panels are the matrix by columns, nothing else: one panel, one group of rows, without padding."""
    panels = panels_of(type_of(eqn.invars[0]))
    return type_of(eqn.outvars[0]).shape[-2:] == (panels.rows, panels.columns) == (panels.vnni, panels.width)


def panel_view(eqn: JaxprEqn) -> StridedView:
    """The matrices in an array of panels, by what strides mean there."""
    panels, shape = panels_of(type_of(eqn.invars[0])), type_of(eqn.outvars[0]).shape
    batch = [panels.rows * panels.columns * stride for stride in row_major_strides(shape[:-2])]
    return StridedView.of(shape, (*batch, 1, panels.rows))


def panels_of(array: ShapedArray) -> Panels:
    """The layout of the matrices in an array of panels."""
    *batch, count, groups, width, group = array.shape
    return Panels(matrices=math.prod(batch), rows=groups * group, columns=count * width, width=width, vnni=group)


def dequantize(eqn: JaxprEqn, values: Sequence[Value]) -> StridedArray:
    """The floats that a quantized weight stands for.

    Raises:
      NoView: its arrays are moved or converted before.
    """
    arrays = [x for x in values if isinstance(x, StridedArray) and not x.conversions]
    if [x.view for x in arrays] != [StridedView.of(type_of(x).shape) for x in eqn.invars]:
        raise NoView("a quantized weight is moved or converted before it is dequantized")
    integers, *parameters = arrays
    shape = type_of(eqn.outvars[0]).shape
    dtype = element_type(eqn.invars[0])
    if eqn.params["bits"] == 4:
        dtype = "u4x8" if len(parameters) > 1 else "s4x8"
    first = tuple(_first_group(x, shape[-2]) for x in parameters)
    return replace(integers, view=StridedView.of(shape), quantized=QuantizedOperand(eqn, dtype, first))


def _first_group(x: StridedArray, rows: int) -> StridedArray:
    """The first group's parameters, repeated for all rows."""
    *batch, _, columns = x.view.dims
    return replace(x, view=StridedView((*batch, coalesce([SubDim(rows, 0)]), columns)))
