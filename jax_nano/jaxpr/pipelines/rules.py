"""What equations become in a pipeline: views, copies to parts of a value, reductions and products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.extend.core import JaxprEqn
from jax.lax import DotAlgorithm, DotAlgorithmPreset

from jax_nano.ir.dtypes import BITS, NAMES
from jax_nano.ir.pipeline import Access, Contraction, Kind, Place, UnsupportedPipeline
from jax_nano.ir.program import NARROW_FLOATS, Constant, Operation
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.pipelines.updates import updated
from jax_nano.jaxpr.pipelines.views import (
    Node,
    View,
    broadcast,
    constant_node,
    identity,
    index_node,
    reshaped,
    reversed_,
    sliced,
    squeezed,
    transposed,
)
from jax_nano.jaxpr.pipelines.writer import PipelineWriter

REDUCTIONS: dict[str, Kind] = {
    "reduce_sum": "add", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "mul", "reduce_and": "and",
    "reduce_or": "or",
}  # fmt: skip
SAME = ("stop_gradient", "optimization_barrier", "copy", "copy_p", "reduce_precision_none", "name", "pvary")


def shape_of(x: Atom) -> tuple[int, ...]:
    """The shape of a variable."""
    return tuple(type_of(x).shape)


def dtype_name_of(aval: Any) -> str:
    """The short name of a type that pipelines compute in.

    Raises:
      UnsupportedPipeline: it is none.
    """
    dtype = getattr(aval, "dtype", None)
    if dtype not in NAMES:
        raise UnsupportedPipeline(f"{aval} is no array of numbers")
    return NAMES[dtype]


VIEWS: dict[str, Callable[[View, Mapping[str, Any], Sequence[int]], View]] = {
    "transpose": lambda x, params, _: transposed(x, params["permutation"]),
    "nano_transpose": lambda x, params, _: transposed(x, params["permutation"]),
    "broadcast_in_dim": lambda x, params, shape: broadcast(x, shape, params["broadcast_dimensions"]),
    "slice": lambda x, params, _: sliced(x, params["start_indices"], params["limit_indices"], params["strides"]),
    "squeeze": lambda x, params, _: squeezed(x, [d % max(len(x.shape), 1) for d in params["dimensions"]]),
    "rev": lambda x, params, _: reversed_(x, params["dimensions"]),
}


def read_reshape(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.reshape: a view, or a copy."""
    shape, order, (x,) = shape_of(eqn.outvars[0]), eqn.params["dimensions"], operands
    x = x if order is None else transposed(x, order)
    return [reshaped(x, shape) or writer.reshape(x, shape)]


def read_iota(_writer: PipelineWriter, eqn: JaxprEqn, _: list[View]) -> list[View]:
    """lax.iota."""
    return [index_node(shape_of(eqn.outvars[0]), eqn.params["dimension"], dtype_name_of(type_of(eqn.outvars[0])))]


