"""jax_nano: matrix products in JAX programs on CPUs, by kernels that the compiler composes.

Names are loaded when they are first used: what knows neither JAX nor MLIR, such as jax_nano.schedule, needs neither.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

LOADED_NS = globals().get("LOADED_NS", time.time_ns())  # sources saved later do not run, even if this is reloaded

if TYPE_CHECKING:
    __version__: str
    from jax_nano._native import executed_kernels as executed_kernels
    from jax_nano.api.accelerate import accelerate as accelerate
    from jax_nano.api.attention import dot_product_attention as dot_product_attention
    from jax_nano.api.autotune import autotune as autotune
    from jax_nano.api.block_mask import block_mask as block_mask
    from jax_nano.api.convolutions import conv as conv
    from jax_nano.api.convolutions import conv_general_dilated as conv_general_dilated
    from jax_nano.api.convolutions import conv_general_dilated_local as conv_general_dilated_local
    from jax_nano.api.convolutions import conv_general_dilated_patches as conv_general_dilated_patches
    from jax_nano.api.convolutions import conv_transpose as conv_transpose
    from jax_nano.api.convolutions import conv_with_general_padding as conv_with_general_padding
    from jax_nano.api.fused_matmul import fused_matmul as fused_matmul
    from jax_nano.api.grouped import expert_combine as expert_combine
    from jax_nano.api.grouped import expert_matmul as expert_matmul
    from jax_nano.api.grouped import ragged_dot as ragged_dot
    from jax_nano.api.grouped import ragged_dot_general as ragged_dot_general
    from jax_nano.api.grouped import repeat_by_group as repeat_by_group
    from jax_nano.api.inspect import inspect as inspect
    from jax_nano.api.install import install as install
    from jax_nano.api.install import installed as installed
    from jax_nano.api.install import uninstall as uninstall
    from jax_nano.api.malloc import release_memory as release_memory
    from jax_nano.api.malloc import retain_memory as retain_memory
    from jax_nano.api.products import dot as dot
    from jax_nano.api.products import dot_general as dot_general
    from jax_nano.api.products import einsum as einsum
    from jax_nano.api.products import inner as inner
    from jax_nano.api.products import matmul as matmul
    from jax_nano.api.products import tensordot as tensordot
    from jax_nano.api.products import vecdot as vecdot
    from jax_nano.jaxpr.attention.block_masks import BlockMask as BlockMask
    from jax_nano.lowering.export import export_checks as export_checks
    from jax_nano.lowering.export import exporting_kernels as exporting_kernels
    from jax_nano.runtime.report import Report as Report
    from jax_nano.runtime.report import Reports as Reports
    from jax_nano.runtime.threads import set_threads as set_threads
    from jax_nano.runtime.threads import threads as threads
    from jax_nano.runtime.tuning import Tuned as Tuned
    from jax_nano.runtime.tuning import Tunings as Tunings
    from jax_nano.weights.cache import QuantizedCache as QuantizedCache
    from jax_nano.weights.cache import quantize_cache as quantize_cache
    from jax_nano.weights.packed import PackedWeight as PackedWeight
    from jax_nano.weights.packed import pack as pack
    from jax_nano.weights.quantized import QuantizedWeight as QuantizedWeight
    from jax_nano.weights.quantized import quantization_error as quantization_error
    from jax_nano.weights.quantized import quantize as quantize
    from jax_nano.weights.trees import as_arrays as as_arrays
    from jax_nano.weights.trees import kernel_spec as kernel_spec
    from jax_nano.weights.trees import map_kernels as map_kernels


class _AfterJax:
    """Loads what registers the custom call right after JAX, once: a program from disk may call kernels by it."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        """JAX's own, which then loads more."""
        if name != "jax":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("jax")
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                with contextlib.suppress(ImportError):  # JAX works without
                    importlib.import_module("jax_nano.runtime.kernel")

            spec.loader.exec_module = execute_and_register
        return spec


if sys.modules.get("jax"):
    importlib.import_module("jax_nano.runtime.kernel")
elif not any(type(finder).__qualname__ == _AfterJax.__qualname__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _AfterJax())

_HOME = {
    "_native": ("executed_kernels",),
    "api.accelerate": ("accelerate",),
    "api.attention": ("dot_product_attention",),
    "api.autotune": ("autotune",),
    "api.block_mask": ("block_mask",),
    "api.convolutions": (
        "conv",
        "conv_general_dilated",
        "conv_general_dilated_local",
        "conv_general_dilated_patches",
        "conv_transpose",
        "conv_with_general_padding",
    ),
    "api.fused_matmul": ("fused_matmul",),
    "api.grouped": ("expert_combine", "expert_matmul", "ragged_dot", "ragged_dot_general", "repeat_by_group"),
    "api.inspect": ("inspect",),
    "api.install": ("install", "installed", "uninstall"),
    "api.malloc": ("release_memory", "retain_memory"),
    "api.products": ("dot", "dot_general", "einsum", "inner", "matmul", "tensordot", "vecdot"),
    "jaxpr.attention.block_masks": ("BlockMask",),
    "lowering.export": ("export_checks", "exporting_kernels"),
    "runtime.report": ("Report", "Reports"),
    "runtime.threads": ("set_threads", "threads"),
    "runtime.tuning": ("Tuned", "Tunings"),
    "weights.cache": ("QuantizedCache", "quantize_cache"),
    "weights.packed": ("PackedWeight", "pack"),
    "weights.quantized": ("QuantizedWeight", "quantization_error", "quantize"),
    "weights.trees": ("as_arrays", "kernel_spec", "map_kernels"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BlockMask",
    "PackedWeight",
    "QuantizedCache",
    "QuantizedWeight",
    "Report",
    "Reports",
    "Tuned",
    "Tunings",
    "__version__",
    "accelerate",
    "as_arrays",
    "autotune",
    "block_mask",
    "conv",
    "conv_general_dilated",
    "conv_general_dilated_local",
    "conv_general_dilated_patches",
    "conv_transpose",
    "conv_with_general_padding",
    "dot",
    "dot_general",
    "dot_product_attention",
    "einsum",
    "executed_kernels",
    "expert_combine",
    "expert_matmul",
    "export_checks",
    "exporting_kernels",
    "fused_matmul",
    "inner",
    "inspect",
    "install",
    "installed",
    "kernel_spec",
    "map_kernels",
    "matmul",
    "pack",
    "quantization_error",
    "quantize",
    "quantize_cache",
    "ragged_dot",
    "ragged_dot_general",
    "release_memory",
    "repeat_by_group",
    "retain_memory",
    "set_threads",
    "tensordot",
    "threads",
    "uninstall",
    "vecdot",
]


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name == "__version__":
        value = _version()
    elif name == "_native":
        value = _extension()
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"jax_nano.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _extension() -> ModuleType:
    try:
        return importlib.import_module("jax_nano._native")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__path__[0]} is a source tree whose extension is not built: run Python in another folder, or build it "
            "with `make` or `pip install -e .`"
        ) from error


def _version() -> str:
    try:
        return importlib.metadata.version("jax-nano")
    except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
        return "unknown"


def __dir__() -> list[str]:
    return __all__
