"""Operations of loops that are programs of others: each is traced, and its program stands in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Jaxpr, JaxprEqn

from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.pipelines import functions, linalg
from jax_nano.jaxpr.pipelines.indexing import gather, scatter
from jax_nano.jaxpr.pipelines.linalg import NotExpanded, total_order_key
from jax_nano.jaxpr.pipelines.random import counters, threefry

Params = Mapping[str, Any]
NARROW = (jnp.bfloat16, jnp.float16)


def expansion_of(eqn: JaxprEqn) -> Jaxpr | None:
    """The program that an operation is; None where it is none of these."""
    make = EXPANSIONS.get(eqn.primitive.name)
    program = make(eqn.params) if make else implementation_of(eqn)
    if program is None:
        return None
    try:
        traced = jax.make_jaxpr(program)(*map(plain_type, eqn.invars))
    except NotExpanded:
        return None
    return None if traced.consts else traced.jaxpr


def plain_type(x: Atom) -> jax.ShapeDtypeStruct:
    """The type of a value, without how it is sharded or over which axes of a mesh it varies."""
    aval = type_of(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def implementation_of(eqn: JaxprEqn) -> Callable[..., Any] | None:
    """What an operation of another library, such as Equinox, is in JAX's operations; None where it does not say so."""
    rule = getattr(eqn.primitive, "impl", None)
    owner = getattr(getattr(rule, "func", rule), "__module__", None) or "jax"
    if rule is None or owner.partition(".")[0] in ("jax", "jaxlib", "jax_nano"):
        return None
    program = partial(rule, **eqn.params)
    try:
        jax.eval_shape(program, *map(type_of, eqn.invars))
    except Exception:  # noqa: BLE001, whatever keeps it from being traced: it wants numbers
        return None
    return program


# Along an axis


def arg_extreme(params: Params, reduce: Callable[..., Array]) -> Callable[[Array], Array]:
    """lax.argmax or argmin: the first of the elements that are the largest, or NaN."""
    (axis,) = params["axes"]

    def program(x: Array) -> Array:
        x = x.astype(jnp.int32) if x.dtype == bool else x
        found = (x == reduce(x, axis, keepdims=True)) | (x != x)
        places = lax.broadcasted_iota(params["index_dtype"], x.shape, axis)
        return jnp.min(jnp.where(found, places, x.shape[axis]), axis).astype(params["index_dtype"])

    return program


