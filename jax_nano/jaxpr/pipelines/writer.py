"""Writes the stages of a pipeline: what is wanted in memory is computed together, in as few stages as can be."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jax_nano.ir.pipeline import (
    Access,
    IndexInput,
    Kind,
    Map,
    Pipeline,
    Place,
    Reduction,
    Role,
    Source,
    Stage,
    Value,
)
from jax_nano.ir.program import Builder, Constant, Input, Program
from jax_nano.jaxpr.pipelines.views import Node, View, identity, split_axes

HEAVY = 12
"""Instructions from which on what several stages read is computed once and kept, in place of once in each."""

MOST_INSTRUCTIONS = 300  # of one program: beyond it, what is computed so far goes to memory


class PipelineWriter:
    """Collects values and stages."""

    def __init__(self):
        self.values: list[Value] = []
        self.blocks: list[list[Stage]] = [[]]  # of stages: the loops around, and the innermost one last

    def pipeline(self, results: Sequence[int]) -> Pipeline:
        """What was written, and the values that it gives."""
        (stages,) = self.blocks
        return Pipeline(values=tuple(self.values), stages=tuple(stages), results=tuple(results))

    def new_value(self, role: Role, dtype: str, shape: Sequence[int]) -> int:
        """Adds a value."""
        self.values.append(Value(role=role, dtype=dtype, shape=tuple(shape)))
        return len(self.values) - 1

    def stored(self, value: int, places: Sequence[Place] | None = None, shape: Sequence[int] | None = None) -> View:
        """The view of a value, or of a part of it."""
        known = self.values[value]
        shape = known.shape if shape is None else tuple(shape)
        access = Access(value, identity(len(shape)) if places is None else tuple(places))
        return View.of(Node(shape, known.dtype, access=access))

    def add(self, stage: Stage) -> None:
        """Adds a stage."""
        self.blocks[-1].append(stage)

    @contextlib.contextmanager
    def block(self) -> Iterator[list[Stage]]:
        """Collects the stages written inside apart, as those of a loop."""
        self.blocks.append([])
        try:
            yield self.blocks[-1]
        finally:
            self.blocks.pop()

    # Nodes in memory.

    def force(self, x: View) -> Access:
        """Where a view is in memory; its node is computed if it is not there."""
        if x.node.access is None:
            self.settle(x.node) if x.node.update else self.compute([x.node])
        assert x.node.access
        return x.node.access.substituted(x.places)

    def compute(self, nodes: Sequence[Node]) -> None:
        """Computes nodes of one shape into scratch."""
        self.write([(View.of(node), None) for node in nodes])

    def copied(self, x: View) -> View:
        """A view's elements in scratch."""
        access = self.scratch(x)
        self.write([(x, access)])
        return self.stored(access.value)

    def settle(self, node: Node) -> None:
        """Makes an array of which a part is changed: a copy, unless what it was is a copy that nobody else reads."""
        assert node.update
        base, whole = node.update.base, identity(len(node.shape))
        if base.is_whole and base.node.update and base.node.users <= 1:
            access = self.force(base)
        else:
            access = Access(self.new_value("scratch", node.dtype, node.shape), whole)
            self.write([(base, access)])
        self.write([(node.update.part, access.substituted(node.update.places))])
        node.access = access

    def write(self, wanted: Sequence[tuple[View, Access | None]]) -> None:
        """Computes views of one shape, together, each into an access or, where that is None, into scratch.

        A whole node that goes to scratch is there from then on.
        """
        for x, _ in wanted:
            self.prepare(x)
        program = ProgramBuilder(wanted[0][0].shape)
        numbers = [program.number(x.node, x.places) for x, _ in wanted]
        outputs = [access or self.scratch(x) for x, access in wanted]
        for node in self.shared(program, [x.node for x, _ in wanted]):
            numbers.append(program.number(node, identity(len(node.shape))))
            outputs.append(self.scratch(View.of(node)))
            node.access = outputs[-1]
        sources, built = program.finish(numbers)
        self.add(Map(sizes=wanted[0][0].shape, sources=sources, program=built, outputs=tuple(outputs)))
        for (x, to), access in zip(wanted, outputs, strict=False):
            if to is None and x.is_whole and x.node.access is None:
                x.node.access = access

    def scratch(self, x: View) -> Access:
        """A value for a view."""
        return Access(self.new_value("scratch", x.node.dtype, x.shape), identity(len(x.shape)))

    def prepare(self, x: View) -> None:
        """Computes, before a stage that reads a view, what that stage had better not compute itself.

        That is what would be computed for several elements that are one, or again for other stages.
        """
        seen: set[int] = set()

        def visit(x: View) -> None:
            node = x.node
            if node.access is not None or node.leaf is not None:
                return
            if node.update:
                self.settle(node)
                return
            if id(node) not in seen:
                seen.add(id(node))
                for operand in node.operands:
                    visit(operand)
            is_read_again = not x.is_whole and (x.repeats or node.users > 1)
            if is_read_again and node.weight >= HEAVY:
                self.compute([node])

        visit(x)

    @staticmethod
    def shared(program: ProgramBuilder, roots: Sequence[Node]) -> list[Node]:
        """The nodes of a program that other stages will read, too, and had better not compute anew."""
        used = program.uses()
        return [
            node
            for node in program.whole_nodes
            if node not in roots
            and node.access is None
            and node.leaf is None
            and node.update is None
            and node.weight >= HEAVY
            and node.users > used.get(id(node), 0)
        ]

    def reshape(self, x: View, shape: Sequence[int]) -> View:
        """lax.reshape of what is no view: a copy."""
        target = shape if split_axes(shape, x.shape) is not None else [math.prod(x.shape)]
        places = split_axes(target, x.shape)
        assert places is not None
        value = self.new_value("scratch", x.node.dtype, target)
        self.write([(x, Access(value, tuple(places)))])
        copied = self.stored(value)
        axes = split_axes(copied.shape, shape)
        assert axes is not None
        return copied.through(axes, shape)

    def reduce(self, x: View, axes: Sequence[int], kind: Kind) -> View:
        """A reduction along some axes."""
        self.prepare(x)
        if x.node.access is None and x.node.leaf is None and x.node.users > 1 and x.node.weight >= HEAVY:
            self.compute([x.node])
        kept = [axis for axis in range(len(x.shape)) if axis not in axes]
        order = [*kept, *axes]
        moved = x.through(
            [Place(0, ((order.index(axis), 1),)) for axis in range(len(order))], [x.shape[i] for i in order]
        )
        program = ProgramBuilder(moved.shape)
        sources, built = program.finish([program.number(moved.node, moved.places)])
        sizes, reduced = tuple(x.shape[i] for i in kept), tuple(x.shape[i] for i in axes)
        output = Access(self.new_value("scratch", x.node.dtype, sizes), identity(len(sizes)))
        self.add(Reduction(sizes=sizes, reduced=reduced, sources=sources, program=built, kind=kind, output=output))
        return self.stored(output.value)


