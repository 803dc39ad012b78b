"""Rows of a grouped product that are chosen by their places, worked on, and added up: another way back to tokens.

(y[places].reshape(T, C, N) * weights[..., None]).sum(1)
einsum("tcn,tc->tn", y[places].reshape(T, C, N), weights)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn, Literal, Var
from jax.extend.core.primitives import gather_p, mul_p, reduce_sum_p, reshape_p

from jax_nano.ir.dot import Epilogue
from jax_nano.ir.grouped import Beyond, RowScatter
from jax_nano.ir.program import Program
from jax_nano.jaxpr.grouped.row_gathers import ROWS
from jax_nano.jaxpr.grouped.row_scatters import WIDE, is_row_scatter, rounded_type
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.operands import ElementExpr, StridedArray, element_type, is_exact
from jax_nano.jaxpr.primitives import DOTS
from jax_nano.jaxpr.program_reader import program_of
from jax_nano.jaxpr.strided_views import NoView, StridedView

_BY_TOKEN = (((1,), (1,)), ((0,), (0,)))  # the dimensions of einsum("tcn,tc->tn")
_ALGORITHMS = (lax.DotAlgorithm, lax.DotAlgorithmPreset)  # which round operands


@dataclass(frozen=True)
class ChosenRows:
    """Rows of the product, chosen by an array of places, in the shape (T * C, N) or (T, C, N), and the work on them.

    Attributes:
      rows: of the product.
      gather: the equation that chooses.
      places: the array.
      shape: in which they stand.
      begin: how many equations of the program there are before the work.
      element: of the product, which the work starts from.
      atom: what has been made of it.
      weights: arrays that the work reads, by an element for each row.
    """

    rows: ElementExpr
    gather: JaxprEqn
    places: Var
    shape: tuple[int, ...]
    begin: int
    element: Var
    atom: Atom
    weights: tuple[tuple[Var, StridedArray], ...] = ()

    def after(self, eqn: JaxprEqn, operands: Sequence[object], program: list[JaxprEqn]) -> ChosenRows | SummedRows:
        """What an equation makes of the rows.

        Args:
          eqn: the equation.
          operands: what it reads; chosen rows, weights, numbers.
          program: the equations on single elements so far; those of the work are added.

        Raises:
          NoView: it is no work on single elements, and no sum of C rows each.
          Unfusable: there are no instructions for some of the work.
        """
        if eqn.primitive is reshape_p:
            return self._reshaped(type_of(eqn.outvars[0]).shape)
        if is_row_sum(eqn):
            return self._summed(eqn, operands, program)
        if type_of(eqn.outvars[0]).shape != self.shape:
            raise NoView("chosen rows are moved")
        worked = self
        inputs: list[Atom] = []
        for operand in operands:
            worked, x = worked._read(operand, program)
            inputs.append(x)
        return replace(worked, atom=_append(program, eqn, inputs, type_of(eqn.outvars[0]).dtype))

    def _reshaped(self, shape: tuple[int, ...]) -> ChosenRows:
        if shape[-1] != self.shape[-1] or len(shape) not in (2, 3):
            raise NoView("chosen rows are divided")
        return replace(self, shape=shape)

    def _read(self, operand: object, program: list[JaxprEqn]) -> tuple[ChosenRows, Atom]:
        """An operand's element."""
        if isinstance(operand, ChosenRows) and operand.gather is self.gather and operand.shape == self.shape:
            weights = dict((*self.weights, *operand.weights))
            return replace(self, weights=tuple(weights.items())), operand.atom
        if isinstance(operand, ElementExpr) and operand.view is None and isinstance(operand.atom, Literal):
            return self, operand.atom
        if not isinstance(operand, StridedArray) or not _is_weight(operand, self.shape[:-1]):
            raise NoView("chosen rows meet something else than a weight for each")
        return self._weighted(operand, program)

    def _weighted(self, array: StridedArray, program: list[JaxprEqn]) -> tuple[ChosenRows, Atom]:
        """The element of an array that has one for each row, converted."""
        x = Var(ShapedArray((), type_of(array.source).dtype))
        value: Atom = x
        for eqn in array.conversions:
            value = _append(program, eqn, [value], type_of(eqn.outvars[0]).dtype)
        return replace(self, weights=(*self.weights, (x, array))), value

    def _summed(self, eqn: JaxprEqn, operands: Sequence[object], program: list[JaxprEqn]) -> SummedRows:
        worked, dtype = self, element_type(eqn.outvars[0])
        if len(self.shape) != 3:
            raise NoView("chosen rows are added up in another order")
        if eqn.primitive in DOTS:
            if not {*map(element_type, eqn.invars), dtype} <= {"f32", *WIDE}:
                raise NoView(f"chosen rows are multiplied into {dtype}")
            (array,) = (x for x in operands if x is not self)
            if not isinstance(array, StridedArray) or not _is_weight(array, self.shape[:2]):
                raise NoView("chosen rows meet something else than a weight for each")
            worked, x = worked._weighted(array, program)
            product = _append(
                program, eqn.replace(primitive=mul_p, params={}), [worked.atom, x], jnp.dtype(jnp.float32)
            )
            worked = replace(worked, atom=product)
        return SummedRows(worked, eqn, dtype, worked._work(program))

    def _work(self, program: Sequence[JaxprEqn]) -> Program | None:
        """The work as a program, if there is any."""
        makers = {out: eqn for eqn in program[self.begin :] for out in eqn.outvars}
        atom = self.atom
        while isinstance(atom, Var) and atom in makers and is_exact(makers[atom]):
            (atom,) = makers[atom].invars
        if atom is self.element:
            return None
        return program_of([self.element, *(x for x, _ in self.weights)], program[self.begin :], [atom]).widened()


