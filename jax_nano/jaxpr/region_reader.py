"""Reads a region, equation by equation, and says what its kernel computes where it ends.

Views of operands (transposes, reshapes, broadcasts) become strides of A and B, views of the product strides of C, and
the elementwise work on it a program that runs on C while it is in registers. Elementwise work before the product is a
program that runs on A while it is packed.

A reader never reads an equation twice. A region grows by reading one more, and can end at any value for which `mark`
was called when it was read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import convert_element_type_p, gather_p

from jax_nano.ir.dtypes import NAMES
from jax_nano.jaxpr.axes import Cuts, Runs, runs_along
from jax_nano.jaxpr.grouped.chosen_rows import ChosenRows, SummedRows, chosen, is_row_choice
from jax_nano.jaxpr.grouped.group_rows import is_repeat, repeated
from jax_nano.jaxpr.grouped.row_gathers import gathered
from jax_nano.jaxpr.grouped.row_scatters import ScatteredRows, is_row_scatter, scattered
from jax_nano.jaxpr.inline import Atom, body_of, type_of
from jax_nano.jaxpr.operands import (
    VIEWS,
    ArrayExpr,
    ElementExpr,
    StridedArray,
    Value,
    check_elements,
    dequantize,
    is_exact,
    unpack,
)
from jax_nano.jaxpr.primitives import FUSED_PRODUCTS, nano_dequantize_p, nano_unpack_p
from jax_nano.jaxpr.product_reader import read_product, scalar
from jax_nano.jaxpr.region_dot import Ending, Product, RegionDot, extra_runs, region_dot
from jax_nano.jaxpr.strided_views import NoView, StridedView
from jax_nano.jaxpr.sums import along_sums

Rows = ScatteredRows | ChosenRows | SummedRows  # of the product, on their way to sums


def read_region(jaxpr: Jaxpr) -> RegionDot:
    """Reads a jaxpr that has one product, views of its operands, and elementwise work on its result and on one operand.

    Raises:
      NoView: strides do not say where the elements are.
      Unfusable: there are no instructions for some of the elementwise work.
      UnsupportedDot: there is nothing to compute, or no kernel for these types.
    """
    reader = RegionReader()
    for eqn in jaxpr.eqns:
        reader.read(eqn)
    (out,) = jaxpr.outvars
    return reader.dot(out, reader.mark())


@dataclass(frozen=True)
class Mark:
    """How much a reader had read: equations of the program, arrays beside A and B, and cuts of C."""

    eqns: int
    extras: int
    cuts: Cuts


class RegionReader:
    """Follows the equations of a region in their order."""

    def __init__(self):
        self._values: dict[Var, Value] = {}
        self._rows: dict[Var, Rows] = {}
        self._program: list[JaxprEqn] = []  # of one element of each array, before the product and after it
        # Elements of arrays that work is done on, and scalars.
        self._inputs: dict[tuple[Var, StridedView, Var | None], Var] = {}
        self._extras: dict[tuple[Var, Runs], Var] = {}  # elements of arrays that the epilogue reads
        self._cuts = Cuts()
        self._product: Product | None = None

    def read(self, eqn: JaxprEqn) -> None:
        """Reads the next equation.

        Raises:
          NoView: strides do not say where the elements are.
          UnsupportedDot: there is nothing to compute.
        """
        if not self._read_rows(eqn):
            self._read(eqn, self._values)

    def mark(self) -> Mark:
        """Notes how far the reader is, for a region that ends here."""
        return Mark(len(self._program), len(self._extras), self._cuts.copy())

    def place(self, out: Var) -> StridedView | None:
        """Where in C the elements of a value belong; None for what is not made of the product, or sums of its rows."""
        rows = self._rows.get(out)
        value = rows.rows if isinstance(rows, ChosenRows) else self._values.get(out)
        return value.view if isinstance(value, ElementExpr) else None

    def dot(self, out: Atom, mark: Mark) -> RegionDot:
        """The product and the work on it, of a region that gives `out`, which was the last value read at `mark`.

        Raises:
          NoView, Unfusable, UnsupportedDot: as read_region does.
        """
        scatter = self._rows.get(out) if isinstance(out, Var) else None
        if isinstance(scatter, ChosenRows):
            raise NoView("rows are chosen, and not added up")
        value = scatter.rows if scatter else self._values.get(out) if isinstance(out, Var) else None
        if not isinstance(value, ElementExpr) or value.view is None or self._product is None:
            raise NoView("the result does not depend on the product")
        ending = Ending(
            result=value.atom,
            runs=runs_along(value.view, StridedView.of(value.view.shape)),
            program=tuple(self._program[: scatter.begin if scatter else mark.eqns]),
            extras=tuple(self._extras.items())[: mark.extras],
            cuts=mark.cuts.copy(),
            scatter=scatter,
        )
        return region_dot(self._product, ending)

    def _read(self, eqn: JaxprEqn, values: dict[Var, Value]) -> None:
        operands = [self._value(x, values) for x in eqn.invars]
        body = None if is_repeat(eqn) else body_of(eqn)
        if body is None:
            values[eqn.outvars[0]] = self._result(eqn, operands)
            return
        inner = dict(zip(body.invars, operands, strict=True))
        for each in body.eqns:
            self._read(each, inner)
        values[eqn.outvars[0]] = self._value(body.outvars[0], inner)

    def _read_rows(self, eqn: JaxprEqn) -> bool:
        """Reads what adds up rows of the product, or chooses them before, and what follows; false for all else."""
        before = [self._rows[x] for x in eqn.invars if isinstance(x, Var) and x in self._rows]
        if before:
            self._rows[eqn.outvars[0]] = self._after(before[0], eqn)
        elif is_row_scatter(eqn):
            self._rows[eqn.outvars[0]] = self._scattered(eqn)
        elif is_row_choice(eqn):
            rows, places = (self._value(x, self._values) for x in eqn.invars)
            if isinstance(rows, ElementExpr):  # not those of A, which a gather makes as well
                self._rows[eqn.outvars[0]] = chosen(eqn, rows, places, len(self._program))
        return eqn.outvars[0] in self._rows

    def _after(self, rows: Rows, eqn: JaxprEqn) -> Rows:
        """What an equation makes of rows, or of sums of them."""
        if not isinstance(rows, ChosenRows):
            return rows.rounded(eqn)
        found = [self._rows.get(x) if isinstance(x, Var) else None for x in eqn.invars]
        operands = [each or self._value(x, self._values) for each, x in zip(found, eqn.invars, strict=True)]
        return rows.after(eqn, operands, self._program)

    def _scattered(self, eqn: JaxprEqn) -> ScatteredRows:
        """Reads a scatter of rows."""
        operands = [self._value(x, self._values) for x in eqn.invars]
        exact = [
            replace(x, atom=self._before_exact_conversions(x.atom)) if isinstance(x, ElementExpr) else x
            for x in operands
        ]
        return scattered(eqn, exact, len(self._program))

    def _value(self, x: Atom, values: dict[Var, Value]) -> Value:
        if isinstance(x, Literal):
            return ElementExpr(x)
        if x not in values:
            values[x] = StridedArray(x, StridedView.of(type_of(x).shape))
        return values[x]

    def _result(self, eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
        first = operands[0]
        if eqn.primitive in FUSED_PRODUCTS:
            return self._multiply(eqn, operands)
        if eqn.primitive is nano_unpack_p:
            return unpack(eqn, first)
        if eqn.primitive is nano_dequantize_p:
            return dequantize(eqn, operands)
        if is_repeat(eqn):
            return repeated(eqn, operands)
        if eqn.primitive is gather_p:
            return gathered(eqn, operands)
        if eqn.primitive in VIEWS:
            return first.through(eqn)
        if eqn.primitive is convert_element_type_p and isinstance(first, StridedArray):
            return replace(first, conversions=(*first.conversions, eqn))
        places = {x.view for x in operands if isinstance(x, ElementExpr) and x.view is not None}
        return self._on_elements(eqn, operands, places) if places else self._on_arrays(eqn, operands)

    def _multiply(self, eqn: JaxprEqn, operands: Sequence[Value]) -> ElementExpr:
        """Reads the product: its axes, and the scales of whole sums as the beginning of the epilogue."""
        lhs, rhs = map(self._operand, operands[:2])
        product = read_product(eqn, lhs, rhs, *map(_array_as_it_is, operands[2:]))
        self._product = product
        self._cuts.add(product.lhs_runs)
        scales = [
            along_sums(eqn, i, operand.quantized.parameters[0])
            for i, operand in enumerate((lhs, rhs))
            if operand.quantized and not operand.quantized.is_scaled
        ]
        if not scales:
            return ElementExpr(product.sum, product.place)
        inputs = [product.sum, *(self._extra(x, product.place) for x in scales)]
        result = self._append_scaling(inputs, type_of(eqn.outvars[0]))
        return ElementExpr(result, product.place)

    def _operand(self, value: Value) -> StridedArray:
        """An operand of the product: an array, perhaps with work on it."""
        if isinstance(value, StridedArray) and not value.quantized and not value.panels and value.is_rounded:
            value = self._expr(value)
        if isinstance(value, ArrayExpr):
            return replace(value, atom=self._before_exact_conversions(value.atom)).on_largest()
        if not isinstance(value, StridedArray):
            raise NoView("an operand is no array")
        return value

    def _before_exact_conversions(self, value: Atom) -> Atom:
        """A value of the program before conversions that round nothing: products read it in its own type."""
        makers = {out: eqn for eqn in self._program for out in eqn.outvars}
        while isinstance(value, Var) and (eqn := makers.get(value)) and is_exact(eqn):
            (value,) = eqn.invars
        return value

    def _on_elements(self, eqn: JaxprEqn, operands: Sequence[Value], places: set[StridedView]) -> ElementExpr:
        """Elementwise work on the product's elements, all of one place."""
        if len(places) > 1:
            raise NoView("elements from different places of the product meet")
        (place,) = places
        if place.shape != type_of(eqn.outvars[0]).shape:
            raise NoView("the product is broadcast")
        inputs = [value.atom if isinstance(value, ElementExpr) else self._extra(value, place) for value in operands]
        return ElementExpr(self._append(eqn, inputs), place)

    def _on_arrays(self, eqn: JaxprEqn, operands: Sequence[Value]) -> ArrayExpr | ElementExpr:
        """Elementwise work on other arrays than the product; of numbers alone, it makes one."""
        shape = type_of(eqn.outvars[0]).shape
        exprs = [self._expr(value) if isinstance(value, StridedArray) else value for value in operands]
        inputs: dict[Var, StridedArray] = {}
        for x, array in (of for value in exprs if isinstance(value, ArrayExpr) for of in value.inputs):
            everywhere = replace(array, view=array.view.broadcast(shape, range(len(array.view.dims))))
            if inputs.setdefault(x, everywhere) != everywhere:
                raise NoView("elements from different places of an array meet")
        out = self._append(eqn, [value.atom for value in exprs])
        return ArrayExpr(out, tuple(inputs.items())) if inputs else ElementExpr(out)

    def _expr(self, array: StridedArray) -> ArrayExpr:
        """An array's elements, converted."""
        check_elements(replace(array, places=None))
        x = self._inputs.setdefault((array.source, array.view, array.places), _element(array))
        return ArrayExpr(self._append_conversions(x, array), ((x, replace(array, conversions=())),))

    def _extra(self, value: StridedArray | ArrayExpr, place: StridedView) -> Atom:
        """The element of another array that belongs to C's, or what has been made of scalars."""
        if isinstance(value, ArrayExpr):
            if any(array.view.dims for _, array in value.inputs):
                raise NoView("work on other arrays alone")
            self._extras |= {(array.source, ()): x for x, array in value.inputs}
            return value.atom
        if value.groups and value.groups.sizes not in (None, self._product and self._product.sizes):
            raise NoView("what belongs to other groups than the product's")
        check_elements(replace(value, groups=None))
        runs = extra_runs(value, place) if value.view.dims else ()
        self._cuts.add(runs)
        if not runs:  # one element for all of C
            return self._extra(self._expr(replace(value, view=StridedView(()), groups=None)), place)
        x = self._extras.setdefault((value.source, runs), _element(value))
        return self._append_conversions(x, value)

    def _append(self, eqn: JaxprEqn, inputs: Sequence[Atom]) -> Var:
        """Adds an equation to the program, and gives the scalar that it makes."""
        out = scalar(eqn.outvars[0])
        self._program.append(eqn.replace(invars=list(inputs), outvars=[out]))
        return out

    def _append_conversions(self, value: Var, array: StridedArray) -> Var:
        for eqn in array.conversions:
            value = self._append(eqn, [value])
        return value

    def _append_scaling(self, inputs: Sequence[Atom], out: ShapedArray) -> Var:
        """Scales sums of integers times floats, and rounds them once to the type of the product."""
        scaling = _scaling(tuple(ShapedArray((), type_of(x).dtype) for x in inputs), jnp.dtype(out.dtype))
        values: dict[Atom, Any] = dict(zip(scaling.invars, inputs, strict=True))
        for eqn in scaling.eqns:
            values[eqn.outvars[0]] = self._append(eqn, [values[x] for x in eqn.invars])
        (result,) = scaling.outvars
        return values[result]


def _array_as_it_is(value: Value) -> Var:
    """An array that is read as it lies.

    Raises:
      NoView: it is moved or converted.
    """
    if not isinstance(value, StridedArray) or value != StridedArray(value.source, value.whole):
        raise NoView("the sizes of groups are moved or converted")
    return value.source


def _element(array: StridedArray) -> Var:
    """An element as it is read: f32 stands for all that programs do not know."""
    dtype = type_of(array.source).dtype
    return Var(ShapedArray((), dtype if dtype in NAMES else jnp.dtype(jnp.float32)))


# Equal for all products of these types, and traced by JAX, which takes a millisecond.
@functools.cache
def _scaling(inputs: tuple[ShapedArray, ...], out: jnp.dtype) -> Jaxpr:
    def scaled(total, *scales):
        for scale in scales:
            total *= scale.astype(total.dtype)
        return total.astype(out)

    return jax.make_jaxpr(scaled)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)).jaxpr
