"""MLIR text to object code, and the custom call that runs it."""

from typing_extensions import CapsuleType

llvm_version: str
libraries: tuple[str, ...]  # the files of MLIR and of LLVM; none where they are inside of the extension

def compile(mlir: str, cpu: str, features: str, tune: str) -> bytes:
    """Object code of an MLIR module. Raises RuntimeError with LLVM's words."""

def assembly(mlir: str, cpu: str, features: str, tune: str) -> str:
    """Assembly of an MLIR module."""

def llvm_ir(mlir: str, cpu: str, features: str, tune: str) -> str:
    """Optimized LLVM IR of an MLIR module."""

def missing_features(features: str) -> str:
    """The LLVM features among `features` (separated by commas) that this processor lacks, separated by commas."""

def tiles_denied() -> str:
    """Why this process may not use tile registers; empty where it may, and where the processor has none."""

def _assume_features(features: str) -> None:
    """Makes just these features count as present besides what the processor has: for tests, which emulate them."""

def host_cpu() -> str:
    """LLVM's name of this processor."""

def instantiate_handler() -> CapsuleType:
    """PyCapsule of the instantiate stage."""

def execute_handler() -> CapsuleType:
    """PyCapsule of the execute stage."""

def limit_threads(threads: int) -> None:
    """Lets no more than `threads` threads of this process compute, though XLA has more. Below 1: no limit."""

def executed_kernels() -> int:
    """How many times a kernel has run in this process."""

def count_times(wanted: bool) -> None:
    """Begins to count how often and how long kernels run, from zero, or ends it; what was counted stays."""

def counted_times() -> dict[int, tuple[int, float]]:
    """{key of a kernel: (runs, seconds of all of them)}."""

def scratch() -> tuple[int, int]:
    """(bytes of scratch held now, bytes that are kept between calls at most)."""

def foreign_allocator() -> str:
    """The file that malloc comes from; empty where that is glibc."""

def arenas() -> int:
    """How many arenas glibc's malloc has made."""

def retain_memory(limit: int) -> None:
    """Makes glibc keep up to `limit` bytes of freed memory; -1: all."""

def release_memory() -> None:
    """Makes glibc return freed memory again, and return what it has."""
