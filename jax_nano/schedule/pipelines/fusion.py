"""Products with the elementwise work on their sums: what reads a product alone is done to it in registers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from jax_nano.ir.pipeline import Access, Contraction, Loop, Map, Place, Source, Stage, instructions_of
from jax_nano.schedule.pipelines.hoist import sources_of
from jax_nano.schedule.pipelines.plan import Block

MOST_INSTRUCTIONS = 128  # of an epilogue in all registers of a block: each is written out, and has to be compiled


def reads(stages: Sequence[Stage]) -> Iterator[int]:
    """The values that stages read, once for every place that reads one."""
    for stage in stages:
        if isinstance(stage, Loop):
            yield from reads((*stage.condition, *stage.stages))
            yield from [stage.going.value] if stage.going else []
        else:
            for source in sources_of(stage):
                yield from values_of(source)


def values_of(source: Source) -> Iterator[int]:
    """The values that a source depends on."""
    places = source.places if isinstance(source, Access) else (source.place,)
    yield from [source.value] if isinstance(source, Access) else []
    for place in places:
        yield from values_of(place.index) if place.index else []


def with_epilogues(
    stages: Sequence[Stage], blocks: Mapping[Contraction, Block], counts: Counter[int], keep: set[int]
) -> list[Stage]:
    """Stages with products and what follows them fused.

    Args:
      stages: in their order.
      blocks: of the products.
      counts: how many places of the pipeline read each value.
      keep: values that are results.
    """
    found: list[Stage] = []
    for stage in stages:
        last = found[-1] if found else None
        if isinstance(stage, Loop):
            inner = tuple(with_epilogues(stage.stages, blocks, counts, keep))
            found.append(replace(stage, stages=inner))
        elif isinstance(stage, Map) and isinstance(last, Contraction) and is_epilogue(stage, last, counts, keep):
            block = blocks[replace(last, epilogue=None)]
            if block.rows * block.registers * instructions_of(stage.program) > MOST_INSTRUCTIONS:
                found.append(stage)
                continue
            found[-1] = replace(last, epilogue=stage)
        else:
            found.append(stage)
    return found


def is_epilogue(stage: Map, product: Contraction, counts: Counter[int], keep: set[int]) -> bool:
    """Whether a stage works on each sum of a product, which nobody else reads."""
    value, whole = product.output.value, tuple(Place(0, ((axis, 1),)) for axis in range(len(product.sizes)))
    is_alone = not product.epilogue and counts[value] == 1 and value not in keep
    read = Access(value, whole)
    operands = {product.lhs.value, product.rhs.value}
    is_alone &= not any(access.value in operands and not access.next for access in stage.outputs)
    return is_alone and stage.sizes == product.sizes and product.output == read and read in stage.sources
