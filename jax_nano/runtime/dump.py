"""JAX_NANO_DUMP: each kernel's plan, MLIR, LLVM IR, assembly and object code, as files to look at.

Files are named by the kernel's symbol and its key, the one that the custom call carries. A kernel is written when a
process first compiles it or finds it on disk. Nothing here fails a program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from jax_nano import config
from jax_nano.runtime.kernel import Kernel
from jax_nano.runtime.log import logger
from jax_nano.schedule.attention.plan import AnyPlan


def dump(kernel: Kernel) -> None:
    """Writes a kernel where JAX_NANO_DUMP says, if it does."""
    try:
        folder = config.directory("JAX_NANO_DUMP")
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in CONTENTS.items():
            write(folder / f"{kernel.name}-{kernel.key & (1 << 64) - 1:016x}.{suffix}", content, kernel)
    except (OSError, RuntimeError) as error:
        config.warn(f"jax_nano cannot write kernels to JAX_NANO_DUMP={config.text('JAX_NANO_DUMP')}: {error}")


def write(path: Path, content: Callable[[Kernel], bytes], kernel: Kernel) -> None:
    """Writes a file, unless there is nothing to write: of a kernel that did not compile, later stages are missing.

    Raises:
      OSError: it cannot be written.
    """
    try:
        data = content(kernel)
    except Exception as error:  # noqa: BLE001
        logger.warning("%s is not written: %s", path.name, error)
        return
    if data:
        path.write_bytes(data)


def in_lines(plan: AnyPlan) -> str:
    """A plan, a line for each field."""
    return "".join(f"{field.name} = {getattr(plan, field.name)}\n" for field in fields(plan))


CONTENTS: dict[str, Callable[[Kernel], bytes]] = {
    "plan": lambda kernel: in_lines(kernel.plan).encode(),
    "mlir": lambda kernel: kernel.mlir.encode(),
    "ll": lambda kernel: kernel.llvm_ir.encode(),
    "s": lambda kernel: kernel.assembly.encode(),
    "o": lambda kernel: kernel.object,
}