@dataclass(frozen=True)
class SummedRows:
    """Sums of chosen rows.

    Attributes:
      chosen: the rows.
      eqn: which adds them up.
      dtype: the type of the result, perhaps a narrower one than that of the sums.
      work: on each element before.
    """

    chosen: ChosenRows
    eqn: JaxprEqn
    dtype: str
    work: Program | None

    @property
    def rows(self) -> ElementExpr:
        """Of the product."""
        return self.chosen.rows

    @property
    def begin(self) -> int:
        """How many equations of the program there are before the work."""
        return self.chosen.begin

    @property
    def weights(self) -> list[Var]:
        """The arrays that the work reads."""
        numbers = [x.argument - 1 for x in self.work.inputs[1:]] if self.work else []
        return [self.chosen.weights[i][1].source for i in numbers]

    @property
    def arrays(self) -> tuple[Var, ...]:
        """What is read in memory, in the order in which kernels take it."""
        return self.chosen.places, *self.weights

    def rounded(self, eqn: JaxprEqn) -> SummedRows:
        """See ScatteredRows.rounded."""
        return replace(self, dtype=rounded_type(eqn, self.dtype))

    def described(self, groups: int) -> RowScatter:
        """See ScatteredRows.described.

        Raises:
          NoView: groups have no more than a row each, and sums take as long outside.
        """
        stored, choices, _ = self.chosen.shape
        if type_of(self.chosen.gather.invars[0]).shape[0] <= groups:
            raise NoView(f"takes as long outside, with no more rows than {groups} groups")
        dtype = element_type(self.eqn.outvars[0])
        weights = tuple((element_type(x), stored * choices) for x in self.weights)
        return RowScatter(
            places=element_type(self.chosen.places), stored=stored, sum=WIDE.get(dtype, dtype), out=self.dtype,
            choices=choices, work=self.work and Epilogue(program=self.work, extras=weights),
            beyond=_beyond(self.chosen.gather) or "nearest",
        )  # fmt: skip


def is_row_choice(eqn: JaxprEqn) -> bool:
    """Is true for a gather of whole rows of a matrix; where one does not exist, of the nearest, or zeros or NaN."""
    if eqn.primitive is not gather_p or eqn.params["dimension_numbers"] != ROWS:
        return False
    x, places = (type_of(operand) for operand in eqn.invars)
    is_whole = x.ndim == 2 and places.ndim == 2 and eqn.params["slice_sizes"] == (1, x.shape[1])
    return is_whole and _beyond(eqn) is not None


def is_row_sum(eqn: JaxprEqn) -> bool:
    """Is true for a sum of the rows of matrices (T, C, N) over C, or one with weights (T, C)."""
    out = type_of(eqn.outvars[0]) if len(eqn.outvars) == 1 else None
    if eqn.primitive is reduce_sum_p:
        return eqn.params["axes"] == (1,) and type_of(eqn.invars[0]).ndim == 3 and not eqn.params.get("out_sharding")
    if eqn.primitive not in DOTS or out is None or out.ndim != 2 or eqn.params.get("out_sharding"):
        return False
    dims = tuple(tuple(map(tuple, pair)) for pair in eqn.params["dimension_numbers"])
    ranks = sorted(type_of(x).ndim for x in eqn.invars)
    return dims == _BY_TOKEN and ranks == [2, 3] and not isinstance(eqn.params["precision"], _ALGORITHMS)


def adds_rows(eqn: JaxprEqn) -> bool:
    """Is true for an equation that may add up rows of a product, or choose rows for that."""
    return is_row_scatter(eqn) or is_row_choice(eqn) or is_row_sum(eqn)


def chosen(eqn: JaxprEqn, rows: ElementExpr, places: object, begin: int) -> ChosenRows:
    """The rows of the product that a gather chooses.

    Raises:
      NoView: these are no rows of the product in their order.
    """
    if rows.view != StridedView.of(type_of(eqn.invars[0]).shape):
        raise NoView("what is chosen are no rows of the product in their order")
    if not isinstance(places, StridedArray) or places != StridedArray(places.source, places.whole):
        raise NoView("the places of rows are moved or converted")
    element = Var(ShapedArray((), type_of(eqn.invars[0]).dtype))
    return ChosenRows(rows, eqn, places.source, type_of(eqn.outvars[0]).shape, begin, element, element)


def _beyond(gather: JaxprEqn) -> Beyond | None:
    """What a gather gives for rows that do not exist, as RowScatter has it; None for something else."""
    if gather.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP:
        return "nearest"
    fill, dtype = gather.params["fill_value"], type_of(gather.outvars[0]).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return "zeros" if fill == 0 else None
    if fill is None or np.isnan(fill):
        return "nan"
    return "zeros" if fill == 0 else None


def _is_weight(array: StridedArray, rows: tuple[int, ...]) -> bool:
    """Is true for an array that lies in the order of rows, with an element for each; columns repeat that."""
    dims, columns = array.view.dims[: len(rows)], array.view.dims[len(rows) :]
    if array != StridedArray(array.source, array.view, array.conversions) or any(
        x.stride for dim in columns for x in dim
    ):
        return False
    return StridedView(dims) == StridedView.of(rows) and type_of(array.source).size == math.prod(rows)


def _append(program: list[JaxprEqn], eqn: JaxprEqn, inputs: Sequence[Atom], dtype: np.dtype) -> Var:
    """Adds an equation on single elements, and gives what it makes."""
    out = Var(ShapedArray((), dtype))
    program.append(eqn.replace(invars=list(inputs), outvars=[out]))
    return out
