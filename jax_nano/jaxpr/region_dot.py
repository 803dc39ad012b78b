"""The Dot of a region: the axes that all of its arrays have in common, B along C's last dimension, and the programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.extend.core import JaxprEqn, Var
from jax.extend.core.primitives import convert_element_type_p

from jax_nano.ir.axes import Axis, Loops, extent, merged
from jax_nano.ir.convolution import LONGEST_STEP, PLACES_IN_LANES
from jax_nano.ir.dot import ONLY_RHS_IN_PANELS, Dot, Epilogue, Prologue, UnsupportedDot, is_one_run
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped
from jax_nano.ir.program import Program
from jax_nano.ir.window import Window
from jax_nano.jaxpr.axes import Axes, Cuts, Run, Runs, runs_along, stride_along
from jax_nano.jaxpr.grouped.chosen_rows import SummedRows
from jax_nano.jaxpr.grouped.dot import with_groups
from jax_nano.jaxpr.grouped.group_rows import along_groups
from jax_nano.jaxpr.grouped.row_scatters import ScatteredRows
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.operands import StridedArray, element_type
from jax_nano.jaxpr.program_reader import program_of
from jax_nano.jaxpr.strided_views import NoView, StridedView
from jax_nano.jaxpr.sums import along_sums, first_of_sums

WORK_ON_B = "an operand is worked on that lies along the result's last dimension"


@dataclass(frozen=True, kw_only=True)
class Product:
    """The product of a region.

    Attributes:
      eqn: its equation.
      lhs: its operand 0, in memory.
      rhs: its operand 1.
      lhs_runs: of lhs along a row-major C, the innermost first.
      rhs_runs: of rhs, likewise.
      ends: after how many elements of C dimensions of n, of m or of the batch end, the first to end first.
      k: its contracted axes, with the strides of what the work on lhs and rhs reads beside them.
      sum: the scalar that the epilogue starts with.
      window: how the image of a convolution lies in memory.
      window_runs: positions along each of its bounds, as lhs_runs.
      sizes: of groups, of a grouped product: runs count their matrices behind all of C.
    """

    eqn: JaxprEqn
    lhs: StridedArray
    rhs: StridedArray
    lhs_runs: Sequence[Run]
    rhs_runs: Sequence[Run]
    ends: Sequence[tuple[int, str]]
    k: Sequence[Axis]
    sum: Var
    window: Window | None = None
    window_runs: Sequence[Sequence[Run]] = ()
    sizes: Var | None = None

    @property
    def place(self) -> StridedView:
        """Where its elements belong in C: in their order."""
        return StridedView.of(type_of(self.eqn.outvars[0]).shape)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The part of a region that has been read where it ends.

    Attributes:
      result: the scalar that it gives.
      runs: of the result along a row-major C.
      program: equations of scalars, before the product and after it.
      extras: arrays that the epilogue reads, by their runs along C, and their elements.
      cuts: where the runs of A, B and the extras begin and end.
      scatter: where rows of the result are added up, if they are.
    """

    result: Atom
    runs: Runs
    program: Sequence[JaxprEqn]
    extras: Sequence[tuple[tuple[Var, Runs], Var]]
    cuts: Cuts
    scatter: ScatteredRows | SummedRows | None = None


@dataclass(frozen=True, kw_only=True)
class RegionDot:
    """A region as a kernel computes it.

    Attributes:
      dot: the product, with the work on A and C.
      sources: which of the region's arrays are A, B, the sizes of groups and what Dot.extras has: variables while the
        region is read, their numbers among its arguments in the region.
      precision: of the product, as lax.dot_general has it.
      lhs: which operand of the product A is, 0 or 1.
    """

    dot: Dot | Grouped | Gated
    sources: tuple[Any, ...]
    precision: Any
    lhs: int


