"""Dot algorithms: what a `precision` of lax.dot_general asks of a kernel."""

from __future__ import annotations

from typing import overload

from jax.lax import DotAlgorithm, DotAlgorithmPreset

from jax_nano.ir.dot import Algorithm, Dot, UnsupportedDot
from jax_nano.ir.dtypes import FLOAT8, WIDENS, dtype_name
from jax_nano.ir.gated import Gated
from jax_nano.ir.grouped import Grouped

Preset = DotAlgorithmPreset

# What the operands of a preset are rounded to, and what their products are summed in.
TYPES = {
    Preset.F64_F64_F64: ("f64", "f64"),
    Preset.F32_F32_F32: ("f32", "f32"),
    Preset.TF32_TF32_F32: ("tf32", "f32"),
    Preset.TF32_TF32_F32_X3: ("tf32", "f32"),
    Preset.BF16_BF16_F32: ("bf16", "f32"),
    Preset.BF16_BF16_F32_X3: ("bf16", "f32"),
    Preset.BF16_BF16_F32_X6: ("bf16", "f32"),
    Preset.BF16_BF16_F32_X9: ("bf16", "f32"),
    Preset.BF16_BF16_BF16: ("bf16", "bf16"),
    Preset.F16_F16_F32: ("f16", "f32"),
    Preset.F16_F16_F16: ("f16", "f16"),
}
ANY_FLOAT8 = (
    Preset.ANY_F8_ANY_F8_F32, Preset.ANY_F8_ANY_F8_F32_FAST_ACCUM,
    Preset.ANY_F8_ANY_F8_ANY, Preset.ANY_F8_ANY_F8_ANY_FAST_ACCUM,
)  # fmt: skip
# The products of bf16 splits, the smallest first: split 0 is the highest.
# Source: XLA, EmitBF16x3Matmul, EmitBF16x6Matmul and EmitBF16x9Matmul of its Triton backend; after Henry, Tang and
# Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019 (arXiv
# 1904.06376).
X3 = ((1, 0), (0, 1), (0, 0))
X6 = ((1, 1), (2, 0), (0, 2), *X3)
X9 = ((2, 2), (1, 2), (2, 1), *X6)
TERMS = {Preset.BF16_BF16_F32_X3: X3, Preset.BF16_BF16_F32_X6: X6, Preset.BF16_BF16_F32_X9: X9}


@overload
def with_precision(precision, dot: Dot) -> Dot: ...
@overload
def with_precision(precision, dot: Grouped) -> Grouped: ...
@overload
def with_precision(precision, dot: Dot | Grouped) -> Dot | Grouped: ...
@overload
def with_precision(precision, dot: Dot | Grouped | Gated) -> Dot | Grouped | Gated: ...
def with_precision(precision, dot: Dot | Grouped | Gated) -> Dot | Grouped | Gated:
    """Gives a product the algorithm that a `precision` of lax.dot_general asks for.

    Without one, products are exact and summed in the problem's accumulator. A lax.Precision asks for nothing else: it
    bounds the error from above.

    Raises:
      UnsupportedDot: kernels do not compute what it asks for.
    """
    if isinstance(dot, Gated):
        return dot.replace(first=with_precision(precision, dot.first), second=with_precision(precision, dot.second))
    if isinstance(dot, Grouped):
        return dot.replace(dot=with_precision(precision, dot.dot))
    match precision:
        case DotAlgorithmPreset() if precision in ANY_FLOAT8:
            if not {*dot.operands} <= FLOAT8:
                names = " and ".join(dot.operands)
                raise UnsupportedDot(f"{precision} is an algorithm of 8-bit floats, not of {names}")
            return dot
        case DotAlgorithmPreset() if precision is not Preset.DEFAULT:
            dtype, acc = TYPES[precision]
            return with_rounding(dot, str(precision), (dtype, dtype), acc, TERMS.get(precision, ((0, 0),)))
        case DotAlgorithm():
            if precision[3:6] != (1, 1, 1):
                raise UnsupportedDot(f"only presets say which products of splits are added up, not {precision}")
            lhs, rhs, acc = map(dtype_name, precision[:3])
            return with_rounding(dot, "the algorithm", (lhs, rhs), acc, ((0, 0),))
    return dot


def with_rounding(dot: Dot, name: str, types: tuple[str, str], acc: str, terms: tuple[tuple[int, int], ...]) -> Dot:
    """Gives a product an algorithm that rounds its operands to these types.

    Raises:
      UnsupportedDot: it is summed in another type, or there is no such rounding.
    """
    if acc != dot.acc:
        names = " and ".join(dot.operands)
        raise UnsupportedDot(f"{name} sums in {acc}; kernels sum products of {names} in {dot.acc}")
    narrower = {dtype for dtype, x in zip(types, dot.operands, strict=True) if dtype not in WIDENS[x]}
    if not narrower:
        return dot
    if len({*types}) > 1 or not narrower <= {"bf16", "f16"}:
        raise UnsupportedDot(f"{name} rounds to {' and '.join(dict.fromkeys(types))}; kernels round to bf16 or f16")
    return dot.with_algorithm(Algorithm(dtype=types[0], terms=terms))
