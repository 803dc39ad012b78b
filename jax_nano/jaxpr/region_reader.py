"""Layouts: a product and the work around it read by strides, as what a kernel is asked for.

Views of operands (transposes, reshapes, broadcasts) become strides of A and B, views of the product strides of C, and
the elementwise work on it a program that runs on C while it is in registers. Elementwise work before the product is a
program that runs on A while it is packed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import convert_element_type_p

from jax_nano.ir.axes import Role, loops_of
from jax_nano.ir.dot import (
    EXTRA_ROLES,
    ONLY_RHS_IN_PANELS,
    Dot,
    Epilogue,
    Operand,
    Prologue,
    Scaling,
    UnsupportedDot,
    accumulator,
)  # fmt: skip
from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.program import Program
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.operands import (
    LOSSLESS,
    VIEWS,
    Array,
    Element,
    Weight,
    Work,
    check_elements,
    element_type,
    is_exact,
    moved,
    unpacked,
)
from jax_nano.jaxpr.primitives import PRODUCTS, nano_dequantize_p, nano_unpack_p
from jax_nano.jaxpr.program_reader import program_of
from jax_nano.jaxpr.steps import Run, Runs, Step, as_operand, in_words, paired, runs_along, stride_along
from jax_nano.jaxpr.strided_views import NoView, Part, View, joined


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which arrays a product and its program read, and how.

    Operands, extras and the result have one dimension for each run of steps that all arrays are made of: those of the
    batch, of m, of n and of k, in this order. Extras have C's shape, those of the prologue A's.
    """

    sources: tuple[int, ...]  # which of the arrays are A, B and what Dot.extras has
    lhs: Operand
    rhs: Operand
    result: Operand
    extras: tuple[Operand, ...]
    groups: tuple[int, int, int, int]  # how many dimensions there are of the batch, of m, n and k
    program: Program | None
    precision: Any
    scaling: Scaling | None = None  # whose arrays are the last of the extras
    prologue: Program | None = None
    lhs_extras: tuple[Operand, ...] = ()

    def dot(self) -> Dot:
        """The problem.

        Raises:
          UnsupportedDot: no kernel can be made for these types.
        """
        b, m, n, k = self.groups
        contracting = tuple(range(b + m, b + m + k)), tuple(range(b + n, b + n + k))
        dimension_numbers = contracting, (tuple(range(b)), tuple(range(b)))
        own = len(self.extras) - (len(self.scaling.arrays) if self.scaling else 0)
        if 0 in self.lhs.shape or 0 in self.rhs.shape:
            raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
        if self.lhs.panels:
            raise UnsupportedDot(ONLY_RHS_IN_PANELS)
        groups = zip(EXTRA_ROLES, (self.extras[:own], self.lhs_extras, self.extras[own:]), strict=True)
        extras: list[tuple[Role, Operand]] = [(role, array) for role, arrays in groups for array in arrays]

        def in_memory(arrays: Sequence[Operand]) -> tuple[tuple[str, int], ...]:
            return tuple((array.dtype, array.elements) for array in arrays)

        return Dot.over(
            loops_of(self.lhs, self.rhs, dimension_numbers, self.result, extras),
            (self.lhs.dtype, self.rhs.dtype, self.result.dtype),
            epilogue=self.program and Epilogue(program=self.program, extras=in_memory(self.extras[:own])),
            prologue=self.prologue and Prologue(program=self.prologue, extras=in_memory(self.lhs_extras)),
            scaling=self.scaling,
            panels=self.rhs.panels,
        )


def layout(jaxpr: Jaxpr) -> Layout:
    """Reads a jaxpr that has one product, views of its operands, and elementwise work on its result and on one operand.

    Raises:
      NoView: strides do not say where the elements are.
      Unfusable: there are no instructions for some of the elementwise work.
      UnsupportedDot: there is nothing to compute.
    """
    reader = _Reader(jaxpr)
    for eqn in jaxpr.eqns:
        reader.read(eqn)
    return reader.layout()