def region_dot(product: Product, ending: Ending) -> RegionDot:
    """Describes a region.

    1. The axes are the runs that all arrays have in common.
    2. B is the operand along C's last dimension, which has to be contiguous in C, and in what the epilogue reads.
    3. Work on A is the prologue, and work on C the epilogue. There is none on B.

    Raises:
      NoView: strides do not say where the elements are.
      Unfusable: there are no instructions for some of the elementwise work.
      UnsupportedDot: no kernel can be made for these types.
    """
    extras = _extras(product, ending)
    axes = _common_axes(product, ending, extras)
    lhs, rhs = product.lhs, product.rhs
    along_m = bool(axes.m and axes.m[-1].out == 1)
    is_transposed = (not axes.n or along_m) and not product.window and not product.sizes
    if along_m and product.window and (axes.n or axes.b) and not places_can_be_last(axes):
        raise NoView("the places of a convolution are last in the result")
    if along_m and product.sizes and axes.n:
        raise NoView("the rows of groups are last in the result")
    if is_transposed:
        axes, lhs, rhs = axes.transposed(), rhs, lhs
    _check_last_dimension(axes)
    _check_quantized(lhs, rhs, axes, product.window)
    if rhs.work:
        raise NoView(WORK_ON_B)
    _check_contiguous(axes, extras.prologue)
    if rhs.quantized:
        b, n, g = map(rhs.quantized.in_words, (axes.b, axes.n, axes.g))
        axes = axes._replace(b=b, n=n, g=g)
    epilogue, out = _epilogue_program(product, ending)
    programs = Programs(epilogue, _prologue_program(lhs, ending), out)
    used = extras.used_by(programs)
    axes = _with_extras(axes, used)
    dot = _dot(lhs, rhs, programs, axes, used, product.window)
    sources = (lhs.source, rhs.source, *used.sources)
    if product.sizes:
        places = (lhs.places,) if lhs.places else ()
        scattered = ending.scatter.arrays if ending.scatter else ()
        dot = with_groups(dot, axes.g, product.sizes, lhs, ending.scatter)
        sources = (*sources[:2], product.sizes, *places, *sources[2:], *scattered)
    return RegionDot(dot=dot, sources=sources, precision=product.eqn.params["precision"], lhs=int(is_transposed))


@dataclass(frozen=True)
class Programs:
    """The programs of a region, and the type of its result."""

    epilogue: Program | None
    prologue: Program | None
    out: str


@dataclass(frozen=True)
class Extras:
    """The arrays beside A and B: those of the epilogue, then those of the prologue, then scales and zero points."""

    arrays: tuple[tuple[Var, Runs], ...]
    prologue: range  # the prologue's numbers among them
    numbers: tuple[int, ...] = ()  # of those that are used, in the order of Dot.extras

    @property
    def scales(self) -> range:
        """The numbers of scales and zero points."""
        return range(self.prologue.stop, len(self.arrays))

    @property
    def sources(self) -> list[Var]:
        """The arrays that are used."""
        return [self.arrays[i][0] for i in self.numbers]

    def used_by(self, programs: Programs) -> Extras:
        """The arrays with the numbers of those that programs read."""
        on_c = [x.argument - 1 for x in programs.epilogue.inputs[1:]] if programs.epilogue else []
        on_a = [self.prologue[x.argument - 1] for x in programs.prologue.inputs[1:]] if programs.prologue else []
        return replace(self, numbers=(*on_c, *on_a, *self.scales))


def _extras(product: Product, ending: Ending) -> Extras:
    """All arrays beside A and B, by their runs along C; of those beside an operand, where each sum begins."""
    place = product.place
    epilogue = [array for array, _ in ending.extras]

    operands = list(enumerate((product.lhs, product.rhs)))
    on_a = [first_of_sums(product.eqn, i, x) for i, operand in operands for x in operand.extras]
    scales = [
        along_sums(product.eqn, i, x)
        for i, operand in operands
        if operand.quantized and operand.quantized.is_scaled
        for x in operand.quantized.parameters
    ]
    others = [(x.source, extra_runs(x, place)) for x in (*on_a, *scales)]
    return Extras((*epilogue, *others), range(len(epilogue), len(epilogue) + len(on_a)))


def extra_runs(array: StridedArray, place: StridedView) -> Runs:
    """The runs of another array along C, at a place of which it has the shape, or sizes of 1, and along groups.

    Raises:
      NoView: what belongs to groups does not go along their rows.
    """
    everywhere = array.view.broadcast(place.shape, range(len(place.dims)))
    runs = tuple(run for run in runs_along(place, everywhere) if run.stride)
    return along_groups(runs, array.groups, math.prod(place.shape)) if array.groups else runs