def read_split(_writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.split: slices."""
    (x,), axis, start, found = operands, eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        starts, limits = [0] * len(x.shape), list(x.shape)
        starts[axis], limits[axis] = start, start + int(size)
        found.append(sliced(x, starts, limits, None))
        start += int(size)
    return found


def read_concatenate(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.concatenate: each operand is written to its part."""
    axis, start = eqn.params["dimension"], 0
    value = writer.new_value("scratch", operands[0].node.dtype, shape_of(eqn.outvars[0]))
    for x in operands:
        places = list(identity(len(x.shape)))
        places[axis] = Place(start, ((axis, 1),))
        writer.write([(x, Access(value, tuple(places)))])
        start += x.shape[axis]
    return [writer.stored(value)]


def read_pad(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.pad: the padding is written, and what is padded over it."""
    x, padding = operands
    config = [tuple(map(int, each)) for each in eqn.params["padding_config"]]
    if any(low < 0 or high < 0 for low, high, _ in config):
        raise UnsupportedPipeline("pad by a negative number")
    shape = shape_of(eqn.outvars[0])
    value = writer.new_value("scratch", x.node.dtype, shape)
    writer.write([(broadcast(padding, shape, ()), Access(value, identity(len(shape))))])
    places = [Place(low, ((axis, inner + 1),)) for axis, (low, _, inner) in enumerate(config)]
    writer.write([(x, Access(value, tuple(places)))])
    return [writer.stored(value)]


def read_dynamic_slice(writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.dynamic_slice: a view whose places depend on what indices are in memory."""
    x, *indices = operands
    sizes = eqn.params["slice_sizes"]
    writer.force(x)
    return [
        x.through(
            [shifted(writer, *each) for each in zip(range(len(sizes)), x.shape, sizes, indices, strict=True)], sizes
        )
    ]


def read_dynamic_update_slice(writer: PipelineWriter, _: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.dynamic_update_slice: a change, which waits."""
    x, part, *indices = operands
    each = zip(range(len(x.shape)), x.shape, part.shape, indices, strict=True)
    return [updated(x, part, [shifted(writer, *one) for one in each])]


def read_bitcast(_writer: PipelineWriter, eqn: JaxprEqn, operands: list[View]) -> list[View]:
    """lax.bitcast_convert_type between types of one width."""
    (x,), dtype = operands, dtype_name_of(type_of(eqn.outvars[0]))
    if BITS[dtype] != BITS[x.node.dtype] or "pred" in (dtype, x.node.dtype):
        raise UnsupportedPipeline(f"bitcast_convert_type of {x.node.dtype} to {dtype}, which are not of one width")
    operation = Operation(name="bitcast_convert_type", operands=(0,), dtype=dtype)
    return [View.of(Node(x.shape, dtype, operation=operation, operands=(x,)))]


def shifted(writer: PipelineWriter, axis: int, extent: int, size: int, index: View) -> Place:
    """The place along an axis of what begins at an index that is read, as far as there is room."""
    if extent == size:
        return Place(0, ((axis, 1),))
    if isinstance(index.node.leaf, Constant):
        start = min(max(int(index.node.leaf.number), 0), extent - size)
        return Place(start, ((axis, 1),))
    return Place(0, ((axis, 1),), writer.force(index), extent - size)


def read_product(writer: PipelineWriter, eqn: JaxprEqn, lhs: View, rhs: View) -> View:
    """A product."""
    out = type_of(eqn.outvars[0])
    dtype = dtype_name_of(out)
    lhs, rhs, acc = operands_of(lhs, rhs, dtype)
    check_precision(eqn.params["precision"], "a product")
    (lhs_k, rhs_k), (lhs_b, rhs_b) = eqn.params["dimension_numbers"]
    lhs_free = [i for i in range(len(lhs.shape)) if i not in (*lhs_k, *lhs_b)]
    rhs_free = [i for i in range(len(rhs.shape)) if i not in (*rhs_k, *rhs_b)]
    rank = len(out.shape)

    def axes(batch: Sequence[int], free: Sequence[int], k: Sequence[int], first: int, ndim: int) -> list[Place]:
        places = dict(zip(batch, range(len(batch)), strict=True))
        places |= dict(zip(free, range(first, first + len(free)), strict=True))
        places |= dict(zip(k, range(rank, rank + len(k)), strict=True))
        return [Place(0, ((places[i], 1),)) if i in places else Place() for i in range(ndim)]

    a, b = writer.force(lhs), writer.force(rhs)
    if math.prod(lhs.shape[i] for i in lhs_k) == 1:  # elementwise work, which what reads the product may do as well
        places = axes(lhs_b, lhs_free, (), len(lhs_b), len(lhs.shape))
        others = axes(rhs_b, rhs_free, (), len(lhs_b) + len(lhs_free), len(rhs.shape))
        factors = lhs.through(places, out.shape), rhs.through(others, out.shape)
        operation = Operation(name="mul", operands=(0, 1), dtype=acc)
        return converted(View.of(Node(out.shape, acc, operation=operation, operands=factors)), dtype)
    output = writer.new_value("scratch", acc, out.shape)
    writer.add(
        Contraction(
            sizes=tuple(out.shape),
            summed=tuple(lhs.shape[i] for i in lhs_k),
            dtype=acc,
            lhs=a.substituted(axes(lhs_b, lhs_free, lhs_k, len(lhs_b), len(lhs.shape))),
            rhs=b.substituted(axes(rhs_b, rhs_free, rhs_k, len(lhs_b) + len(lhs_free), len(rhs.shape))),
            output=Access(output, identity(rank)),
        )
    )
    return converted(writer.stored(output), dtype)


def check_precision(precision: Any, what: str) -> None:
    """Checks that a product, called `what`, asks for no algorithm.

    Raises:
      UnsupportedPipeline: it does.
    """
    if isinstance(precision, DotAlgorithm | DotAlgorithmPreset) and precision is not DotAlgorithmPreset.DEFAULT:
        raise UnsupportedPipeline(f"{what} by the algorithm {precision}")


def operands_of(lhs: View, rhs: View, dtype: str) -> tuple[View, View, str]:
    """The operands in the type in which they are multiplied, and that type: narrow floats in f32.

    Raises:
      UnsupportedPipeline: pipelines do not multiply such types.
    """
    types = {lhs.node.dtype, rhs.node.dtype, dtype}
    if types == {"f64"}:
        return lhs, rhs, "f64"
    if not types <= {"f32", *NARROW_FLOATS}:
        names = f"{lhs.node.dtype} and {rhs.node.dtype} into {dtype}"
        raise UnsupportedPipeline(f"a product of {names}; loops multiply f64, or f32, bf16 and f16")
    return converted(lhs, "f32"), converted(rhs, "f32"), "f32"


def converted(x: View, dtype: str) -> View:
    """A view in another type."""
    if x.node.dtype == dtype:
        return x
    operation = Operation(name="convert", operands=(0,), dtype=dtype)
    return View.of(Node(x.shape, dtype, operation=operation, operands=(x,)))


def read_platform_index(_writer: PipelineWriter, eqn: JaxprEqn, _: list[View]) -> list[View]:
    """The branch that lax.platform_dependent has for CPUs."""
    found = [i for i, names in enumerate(eqn.params["platforms"]) if names is None or "cpu" in names]
    if not found:
        raise UnsupportedPipeline("lax.platform_dependent has no branch for CPUs")
    return [constant_node(Constant.of(found[0], "s32"), ())]


RULES: dict[str, Callable[[PipelineWriter, JaxprEqn, list[View]], list[View]]] = {
    "reshape": read_reshape,
    "iota": read_iota,
    "split": read_split,
    "concatenate": read_concatenate,
    "pad": read_pad,
    "dynamic_slice": read_dynamic_slice,
    "dynamic_update_slice": read_dynamic_update_slice,
    "bitcast_convert_type": read_bitcast,
    "platform_index": read_platform_index,
}
