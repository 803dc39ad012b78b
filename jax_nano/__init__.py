"""jax_nano: matrix products in JAX programs on CPUs, by kernels that the compiler composes."""

from jax_nano._native import executed_kernels
from jax_nano.accelerate import accelerate
from jax_nano.api import dot, dot_general, einsum, inner, matmul, tensordot, vecdot
from jax_nano.autotune import autotune
from jax_nano.fused_matmul import fused_matmul
from jax_nano.inspection import inspect
from jax_nano.installation import install, installed, uninstall
from jax_nano.memory import release_memory, retain_memory
from jax_nano.packed import PackedWeight, pack
from jax_nano.quantized import QuantizedWeight, quantization_error, quantize
from jax_nano.report import Report, Reports
from jax_nano.tuning import Tuned

__all__ = [
    "PackedWeight",
    "QuantizedWeight",
    "Report",
    "Reports",
    "Tuned",
    "accelerate",
    "autotune",
    "dot",
    "dot_general",
    "einsum",
    "executed_kernels",
    "fused_matmul",
    "inner",
    "inspect",
    "install",
    "installed",
    "matmul",
    "pack",
    "quantization_error",
    "quantize",
    "release_memory",
    "retain_memory",
    "tensordot",
    "uninstall",
    "vecdot",
]
