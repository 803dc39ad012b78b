"""Whole functions as LLVM compiles them for machines with AMX: loops, configurations, and AVX-512 beside them."""

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from . import emulator
from .build import assemble, processor_flags
from .model import TYPES, product
from .selection import those_that_run
from .test_products import PAIRS, assert_same_bits, random_bits, random_numbers, rows_of

# c = a @ b, where a is [m, depth * k], b is [depth * 16, n] with the rows beyond k unused, and c is [m, n], all in
# 32-bit elements. k4 and n4 are k and n in bytes. The rows of b and c have 64 bytes.
IR = """
declare x86_amx @llvm.x86.tilezero.internal(i16, i16)
declare x86_amx @llvm.x86.tileloadd64.internal(i16, i16, ptr, i64)
declare void @llvm.x86.tilestored64.internal(i16, i16, ptr, i64, x86_amx)
declare x86_amx @llvm.x86.{name}.internal(i16, i16, i16, x86_amx, x86_amx, x86_amx)

define void @multiply(ptr %a, ptr %b, ptr %c, i64 %depth, i16 %m, i16 %k, i16 %n4, i16 %k4) {{
entry:
  %zero = call x86_amx @llvm.x86.tilezero.internal(i16 %m, i16 %n4)
  %step = zext i16 %k4 to i64
  %stride = mul i64 %depth, %step
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i.next, %loop]
  %sum = phi x86_amx [%zero, %entry], [%sum.next, %loop]
  %a.offset = mul i64 %i, %step
  %b.offset = shl i64 %i, 10
  %a.i = getelementptr i8, ptr %a, i64 %a.offset
  %b.i = getelementptr i8, ptr %b, i64 %b.offset
  %a.tile = call x86_amx @llvm.x86.tileloadd64.internal(i16 %m, i16 %k4, ptr %a.i, i64 %stride)
  %b.tile = call x86_amx @llvm.x86.tileloadd64.internal(i16 %k, i16 %n4, ptr %b.i, i64 64)
  %sum.next = call x86_amx @llvm.x86.{name}.internal(
      i16 %m, i16 %n4, i16 %k4, x86_amx %sum, x86_amx %a.tile, x86_amx %b.tile)
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %depth
  br i1 %more, label %loop, label %done
done:
  call void @llvm.x86.tilestored64.internal(i16 %m, i16 %n4, ptr %c, i64 64, x86_amx %sum.next)
  ret void
}}
"""
PROCESSORS = [
    *(("sapphirerapids", name) for name in those_that_run(TYPES) if name != "tdpfp16ps"),
    *(("graniterapids", name) for name in those_that_run(TYPES)),
]


@pytest.fixture
def multiply(amx, processor, name):
    """The product of arrays as in model.py, a and b with their depth as first axis."""
    llc = shutil.which("llc-22") or shutil.which("llc")
    if llc is None:
        pytest.skip("no llc: install LLVM 22 (on Debian, llvm-22)")
    if "avx512f" not in processor_flags():
        pytest.skip(f"code for {processor} needs AVX-512, which this processor has not")
    assembly = subprocess.run(
        [llc, "-mtriple=x86_64-linux-gnu", f"-mcpu={processor}", "-O2", "-relocation-model=pic"],
        input=IR.format(name=name),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    compiled = assemble(assembly).multiply

    def multiply(a, b):
        depth, m, k, _ = a.shape
        n = b.shape[2]
        rows_a = np.ascontiguousarray(np.moveaxis(a, 0, 1))
        rows_b = np.stack([rows_of(tile) for tile in b])
        rows_c = np.full((16, 64), 0xEE, np.uint8)
        shape = (ctypes.c_int16(size) for size in (m, k, 4 * n, 4 * k))
        compiled(rows_a.ctypes, rows_b.ctypes, rows_c.ctypes, ctypes.c_int64(depth), *shape)
        return rows_c[:m, : 4 * n].copy().view(np.float32 if name in PAIRS else np.int32)

    return multiply


def operands(name, depth, m, k, n):
    rng = np.random.default_rng(7)
    if name in PAIRS:
        return [random_numbers(rng, name, shape, "around one") for shape in ((depth, m, k, 2), (depth, k, n, 2))]
    shapes = (depth, m, k, 4), (depth, k, n, 4)
    return [random_bits(rng, type_, shape) for type_, shape in zip(TYPES[name], shapes, strict=True)]


def product_over_depth(name, a, b):
    total = np.zeros((a.shape[1], b.shape[2]), np.float32 if name in PAIRS else np.int32)
    for a_tile, b_tile in zip(a, b, strict=True):
        total = product(name, a_tile, b_tile, total)
    return total


@pytest.mark.parametrize(("processor", "name"), PROCESSORS)
@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (5, 16, 16, 16), (3, 1, 16, 16), (2, 7, 3, 5), (4, 16, 1, 1)])
def test_a_compiled_loop_computes_the_product(amx, multiply, name, shape):
    a, b = operands(name, *shape)
    before = emulator.executed()
    assert_same_bits(multiply(a, b), product_over_depth(name, a, b))
    if amx == "emulated":
        depth = shape[0]
        counts = {key: count - before[key] for key, count in emulator.executed().items() if count != before[key]}
        once = dict.fromkeys(["ldtilecfg", "tilezero", "tilestored", "tilerelease"], 1)
        assert counts == {**once, "tileloadd": 2 * depth, name: depth}


@pytest.mark.parametrize(("processor", "name"), [("sapphirerapids", "tdpbf16ps")])
def test_many_threads_multiply_at_once(multiply, name):
    shapes = [(depth, m, 16, 16) for depth in (1, 2, 3) for m in range(1, 17)]
    cases = [operands(name, *shape) for shape in shapes] * 4
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda case: multiply(*case), cases))
    for (a, b), result in zip(cases, results, strict=True):
        assert_same_bits(result, product_over_depth(name, a, b))