class ProgramBuilder:
    """Makes one program of nodes that are not in memory."""

    def __init__(self, shape: Sequence[int]):
        self.shape, self.identity = tuple(shape), identity(len(shape))
        self.builder = Builder()
        self.sources: dict[Source, int] = {}
        self.numbers: dict[tuple[int, tuple[Place, ...]], int] = {}
        self.nodes: dict[int, Node] = {}  # those read whole, by their own axes

    def number(self, node: Node, places: tuple[Place, ...]) -> int:
        """The number in the program of a node's elements at some places."""
        key = id(node), places
        if key not in self.numbers:
            self.numbers[key] = self.added(node, places)
            if places == self.identity and node.shape == self.shape:  # so has a part of it
                self.nodes[id(node)] = node
        return self.numbers[key]

    def added(self, node: Node, places: tuple[Place, ...]) -> int:
        """Adds a node."""
        if node.access is not None:
            return self.read(node.access.substituted(places), node.dtype)
        match node.leaf:
            case Constant():
                return self.builder.add(node.leaf)
            case IndexInput(place):
                return self.read(IndexInput(place.substituted(places)), node.dtype)
        assert node.operation
        operands = [self.number(x.node, tuple(place.substituted(places) for place in x.places)) for x in node.operands]
        if node.operation.name == "convert":
            return self.builder.convert(operands[0], node.dtype)
        return self.builder.add(replace(node.operation, operands=tuple(operands)))

    def read(self, source: Source, dtype: str) -> int:
        """Adds an input."""
        number = self.sources.setdefault(source, len(self.sources))
        return self.builder.add(Input(argument=number, dtype=dtype))

    @property
    def whole_nodes(self) -> list[Node]:
        """The nodes that it computes as they are, operands before what is made of them."""
        return list(self.nodes.values())

    def uses(self) -> dict[int, int]:
        """How many operands of the nodes in it each node is."""
        found: dict[int, int] = {}
        for node in self.nodes.values():
            if node.access is None:
                for x in {id(x.node) for x in node.operands}:
                    found[x] = found.get(x, 0) + 1
        return found

    def finish(self, results: Sequence[int]) -> tuple[tuple[Source, ...], Program]:
        """The sources of the program, as its arguments are numbered, and the program."""
        if not self.sources:
            self.read(IndexInput(Place()), "s32")
        values = self.builder.values
        first = next(i for i, value in enumerate(values) if isinstance(value, Input))
        if first:  # the first value of a program is an input
            return self.reordered(first, results)
        return tuple(self.sources), self.builder.program(results)

    def reordered(self, first: int, results: Sequence[int]) -> tuple[tuple[Source, ...], Program]:
        """The program with an input in front."""
        builder, numbers = Builder(), dict[int, int]()
        numbers[first] = builder.add(self.builder.values[first])
        for number, value in enumerate(self.builder.values):
            operands = [numbers[i] for i in getattr(value, "operands", ())]
            numbers[number] = builder.copy(value, operands)
        return tuple(self.sources), builder.program([numbers[i] for i in results])
