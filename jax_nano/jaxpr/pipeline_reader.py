"""Reads a jaxpr as stages of a pipeline, equation by equation: views are no work, and elementwise work waits until
somebody wants it in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.lax import DotAlgorithm, DotAlgorithmPreset

from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.pipeline import Access, Contraction, Loop, Pipeline, Place, UnsupportedPipeline
from jax_nano.ir.program import Constant, Operation, Unfusable
from jax_nano.jaxpr.inline import Atom, body_of, inline_calls, type_of
from jax_nano.jaxpr.pipeline_views import (
    Node,
    View,
    broadcast,
    check_size,
    constant_node,
    identity,
    index_node,
    reshaped,
    reversed_,
    sliced,
    squeezed,
    transposed,
)
from jax_nano.jaxpr.pipeline_writer import PipelineWriter
from jax_nano.jaxpr.primitives import DOTS, nano_region_p
from jax_nano.jaxpr.program_reader import KEPT_PARAMS, check_operation, dtype_of, operation_name
from jax_nano.jaxpr.scans import Scan

REDUCTIONS = {
    "reduce_sum": "add", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "mul", "reduce_and": "and",
    "reduce_or": "or",
}  # fmt: skip
SAME = ("stop_gradient", "optimization_barrier", "copy", "copy_p", "reduce_precision_none", "name")


def inlined(jaxpr: Jaxpr) -> Jaxpr:
    """A jaxpr with the bodies of calls and of regions in place of these."""
    return inline_calls(jaxpr, _body)


def _body(eqn: JaxprEqn) -> Jaxpr | None:
    if eqn.primitive is nano_region_p:
        return _with_own_arguments(eqn.params["region"].jaxpr)
    if body := body_of(eqn):
        return None if body.constvars else body
    for name in ("call_jaxpr", "jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if eqn.primitive.name in ("checkpoint", "remat2", "closed_call", "core_call", "custom_vjp_call") and inner:
            inner = getattr(inner, "jaxpr", inner)
            return None if inner.constvars else inner
    return None


def _with_own_arguments(jaxpr: Jaxpr) -> Jaxpr:
    """A jaxpr whose arguments are variables of its own: a region's are those of the program around it."""
    fresh = {x: Var(x.aval) for x in jaxpr.invars}

    def read(x: Atom) -> Atom:
        return fresh.get(x, x) if isinstance(x, Var) else x

    eqns = [eqn.replace(invars=list(map(read, eqn.invars))) for eqn in jaxpr.eqns]
    return jaxpr.replace(invars=list(fresh.values()), eqns=eqns, outvars=list(map(read, jaxpr.outvars)))


def read_scan(scan: Scan, avals: Sequence[Any]) -> Pipeline:
    """The pipeline of a scan.

    Args:
      scan: what it is.
      avals: the types of its operands.

    Raises:
      UnsupportedPipeline: an operation has no place in a pipeline.
    """
    reader = PipelineReader()
    operands = [reader.operand(aval) for aval in avals]
    results = reader.scan(scan, operands)
    return reader.finish(results)


def read_while(params: Mapping[str, Any], avals: Sequence[Any]) -> Pipeline:
    """The pipeline of a while loop with the parameters of its equation, likewise."""
    reader = PipelineReader()
    operands = [reader.operand(aval) for aval in avals]
    return reader.finish(reader.while_loop(params, operands))


