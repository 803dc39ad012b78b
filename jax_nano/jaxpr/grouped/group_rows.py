"""What belongs to groups, repeated for each of their rows: an equation that grouped products read through."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import jit_p

from jax_nano.jaxpr.axes import Run, Runs
from jax_nano.jaxpr.inline import body_of, structure, type_of
from jax_nano.jaxpr.operands import OfGroups, StridedArray
from jax_nano.jaxpr.strided_views import NoView, StridedView, SubDim, coalesce

ROW_STRIDE = 1 << 40  # marks steps from row to row, which lead to another element only where another group begins


@functools.partial(jax.jit, static_argnames="rows")
def repeat_by_group(values: Array, group_sizes: Array, *, rows: int) -> Array:
    """See jax_nano.repeat_by_group."""
    return jnp.repeat(values, group_sizes, axis=0, total_repeat_length=rows)


NAME = "repeat_by_group"


def is_repeat(eqn: JaxprEqn) -> bool:
    """Is true for a call of repeat_by_group; one that has been mapped over or differentiated is another function."""
    if eqn.primitive is not jit_p or eqn.params["name"] != NAME or len(eqn.outvars) != 1:
        return False
    body, (out,) = body_of(eqn), eqn.outvars
    avals = [type_of(x) for x in eqn.invars]
    if body is None or len(avals) != 2 or avals[1].ndim != 1 or not type_of(out).shape:
        return False
    if [x.shape[:1] for x in avals] != [avals[1].shape] * 2:
        return False
    return structure(body) == _structure(*avals, rows=type_of(out).shape[0])


@functools.lru_cache(maxsize=256)
def _structure(values: ShapedArray, sizes: ShapedArray, rows: int) -> Hashable:
    given = (jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in (values, sizes))
    (call,) = jax.make_jaxpr(functools.partial(repeat_by_group, rows=rows))(*given).jaxpr.eqns
    body = body_of(call)
    assert body
    return structure(body)


def repeated(eqn: JaxprEqn, values: Sequence[object]) -> StridedArray:
    """What a call of repeat_by_group gives, read where it belongs to groups.

    Raises:
      NoView: its operands are moved or converted before.
    """
    arrays = [x for x in values if isinstance(x, StridedArray) and x == StridedArray(x.source, x.whole)]
    if len(arrays) < 2:
        raise NoView("what belongs to groups is moved or converted before it is repeated")
    array, sizes = arrays
    (count, *_), rows = array.view.shape, type_of(eqn.outvars[0]).shape[0]
    stride = type_of(array.source).size // count
    view = StridedView((coalesce([SubDim(rows, ROW_STRIDE)]), *array.view.dims[1:]))
    return StridedArray(array.source, view, groups=OfGroups(count, stride, sizes.source, rows))


def along_groups(runs: Runs, groups: OfGroups, elements: int) -> Runs:
    """The runs, along a C of so many elements, of what groups have: in the place of those from row to row, their own.

    Raises:
      NoView: these are not the rows of C in their order.
    """
    by_rows = [run for run in runs if run.stride >= ROW_STRIDE]
    if any(run.stride * elements != ROW_STRIDE * run.at * groups.rows for run in by_rows):
        raise NoView("what belongs to groups does not go along their rows")
    own = (Run(groups.count, elements, groups.stride),) if groups.stride and groups.count > 1 else ()
    return (*(run for run in runs if run.stride < ROW_STRIDE), *own)
