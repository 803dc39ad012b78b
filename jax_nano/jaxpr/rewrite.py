"""Rewriting: a function with some of its primitives replaced, at any depth of its program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Primitive, jaxpr_as_fun
from jax.extend.linear_util import WrappedFun, wrap_init

from jax_nano.jaxpr.private import ClosedJaxpr

F = TypeVar("F", bound=Callable[..., Any])

# Parameters that are functions: of jaxprs made on demand, and of arrays.
_JAXPR_THUNKS = frozenset({"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "fun_jaxpr_thunk", "transpose_thunk"})
_ARRAY_FUNCTIONS = frozenset({"bwd", "rule"})  # the backward pass of custom_vjp, the rule of custom_vmap
PLACE = jax.ShapeDtypeStruct((), np.float32)  # where an array belongs among leaves


class PrimitiveRewrite:
    """Replaces primitives by others that take the same operands and parameters and give the same types.

    `PrimitiveRewrite({p: q})(f)` has f's signature and results. Calling it traces f to a jaxpr, puts q for every p
    there and in the jaxprs of its higher-order primitives (jit, scan, while, cond, remat, shard_map, custom
    derivatives, ...), and evaluates the outcome: it composes with every transformation on either side.

    Arrays among f's arguments are traced, in any pytree; all else reaches f as it is, and what f returns beside arrays
    is returned as it is.

    `first` may rewrite each jaxpr as a whole before that, into one that takes and gives the same. `before` is called
    before each trace. `evaluate` makes of the outcome a function of its arguments.
    """

    def __init__(
        self,
        primitives: Mapping[Primitive, Primitive],
        first: Callable[[Jaxpr], Jaxpr] | None = None,
        before: Callable[[], None] | None = None,
        evaluate: Callable[[ClosedJaxpr], Callable[..., Sequence[Any]]] = jaxpr_as_fun,
    ):
        self._primitives = dict(primitives)
        self._first = first or (lambda jaxpr: jaxpr)
        self._before = before or (lambda: None)
        self._evaluate = evaluate
        # A jaxpr used twice stays one jaxpr: JAX then differentiates and lowers it once. None: as it was.
        self._jaxprs: WeakKeyDictionary[Jaxpr, Jaxpr | None] = WeakKeyDictionary()
        self._closed_jaxprs: WeakKeyDictionary[ClosedJaxpr, ClosedJaxpr | None] = WeakKeyDictionary()

    def evaluated(self, evaluate: Callable[[ClosedJaxpr], Callable[..., Sequence[Any]]]) -> PrimitiveRewrite:
        """Replaces as this does; `evaluate` makes of the outcome a function of its arguments."""
        return PrimitiveRewrite(self._primitives, self._first, self._before, evaluate)

    def __call__(self, f: F) -> F:
        """Returns f with its primitives replaced."""

        @functools.wraps(f)
        def rewritten(*args, **kwargs):
            self._before()
            leaves, tree = jax.tree.flatten((args, kwargs))
            outs, out_tree = [], tree

            def of_arrays(tracers):
                nonlocal outs, out_tree
                args, kwargs = tree.unflatten(merge_arrays(leaves, tracers))
                results, out_tree = jax.tree.flatten(f(*args, **kwargs))
                outs = [PLACE if is_array(leaf) else leaf for leaf in results]  # tracers do not outlive the trace
                return arrays(results)

            jaxpr = jax.make_jaxpr(of_arrays)(arrays(leaves))
            results = self._evaluate(self._closed(jaxpr))(*arrays(leaves))
            return out_tree.unflatten(merge_arrays(outs, results))

        return cast(F, rewritten)

    def _closed(self, closed: ClosedJaxpr) -> ClosedJaxpr:
        if closed not in self._closed_jaxprs:
            jaxpr = self._jaxpr(closed.jaxpr)
            self._closed_jaxprs[closed] = None if jaxpr is closed.jaxpr else closed.replace(jaxpr=jaxpr)
        return self._closed_jaxprs[closed] or closed

    def _jaxpr(self, jaxpr: Jaxpr) -> Jaxpr:
        if jaxpr not in self._jaxprs:
            new = self._first(jaxpr)
            eqns = [self._eqn(eqn) for eqn in new.eqns]
            if any(x is not old for x, old in zip(eqns, new.eqns, strict=True)):
                new = new.replace(eqns=eqns)
            self._jaxprs[jaxpr] = None if new is jaxpr else new
        return self._jaxprs[jaxpr] or jaxpr

    def _eqn(self, eqn: JaxprEqn) -> JaxprEqn:
        primitive = self._primitives.get(eqn.primitive, eqn.primitive)
        params = {name: self._param(name, value) for name, value in eqn.params.items()}
        if primitive is eqn.primitive and all(params[name] is value for name, value in eqn.params.items()):
            return eqn
        return eqn.replace(primitive=primitive, params=params)

    def _param(self, name: str, value: Any) -> Any:
        match value:
            case Jaxpr():
                return self._jaxpr(value)
            case ClosedJaxpr():
                return self._closed(value)
            case tuple() if any(isinstance(part, Jaxpr | ClosedJaxpr) for part in value):
                parts = [self._param(name, part) for part in value]
                return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
            case WrappedFun():
                return wrap_init(self._param(name, value.call_wrapped), debug_info=value.debug_info)
        if callable(value) and name in _JAXPR_THUNKS:
            return lambda *args: self._param(name, value(*args))
        if callable(value) and name in _ARRAY_FUNCTIONS:
            return self(value)
        return value


def is_array(leaf: Any) -> bool:
    """Is true for the leaves of a pytree that are traced; an abstract array stands for an array.

    Scalars of NumPy are not: like Python's, they may be sizes or choices.
    """
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def arrays(leaves: Sequence[Any]) -> list[Any]:
    """The arrays among leaves."""
    return [leaf for leaf in leaves if is_array(leaf)]


def merge_arrays(leaves: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Puts values in the places of the arrays among leaves."""
    remaining = iter(values)
    return [next(remaining) if is_array(leaf) else leaf for leaf in leaves]
