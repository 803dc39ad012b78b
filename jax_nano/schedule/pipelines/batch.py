"""The batch of a pipeline: an axis along which nothing is mixed, from the first stage to the last.

Its elements are independent, so tasks may have some of them each, without waiting for each other in between; and where
matrices are tiny, they may stand along lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from jax_nano.ir.pipeline import (
    TASK,
    Access,
    Contraction,
    Loop,
    Map,
    Pipeline,
    Place,
    Reduction,
    Source,
    Stage,
    Value,
)
from jax_nano.schedule.pipelines.hoist import outputs_of, sources_of

Work = Map | Reduction | Contraction
Dim = tuple[str, int, int]  # ("value", its number, a dimension) or ("stage", its number, an axis)


@dataclass(frozen=True)
class Batch:
    """Elements that are independent of each other.

    Attributes:
      size: how many there are.
      dims: the dimension that counts them, by values.
      axes: the axis that does, by stages in the order of `flat`.
    """

    size: int
    dims: dict[int, int]
    axes: dict[int, int]


def flat(stages: Sequence[Stage]) -> Iterator[Map | Reduction | Contraction]:
    """All stages that are no loops, in order."""
    for stage in stages:
        if isinstance(stage, Loop):
            yield from flat((*stage.condition, *stage.stages))
        else:
            yield stage


def sizes_of(stage: Map | Reduction | Contraction) -> tuple[int, ...]:
    """The sizes of all axes of a stage."""
    more = stage.reduced if isinstance(stage, Reduction) else stage.summed if isinstance(stage, Contraction) else ()
    return (*stage.sizes, *more)


@dataclass
class _Classes:
    """Dimensions and axes that count the same elements, joined; and which of them cannot be a batch."""

    parents: dict[Dim, Dim] = field(default_factory=dict)
    mixed: set[Dim] = field(default_factory=set)

    def find(self, x: Dim) -> Dim:
        while (parent := self.parents.get(x, x)) != x:
            x = parent
        return x

    def join(self, a: Dim, b: Dim) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parents[a] = b
            if a in self.mixed:
                self.mixed.add(b)

    def mix(self, x: Dim) -> None:
        self.mixed.add(self.find(x))


def batches(pipeline: Pipeline) -> list[Batch]:
    """The batches that a pipeline has, the largest first."""
    classes = _Classes()
    stages = list(flat(pipeline.stages))
    for number, stage in enumerate(stages):
        sizes = sizes_of(stage)
        for axis in range(len(stage.sizes), len(sizes)):
            classes.mix(("stage", number, axis))
        for source in (*sources_of(stage), *outputs_of(stage)):
            _connect(classes, pipeline.values, number, sizes, source)
    for stage in pipeline.stages:
        if isinstance(stage, Loop) and stage.going:
            return []  # all elements have a condition in common
    return sorted(_found(classes, pipeline, stages), key=lambda batch: -batch.size)


def _connect(classes: _Classes, values: Sequence[Value], number: int, sizes: Sequence[int], source: Source) -> None:
    """Joins the dimensions of a value with the axes that count them, where these are the same."""
    if not isinstance(source, Access):
        for axis, _ in source.place.terms:
            if axis >= 0:
                classes.mix(("stage", number, axis))
        return
    for dim, place in enumerate(source.places):
        size = values[source.value].shape[dim]
        if len(place.terms) == 1 and place == Place(0, place.terms):
            ((axis, coefficient),) = place.terms
            if axis >= 0 and coefficient == 1 and sizes[axis] == size:
                classes.join(("value", source.value, dim), ("stage", number, axis))
                continue
        classes.mix(("value", source.value, dim))
        for axis, _ in place.terms:
            if axis >= 0:
                classes.mix(("stage", number, axis))
        if place.index is not None:
            _connect(classes, values, number, (), place.index)


def _found(classes: _Classes, pipeline: Pipeline, stages: Sequence[Work]) -> Iterator[Batch]:
    members: dict[Dim, list[Dim]] = {}
    for number, value in enumerate(pipeline.values):
        for dim in range(len(value.shape)):
            members.setdefault(classes.find(("value", number, dim)), []).append(("value", number, dim))
    for number, stage in enumerate(stages):
        for axis in range(len(sizes_of(stage))):
            members.setdefault(classes.find(("stage", number, axis)), []).append(("stage", number, axis))
    for root, found in members.items():
        dims = {i: dim for kind, i, dim in found if kind == "value"}
        axes = {i: axis for kind, i, axis in found if kind == "stage"}
        once = len(dims) + len(axes) == len(found)
        has_results = all(number in dims for number in pipeline.results)
        if root not in classes.mixed and once and has_results and dims:
            first = next(iter(dims))
            yield Batch(pipeline.values[first].shape[dims[first]], dims, axes)


def divided(pipeline: Pipeline, batch: Batch, tasks: int) -> Pipeline:
    """The pipeline of one of so many tasks, which divide a batch evenly."""
    part = batch.size // tasks
    values = tuple(
        replace(value, shape=(*value.shape[: (d := batch.dims[i])], part, *value.shape[d + 1 :]))
        if i in batch.dims and value.role in ("scratch", "carry")
        else value
        for i, value in enumerate(pipeline.values)
    )
    numbers = iter(range(1 << 30))

    def access(x: Access) -> Access:
        if x.value not in batch.dims or pipeline.values[x.value].role in ("scratch", "carry"):
            return x
        dim = batch.dims[x.value]
        place = x.places[dim]
        moved = replace(place, terms=tuple(sorted((*place.terms, (TASK, part)))))
        return replace(x, places=(*x.places[:dim], moved, *x.places[dim + 1 :]))

    def source(x: Source) -> Source:
        return access(x) if isinstance(x, Access) else x

    def each(stage: Stage) -> Stage:
        if isinstance(stage, Loop):
            condition = tuple(map(each, stage.condition))
            return replace(stage, condition=condition, stages=tuple(map(each, stage.stages)))
        axis = batch.axes.get(next(numbers))
        sizes = tuple(part if i == axis else size for i, size in enumerate(stage.sizes))
        if isinstance(stage, Contraction):
            return replace(
                stage, sizes=sizes, lhs=access(stage.lhs), rhs=access(stage.rhs), output=access(stage.output)
            )
        sources = tuple(map(source, stage.sources))
        if isinstance(stage, Map):
            return replace(stage, sizes=sizes, sources=sources, outputs=tuple(map(access, stage.outputs)))
        return replace(stage, sizes=sizes, sources=sources, output=access(stage.output))

    return replace(pipeline, values=values, stages=tuple(map(each, pipeline.stages)))
