"""Results of inner loops written to where a step wants them, in place of a copy behind the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from jax_nano.ir.pipeline import Access, Contraction, IndexInput, Loop, Map, Reduction, Source, Stage
from jax_nano.jaxpr.pipelines.updates import depends
from jax_nano.jaxpr.pipelines.views import View, identity


def forward(stages: list[Stage], wanted: Sequence[tuple[View, Access]], scratch: set[int]) -> list[tuple[View, Access]]:
    """Has loops write what is wanted from them alone; gives what is still to be written.

    Args:
      stages: of the step so far, in which loops are changed.
      wanted: views, and where they go.
      scratch: the values of which each is in scratch.
    """
    left = []
    for number, (x, target) in enumerate(wanted):
        value = whole_value(x)
        others = [view for i, (view, _) in enumerate(wanted) if i != number]
        is_free = value in scratch and not target.next and not any(depends(view, value) for view in others)
        writers = [i for i, stage in enumerate(stages) if value in written_by(stage)]
        if is_free and len(writers) == 1 and isinstance(stages[writers[0]], Loop) and value not in read_by(stages):
            stages[writers[0]] = moved(stages[writers[0]], value, target)
        else:
            left.append((x, target))
    return left


def whole_value(x: View) -> int:
    """The value that a view is all of; -1 where it is of none."""
    access = x.node.access
    is_whole = x.is_whole and access and access.places == identity(len(x.shape)) and not access.next
    return access.value if access and is_whole else -1


def outputs(stage: Map | Reduction | Contraction) -> tuple[Access, ...]:
    """What a stage writes."""
    return stage.outputs if isinstance(stage, Map) else (stage.output,)


def written_by(stage: Stage) -> set[int]:
    """The values that a stage writes, or those in it."""
    if isinstance(stage, Loop):
        inner = set().union(*map(written_by, (*stage.condition, *stage.stages)))
        return inner | set(stage.carries)
    return {access.value for access in outputs(stage)}


def read_by(stages: Sequence[Stage]) -> set[int]:
    """The values that stages read, indices among them."""
    found: set[int] = set()
    for stage in stages:
        if isinstance(stage, Loop):
            found |= read_by((*stage.condition, *stage.stages))
            found |= {stage.going.value} if stage.going else set()
        else:
            own = (stage.lhs, stage.rhs) if isinstance(stage, Contraction) else stage.sources
            found |= {access.value for source in (*own, *outputs(stage)) for access in read_at(source, source in own)}
    return found


def read_at(source: Source, is_read: bool) -> Iterator[Access]:  # noqa: FBT001
    """What is read of a source, or for the place of an output."""
    if is_read and isinstance(source, Access):
        yield source
    for place in (source.place,) if isinstance(source, IndexInput) else source.places:
        if place.index:
            yield from read_at(place.index, True)  # noqa: FBT003


def moved(stage: Stage, value: int, target: Access) -> Stage:
    """A stage that writes a value elsewhere."""

    def to(access: Access) -> Access:
        return target.substituted(access.places) if access.value == value else access

    if isinstance(stage, Loop):
        return replace(stage, stages=tuple(moved(each, value, target) for each in stage.stages))
    if isinstance(stage, Map):
        return replace(stage, outputs=tuple(map(to, stage.outputs)))
    return replace(stage, output=to(stage.output))
