"""Convolutions as tests see them: a direct sum in float64, and kernels in guarded memory."""

import itertools
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from products import DTYPES, INTEGERS, random, rounding, widened

from jax_nano.ir.axes import Operand
from jax_nano.ir.convolution import Convolution, Spatial


def direct_sum(image, kernel, result_shape, spatial, groups=1, batch_groups=1):
    """The convolution of (N, *S, C) with (*T, C / groups, O), tap by tap, place by place of the taps."""
    count = len(spatial)
    n, o = result_shape[0], result_shape[-1]
    result = np.zeros(result_shape, image.dtype)
    each, inner = o // (groups * batch_groups), kernel.shape[-2]
    for taps in itertools.product(*map(range, kernel.shape[:count])):
        sources, targets = [], []
        for s, tap, size, places in zip(spatial, taps, image.shape[1:-1], result_shape[1:-1], strict=True):
            at = np.arange(places) * s.stride + tap * s.dilation - s.padding
            inside = (at >= 0) & (at < size)
            sources.append(at[inside])
            targets.append(np.arange(places)[inside])
        for g in range(groups * batch_groups):
            rows = np.arange(n) + (g * n if batch_groups > 1 else 0)
            channels = np.arange(inner) + (g * inner if groups > 1 else 0)
            outputs = np.arange(o // (groups * batch_groups)) + g * each
            part = image[np.ix_(rows, *sources, channels)] @ kernel[taps][:, outputs]
            result[np.ix_(np.arange(n), *targets, outputs)] += part
    return result


@dataclass(frozen=True, kw_only=True)
class Case:
    """A convolution by its sizes."""

    image: tuple
    kernel: tuple
    result: tuple
    spatial: tuple
    types: tuple = ("f32", "f32", "f32")
    groups: int = 1
    batch_groups: int = 1
    layouts: tuple = field(default=(None, None))  # permutations of image and kernel in memory
    places_last: bool = False  # in the result

    @classmethod
    def same(cls, image, taps, outputs, stride=1, dilation=1, **others):
        """SAME padding."""
        batch, *sizes, channels = image
        places = [-(-size // stride) for size in sizes]
        spatial = [
            Spatial(stride=stride, dilation=dilation,
                    padding=max(0, (p - 1) * stride + (t - 1) * dilation + 1 - s) // 2)
            for s, p, t in zip(sizes, places, taps, strict=True)
        ]  # fmt: skip
        groups = others.get("groups", 1)
        kernel = (*taps, channels // groups, outputs)
        return cls(image=image, kernel=kernel, result=(batch, *places, outputs), spatial=tuple(spatial), **others)

    @property
    def convolution(self):
        lhs, rhs, out = self.types
        image, kernel = (
            laid_out(shape, dtype, layout)
            for shape, dtype, layout in zip((self.image, self.kernel), (lhs, rhs), self.layouts, strict=True)
        )
        rank = len(self.result)
        layout = (0, *range(2, rank), 1) if self.places_last else None
        return Convolution(
            image=image, kernel=kernel, result=laid_out(self.result, out, layout), spatial=self.spatial,
            groups=self.groups, batch_groups=self.batch_groups,
        )  # fmt: skip

    @property
    def dot(self):
        return self.convolution.dot()

    def operands(self, seed=0):
        rng = np.random.default_rng(seed)
        arrays = []
        for shape, dtype, layout in zip((self.image, self.kernel), self.types[:2], self.layouts, strict=True):
            array = random(rng, shape, dtype)
            if layout:
                array = np.transpose(np.ascontiguousarray(np.transpose(array, np.argsort(layout))), layout)
            arrays.append(array)
        return arrays

    def summed(self, image, kernel):
        return direct_sum(image, kernel, self.result, self.spatial, self.groups, self.batch_groups)

    def exact(self, image, kernel):
        acc = self.dot.acc
        sums = self.summed(widened(image, acc), widened(kernel, acc))
        if acc != "s32":
            return sums
        return sums.astype(np.int32).astype(DTYPES[self.types[2]] if self.types[2] in INTEGERS else np.int32)

    def check(self, result, image, kernel):
        """Asserts that a result, flat or not, is within the bound of products."""
        acc, exact = self.dot.acc, self.exact(image, kernel)
        bound = rounding(exact, self.types[2])
        if acc != "s32":
            magnitude = self.summed(*(np.abs(widened(x, acc)) for x in (image, kernel)))
            bound = bound + self.dot.sizes[3] * float(ml_dtypes.finfo(DTYPES[acc]).eps) * magnitude
        if self.places_last:
            shape = (exact.shape[0], exact.shape[-1], *exact.shape[1:-1])
            result = np.moveaxis(result.reshape(shape), 1, -1)
        error = np.abs(widened(result, acc).reshape(exact.shape) - exact)
        wrong = ~(error <= bound)
        assert not wrong.any(), (
            f"{wrong.sum()} of {wrong.size} elements are wrong, the first at {np.argwhere(wrong)[0]}: {self}"
        )


def laid_out(shape, dtype, layout):
    """An array whose dimension i is dimension layout[i] of what is row-major in memory."""
    if not layout:
        return Operand.row_major(shape, dtype)
    stored = [shape[i] for i in np.argsort(layout)]
    return Operand.row_major(stored, dtype).transposed(layout)