class PipelineReader:
    """Reads equations into a writer."""

    def __init__(self):
        self.writer = PipelineWriter()

    def operand(self, aval: Any) -> View:
        """One of the arrays that the kernel is given."""
        check_size(aval.shape)
        return self.writer.stored(self.writer.new_value("operand", _dtype(aval), aval.shape))

    def finish(self, results: Sequence[View]) -> Pipeline:
        """The pipeline that gives views: what is in scratch as a whole becomes a result, others are copied to one."""
        writer, wanted, numbers = self.writer, [], []
        for x in results:
            access, whole = x.node.access, identity(len(x.shape))
            if x.is_whole and access and access.places == whole and writer.values[access.value].role == "scratch":
                number = access.value
                writer.values[number] = replace(writer.values[number], role="out")
            else:
                number = writer.new_value("out", x.node.dtype, x.shape)
                wanted.append((x, Access(number, whole)))
            numbers.append(number)
        self.write_all(wanted)
        return writer.pipeline(numbers)

    def write_all(self, wanted: Sequence[tuple[View, Access]]) -> None:
        """Writes views to where they go, those of one shape together."""
        shapes = dict.fromkeys(x.shape for x, _ in wanted)
        for shape in shapes:
            self.writer.write([(x, access) for x, access in wanted if x.shape == shape])

    # Equations.

    def run(self, jaxpr: Jaxpr, arguments: Sequence[View]) -> list[View]:
        """Reads a jaxpr: its results as views."""
        if jaxpr.constvars:
            raise UnsupportedPipeline("a function in the loop has constants of its own")
        if jaxpr.effects:
            raise UnsupportedPipeline("the loop has effects")
        jaxpr = inlined(jaxpr)
        env: dict[Var, View] = dict(zip(jaxpr.invars, arguments, strict=True))
        users = _users(jaxpr)

        def value(x: Atom) -> View:
            return constant_node(Constant.of(x.val, _dtype(x.aval)), _shape(x)) if isinstance(x, Literal) else env[x]

        for eqn in jaxpr.eqns:
            for out in eqn.outvars:
                check_size(_shape(out))
            results = self.equation(eqn, [value(x) for x in eqn.invars])
            for out, result in zip(eqn.outvars, results, strict=True):
                result.node.users = max(result.node.users, users.get(out, 0))
                env[out] = result
        return [value(x) for x in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """The results of an equation."""
        name, out = eqn.primitive.name, eqn.outvars[0]
        if name == "scan":
            return self.scan(Scan.of(eqn.params), operands)
        if name == "while":
            return self.while_loop(eqn.params, operands)
        if eqn.primitive in DOTS:
            return [self.product(eqn, *operands)]
        if name in SAME:
            return operands
        if name in VIEWS:
            return [VIEWS[name](operands[0], eqn.params, _shape(out))]
        if rule := getattr(self, f"read_{name}", None):
            return rule(eqn, operands)
        if name in REDUCTIONS:
            return [self.writer.reduce(operands[0], eqn.params["axes"], REDUCTIONS[name])]
        return [self.elementwise(eqn, operands)]

    def elementwise(self, eqn: JaxprEqn, operands: list[View]) -> View:
        """Work on each element."""
        out = eqn.outvars[0]
        shape = _shape(out)
        name = operation_name(eqn)
        try:
            check_operation(name, [x.node.dtype for x in operands])
            dtype = dtype_of(out)
        except Unfusable as reason:
            raise UnsupportedPipeline(str(reason)) from None
        operands = [x if x.shape == shape else broadcast(x, shape, range(len(x.shape))) for x in operands]
        if name == "pow" and operands[1].node.dtype != dtype:
            operands[1] = self.converted(operands[1], dtype)
        params = tuple((key, int(eqn.params[key])) for key in KEPT_PARAMS if key in eqn.params)
        operation = Operation(name=name, operands=tuple(range(len(operands))), dtype=dtype, params=params)
        return View.of(Node(shape, dtype, operation=operation, operands=tuple(operands)))

    @staticmethod
    def converted(x: View, dtype: str) -> View:
        """A view in another type."""
        operation = Operation(name="convert", operands=(0,), dtype=dtype)
        return View.of(Node(x.shape, dtype, operation=operation, operands=(x,)))

    def read_reshape(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """lax.reshape: a view, or a copy."""
        shape = _shape(eqn.outvars[0])
        if eqn.params["dimensions"] is not None:
            raise UnsupportedPipeline("reshape with an order of dimensions")
        view = reshaped(operands[0], shape)
        return [view or self.writer.reshape(operands[0], shape)]

    def read_iota(self, eqn: JaxprEqn, _: list[View]) -> list[View]:
        """lax.iota."""
        return [index_node(_shape(eqn.outvars[0]), eqn.params["dimension"], _dtype(type_of(eqn.outvars[0])))]

    def read_split(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """lax.split: slices."""
        (x,), axis, start, found = operands, eqn.params["axis"], 0, []
        for size in eqn.params["sizes"]:
            starts, limits = [0] * len(x.shape), list(x.shape)
            starts[axis], limits[axis] = start, start + int(size)
            found.append(sliced(x, starts, limits, None))
            start += int(size)
        return found

    def read_concatenate(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """lax.concatenate: each operand is written to its part."""
        axis, start = eqn.params["dimension"], 0
        value = self.writer.new_value("scratch", operands[0].node.dtype, _shape(eqn.outvars[0]))
        for x in operands:
            places = list(identity(len(x.shape)))
            places[axis] = Place(start, ((axis, 1),))
            self.writer.write([(x, Access(value, tuple(places)))])
            start += x.shape[axis]
        return [self.writer.stored(value)]

    def read_pad(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """lax.pad: the padding is written, and what is padded over it."""
        x, padding = operands
        config = [tuple(map(int, each)) for each in eqn.params["padding_config"]]
        if any(low < 0 or high < 0 for low, high, _ in config):
            raise UnsupportedPipeline("pad by a negative number")
        shape = _shape(eqn.outvars[0])
        value = self.writer.new_value("scratch", x.node.dtype, shape)
        self.writer.write([(broadcast(padding, shape, ()), Access(value, identity(len(shape))))])
        places = [Place(low, ((axis, inner + 1),)) for axis, (low, _, inner) in enumerate(config)]
        self.writer.write([(x, Access(value, tuple(places)))])
        return [self.writer.stored(value)]

    def read_dynamic_slice(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """lax.dynamic_slice: a view whose places depend on what indices are in memory."""
        x, *indices = operands
        sizes = eqn.params["slice_sizes"]
        self.writer.force(x)
        return [
            x.through(
                [self.shifted(*each) for each in zip(range(len(sizes)), x.shape, sizes, indices, strict=True)], sizes
            )
        ]

    def shifted(self, axis: int, extent: int, size: int, index: View) -> Place:
        """The place along an axis of what begins at an index that is read, as far as there is room."""
        if extent == size:
            return Place(0, ((axis, 1),))
        if isinstance(index.node.leaf, Constant):
            start = min(max(int(index.node.leaf.number), 0), extent - size)
            return Place(start, ((axis, 1),))
        return Place(0, ((axis, 1),), self.writer.force(index), extent - size)

    def product(self, eqn: JaxprEqn, lhs: View, rhs: View) -> View:
        """A product."""
        out = type_of(eqn.outvars[0])
        dtype = _dtype(out)
        if dtype not in ("f32", "f64") or {lhs.node.dtype, rhs.node.dtype} != {dtype}:
            raise UnsupportedPipeline(
                f"a product of {lhs.node.dtype} and {rhs.node.dtype} into {dtype}; loops multiply f32 or f64"
            )
        precision = eqn.params["precision"]
        if isinstance(precision, DotAlgorithm | DotAlgorithmPreset) and precision is not DotAlgorithmPreset.DEFAULT:
            raise UnsupportedPipeline(f"a product by the algorithm {precision}")
        (lhs_k, rhs_k), (lhs_b, rhs_b) = eqn.params["dimension_numbers"]
        lhs_free = [i for i in range(len(lhs.shape)) if i not in (*lhs_k, *lhs_b)]
        rhs_free = [i for i in range(len(rhs.shape)) if i not in (*rhs_k, *rhs_b)]
        rank = len(out.shape)

        def axes(batch: Sequence[int], free: Sequence[int], k: Sequence[int], first: int, ndim: int) -> list[Place]:
            places = dict(zip(batch, range(len(batch)), strict=True))
            places |= dict(zip(free, range(first, first + len(free)), strict=True))
            places |= dict(zip(k, range(rank, rank + len(k)), strict=True))
            return [Place(0, ((places[i], 1),)) for i in range(ndim)]

        a, b = self.writer.force(lhs), self.writer.force(rhs)
        output = self.writer.new_value("scratch", dtype, out.shape)
        self.writer.add(
            Contraction(
                sizes=tuple(out.shape),
                summed=tuple(lhs.shape[i] for i in lhs_k),
                dtype=dtype,
                lhs=a.substituted(axes(lhs_b, lhs_free, lhs_k, len(lhs_b), len(lhs.shape))),
                rhs=b.substituted(axes(rhs_b, rhs_free, rhs_k, len(lhs_b) + len(lhs_free), len(rhs.shape))),
                output=Access(output, identity(rank)),
            )
        )
        return self.writer.stored(output)

    # Loops.

    @property
    def level(self) -> int:
        """How many loops there are around."""
        return len(self.writer.blocks) - 1

    def scan(self, scan: Scan, operands: list[View]) -> list[View]:
        """lax.scan."""
        if scan.length < 1:
            raise UnsupportedPipeline("a loop of no steps")
        consts, start, xs = scan.split(operands)
        for x in (*consts, *xs):
            if x.node.leaf is None:
                self.writer.force(x)
        carries = self.begin(start)
        y_types = [type_of(x) for x in scan.jaxpr.outvars[len(start) :]]
        ys = [self.writer.new_value("scratch", _dtype(y), (scan.length, *y.shape)) for y in y_types]
        step = Place(0, ((-1 - self.level, 1),))
        with self.writer.block() as stages:
            elements = [x.through([step, *identity(len(x.shape) - 1)], x.shape[1:]) for x in xs]
            results = self.run(scan.jaxpr, [*consts, *map(self.writer.stored, carries), *elements])
            targets = [Access(c, identity(len(x.shape)), next=True) for c, x in zip(carries, results, strict=False)]
            targets += [
                Access(y, (step, *identity(len(x.shape)))) for y, x in zip(ys, results[len(carries) :], strict=True)
            ]
            self.write_all([(x, access) for x, access in zip(results, targets, strict=True)])
        self.writer.add(Loop(length=scan.length, reverse=scan.reverse, carries=tuple(carries), stages=tuple(stages)))
        return [self.writer.stored(value) for value in (*carries, *ys)]

    def begin(self, start: Sequence[View]) -> list[int]:
        """Values for what a loop carries, with what it starts from."""
        carries = [self.writer.new_value("carry", x.node.dtype, x.shape) for x in start]
        self.write_all([
            (x, Access(value, identity(len(x.shape)))) for x, value in zip(start, carries, strict=True)
        ])  # fmt: skip
        return carries

    def while_loop(self, params: Mapping[str, Any], operands: list[View]) -> list[View]:
        """lax.while_loop."""
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        for x in operands[: split[1]]:
            if x.node.leaf is None:
                self.writer.force(x)
        start = operands[split[1] :]
        carries = self.begin(start)
        with self.writer.block() as condition:
            (going,) = self.run(params["cond_jaxpr"].jaxpr, [*operands[: split[0]], *map(self.writer.stored, carries)])
            if going.shape:
                raise UnsupportedPipeline("a condition for each of several loops")
            access = self.writer.force(going)
        with self.writer.block() as stages:
            consts = operands[split[0] : split[1]]
            results = self.run(params["body_jaxpr"].jaxpr, [*consts, *map(self.writer.stored, carries)])
            targets = [Access(c, identity(len(x.shape)), next=True) for c, x in zip(carries, results, strict=True)]
            self.write_all([(x, to) for x, to in zip(results, targets, strict=True)])
        self.writer.add(
            Loop(length=None, carries=tuple(carries), stages=tuple(stages), condition=tuple(condition), going=access)
        )
        return list(map(self.writer.stored, carries))


VIEWS: dict[str, Callable[[View, Mapping[str, Any], Sequence[int]], View]] = {
    "transpose": lambda x, params, _: transposed(x, params["permutation"]),
    "broadcast_in_dim": lambda x, params, shape: broadcast(x, shape, params["broadcast_dimensions"]),
    "slice": lambda x, params, _: sliced(x, params["start_indices"], params["limit_indices"], params["strides"]),
    "squeeze": lambda x, params, _: squeezed(x, [d % max(len(x.shape), 1) for d in params["dimensions"]]),
    "rev": lambda x, params, _: reversed_(x, params["dimensions"]),
}


def _users(jaxpr: Jaxpr) -> dict[Var, int]:
    """How many equations read each variable; the end of the program counts as one."""
    found: dict[Var, int] = {}
    for atoms in (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars):
        for x in {x for x in atoms if isinstance(x, Var)}:
            found[x] = found.get(x, 0) + 1
    return found


def _shape(x: Atom) -> tuple[int, ...]:
    return tuple(type_of(x).shape)


def _dtype(aval: Any) -> str:
    """The short name of a type that pipelines compute in.

    Raises:
      UnsupportedPipeline: it is none.
    """
    dtype = getattr(aval, "dtype", None)
    if dtype not in NAMES:
        raise UnsupportedPipeline(f"{aval} is no array of numbers")
    return NAMES[dtype]
