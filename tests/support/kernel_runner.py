"""Runs a kernel's object code without XLA: task by task in any order, on memory whose every neighbour is forbidden.

LLVM's C interface links the object. Arrays and scratch stand against pages that cannot be touched, before or behind
them; what else is mapped around them, and scratch before a task, is all ones: NaN in every float type, -1 in integers.
So a kernel that reads or writes outside of its buffers dies or leaves marks, and one that reads what was never written
gives NaN.
"""

import ctypes
import functools
import mmap
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from products import DTYPES

from jax_nano import _native
from jax_nano.codegen.module import build_module, phase_symbols
from jax_nano.machine import host
from jax_nano.runtime.kernel import Kernel, processor_for

PAGE = mmap.PAGESIZE
LINE = 64
ALL_ONES = 0xFF
HALF_BYTES = (ml_dtypes.int4, ml_dtypes.uint4)
POISONED_BYTES = 1 << 20  # scratch above this is poisoned once, not before every task


@functools.cache
def libc():
    return ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Bytes with a forbidden page right before them (`before`) or right behind; the rest of their pages is all ones."""

    def __init__(self, size, *, before, align=1):
        inside = -(-max(size, 1) // PAGE) * PAGE
        self.map = mmap.mmap(-1, inside + 2 * PAGE)
        pages = np.frombuffer(self.map, np.uint8)
        address = pages.ctypes.data
        for guard in (address, address + PAGE + inside):
            if libc().mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        begin = 0 if before else inside - -(-size // align) * align
        self.inside = pages[PAGE : PAGE + inside]
        self.inside[:] = ALL_ONES
        self.bytes = self.inside[begin : begin + size]
        self.around = self.inside[:begin], self.inside[begin + size :]

    @property
    def address(self):
        return self.bytes.ctypes.data

    def poison(self):
        self.bytes[:] = ALL_ONES

    def untouched(self):
        """Whether what is around is still all ones."""
        return all(np.all(part == ALL_ONES) for part in self.around)


def stored(array):
    """The bytes of an array with its strides, all ones between its elements. Two elements of 4 bits share a byte."""
    last = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
    memory = np.full(last + array.itemsize, ALL_ONES, np.uint8)
    np.ndarray(array.shape, array.dtype, memory, strides=array.strides)[...] = array
    if array.dtype in HALF_BYTES:
        halves = np.append(memory, np.uint8(ALL_ONES))[: -(-memory.size // 2) * 2] & 0xF
        memory = halves[0::2] | halves[1::2] << 4
    return memory


def in_panels(matrix, panels):
    """A matrix in panels, with zeros around it."""
    padded = np.zeros((panels.rows, panels.columns), matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.reshape(-1, panels.vnni, panels.columns // panels.width, panels.width).transpose(2, 0, 3, 1).copy()


def guarded_copy(array, *, before):
    """An array as it is stored, in guarded memory."""
    content = stored(array)
    memory = Guarded(content.size, before=before)
    memory.bytes[:] = content
    return memory


@dataclass(frozen=True)
class Entries:
    """The entry points of a linked object, by phase; `jit` owns the code."""

    jit: ctypes.c_void_p
    phases: tuple

    def __del__(self):
        llvm().LLVMOrcDisposeLLJIT(self.jit)


@functools.cache
def llvm():
    """LLVM's C interface, out of the library that the extension uses."""
    library = ctypes.CDLL(_native.libraries[1])
    for name in ("LLVMCreateMemoryBufferWithMemoryRangeCopy", "LLVMOrcLLJITGetMainJITDylib", "LLVMGetErrorMessage"):
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("LLVMOrcCreateLLJIT", "LLVMOrcLLJITAddObjectFile", "LLVMOrcLLJITLookup"):
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        function.errcheck = check
    library.LLVMOrcLLJITAddObjectFile.argtypes = [ctypes.c_void_p] * 3
    library.LLVMOrcLLJITGetMainJITDylib.argtypes = library.LLVMOrcDisposeLLJIT.argtypes = [ctypes.c_void_p]
    library.LLVMCreateMemoryBufferWithMemoryRangeCopy.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
    return library


