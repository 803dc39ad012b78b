"""Random bits in loops: keys as the words they are, and Threefry as integer arithmetic.

Keys of jax.random are arrays of an element type of their own. Before a loop is read, each becomes an array of 32-bit
words with a dimension more, and what makes and splits keys the program of their implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import jit_p

from jax_nano.ir.pipeline import UnsupportedPipeline
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.private import ClosedJaxpr, implementation_of_keys

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA  # that the words of a key and a third one have together


def threefry(key1: Array, key2: Array, x1: Array, x2: Array) -> list[Array]:
    """Threefry-2x32 with 20 rounds, of any number of counters.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    keys = key1, key2, key1 ^ key2 ^ jnp.uint32(PARITY)
    x, y = x1 + keys[0], x2 + keys[1]
    for turn in range(5):
        for places in ROTATIONS[turn % 2]:
            x = x + y
            y = (y << jnp.uint32(places)) | (y >> jnp.uint32(32 - places))
            y = x ^ y
        x = x + keys[(turn + 1) % 3]
        y = y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return [x, y]


def counters(params: Mapping[str, Any]) -> Callable[[], list[Array]] | None:
    """The numbers of an array's elements, in row-major order, as two words; None beyond 32 bits."""
    shape = params["shape"]
    if math.prod(shape) >= 1 << 32:
        return None

    def program() -> list[Array]:
        places = [lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        low = sum((p * jnp.uint32(s) for p, s in zip(places, strides, strict=True)), jnp.zeros(shape, jnp.uint32))
        return [jnp.zeros(shape, jnp.uint32), low]

    return program


def is_key(aval: Any) -> bool:
    """Whether a value is an array of keys."""
    return jnp.issubdtype(getattr(aval, "dtype", np.float32), jax.dtypes.prng_key)


def physical(aval: Any) -> Any:
    """The type of an array of keys as words; any other type as it is."""
    if not is_key(aval):
        return aval
    return ShapedArray((*aval.shape, *implementation_of_keys(aval.dtype).key_shape), jnp.uint32)


def without_keys(jaxpr: Jaxpr) -> Jaxpr:
    """The jaxpr with keys as words, at any depth.

    Raises:
      UnsupportedPipeline: an operation on keys is not known.
    """
    values: dict[Var, Atom] = {}

    def made(x: Var) -> Var:
        if not is_key(x.aval):
            return x
        values[x] = own = Var(physical(x.aval))
        return own

    def read(x: Atom) -> Atom:
        return values.get(x, x) if isinstance(x, Var) else x

    arguments, eqns = list(map(made, jaxpr.invars)), list[JaxprEqn]()
    for eqn in jaxpr.eqns:
        invars = list(map(read, eqn.invars))
        if eqn.primitive.name in ("random_wrap", "random_unwrap"):
            values[eqn.outvars[0]] = invars[0]
            continue
        if eqn.primitive.name == "dynamic_slice" and is_key(eqn.invars[0].aval):
            invars.append(Literal(np.int32(0), ShapedArray((), jnp.int32)))
        eqns.append(words_of(eqn).replace(invars=invars, outvars=list(map(made, eqn.outvars))))
    info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    outvars = list(map(read, jaxpr.outvars))
    return jaxpr.replace(invars=arguments, eqns=eqns, outvars=outvars, debug_info=info)


def words_of(eqn: JaxprEqn) -> JaxprEqn:
    """An equation with the parameters that it has where keys are words."""
    if program := RANDOM.get(eqn.primitive.name):
        return called(eqn, program)
    params = {name: inner(value) for name, value in eqn.params.items()}
    if not any(is_key(x.aval) for x in (*eqn.invars, *eqn.outvars)):
        return eqn.replace(params=params)
    if change := VIEWS.get(eqn.primitive.name):
        params |= change(eqn, params)
    elif eqn.primitive.name not in (*UNCHANGED, "scan", "while", "cond", "jit", "pjit"):
        raise UnsupportedPipeline(f"{eqn.primitive.name} of random keys")
    return eqn.replace(params=params)


def inner(value: Any) -> Any:
    """A parameter with the jaxprs in it likewise."""
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=without_keys(value.jaxpr)) if value.jaxpr is not value else without_keys(value)
    if isinstance(value, Jaxpr):
        return without_keys(value)
    if isinstance(value, tuple) and value and all(isinstance(x, ClosedJaxpr) for x in value):
        return tuple(map(inner, value))
    return value


def called(eqn: JaxprEqn, program: Callable[..., Callable[..., Any]]) -> JaxprEqn:
    """A call of the program that an equation on keys is."""
    keys = next(type_of(x) for x in (*eqn.invars, *eqn.outvars) if is_key(x.aval))
    function = program(implementation_of_keys(keys.dtype), eqn.params)
    for _ in range(rank_of(eqn)):  # over an array of keys
        function = jax.vmap(function)
    traced = jax.make_jaxpr(jax.jit(function))(*(physical(x.aval) for x in eqn.invars))
    (call,) = traced.jaxpr.eqns
    return eqn.replace(primitive=jit_p, params=call.params)


RANDOM: dict[str, Callable[[Any, Mapping[str, Any]], Callable[..., Any]]] = {
    "random_bits": lambda impl, params: lambda key: impl.random_bits(key, params["bit_width"], params["shape"]),
    "random_split": lambda impl, params: lambda key: impl.split(key, params["shape"]),
    "random_fold_in": lambda impl, _: impl.fold_in,
    "random_seed": lambda impl, _: impl.seed,
}
UNCHANGED = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "concatenate", "select_n", "unstack", "stack")


def broadcast_params(eqn: JaxprEqn, params: Mapping[str, Any]) -> dict[str, Any]:
    """Of lax.broadcast_in_dim."""
    shape = physical(eqn.outvars[0].aval).shape
    return {"shape": shape, "broadcast_dimensions": (*params["broadcast_dimensions"], len(shape) - 1)}


def slice_params(eqn: JaxprEqn, params: Mapping[str, Any]) -> dict[str, Any]:
    """Of lax.slice."""
    words = physical(eqn.invars[0].aval).shape[-1]
    return {
        "start_indices": (*params["start_indices"], 0),
        "limit_indices": (*params["limit_indices"], words),
        "strides": params["strides"] and (*params["strides"], 1),
    }


def rank_of(eqn: JaxprEqn) -> int:
    """Of an equation's first operand, as it is in JAX."""
    return len(type_of(eqn.invars[0]).shape)


VIEWS: dict[str, Callable[[JaxprEqn, Mapping[str, Any]], dict[str, Any]]] = {
    "broadcast_in_dim": broadcast_params,
    "slice": slice_params,
    "squeeze": lambda eqn, params: {"dimensions": tuple(d % rank_of(eqn) for d in params["dimensions"])},
    "dynamic_slice": lambda eqn, _: {"slice_sizes": physical(eqn.outvars[0].aval).shape},
    "transpose": lambda eqn, params: {"permutation": (*params["permutation"], rank_of(eqn))},
    "reshape": lambda eqn, _: {"new_sizes": physical(eqn.outvars[0].aval).shape},
}
