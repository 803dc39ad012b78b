"""Arrays with their axes put into an order, by labels."""

from __future__ import annotations

from collections.abc import Sequence

from jax import Array

from jax_nano.jaxpr.attention.axis_labels import Label


def ordered(x: Array, labels: Sequence[Label], order: Sequence[Label]) -> Array:
    """An array with its axes in an order, and the one without a label last."""
    return moved(x, [*(labels.index(label) for label in order if label is not None), labels.index(None)])


def aligned(x: Array, labels: Sequence[Label], order: Sequence[Label]) -> Array:
    """An array with an axis for each label, of size 1 where it has none."""
    kept = [axis for axis, label in enumerate(labels) if label in order and x.shape[axis] > 1]
    x = x.reshape([x.shape[axis] for axis in kept])
    names = [labels[axis] for axis in kept]
    present = [label for label in order if label in names]
    x = moved(x, [names.index(label) for label in present])
    sizes = dict(zip(present, x.shape, strict=True))
    return x.reshape([sizes.get(label, 1) for label in order])


def moved(x: Array, permutation: Sequence[int]) -> Array:
    """A transpose, where anything moves."""
    return x if list(permutation) == sorted(permutation) else x.transpose(permutation)
