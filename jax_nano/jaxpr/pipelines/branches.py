"""lax.cond and lax.switch in loops: all branches and a choice where that is short, else branches of which one runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from jax_nano.ir.dtypes import NAMES
from jax_nano.ir.pipeline import Access, Loop
from jax_nano.ir.program import INSTRUCTIONS, Constant, Operation
from jax_nano.jaxpr.inline import type_of
from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.updates import is_same, selected
from jax_nano.jaxpr.pipelines.views import Node, View, broadcast, constant_node, identity
from jax_nano.jaxpr.pipelines.writer import PipelineWriter
from jax_nano.jaxpr.primitives import DOTS

# Elements times vector instructions of a branch that is computed whether it is taken or not. A kernel makes some 30 of
# them in a nanosecond; that much time is lost where a processor predicts a branch wrongly.
CHEAP = 1 << 12


class Reader(Protocol):
    """Who reads the branches."""

    writer: PipelineWriter

    def run(self, jaxpr: Jaxpr, arguments: Sequence[View]) -> list[View]:
        """Reads a jaxpr."""
        ...

    def write_all(self, wanted: Sequence[tuple[View, Access]]) -> None:
        """Writes views to where they go."""
        ...


def read_branches(reader: Reader, eqn: JaxprEqn, choice: View, *operands: View) -> list[View]:
    """lax.cond."""
    branches = [branch.jaxpr for branch in eqn.params["branches"]]
    if isinstance(choice.node.leaf, Constant):
        number = min(max(int(choice.node.leaf.number), 0), len(branches) - 1)
        return reader.run(branches[number], operands)
    if all(cost(inlined(branch)) <= CHEAP for branch in branches):
        return chosen(choice, [reader.run(branch, operands) for branch in branches])
    return taken(reader, eqn, choice, operands)


def cost(jaxpr: Jaxpr) -> float:
    """Elements times vector instructions of a branch; infinite where it has loops or products.

    An array of which a part is changed counts as that part.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive in DOTS or eqn.primitive.name in ("scan", "while"):
            return math.inf
        if eqn.primitive.name == "dynamic_update_slice":
            continue
        elements = max(math.prod(type_of(x).shape) for x in (*eqn.outvars, *eqn.invars[:1]))
        total += elements * INSTRUCTIONS.get(eqn.primitive.name, 1)
        total += sum(cost(inlined(inner)) for inner in jaxprs_in_params(eqn.params))
    return total


def chosen(choice: View, results: Sequence[Sequence[View]]) -> list[View]:
    """The results of one of several branches, each of which is computed."""
    *others, found = map(list, results)
    for number, branch in reversed(list(enumerate(others))):
        is_later = compared("gt", choice, number)
        found = [
            x if is_same(x, y) else selected(broadcast(is_later, y.shape, ()), [x, y], y.shape, y.node.dtype)
            for x, y in zip(branch, found, strict=True)
        ]
    return found


def compared(name: str, choice: View, number: int) -> View:
    """The truth value of a comparison of the choice with a number."""
    other = constant_node(Constant.of(number, choice.node.dtype), ())
    return View.of(Node((), "pred", operation=Operation(name=name, operands=(0, 1), dtype="pred"),
                        operands=(choice, other)))  # fmt: skip


def taken(reader: Reader, eqn: JaxprEqn, choice: View, operands: Sequence[View]) -> list[View]:
    """The results of the one branch that runs."""
    writer, branches = reader.writer, eqn.params["branches"]
    for x in operands:
        if x.node.leaf is None:
            writer.force(x)
    values = [writer.new_value("scratch", *described(out)) for out in eqn.outvars]
    last = len(branches) - 1
    for number, branch in enumerate(branches):
        name = "le" if number == 0 else "ge" if number == last else "eq"
        going = writer.force(compared(name, choice, number))
        with writer.block() as stages:
            results = reader.run(branch.jaxpr, operands)
            reader.write_all([
                (x, Access(value, identity(len(x.shape)))) for x, value in zip(results, values, strict=True)
            ])  # fmt: skip
        writer.add(Loop(length=1, stages=tuple(stages), going=going))
    return list(map(writer.stored, values))


def described(out: Any) -> tuple[str, tuple[int, ...]]:
    """The type and shape of a variable."""
    aval = type_of(out)
    return NAMES[aval.dtype], tuple(aval.shape)