def check(error, function, arguments):
    if error:
        raise RuntimeError(ctypes.string_at(llvm().LLVMGetErrorMessage(ctypes.c_void_p(error))).decode())


def linked(code, symbols):
    """The functions of an object: (round, task, shared, local, buffers), as csrc/loader.h describes them."""
    _native.host_cpu()
    jit, address = ctypes.c_void_p(), ctypes.c_uint64()
    llvm().LLVMOrcCreateLLJIT(ctypes.byref(jit), None)
    buffer = llvm().LLVMCreateMemoryBufferWithMemoryRangeCopy(code, len(code), b"kernel")
    llvm().LLVMOrcLLJITAddObjectFile(jit, llvm().LLVMOrcLLJITGetMainJITDylib(jit), buffer)
    entry = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 3)
    phases = []
    for symbol in symbols:
        llvm().LLVMOrcLLJITLookup(jit, ctypes.byref(address), symbol.encode())
        phases.append(entry(address.value))
    return Entries(jit, tuple(phases))


def compiled(plan):
    """The kernel of a plan on this machine, past the caches: tests make many that nobody asks for again."""
    processor = processor_for(plan, host.machine())
    code = _native.compile(build_module(plan), processor.cpu, processor.features, processor.tune)
    return Kernel.of(plan.dot.swapped() if plan.swapped else plan.dot, plan, processor, code)


class Runner:
    """A compiled plan, ready to run."""

    def __init__(self, plan):
        self.kernel = compiled(plan)
        self.plan = plan
        self.entries = linked(self.kernel.object, phase_symbols(plan))

    def at_both_ends(self, lhs, rhs):
        """C, flat, which has the same bits wherever arrays stand and in whatever order tasks run."""
        first, second = (self(lhs, rhs, before=before, seed=before) for before in (False, True))
        assert np.array_equal(bits(first), bits(second))
        return first

    def __call__(self, lhs, rhs, *extras, before=False, seed=0):
        """C, flat.

        Args:
          lhs: A, with the strides that the plan's product has.
          rhs: B.
          extras: the arrays of the epilogue and of the scaling.
          before: whether forbidden pages stand right before buffers, rather than right behind.
          seed: of the order of tasks.
        """
        plan = self.plan
        rhs = in_panels(rhs, plan.dot.panels) if plan.dot.panels else rhs
        operands = [guarded_copy(x, before=before) for x in (lhs, rhs, *extras)]
        dtype = np.dtype(DTYPES[plan.dot.out])
        out = Guarded(plan.results * dtype.itemsize, before=before)
        shared, local = (Guarded(size, before=before, align=LINE) for size in (plan.shared_bytes, plan.local_bytes))
        memory = [*operands, out, shared, local]
        kept = [x.bytes.copy() for x in operands]
        buffers = (ctypes.c_void_p * (len(operands) + 1))(*(x.address for x in (*operands, out)))
        order = np.random.default_rng(seed)
        for number in range(plan.rounds):
            for entry, tasks in zip(self.entries.phases, plan.tasks.values(), strict=True):
                for task in order.permutation(tasks):
                    if plan.local_bytes <= POISONED_BYTES:
                        local.poison()
                    entry(number, int(task), shared.address, local.address, buffers)
        assert all(x.untouched() for x in memory), "something was written outside of a buffer"
        assert all(np.array_equal(x.bytes, y) for x, y in zip(operands, kept, strict=True)), "an operand was written to"
        return out.bytes.view(dtype).copy()


def bits(array):
    """An array's bytes: unlike its elements, comparable where some are NaN."""
    return np.ascontiguousarray(array).view(np.uint8)
