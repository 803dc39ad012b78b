"""Reads the product of a region: its loops over both operands, and over the elements of a row-major C."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn, Var

from jax_nano.ir.axes import Operand
from jax_nano.ir.dot import UnsupportedDot, accumulator
from jax_nano.jaxpr.axes import Run, paired_axes
from jax_nano.jaxpr.convolutions import convolution_of, is_in_order, is_simple
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.operands import StridedArray, element_type
from jax_nano.jaxpr.primitives import CONVOLUTIONS
from jax_nano.jaxpr.region_dot import Product
from jax_nano.jaxpr.strided_views import NoView
from jax_nano.jaxpr.sums import dimensions_of, matrices_of_groups


def read_product(eqn: JaxprEqn, lhs: StridedArray, rhs: StridedArray, sizes: Var | None = None) -> Product:
    """Reads an equation of one of FUSED_PRODUCTS, whose operands are these arrays, and sizes of groups if it has any.

    Raises:
      UnsupportedDot: there is nothing to compute.
      NoView: the operands' dimensions do not fit together, or conversions round.
    """
    if rhs.places or (lhs.places and sizes is None):
        raise NoView("rows are gathered for the groups of a grouped product alone")
    if any(x.places for x in lhs.extras):
        raise NoView("rows of more than one array are gathered")
    if sizes is not None:
        return _grouped_product(eqn, lhs, rhs, sizes)
    return (_convolution if eqn.primitive in CONVOLUTIONS else _matrix_product)(eqn, lhs, rhs)


def _matrix_product(eqn: JaxprEqn, lhs: StridedArray, rhs: StridedArray) -> Product:
    """The product of two operands, with its runs in the order of C's dimensions: of the batch, of m and of n.

    Raises:
      UnsupportedDot: there is nothing to compute.
      NoView: the operands' dimensions do not fit together, or conversions round.
    """
    if 0 in lhs.view.shape or 0 in rhs.view.shape:
        raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
    contracting, batch = eqn.params["dimension_numbers"]
    m, n = (
        [part for d, dim in enumerate(array.view.dims) if d not in (*contracting[i], *batch[i]) for part in dim]
        for i, array in enumerate((lhs, rhs))
    )
    extras = [[x.view for x in array.extras] for array in (lhs, rhs)]
    groups = {
        "n": [(part.size, 0, part.stride) for part in n],
        "m": [(part.size, part.stride, 0) for part in m],
        "b": [(x.size, x.lhs, x.rhs) for x in paired_axes(lhs.view, rhs.view, batch, ((), ()))],
    }
    lhs_runs, rhs_runs, ends, at = [], [], [], 1
    for group, steps in groups.items():
        for size, left, right in reversed(steps):
            lhs_runs.append(Run(size, at, left))
            rhs_runs.append(Run(size, at, right))
            at *= size
        ends.append((at, group))
    k = paired_axes(lhs.view, rhs.view, contracting, extras)
    _check_conversions(eqn, lhs, rhs, math.prod(axis.size for axis in k))
    return Product(
        eqn=eqn, lhs=lhs, rhs=rhs, lhs_runs=lhs_runs, rhs_runs=rhs_runs, ends=ends, k=k, sum=_sum(eqn, lhs, rhs)
    )


def _convolution(eqn: JaxprEqn, lhs: StridedArray, rhs: StridedArray) -> Product:
    """The product that a convolution is, into a result that ends with channels.

    Raises:
      UnsupportedDot: there is nothing to compute.
      NoView: strides do not say where its elements are in the order of its sum, or conversions round.
    """
    if lhs.quantized or lhs.panels or lhs.work or rhs.work:
        raise NoView("packed and quantized weights are kernels of convolutions, not images")
    image, kernel = (_operand_of(x) for x in (lhs, rhs))
    convolution = convolution_of(image, kernel, type_of(eqn.outvars[0]), eqn.params)
    if (rhs.panels or rhs.quantized) and not is_in_order(convolution):
        raise NoView('a kernel is packed as matrices, one for each tap: tell pack of its dimensions, kernel="HWIO"')
    if not is_simple(convolution, eqn.params):
        raise NoView("it is computed by other convolutions")
    loops, window = convolution.as_product()
    bounds = len(window.bounds) if window else 0
    dims = sorted((axis for axis in (*loops.n, *loops.b, *loops.m) if axis.size > 1), key=lambda axis: axis.out)
    groups = (("n", loops.n), ("b", loops.b), ("m", loops.m))
    ends = sorted((axis.out * axis.size, group) for group, axes in groups for axis in axes if axis.size > 1)
    _check_conversions(eqn, lhs, rhs, math.prod(axis.size for axis in loops.k))
    return Product(
        eqn=eqn, lhs=lhs, rhs=rhs, ends=ends, k=loops.k, sum=_sum(eqn, lhs, rhs), window=window,
        lhs_runs=[Run(axis.size, axis.out, axis.lhs) for axis in dims],
        rhs_runs=[Run(axis.size, axis.out, axis.rhs) for axis in dims],
        window_runs=[[Run(axis.size, axis.out, axis.window[d]) for axis in dims] for d in range(bounds)],
    )  # fmt: skip


def _grouped_product(eqn: JaxprEqn, lhs: StridedArray, rhs: StridedArray, sizes: Var) -> Product:
    """The product of a group that has all rows; the groups' matrices count behind all of C, where C has none of them.

    Raises:
      UnsupportedDot: there is nothing to compute.
      NoView: it is more than rows of groups and their matrices, or conversions round.
    """
    dims = dimensions_of(eqn)
    if 0 in (*lhs.view.shape, *rhs.view.shape):
        raise UnsupportedDot("a dimension is 0: there is nothing to multiply")
    if dims.mode != "m" or len(dims.lhs_free) != 1 or dims.lhs_batch or type_of(sizes).ndim != 1:
        raise NoView("there is more to it than rows of groups and a matrix for each")
    if lhs.quantized or lhs.panels or rhs.work or eqn.params["group_offset"] is not None:
        raise NoView("weights are the matrices of groups, not their rows")
    if lhs.places and dims.lhs_free != (0,):
        raise NoView("what is gathered is summed over")
    contracting = dims.lhs_contract, dims.rhs_contract
    extras = [[x.view for x in array.extras] for array in (lhs, rhs)]
    k = paired_axes(lhs.view, rhs.view, contracting, extras)
    _check_conversions(eqn, lhs, rhs, math.prod(axis.size for axis in k))
    runs, ends, at = [], [], 1
    for kind, operand, free in (("n", 1, dims.rhs_free), ("m", 0, dims.lhs_free)):
        for part in reversed([part for d in free for part in (lhs, rhs)[operand].view.dims[d]]):
            runs.append((part.size, at, *((0, part.stride) if operand else (part.stride, 0))))
            at *= part.size
        ends.append((at, kind))
    groups = matrices_of_groups(rhs.view, dims)
    runs.append((groups.count, at, 0, groups.stride))
    return Product(
        eqn=eqn, lhs=lhs, rhs=rhs, ends=[*ends, (at * groups.count, "g")], k=k, sum=_sum(eqn, lhs, rhs), sizes=sizes,
        lhs_runs=[Run(size, at, left) for size, at, left, _ in runs],
        rhs_runs=[Run(size, at, right) for size, at, _, right in runs],
    )  # fmt: skip


def _sum(eqn: JaxprEqn, lhs: StridedArray, rhs: StridedArray) -> Var:
    """What the epilogue starts with: an element of the product, or a sum that is scaled before it is one."""
    is_scaled_whole = any(x.quantized and not x.quantized.is_scaled for x in (lhs, rhs))
    return Var(ShapedArray((), jnp.dtype(jnp.float32))) if is_scaled_whole else scalar(eqn.outvars[0])


def _operand_of(array: StridedArray) -> Operand:
    """An array as an operand of a convolution.

    Raises:
      NoView: a dimension has no single stride.
    """
    if any(len(dim) > 1 for dim in array.view.dims):
        raise NoView("a dimension of a convolution's operand has no single stride")
    strides = tuple(dim[0].stride if dim else 0 for dim in array.view.dims)
    return Operand(shape=array.view.shape, strides=strides, dtype=array.dtype)


def _check_conversions(eqn: JaxprEqn, lhs: StridedArray, rhs: StridedArray, terms: int) -> None:
    """Checks that operands make the same sums in the types they are read in. Sums of integers are exact.

    Raises:
      NoView: they do not.
      UnsupportedDot: there is no kernel for these types.
    """
    if not any(x.conversions or x.quantized for x in (lhs, rhs)):
        return
    for array in (lhs, rhs):
        if array.is_rounded:
            raise NoView(f"{array.float_dtype} is rounded on its way to {' to '.join(array.converted_to)}")
    out = element_type(eqn.outvars[0])
    acc = accumulator(lhs.float_dtype, rhs.float_dtype, out, terms)
    if acc != "s32" and acc != accumulator(element_type(eqn.invars[0]), element_type(eqn.invars[1]), out, terms):
        raise NoView(f"{lhs.float_dtype} times {rhs.float_dtype} is summed in {acc}")


def scalar(var: Var) -> Var:
    """An element of an array."""
    return Var(ShapedArray((), type_of(var).dtype))
