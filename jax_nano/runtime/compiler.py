"""Plan -> object code; and what is said and done where that fails."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jaxlib
import numpy as np

import jax_nano
from jax_nano import _native, config
from jax_nano.codegen.module import build_module, kernel_name
from jax_nano.ir.attention import Problem
from jax_nano.ir.dot import UnsupportedDot
from jax_nano.runtime.dump import dump
from jax_nano.runtime.kernel import Kernel, Processor
from jax_nano.runtime.log import logger, stopwatch
from jax_nano.schedule.attention.plan import AnyPlan

# What LLVM may make calls of, where a kernel moves or rounds one element alone: an object with one is not loaded.
LIBRARY = (b"__truncsfbf2", b"__truncsfhf2", b"__extendhfsf2", b"memset", b"memcpy", b"memmove")
ERROR_LINES = 8  # of an error of LLVM's or MLIR's: the others repeat the module


class CompilationFailed(UnsupportedDot):
    """A kernel could not be made, through a fault of jax_nano's, MLIR's or LLVM's. The product runs without it."""


def compile_plan(problem: Problem, plan: AnyPlan, processor: Processor) -> Kernel:
    """Composes and compiles the kernel of a product by a plan.

    Raises:
      CompilationFailed: MLIR or LLVM refused it.
    """
    try:
        with reporting_failures(problem, plan):
            return _compose_and_compile(problem, plan, processor)
    except CompilationFailed:
        with reporting_failures(problem, plan):
            dump(Kernel.of(problem, plan, processor, b""))
        raise


def _compose_and_compile(problem: Problem, plan: AnyPlan, processor: Processor) -> Kernel:
    with stopwatch() as composing:
        module = build_module(plan)
    with stopwatch() as compiling:
        code = _native.compile(module, processor.cpu, processor.features, processor.tune)
    if called := [name.decode() for name in LIBRARY if name in code]:
        raise RuntimeError(f"LLVM made a call of {called[0]}, and kernels call nothing")
    logger.debug("compiled %s: composed in %s, compiled in %s", kernel_name(plan), composing, compiling)
    return Kernel.of(problem, plan, processor, code)


@contextmanager
def reporting_failures(problem: Problem, plan: AnyPlan | None = None) -> Iterator[None]:
    """Makes a reason to do without a kernel of whatever fails in making it, and logs what to report.

    Raises:
      UnsupportedDot: as the block does.
      CompilationFailed: anything else failed.
    """
    try:
        yield
    except UnsupportedDot:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()
        logger.error("%s", failure_report(problem, plan, text[:ERROR_LINES]))
        reason = f"jax_nano could not compile its kernel ({text[0]}); the logger jax_nano says what to report"
        config.warn(f"{reason}. XLA computes the product")
        raise CompilationFailed(reason) from error


def failure_report(problem: Problem, plan: AnyPlan | None, error: list[str]) -> str:
    """What to report of a failure."""
    lines = {
        "versions": ", ".join(f"{name} {text}" for name, text in versions().items()),
        "processor": f"{_native.host_cpu()}; {config.text('JAX_NANO_TARGET') or 'no target'} asked for",
        "product": str(problem),
        "plan": str(plan) if plan else "none was made",
        "error": "\n    ".join(error),
    }
    return "\n  ".join([
        "a kernel could not be compiled, and XLA computes the product. Please report:",
        *(f"{name}: {text}" for name, text in lines.items()),
        "JAX_NANO_DUMP=directory writes the plan and the module there; JAX_NANO=0 turns jax_nano off.",
    ])  # fmt: skip


def versions() -> dict[str, str]:
    """What takes part in making kernels."""
    found = {module.__name__: module.__version__ for module in (jax_nano, jax, jaxlib)}
    return found | {
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "LLVM, MLIR": _native.llvm_version,
    }