def _common_axes(product: Product, ending: Ending, extras: Extras) -> Axes:
    """The axes that A, B, C and the extras have in common, C's longest steps first."""
    ending.cuts.add(ending.runs)
    for _, runs in extras.arrays:
        ending.cuts.add(runs)
    arrays = (product.lhs_runs, product.rhs_runs, ending.runs, *(runs for _, runs in extras.arrays))
    groups: dict[str, list[Axis]] = {"b": [], "m": [], "n": [], "g": []}
    for low, high in ending.cuts.pieces():
        lhs, rhs, out, *others = (stride_along(runs, low, high) for runs in arrays)
        group = next(group for end, group in product.ends if high <= end)
        window = tuple(stride_along(runs, low, high) for runs in product.window_runs)
        groups[group].append(Axis(size=high // low, lhs=lhs, rhs=rhs, out=out, extras=tuple(others), window=window))
    b, m, n, g = (sorted(axes, key=lambda axis: axis.out, reverse=True) for axes in groups.values())
    before, behind = (0,) * extras.prologue.start, (0,) * len(extras.scales)
    return Axes(b, m, n, [replace(axis, extras=(*before, *axis.extras, *behind)) for axis in product.k], g)


def places_can_be_last(axes: Axes) -> bool:
    """Is true where the places of a convolution stand in lanes: they are long runs of the image."""
    return bool(axes.m) and 1 <= axes.m[-1].lhs <= LONGEST_STEP and axes.m[-1].size >= PLACES_IN_LANES


def _check_last_dimension(axes: Axes) -> None:
    """Checks that C, and all that goes along with it, is contiguous along n or repeats itself.

    Raises:
      NoView: it is not.
    """
    last = axes.m if axes.m and axes.m[-1].out == 1 else axes.n
    if last and last[-1].out != 1:
        raise NoView("a dimension of the batch is last in the result")
    if last and not set(last[-1].extras) <= {0, 1}:
        raise NoView("an array is not contiguous along the result's last dimension")


def _check_contiguous(axes: Axes, prologue: range) -> None:
    """Checks that what the prologue reads is contiguous where A is.

    Raises:
      NoView: it is not.
    """
    if any(axis.lhs == 1 and axis.extras[i] not in (0, 1) for axis in (*axes.m, *axes.k) for i in prologue):
        raise NoView("an array beside A is not contiguous where A is")


def _check_quantized(lhs: StridedArray, rhs: StridedArray, axes: Axes, window: Window | None) -> None:
    """Checks that quantized integers can be read as they stand.

    Raises:
      NoView: they cannot.
    """
    if lhs.quantized and lhs.quantized.is_in_place:
        raise NoView("quantized values are not read along the result's last dimension")
    if not rhs.quantized or not rhs.quantized.is_in_place:
        return
    rows, columns = rhs.quantized.matrix
    k = [axis for axis in axes.k if axis.size > 1]
    if extent(k) != rows or not is_one_run(k, columns) or not axes.n or axes.n[-1].rhs != 1:
        raise NoView("quantized values are not summed along their rows")
    in_order = sorted(k, key=lambda axis: axis.rhs, reverse=True)
    if not window and len(merged(in_order)) > 1:  # words and groups are found by the step of one loop over k
        raise NoView("A is not one run along the rows of quantized values")


def _epilogue_program(product: Product, ending: Ending) -> tuple[Program | None, str]:
    """The epilogue, and the type of what it makes; none where rounding the sums is all that it does."""
    acc = element_type(product.sum)
    if not ending.program:
        return None, acc
    made = element_type(ending.result)
    is_conversion = len(ending.program) == 1 and ending.program[0].primitive is convert_element_type_p
    if is_conversion and acc == "f32" and made in ("bf16", "f16"):
        return None, made
    inputs = [product.sum, *(x for _, x in ending.extras)]
    return program_of(inputs, ending.program, [ending.result]).widened(), made


def _prologue_program(lhs: StridedArray, ending: Ending) -> Program | None:
    """The work on A."""
    if not lhs.work:
        return None
    return program_of([x for x, _ in lhs.work.inputs], ending.program, [lhs.work.atom]).widened()


def _with_extras(axes: Axes, extras: Extras) -> Axes:
    """The axes with strides of the extras that are used."""
    return Axes(*([replace(axis, extras=tuple(axis.extras[i] for i in extras.numbers)) for axis in x] for x in axes))


def _dot(  # noqa: PLR0913
    lhs: StridedArray, rhs: StridedArray, programs: Programs, axes: Axes, extras: Extras, window: Window | None
) -> Dot:
    """The product of A and B along axes, whose extras are those that are used."""
    in_memory = [
        (element_type(source), math.prod(axis.size for axes_of in axes for axis in axes_of if axis.extras[i]))
        for i, source in enumerate(extras.sources)
    ]
    on_c = len(programs.epilogue.inputs) - 1 if programs.epilogue else 0
    scales = extras.sources[len(in_memory) - len(extras.scales) :]
    prologue = programs.prologue and Prologue(
        program=programs.prologue, extras=tuple(in_memory[on_c : len(in_memory) - len(scales)])
    )
    epilogue = programs.epilogue and Epilogue(program=programs.epilogue, extras=tuple(in_memory[:on_c]))
    scaling = rhs.quantized and rhs.quantized.scaling(scales)
    if lhs.panels:
        raise UnsupportedDot(ONLY_RHS_IN_PANELS)
    return Dot.over(
        Loops(b=axes.b, m=axes.m, n=axes.n, k=axes.k),
        (lhs.dtype, rhs.dtype, programs.out),
        epilogue=epilogue,
        prologue=prologue,
        scaling=scaling,
        panels=rhs.panels,
        window=window,
    )
