"""Arrays of which a step changes a part: in place, where it is what a loop carries and nobody reads it afterwards.

    ys = dynamic_update_slice(ys, y, [i, 0])                              a part is written
    ys = select_n(accepted, ys, dynamic_update_slice(ys, y, [i, 0]))      a part: select_n(accepted, ys[i], y)

A changed array waits, as elementwise work does; who reads it in another way has it copied first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Var

from jax_nano.ir.pipeline import Access, Place
from jax_nano.ir.program import Operation
from jax_nano.jaxpr.inline import Atom, type_of
from jax_nano.jaxpr.pipelines.inline import inlined
from jax_nano.jaxpr.pipelines.views import Node, Update, View, identity
from jax_nano.jaxpr.pipelines.writer import PipelineWriter


def updated_in_place(jaxpr: Jaxpr, carries: Sequence[Var]) -> dict[int, Var]:
    """The carried values of which a step changes parts, and reads nothing of what they were afterwards.

    Args:
      jaxpr: of the step, without calls; its first results are what is carried on.
      carries: the variables in which it finds what is carried.

    Returns:
      For the number of each of them, the result of the step that it becomes.
    """
    steps = Chains(jaxpr)
    found: dict[int, Var] = {}
    for number, (before, after) in enumerate(zip(carries, jaxpr.outvars, strict=False)):
        if isinstance(after, Var) and steps.is_update(after, before) and steps.is_alone(after, before):
            found[number] = after
    return found


class Chains:
    """Follows arrays back through what changes parts of them."""

    def __init__(self, jaxpr: Jaxpr):
        self.places = {out: (number, eqn) for number, eqn in enumerate(jaxpr.eqns) for out in eqn.outvars}
        self.readers: dict[Var, list[int]] = {}
        for number, eqn in enumerate(jaxpr.eqns):
            for x in {x for x in eqn.invars if isinstance(x, Var)}:
                self.readers.setdefault(x, []).append(number)
        self.results = [x for x in jaxpr.outvars if isinstance(x, Var)]

    def sources(self, x: Atom) -> list[Atom] | None:
        """What an array is a changed form of, each of the cases; None where it is made otherwise."""
        if not isinstance(x, Var) or x not in self.places:
            return None
        _, eqn = self.places[x]
        if eqn.primitive.name == "dynamic_update_slice":
            return [eqn.invars[0]]
        if eqn.primitive.name == "select_n" and self.is_uniform(eqn.invars[0]):
            return list(eqn.invars[1:])
        if eqn.primitive.name == "cond":
            return sources_in_branches(eqn, eqn.outvars.index(x))
        return None

    def is_uniform(self, which: Atom) -> bool:
        """Whether a truth value is one for all elements."""
        if not type_of(which).shape:
            return True
        _, eqn = self.places.get(which, (0, None)) if isinstance(which, Var) else (0, None)
        return bool(eqn and eqn.primitive.name == "broadcast_in_dim" and not type_of(eqn.invars[0]).shape)

    def is_update(self, x: Atom, before: Var) -> bool:
        """Whether an array is another one, parts of it changed."""
        found = self.sources(x)
        return bool(found) and all(source is before or self.is_update(source, before) for source in found)

    def links(self, x: Atom, before: Var) -> Iterator[tuple[Var, int]]:
        """The arrays from a changed one back to what it was, and which equations make them."""
        if isinstance(x, Var) and x is not before:
            yield x, self.places[x][0]
            for source in self.sources(x) or ():
                yield from self.links(source, before)

    def is_alone(self, after: Var, before: Var) -> bool:
        """Whether all else that reads the array as it was comes before the first change, and nothing reads between."""
        links = dict(self.links(after, before))
        own = set(links.values())
        others = [number for number in self.readers.get(before, ()) if number not in own]
        between = [number for x in links if x is not after for number in self.readers.get(x, ()) if number not in own]
        kept = before in self.results or any(x in self.results for x in links if x is not after)
        return not between and not kept and all(number < min(own) for number in others)


def sources_in_branches(eqn: JaxprEqn, number: int) -> list[Atom] | None:
    """What the result of a number of lax.cond is a changed form of."""
    found: list[Atom] = []
    for branch in eqn.params["branches"]:
        jaxpr = inlined(branch.jaxpr)
        out = jaxpr.outvars[number]
        operands = dict(zip(jaxpr.invars, eqn.invars[1:], strict=True))
        roots = [x for x in jaxpr.invars if x is out or Chains(jaxpr).is_update(out, x)]
        if len(roots) != 1:
            return None
        found.append(operands[roots[0]])
    return found


def updated(base: View, part: View, places: Sequence[Any]) -> View:
    """lax.dynamic_update_slice, which waits."""
    return View.of(Node(base.shape, base.node.dtype, update=Update(base, part, tuple(places))))


def pending(x: View) -> Update | None:
    """The change that makes an array, where it waits."""
    return x.node.update if x.is_whole and x.node.access is None else None


def selected(which: View, cases: Sequence[View], shape: Sequence[int], dtype: str) -> View:
    """lax.select_n between two arrays; where they are one but for a part, of that part."""
    if any(place.terms for place in which.places) or not (any(map(pending, cases))):
        return select(which, cases, shape, dtype)
    change = next(filter(None, map(pending, cases)))
    parts = [part_of(x, change) for x in cases]
    if None in parts:
        return select(which, cases, shape, dtype)
    scalar = View(which.node, change.part.shape, which.places)
    chosen = select(scalar, [x for x in parts if x], change.part.shape, dtype)
    return updated(change.base, chosen, change.places)


def part_of(x: View, change: Update) -> View | None:
    """The elements of an array where a change is; None where it differs in others from what is changed."""
    own = pending(x)
    if own and own.places == change.places and is_same(own.base, change.base):
        return own.part
    if is_same(x, change.base):
        return change.base.through(change.places, change.part.shape)
    return None


def is_same(a: View, b: View) -> bool:
    """Whether two views are of the same elements."""
    return a.node is b.node and a.shape == b.shape and a.places == b.places


def select(which: View, cases: Sequence[View], shape: Sequence[int], dtype: str) -> View:
    """lax.select_n of each element."""
    operation = Operation(name="select_n", operands=(0, 1, 2), dtype=dtype)
    return View.of(Node(tuple(shape), dtype, operation=operation, operands=(which, *cases)))


def can_settle_in_place(x: View, value: int) -> bool:
    """Whether an array is a value in memory but for changes that wait, of which only the first reads what it was."""
    chain: list[Update] = []
    nodes: set[int] = set()
    while change := pending(x):
        chain.append(change)
        nodes.add(id(x.node))
        x = change.base
    is_it = x.is_whole and x.node.access == Access(value, identity(len(x.shape)))
    return is_it and not any(depends(change.part, value, nodes) for change in chain[:-1])


def settle_in_place(writer: PipelineWriter, x: View, value: int) -> View:
    """Writes the changes that make an array over the value that it was; gives the value.

    All that waits for elements of the value has to be computed before.
    """
    change = pending(x)
    if change is None:
        return x
    settle_in_place(writer, change.base, value)
    target = Access(value, identity(len(x.shape))).substituted(change.places)
    part = change.part
    if reads_elsewhere(part, value, target):
        part = writer.copied(part)
    writer.write([(part, target)])
    x.node.access = Access(value, identity(len(x.shape)))
    return x


def reads_elsewhere(x: View, value: int, target: Access) -> bool:
    """Whether a view depends on elements of a value but for those where it is written, each on its own."""
    return any(access != target for access in accesses(x) if access.value == value)


def accesses(x: View, but: Collection[int] = ()) -> set[Access]:
    """All places in memory that a view is made of, by its axes, and those of the indices among them.

    Nodes whose id is in `but` do not count.
    """
    found: set[Access] = set()
    seen: set[tuple[int, tuple[Place, ...]]] = set()

    def index(places: Sequence[Place]) -> None:
        for place in places:
            if place.index:
                found.add(place.index)
                index(place.index.places)

    def visit(node: Node, places: tuple[Place, ...]) -> None:
        if (id(node), places) in seen or id(node) in but:
            return
        seen.add((id(node), places))
        index(places)
        if node.access:
            found.add(access := node.access.substituted(places))
            index(access.places)
            return
        if node.update:
            index(node.update.places)
            for part in (node.update.base, node.update.part):
                visit(part.node, part.places)
        for operand in node.operands:
            visit(operand.node, tuple(place.substituted(places) for place in operand.places))

    visit(x.node, x.places)
    return found


def depends(x: View, value: int, but: Collection[int] = ()) -> bool:
    """Whether a view is made of elements of a value, other than by the nodes whose id is in `but`."""
    return any(access.value == value for access in accesses(x, but))


def flush(writer: PipelineWriter, env: dict[Var, View], value: int, live: Sequence[Var]) -> None:
    """Computes all views of live variables that wait for elements of a value."""
    for name in live:
        if depends(env[name], value):
            env[name] = writer.copied(env[name])


def last_uses(jaxpr: Jaxpr) -> Mapping[Var, int]:
    """The number of the last equation that reads each variable; results are read behind all."""
    found = {x: number for number, eqn in enumerate(jaxpr.eqns) for x in eqn.invars if isinstance(x, Var)}
    return found | {x: len(jaxpr.eqns) for x in jaxpr.outvars if isinstance(x, Var)}