def cumulative(params: Params, combine: Combine, first: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """lax.cumsum and its like: a loop along the axis, or along blocks of it where little stands beside one another."""
    axis = params["axis"]

    def program(x: Array) -> Array:
        wide = x.astype(jnp.float32) if x.dtype in NARROW else x
        elements = jnp.moveaxis(wide, axis, 0)
        start = jnp.asarray(first(wide.dtype), wide.dtype)
        size = elements.shape[0]
        if size >= BLOCKS_FROM and elements.size // size < NARROW_ROWS:
            found = in_blocks(elements[::-1] if params["reverse"] else elements, combine, start)
            found = found[::-1] if params["reverse"] else found
        else:
            found = along(elements, combine, start, reverse=params["reverse"])
        return jnp.moveaxis(found, 0, axis).astype(x.dtype)

    return program


Combine = Callable[[Array, Array], Array]
BLOCKS_FROM = 32  # elements: two loops of the square root of that are shorter than one
NARROW_ROWS = 16  # elements of a row, which leave lanes empty


def along(elements: Array, combine: Combine, start: Array, *, reverse: bool = False) -> Array:
    """What rows before each, and it, are combined to."""

    def step(total: Array, element: Array) -> tuple[Array, Array]:
        total = combine(total, element)
        return total, total

    return lax.scan(step, jnp.broadcast_to(start, elements.shape[1:]), elements, reverse=reverse)[1]


def in_blocks(elements: Array, combine: Combine, start: Array) -> Array:
    """Likewise: in each of several blocks of rows, beside one another, and with what all blocks before give."""
    size, rest = elements.shape[0], elements.shape[1:]
    width = math.isqrt(size - 1) + 1
    count = -(-size // width)
    padding = [(0, count * width - size, 0), *((0, 0, 0) for _ in rest)]
    blocks = jnp.moveaxis(lax.pad(elements, start, padding).reshape(count, width, *rest), 1, 0)
    inside = along(blocks, combine, start)
    before = along(inside[-1], combine, start)[:-1]
    before = lax.concatenate([jnp.broadcast_to(start, (1, *rest)), before], 0)
    found = combine(jnp.broadcast_to(before, inside.shape), inside)
    return jnp.moveaxis(found, 0, 1).reshape(count * width, *rest)[:size]


def smallest(dtype: Any) -> Any:
    """What is not above any number of a type."""
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def largest(dtype: Any) -> Any:
    """What is not below any number of a type."""
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


def stack(params: Params) -> Callable[..., Array]:
    """lax.stack."""
    return lambda *xs: lax.concatenate([jnp.expand_dims(x, params["axis"]) for x in xs], params["axis"])


def unstack(params: Params) -> Callable[[Array], list[Array]]:
    """lax.unstack."""
    axis = params["axis"]
    return lambda x: [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]


def total_order(_: Params, compare: Callable[..., Array]) -> Callable[..., Array]:
    """lax.lt_to and le_to."""
    return lambda a, b: compare(total_order_key(a), total_order_key(b))


def population_count(x: Array) -> Array:
    """lax.population_count: of pairs, of fours, of bytes, and the sum of these, which a product has in its top byte."""
    bits = 8 * x.dtype.itemsize
    word = lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))

    def repeated(byte: int) -> Array:
        return jnp.asarray(int.from_bytes(bytes([byte]) * (bits // 8)), word.dtype)

    word = word - ((word >> 1) & repeated(0x55))
    word = (word & repeated(0x33)) + ((word >> 2) & repeated(0x33))
    word = (word + (word >> 4)) & repeated(0x0F)
    return lax.bitcast_convert_type((word * repeated(1)) >> (bits - 8), x.dtype)


# Elementary functions


def of_f32(function: Callable[[Array], Array]) -> Callable[[Params], Callable[[Array], Array]]:
    """A function that is computed in f32, of narrower floats as well; of f64, it is none."""

    def program(x: Array) -> Array:
        if x.dtype == jnp.float64:
            raise NotExpanded
        return function(x.astype(jnp.float32)).astype(x.dtype)

    return lambda _: program


def of_wide(function: Callable[..., Array]) -> Callable[[Params], Callable[..., Array]]:
    """A function that is computed in f32 and in f64, of narrower floats in f32."""

    def program(*operands: Array) -> Array:
        dtype = operands[0].dtype
        return function(*(x.astype(jnp.float32) if dtype in NARROW else x for x in operands)).astype(dtype)

    return lambda _: program


def function_of(function: Callable[..., Any]) -> Callable[[Params], Callable[..., Any]]:
    """An operation without parameters."""
    return lambda _: function


def tile(params: Params) -> Callable[[Array], Array]:
    """lax.tile: an array repeated along each of its dimensions."""

    def program(x: Array) -> Array:
        apart = [size for pair in zip(params["reps"], x.shape, strict=True) for size in pair]
        repeated = lax.broadcast_in_dim(x, apart, range(1, len(apart), 2))
        return lax.reshape(repeated, [count * size for count, size in zip(params["reps"], x.shape, strict=True)])

    return program


EXPANSIONS: dict[str, Callable[[Params], Callable[..., Any] | None]] = {
    "argmax": partial(arg_extreme, reduce=jnp.max),
    "argmin": partial(arg_extreme, reduce=jnp.min),
    "cumsum": partial(cumulative, combine=lax.add, first=lambda _: 0),
    "cumprod": partial(cumulative, combine=lax.mul, first=lambda _: 1),
    "cummax": partial(cumulative, combine=lax.max, first=smallest),
    "cummin": partial(cumulative, combine=lax.min, first=largest),
    "cumlogsumexp": partial(cumulative, combine=jnp.logaddexp, first=smallest),
    "stack": stack,
    "tile": tile,
    "unstack": unstack,
    "population_count": function_of(population_count),
    "lt_to": partial(total_order, compare=lax.lt),
    "le_to": partial(total_order, compare=lax.le),
    **{name: of_wide(function) for name, function in functions.WIDE.items()},
    "tan": of_f32(lambda x: jnp.sin(x) / jnp.cos(x)),
    "erf_inv": of_f32(functions.erf_inv),
    "gather": gather,
    "scatter": partial(scatter, combine=None),
    "scatter-add": partial(scatter, combine=lax.add),
    "scatter_add": partial(scatter, combine=lax.add),
    "threefry2x32": function_of(threefry),
    "iota_2x32_shape": counters,
    **linalg.EXPANSIONS,
}
"""By the name of the primitive: of an equation's parameters, the program in JAX's operations."""