class _Reader:
    """Follows equations, one after the other."""

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr = jaxpr
        self.values: dict[Var, Array | Work | Element] = {
            var: Array(i, View.of(type_of(var).shape)) for i, var in enumerate(jaxpr.invars)
        }
        self.program: list[JaxprEqn] = []  # of one element of each array, before the product and after it
        self.inputs: dict[tuple[int, View], Var] = {}  # of work before the product, and scalars
        self.extras: dict[tuple[int, Runs], Var] = {}
        self.lhs_runs: list[Run] = []
        self.rhs_runs: list[Run] = []
        self.cuts = {1}  # where the runs of any array begin and end, in elements of a row-major C

    def read(self, eqn: JaxprEqn) -> None:
        (out,) = eqn.outvars
        values = [Element(x) if isinstance(x, Literal) else self.values[x] for x in eqn.invars]
        if eqn.primitive in PRODUCTS:
            self.values[out] = self.product(eqn, *values)
        elif eqn.primitive is nano_unpack_p:
            self.values[out] = unpacked(eqn, values[0])
        elif eqn.primitive in VIEWS:
            self.values[out] = moved(eqn, values[0])
        elif eqn.primitive is nano_dequantize_p:
            self.values[out] = self.dequantized(eqn, values)
        elif eqn.primitive is convert_element_type_p and isinstance(array := values[0], Array):
            self.values[out] = replace(array, conversions=(*array.conversions, eqn))
        else:
            self.values[out] = self.elementwise(eqn, values)

    def product(self, eqn: JaxprEqn, left: Array | Work | Element, right: Array | Work | Element) -> Element:
        lhs, rhs = (self.operand(value) for value in (left, right))
        if 0 in lhs.view.shape or 0 in rhs.view.shape:
            raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
        contracting, batch = eqn.params["dimension_numbers"]
        m, n = (
            [part for d, dim in enumerate(array.view.dims) if d not in (*contracting[i], *batch[i]) for part in dim]
            for i, array in enumerate((lhs, rhs))
        )
        groups = {
            "n": [Step(part.size, 0, part.stride) for part in n],
            "m": [Step(part.size, part.stride, 0) for part in m],
            "b": paired(lhs.view, rhs.view, batch),
        }
        self.eqn, self.lhs, self.rhs = eqn, lhs, rhs
        self.k = paired(lhs.view, rhs.view, contracting, lhs.beside, rhs.beside)
        self.check_conversions(eqn, lhs, rhs)
        self.ends = {}  # by how many elements of a row-major C the outermost steps of each group lead on
        at = 1
        for group, steps in groups.items():
            for step in reversed(steps):
                self.lhs_runs.append(Run(step.size, at, step.lhs))
                self.rhs_runs.append(Run(step.size, at, step.rhs))
                at *= step.size
            self.ends[group] = at
        self.divide(self.lhs_runs)
        scales = [
            self.scales_along_c(weight.parameters[0], i)
            for i, weight in enumerate((lhs.weight, rhs.weight))
            if weight and not weight.is_scaled
        ]
        place = View.of(type_of(eqn.outvars[0]).shape)
        if not scales:
            self.c = self.scalar(eqn.outvars[0])
            return Element(self.c, place)
        self.c = Var(ShapedArray((), jnp.dtype(jnp.float32)))
        out = self.scalar(eqn.outvars[0])
        inputs = [self.c, *(self.extra(x, place) for x in scales)]
        eqn = _times_scales(tuple(type_of(x) for x in inputs), type_of(out))
        self.program.append(eqn.replace(invars=inputs, outvars=[out]))
        return Element(out, place)

    def operand(self, value: Array | Work | Element) -> Array:
        """An operand of the product: an array, perhaps with work on it."""
        if isinstance(value, Array) and not value.weight and not value.panels:
            steps = [element_type(eqn.outvars[0]) for eqn in value.conversions]
            if len(steps) > 1 or any(step not in LOSSLESS.get(self.dtype(value), ()) for step in steps):
                value = self.work_on(value)
        if isinstance(value, Work):
            return replace(value, atom=self.unconverted(value.atom)).on_largest()
        if not isinstance(value, Array):
            raise NoView("an operand is no array")
        return value

    def unconverted(self, value: Atom) -> Atom:
        """A value of the program before conversions that round nothing: products read it in its own type."""
        makers = {out: eqn for eqn in self.program for out in eqn.outvars}
        while isinstance(value, Var) and (eqn := makers.get(value)) and is_exact(eqn):
            (value,) = eqn.invars
        return value

    def dequantized(self, eqn: JaxprEqn, values: Sequence[Array | Work | Element]) -> Array:
        """The floats that a quantized weight stands for.

        Raises:
          NoView: its arrays are moved or converted before.
        """
        arrays = [x for x in values if isinstance(x, Array) and not x.conversions]
        if [x.view for x in arrays] != [View.of(type_of(x).shape) for x in eqn.invars]:
            raise NoView("a quantized weight is moved or converted before it is dequantized")
        integers, *parameters = arrays
        shape = type_of(eqn.outvars[0]).shape

        def first_group(x: Array) -> Array:
            *batch, _, columns = x.view.dims
            return replace(x, view=View((*batch, joined([Part(shape[-2], 0)]), columns)))

        dtype = element_type(eqn.invars[0])
        if eqn.params["bits"] == 4:
            dtype = "u4x8" if len(parameters) > 1 else "s4x8"
        return replace(integers, view=View.of(shape), weight=Weight(eqn, dtype, tuple(map(first_group, parameters))))

    def scales_along_c(self, array: Array, operand: int) -> Array:
        """An array of the shape of operand 0 or 1, the same for all of the sum, over the product's dimensions."""
        contracting, _ = (dims[operand] for dims in self.eqn.params["dimension_numbers"])
        if any(part.stride for d in contracting for part in array.view.dims[d]):
            raise NoView("scales differ along the sum")
        return self.along_c(array, operand)

    def along_c(self, array: Array, operand: int) -> Array:
        """The beginning of each sum of an array of the shape of operand 0 or 1, over the product's dimensions."""
        contracting, batch = (dims[operand] for dims in self.eqn.params["dimension_numbers"])
        dims = array.view.dims
        free = [dims[d] for d in range(len(dims)) if d not in (*contracting, *batch)]
        sizes = type_of(self.eqn.outvars[0]).shape[len(batch) :]
        sizes = sizes[len(free) :] if operand == 0 else sizes[: len(sizes) - len(free)]
        others = [joined([Part(size, 0)]) for size in sizes]
        view = View((*(dims[d] for d in batch), *((*free, *others) if operand == 0 else (*others, *free))))
        return replace(array, view=view)

    def check_conversions(self, eqn: JaxprEqn, lhs: Array, rhs: Array) -> None:
        """Sees to it that operands make the same sums in the types they are read in. Sums of integers are exact."""
        if not lhs.conversions and not rhs.conversions and not rhs.weight and not lhs.weight:
            return
        out = element_type(eqn.outvars[0])
        read = (self.dtype(lhs, as_floats=True), self.dtype(rhs, as_floats=True))
        converted = element_type(eqn.invars[0]), element_type(eqn.invars[1])
        for array, dtype in zip((lhs, rhs), read, strict=True):
            steps = [element_type(conversion.outvars[0]) for conversion in array.conversions]
            if len(steps) > 1 or any(step not in LOSSLESS.get(dtype, ()) for step in steps):
                raise NoView(f"{dtype} is rounded on its way to {' to '.join(steps)}")
        terms = math.prod(step.size for step in self.k)
        summed = accumulator(*read, out, terms)
        if summed != "s32" and summed != accumulator(*converted, out, terms):
            raise NoView(f"{read[0]} times {read[1]} is summed in {summed}")

    def elementwise(self, eqn: JaxprEqn, values: Sequence[Array | Work | Element]) -> Work | Element:
        places = {value.view for value in values if isinstance(value, Element) and value.view is not None}
        if not places:
            return self.worked(eqn, values)
        if len(places) > 1:
            raise NoView("elements from different places of the product meet")
        (place,) = places
        if place.shape != type_of(eqn.outvars[0]).shape:
            raise NoView("the product is broadcast")
        out = self.scalar(eqn.outvars[0])
        inputs = [value.atom if isinstance(value, Element) else self.extra(value, place) for value in values]
        self.program.append(eqn.replace(invars=inputs, outvars=[out]))
        return Element(out, place)

    def worked(self, eqn: JaxprEqn, values: Sequence[Array | Work | Element]) -> Work | Element:
        """Elementwise work on other values than the product; on numbers alone, it gives one."""
        out, shape = self.scalar(eqn.outvars[0]), type_of(eqn.outvars[0]).shape
        made = [self.work_on(value) if isinstance(value, Array) else value for value in values]
        inputs: dict[Var, Array] = {}
        for x, array in (of for value in made if isinstance(value, Work) for of in value.inputs):
            everywhere = replace(array, view=array.view.broadcast(shape, range(len(array.view.dims))))
            if inputs.setdefault(x, everywhere) != everywhere:
                raise NoView("elements from different places of an array meet")
        self.program.append(eqn.replace(invars=[value.atom for value in made], outvars=[out]))
        return Work(out, tuple(inputs.items())) if inputs else Element(out)

    def work_on(self, array: Array) -> Work:
        """An array's elements, converted."""
        check_elements(array)
        x = self.inputs.setdefault((array.source, array.view), self.element(array))
        return Work(self.converted(x, array), ((x, replace(array, conversions=())),))

    def element(self, array: Array) -> Var:
        """An element as it is read: f32 stands for all that programs do not know."""
        source = type_of(self.jaxpr.invars[array.source])
        return Var(ShapedArray((), source.dtype if source.dtype in NAMES else jnp.dtype(jnp.float32)))

    def extra(self, value: Array | Work, place: View) -> Atom:
        """The element of another array that belongs to C's, or what has been made of scalars."""
        if isinstance(value, Work):
            if any(array.view.dims for _, array in value.inputs):
                raise NoView("work on other arrays alone")
            self.extras |= {(array.source, ()): x for x, array in value.inputs}
            return value.atom
        check_elements(value)
        if not value.view.dims or not self.runs(value, place):  # one element for all of C
            return self.extra(self.work_on(replace(value, view=View(()))), place)
        x = self.extras.setdefault((value.source, self.runs(value, place)), self.element(value))
        return self.converted(x, value)

    def converted(self, value: Var, array: Array) -> Var:
        """An array's element, converted."""
        for eqn in array.conversions:
            out = self.scalar(eqn.outvars[0])
            self.program.append(eqn.replace(invars=[value], outvars=[out]))
            value = out
        return value

    def runs(self, array: Array, place: View) -> Runs:
        """How another array lies along C, at a place of which it has the shape or sizes of 1."""
        everywhere = array.view.broadcast(place.shape, range(len(place.dims)))
        runs = tuple(run for run in runs_along(place, everywhere) if run.stride)
        self.divide(runs)
        return runs

    def scalar(self, var: Var) -> Var:
        return Var(ShapedArray((), type_of(var).dtype))

    def divide(self, runs: Sequence[Run]) -> None:
        """Cuts C's steps where these runs begin and end."""
        for cut in {run.at for run in runs} | {run.at * run.size for run in runs}:
            if any(cut % other and other % cut for other in self.cuts):
                raise NoView("reshapes divide the product's dimensions in ways that do not fit into each other")
            self.cuts.add(cut)

    def layout(self) -> Layout:
        """What has been read."""
        (out,) = self.jaxpr.outvars
        result = self.values.get(out) if isinstance(out, Var) else None
        if not isinstance(result, Element) or result.view is None:
            raise NoView("the result does not depend on the product")
        result_runs = runs_along(result.view, View.of(type_of(out).shape))
        self.divide(result_runs)
        place = View.of(type_of(self.eqn.outvars[0]).shape)
        operands = list(enumerate((self.lhs, self.rhs)))
        beside = [(x.source, self.runs(self.along_c(x, i), place)) for i, array in operands for x in array.beside]
        parameters = [
            (x.source, self.runs(self.scales_along_c(x, i), place))
            for i, array in operands
            if array.weight and array.weight.is_scaled
            for x in array.weight.parameters
        ]
        others = [*self.extras, *beside, *parameters]
        b, m, n = self.steps(self.lhs_runs, self.rhs_runs, result_runs, *(runs for _, runs in others))
        k, lhs, rhs = self.k, self.lhs, self.rhs
        if not n or (m and m[-1].result == 1):  # C transposed = B transposed times A transposed
            b, m, n, k = ([step.exchanged() for step in steps] for steps in (b, n, m, k))
            lhs, rhs = rhs, lhs
        if n and n[-1].result != 1:
            raise NoView("a dimension of the batch is last in the result")
        if n and not set(n[-1].extras) <= {0, 1}:
            raise NoView("an array is not contiguous along the result's last dimension")
        check_in_place(lhs, rhs, n, k)
        if rhs.work:
            raise NoView("an operand is worked on that lies along the result's last dimension")
        k = [replace(step, extras=(*nothing(self.extras), *step.extras, *nothing(parameters))) for step in k]
        of_lhs = range(len(self.extras), len(self.extras) + len(beside))
        if any(step.lhs == 1 and step.extras[i] not in (0, 1) for step in (*m, *k) for i in of_lhs):
            raise NoView("an array beside A is not contiguous where A is")
        b, n = (in_words(rhs, steps) for steps in (b, n))
        program, dtype = self.written(result.atom)
        prologue = self.prologue(lhs)
        used = [read.argument - 1 for read in program.inputs[1:]] if program else []
        before = [of_lhs[read.argument - 1] for read in prologue.inputs[1:]] if prologue else []
        used += range(of_lhs.stop, len(others))
        c, a = [*b, *m, *n], [*b, *m, *k]
        sources = [source for source, _ in others]

        def array(i: int, steps: Sequence[Step]) -> Operand:
            dtype = element_type(self.jaxpr.invars[sources[i]])
            return as_operand(steps, [step.extras[i] for step in steps], dtype)

        first = [i for i in used if i < of_lhs.start]
        return Layout(
            sources=(lhs.source, rhs.source, *(sources[i] for i in (*first, *before, *used[len(first) :]))),
            lhs=as_operand(a, [step.lhs for step in a], self.dtype(lhs), lhs.panels),
            rhs=as_operand([*b, *n, *k], [step.rhs for step in (*b, *n, *k)], self.dtype(rhs), rhs.panels),
            result=as_operand(c, [step.result for step in c], dtype),
            extras=tuple(array(i, c) for i in used),
            groups=(len(b), len(m), len(n), len(k)),
            program=program,
            precision=self.eqn.params["precision"],
            scaling=rhs.weight and rhs.weight.scaling([type_of(self.jaxpr.invars[x]) for x, _ in parameters]),
            prologue=prologue,
            lhs_extras=tuple(array(i, a) for i in before),
        )

    def steps(self, *arrays: Sequence[Run]) -> list[list[Step]]:
        """The steps of the batch, of m and of n that A, B, C and the extras have in common, C's longest first."""
        groups: dict[str, list[Step]] = {"b": [], "m": [], "n": []}
        for low, high in pairwise(sorted(self.cuts)):
            lhs, rhs, result, *extras = (stride_along(runs, low, high) for runs in arrays)
            group = next(group for group in ("n", "m", "b") if high <= self.ends[group])
            groups[group].append(Step(high // low, lhs, rhs, result, tuple(extras)))
        return [sorted(steps, key=lambda step: step.result, reverse=True) for steps in groups.values()]

    def written(self, result: Atom) -> tuple[Program | None, str]:
        """The program, and the type of what it makes; no program where rounding the sums is all that it does."""
        summed = element_type(self.c)
        if not self.program:
            return None, summed
        made = element_type(result)
        is_conversion = len(self.program) == 1 and self.program[0].primitive is convert_element_type_p
        if is_conversion and summed == "f32" and made in ("bf16", "f16"):
            return None, made
        inputs = [self.c, *self.extras.values()]
        jaxpr = self.jaxpr.replace(invars=inputs, outvars=[result], eqns=self.program)
        return program_of(ClosedJaxpr(jaxpr, ())).widened(), made

    def prologue(self, lhs: Array) -> Program | None:
        """The program of work on A."""
        if not lhs.work:
            return None
        inputs = [x for x, _ in lhs.work.inputs]
        jaxpr = self.jaxpr.replace(invars=inputs, outvars=[lhs.work.atom], eqns=self.program)
        return program_of(ClosedJaxpr(jaxpr, ())).widened()

    def dtype(self, array: Array, *, as_floats: bool = False) -> str:
        """The type that an array is read in; of a quantized weight that of its integers, or of what they stand for.

        As floats, what is made of it before it is multiplied counts.
        """
        if as_floats and array.work:
            return element_type(array.work.atom)
        if array.weight:
            return element_type(array.weight.eqn.outvars[0]) if as_floats else array.weight.dtype
        return element_type(self.jaxpr.invars[array.source])


def check_in_place(lhs: Array, rhs: Array, n: list[Step], k: list[Step]) -> None:
    """Sees to it that quantized integers can be read as they stand.

    Raises:
      NoView: they cannot.
    """
    if lhs.weight and lhs.weight.is_in_place:
        raise NoView("quantized values are not read along the result's last dimension")
    if not rhs.weight or not rhs.weight.is_in_place:
        return
    rows, columns = type_of(rhs.weight.eqn.outvars[0]).shape[-2:]
    if [(step.size, step.rhs) for step in k] != [(rows, columns)] * (rows > 1) or n[-1].rhs != 1:
        raise NoView("quantized values are not summed along their rows")


def nothing(arrays: Sized) -> tuple[int, ...]:
    """Strides of arrays along what they do not have."""
    return (0,) * len(arrays)


@functools.cache
def _times_scales(inputs: tuple[ShapedArray, ...], out: ShapedArray) -> JaxprEqn:
    """What becomes of a sum of integers times floats, in the type of the product: it is scaled, and rounded once."""

    @jax.jit
    def scaled(total, *scales):
        for scale in scales:
            total *= scale.astype(total.dtype)
        return total.astype(out.dtype)

    (eqn,) = jax.make_jaxpr(scaled)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)).eqns
    return eqn
