"""Reads a jaxpr as stages of a pipeline: views are no work, and elementwise work waits until it is wanted in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from jax_nano.ir.pipeline import Access, Kind, Loop, Pipeline, Place, UnsupportedPipeline
from jax_nano.ir.program import NARROW_FLOATS, Constant, Operation, Unfusable
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.pipelines.branches import read_branches
from jax_nano.jaxpr.pipelines.forwarding import forward
from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.rules import (
    REDUCTIONS,
    RULES,
    SAME,
    VIEWS,
    converted,
    dtype_name_of,
    read_product,
    shape_of,
)
from jax_nano.jaxpr.pipelines.scans import Scan
from jax_nano.jaxpr.pipelines.updates import (
    can_settle_in_place,
    flush,
    last_uses,
    pending,
    selected,
    settle_in_place,
    updated_in_place,
)
from jax_nano.jaxpr.pipelines.views import Node, View, broadcast, check_size, constant_node, identity
from jax_nano.jaxpr.pipelines.windows import WINDOW_RULES
from jax_nano.jaxpr.pipelines.writer import MOST_INSTRUCTIONS, PipelineWriter
from jax_nano.jaxpr.primitives import DOTS
from jax_nano.jaxpr.program_reader import KEPT_PARAMS, check_operation, dtype_of, operation_name


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


def read_program(jaxpr: Jaxpr, avals: Sequence[Any]) -> Pipeline:
    """The pipeline of a program without a loop around it.

    Args:
      jaxpr: what it is, without constants.
      avals: the types of its arguments.

    Raises:
      UnsupportedPipeline: an operation has no place in a pipeline.
    """
    reader = PipelineReader()
    return reader.finish(reader.run(jaxpr, [reader.operand(aval) for aval in avals]))


class PipelineReader:
    """Reads equations into a writer."""

    def __init__(self):
        self.writer = PipelineWriter()

    def operand(self, aval: Any) -> View:
        """One of the arrays that the kernel is given."""
        check_size(aval.shape)
        return self.writer.stored(self.writer.new_value("operand", dtype_name_of(aval), aval.shape))

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

    def run(self, jaxpr: Jaxpr, arguments: Sequence[View], in_place: Mapping[Var, int] | None = None) -> list[View]:
        """Reads a jaxpr: its results as views.

        Args:
          jaxpr: what to read.
          arguments: what it is given.
          in_place: the variables that are written over what they change, each with the number of that value.
        """
        if jaxpr.constvars:
            raise UnsupportedPipeline("a function in the loop has constants of its own")
        if jaxpr.effects:
            raise UnsupportedPipeline("the loop has effects")
        jaxpr, in_place = inlined(jaxpr), in_place or {}
        env: dict[Var, View] = dict(zip(jaxpr.invars, arguments, strict=True))
        users = _users(jaxpr)

        def value(x: Atom) -> View:
            return (
                constant_node(Constant.of(x.val, dtype_name_of(x.aval)), shape_of(x))
                if isinstance(x, Literal)
                else env[x]
            )

        uses = last_uses(jaxpr)
        for number, eqn in enumerate(jaxpr.eqns):
            for out in eqn.outvars:
                check_size(shape_of(out))
            results = self.equation(eqn, [value(x) for x in eqn.invars])
            for out, result in zip(eqn.outvars, results, strict=True):
                result.node.users = max(result.node.users, users.get(out, 0))
                env[out] = result
            for out in eqn.outvars:
                if out in in_place and pending(env[out]) and can_settle_in_place(env[out], in_place[out]):
                    live = [x for x in env if x is not out and uses.get(x, -1) > number]
                    flush(self.writer, env, in_place[out], live)
                    env[out] = settle_in_place(self.writer, env[out], in_place[out])
        return [value(x) for x in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, operands: list[View]) -> list[View]:
        """The results of an equation."""
        name, out = eqn.primitive.name, eqn.outvars[0]
        if name == "scan":
            return self.scan(Scan.of(eqn.params), operands)
        if name == "while":
            return self.while_loop(eqn.params, operands)
        if name == "cond":
            return read_branches(self, eqn, *operands)
        if eqn.primitive in DOTS:
            return [read_product(self.writer, eqn, *operands)]
        if name in SAME:
            return operands
        if name in VIEWS:
            return [VIEWS[name](operands[0], eqn.params, shape_of(out))]
        if rule := RULES.get(name) or WINDOW_RULES.get(name):
            return rule(self.writer, eqn, operands)
        if name in REDUCTIONS:
            return [self.reduction(operands[0], eqn.params["axes"], REDUCTIONS[name])]
        return [self.elementwise(eqn, operands)]

    def elementwise(self, eqn: JaxprEqn, operands: list[View]) -> View:
        """Work on each element."""
        out = eqn.outvars[0]
        shape = shape_of(out)
        name = operation_name(eqn)
        try:
            check_operation(name, [x.node.dtype for x in (operands[:1] if name == "pow" else operands)])
            dtype = dtype_of(out)
        except Unfusable as reason:
            raise UnsupportedPipeline(str(reason)) from None
        operands = [x if x.shape == shape else broadcast(x, shape, range(len(x.shape))) for x in operands]
        if name == "select_n":
            return selected(operands[0], operands[1:], shape, dtype)
        if name == "pow" and operands[1].node.dtype != dtype:
            operands[1] = converted(operands[1], dtype)
        params = tuple((key, int(eqn.params[key])) for key in KEPT_PARAMS if key in eqn.params)
        operation = Operation(name=name, operands=tuple(range(len(operands))), dtype=dtype, params=params)
        node = Node(shape, dtype, operation=operation, operands=tuple(operands))
        if node.weight > MOST_INSTRUCTIONS:
            self.writer.compute([node])
        return View.of(node)

    def reduction(self, x: View, axes: Sequence[int], kind: Kind) -> View:
        """A reduction; of narrow floats in f32."""
        dtype = x.node.dtype
        if dtype not in NARROW_FLOATS:
            return self.writer.reduce(x, axes, kind)
        return converted(self.writer.reduce(converted(x, "f32"), axes, kind), dtype)

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
        jaxpr = inlined(scan.jaxpr)
        in_place = updated_in_place(jaxpr, scan.split(jaxpr.invars)[1])
        carries = self.begin(start, set(in_place))
        y_types = [type_of(x) for x in scan.jaxpr.outvars[len(start) :]]
        ys = [self.writer.new_value("scratch", dtype_name_of(y), (scan.length, *y.shape)) for y in y_types]
        step = Place(0, ((-1 - self.level, 1),))
        with self.writer.block() as stages:
            elements = [x.through([step, *identity(len(x.shape) - 1)], x.shape[1:]) for x in xs]
            arguments = [*consts, *map(self.writer.stored, carries), *elements]
            results = self.run(jaxpr, arguments, {out: carries[i] for i, out in in_place.items()})
            targets = [
                Access(y, (step, *identity(len(x.shape)))) for y, x in zip(ys, results[len(carries) :], strict=True)
            ]
            self.write_step(carries, set(in_place), results, targets)
        doubled = tuple(value for i, value in enumerate(carries) if i not in in_place)
        self.writer.add(Loop(length=scan.length, reverse=scan.reverse, carries=doubled, stages=tuple(stages)))
        return [self.writer.stored(value) for value in (*carries, *ys)]

    def begin(self, start: Sequence[View], in_place: set[int]) -> list[int]:
        """Values for what a loop carries, with what it starts from; those that are changed in place stand once."""
        carries = [
            self.writer.new_value("scratch" if i in in_place else "carry", x.node.dtype, x.shape)
            for i, x in enumerate(start)
        ]
        self.write_all([
            (x, Access(value, identity(len(x.shape)))) for x, value in zip(start, carries, strict=True)
        ])  # fmt: skip
        return carries

    def write_step(
        self, carries: Sequence[int], in_place: set[int], results: Sequence[View], targets: Sequence[Access]
    ) -> None:
        """Writes what a step gives: what is carried, and elements of ys to their targets."""
        wanted, late = [], []
        for i, (value, x) in enumerate(zip(carries, results, strict=False)):
            whole = Access(value, identity(len(x.shape)))
            if i not in in_place:
                wanted.append((x, replace(whole, next=True)))
            elif x.node.access != whole or not x.is_whole:
                late.append((self.writer.copied(x), whole))
        elements = list(zip(results[len(carries) :], targets, strict=True))
        scratch = {i for i, value in enumerate(self.writer.values) if value.role == "scratch"} - {*carries}
        found = forward(self.writer.blocks[-1], [*elements, *wanted, *late], scratch)
        self.write_all([pair for pair in (*wanted, *elements) if pair in found])
        self.write_all(late)

    def while_loop(self, params: Mapping[str, Any], operands: list[View]) -> list[View]:
        """lax.while_loop."""
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        for x in operands[: split[1]]:
            if x.node.leaf is None:
                self.writer.force(x)
        start = operands[split[1] :]
        body = inlined(params["body_jaxpr"].jaxpr)
        in_place = updated_in_place(body, body.invars[params["body_nconsts"] :])
        carries = self.begin(start, set(in_place))
        with self.writer.block() as condition:
            (going,) = self.run(params["cond_jaxpr"].jaxpr, [*operands[: split[0]], *map(self.writer.stored, carries)])
            if going.shape:
                raise UnsupportedPipeline("a condition for each of several loops")
            access = self.writer.force(going)
        with self.writer.block() as stages:
            consts = operands[split[0] : split[1]]
            arguments = [*consts, *map(self.writer.stored, carries)]
            results = self.run(body, arguments, {out: carries[i] for i, out in in_place.items()})
            self.write_step(carries, set(in_place), results, [])
        doubled = tuple(value for i, value in enumerate(carries) if i not in in_place)
        self.writer.add(
            Loop(length=None, carries=doubled, stages=tuple(stages), condition=tuple(condition), going=access)
        )
        return list(map(self.writer.stored, carries))


def _users(jaxpr: Jaxpr) -> dict[Var, int]:
    """How many equations read each variable; the end of the program counts as one."""
    found: dict[Var, int] = {}
    for atoms in (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars):
        for x in {x for x in atoms if isinstance(x, Var)}:
            found[x] = found.get(x, 0) + 1
    return found
