"""Tables of docs/performance.md on convolutions and attention, for `python -m benchmarks.tables`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import jax_nano
from benchmarks.overview import TYPES, Program, causal, times

NCHW = ("NCHW", "OIHW", "NCHW")
NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(numbers: tuple[str, str, str], stride: int = 1, groups: int = 1) -> Callable[..., Array]:
    """A convolution of two dimensions that keeps the size, or divides it by the stride."""
    return lambda x, w: lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


CHANNELS_FIRST = (
    Program("8 x 56 x 56, 64 channels, 3 x 3", convolution(NCHW), ((8, 64, 56, 56), (64, 64, 3, 3))),
    Program("8 x 56 x 56, 64 to 128 channels, 3 x 3, stride 2", convolution(NCHW, 2),
            ((8, 64, 56, 56), (128, 64, 3, 3))),
    Program("8 x 7 x 7, 512 channels, 3 x 3", convolution(NCHW), ((8, 512, 7, 7), (512, 512, 3, 3))),
    Program("8 x 224 x 224, 3 to 64 channels, 7 x 7, stride 2", convolution(NCHW, 2),
            ((8, 3, 224, 224), (64, 3, 7, 7))),
    Program("depthwise, 8 x 28 x 28, 128 channels, 3 x 3", convolution(NCHW, groups=128),
            ((8, 128, 28, 28), (128, 1, 3, 3))),
    Program("32 groups of 4 channels, 8 x 28 x 28, 3 x 3", convolution(NCHW, groups=32),
            ((8, 128, 28, 28), (128, 4, 3, 3))),
)  # fmt: skip


def gradients(q: Array, k: Array, v: Array) -> Any:
    """Those of a sum of squares of causal attention, by all of its operands."""
    return jax.grad(lambda *operands: (causal(*operands).astype(jnp.float32) ** 2).sum(), (0, 1, 2))(q, k, v)


GRADIENTS = tuple(Program(str(length), gradients, ((1, length, 12, 64),) * 3) for length in (512, 1024))

KERNELS = (  # image, kernel, and the order of their dimensions
    ((8, 14, 14, 256), (3, 3, 256, 256), NHWC),
    ((1, 7, 7, 512), (3, 3, 512, 512), NHWC),
    ((1, 512, 7, 7), (512, 512, 3, 3), NCHW),
)
FORMS: dict[str, Callable[..., Any]] = {
    "packed": jax_nano.pack,
    "8 bits": jax_nano.quantize,
    "4 bits": lambda w, kernel: jax_nano.quantize(w, bits=4, kernel=kernel),
    "8 bits, images too": lambda w, kernel: jax_nano.quantize(w, activations="int8", kernel=kernel),
}


def against_plain(title: str, programs: Sequence[Program], turns: int) -> None:
    """A row for each program: how many times as fast as plain JAX it is, by type."""
    print(f"\n| {title} | {' | '.join(TYPES)} |\n|---|{'---|' * len(TYPES)}")
    for program in programs:
        found = [times(program, dtype, turns) for dtype in TYPES.values()]
        print(f"| {program.name} | {' | '.join(f'{theirs / nano:.2f}' for theirs, nano in found)} |", flush=True)


def nchw_convolutions(turns: int) -> None:
    """Convolutions with channels first, beside plain JAX."""
    against_plain("convolution, NCHW, SAME padding", CHANNELS_FIRST, turns)


def attention_gradients(turns: int) -> None:
    """Gradients of causal attention, beside plain JAX."""
    against_plain("queries and keys, with gradients", GRADIENTS, turns)


def packed_convolutions(turns: int) -> None:
    """Convolutions with their kernels in other forms, as multiples of the speed with arrays."""
    from benchmarks.tables import normal, row, speedups

    print(f"\n{row('image', 'kernel', 'layout', 'type', *FORMS)}\n|---|---|---|---|{'---|' * len(FORMS)}")
    for name, dtype in TYPES.items():
        for image, kernel, numbers in KERNELS:
            x, w = normal(image, dtype), normal(kernel, dtype, 1)
            weights = [w, *(form(w, kernel=numbers[1]) for form in FORMS.values())]

            def convolve(x: Array, w: Any, numbers: tuple[str, str, str] = numbers) -> Array:
                return jax_nano.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

            found = speedups([convolve] * len(weights), [(x, weight) for weight in weights], turns)
            sizes = (" x ".join(map(str, shape)) for shape in (image, kernel))
            print(row(*sizes, f"{numbers[0]}, {numbers[1]}", name, *found), flush=True)


TABLES = {f.__name__: f for f in (nchw_convolutions, attention_gradients, packed_convolutions)}
