"""Stages that are the same in every step of a loop, and copies of operands, before the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from jax_nano.ir.pipeline import TASK, Access, Contraction, Loop, Map, Pipeline, Place, Reduction, Source, Stage
from jax_nano.ir.program import Input, Program


def sources_of(stage: Stage) -> Sequence[Source]:
    """What a stage that is no loop reads."""
    if isinstance(stage, Map | Reduction):
        return stage.sources
    assert isinstance(stage, Contraction)
    more = [x for x in stage.epilogue.sources if x != stage.output] if stage.epilogue else []
    return stage.lhs, stage.rhs, *more


def outputs_of(stage: Stage) -> tuple[Access, ...]:
    """What a stage that is no loop writes."""
    if isinstance(stage, Map):
        return stage.outputs
    assert isinstance(stage, Reduction | Contraction)
    if isinstance(stage, Contraction) and stage.epilogue:
        return stage.epilogue.outputs
    return (stage.output,)


def written(stages: Sequence[Stage]) -> Iterator[int]:
    """The values that stages write, loops among them included."""
    for stage in stages:
        if isinstance(stage, Loop):
            yield from stage.carries
            yield from written((*stage.condition, *stage.stages))
        else:
            yield from (access.value for access in outputs_of(stage))


def places_of(source: Source) -> tuple[Place, ...]:
    """All places of an access, or that of an index."""
    return source.places if isinstance(source, Access) else (source.place,)


def is_invariant(source: Source, changing: set[int]) -> bool:
    """Whether a source is the same in every step of loops that write the values `changing`."""
    if isinstance(source, Access) and source.value in changing:
        return False
    places = places_of(source)
    inner = all(place.index is None or is_invariant(place.index, changing) for place in places)
    return inner and not any(TASK < axis < 0 for place in places for axis, _ in place.terms)


def hoisted(pipeline: Pipeline) -> Pipeline:
    """The pipeline with what is the same in every step of its loops before these."""
    stages: list[Stage] = []
    for stage in pipeline.stages:
        if isinstance(stage, Loop):
            before, loop = without_invariants(stage, pipeline)
            stages += before
            stages.append(loop)
        else:
            stages.append(stage)
    return replace(pipeline, stages=tuple(stages))


def without_invariants(loop: Loop, pipeline: Pipeline) -> tuple[list[Stage], Loop]:
    """The stages of a loop that are the same in every step, and the loop without them."""
    changing = set(written([loop]))
    before: list[Stage] = []

    def writers(value: int) -> int:
        return sum(value == other for other in written(pipeline.stages))

    stages: list[Stage] = []
    for stage in loop.stages:
        free = not isinstance(stage, Loop) and all(is_invariant(x, changing) for x in sources_of(stage))
        if free and all(
            pipeline.values[out.value].role == "scratch" and writers(out.value) == 1 and is_invariant(
                replace(out, value=-1), changing)
            for out in outputs_of(stage)
        ):  # fmt: skip
            before.append(stage)
            changing -= {out.value for out in outputs_of(stage)}
        else:
            stages.append(stage)
    return before, replace(loop, stages=tuple(stages))


def identity_program(dtype: str) -> Program:
    """The program that gives its argument."""
    return Program(inputs=(Input(argument=0, dtype=dtype),), constants=(), operations=(), results=(0,))
