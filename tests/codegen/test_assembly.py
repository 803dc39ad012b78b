"""What the compiler made of kernels: every register block that plans choose, read in the assembly of its main loop."""

import functools
import re

import pytest
from convolutions import Case
from products import Product, matrix

from jax_nano.machine import host
from jax_nano.runtime.kernel import Kernel, processor_for
from jax_nano.schedule.candidates import kernel_plans

MULTIPLY_ADDS = re.compile(r"(?:\{vex\}\s*)?(?:vfmadd\w+p[sd]|vdpbf16ps|vpdp\w+|vpmaddwd)")
LABEL, JUMP = re.compile(r"(\.L\w+):"), re.compile(r"j\w+\s+(\.L\w+)")
TYPES = (
    ("f32", "f32", "f32"),
    ("f64", "f64", "f64"),
    ("bf16", "bf16", "f32"),
    ("f16", "f16", "f16"),
    ("u8", "s8", "s32"),
    ("s8", "s8", "s32"),
)
SIZES = (
    (1, 64, 256), (2, 2048, 2048), (3, 100, 256), (4, 300, 256), (5, 33, 256), (6, 64, 64), (8, 4096, 1024),
    (12, 48, 256), (16, 4096, 4096), (33, 256, 256), (64, 64, 64), (100, 1000, 512), (128, 768, 3072),
    (256, 256, 256), (1000, 33, 512), (1024, 1024, 1024), (4096, 16, 256), (512, 24, 256),
)  # fmt: skip


def loops(assembly):
    """The innermost loops: instructions from a label to a jump back to it, with no label between."""
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and (LABEL.match(line) or not line.startswith("."))]
    begin, label = 0, None
    for i, line in enumerate(lines):
        if found := LABEL.match(line):
            begin, label = i + 1, found[1]
        elif (found := JUMP.match(line)) and found[1] == label:
            yield lines[begin : i + 1]


def loads(loop):
    """The vector instructions that read memory: in AT&T syntax the destination stands last."""
    return [line for line in loop if line.startswith("v") and "(" in line.rpartition(",")[0]]


def stores(loop):
    return [line for line in loop if line.startswith("vmov") and "(" in line.rpartition(",")[2]]


def multiply_adds(lines):
    return [line for line in lines if MULTIPLY_ADDS.match(line)]


def main_loop(plan):
    """The loop that goes by whole iterations of the microkernel."""
    text = Kernel.of(plan.dot, plan, processor_for(plan, host.machine()), b"").assembly
    return max(loops(text), key=lambda loop: len(multiply_adds(loop)), default=[])


@functools.cache
def plans(isa):
    """A plan for each main loop that is weighed for products of many shapes: those that can differ in it."""
    found = {}
    machine = host.machine()
    for lhs, rhs, out in TYPES:
        for m, n, k in SIZES:
            for b in ("rows", "columns"):
                dot = Product(lhs=matrix(m, k, "rows", lhs), rhs=matrix(k, n, b, rhs), out=out).dot
                for plan in kernel_plans(dot, machine, machine.isa(isa)):
                    whole = plan.m.size >= plan.mr and plan.n.size >= plan.nr and plan.kc >= 4 * plan.step
                    kind = (
                        lhs, rhs, plan.instruction.name, plan.inner_product, plan.mr, plan.nr, plan.unroll,
                        plan.lhs_stationary, plan.lhs, plan.rhs == "unpacked",
                    )  # fmt: skip
                    if whole and not plan.instruction.tiles and plan.dot.lhs == lhs:
                        found.setdefault(kind, plan)
    return found


def named_loads(plan):
    """The loads that the nanokernel names in an iteration, at most: of A's elements, and of B's registers or rows."""
    if plan.inner_product:
        return plan.unroll * (plan.mr + plan.nr)
    registers = plan.nr // plan.instruction.shape[1]
    rows = plan.instruction.vnni if plan.rhs == "unpacked" else 1
    return plan.unroll * (plan.mr + registers * rows)


@pytest.mark.parametrize("isa", [isa.name for isa in host.machine().isas])
def test_no_block_spills_or_loads_what_it_does_not_name(isa):
    wrong = []
    for kind, plan in plans(isa).items():
        loop = main_loop(plan)
        registers = plan.nr if plan.inner_product else plan.nr // plan.instruction.shape[1]
        if len(multiply_adds(loop)) % (plan.mr * registers) or not multiply_adds(loop):
            wrong.append((kind, f"{len(multiply_adds(loop))} multiply-adds"))
        if spilled := [line for line in loop if "(%rsp" in line]:
            wrong.append((kind, f"{len(spilled)} spills"))
        if stored := stores(loop):
            wrong.append((kind, f"{len(stored)} stores"))
        iterations = len(multiply_adds(loop)) / (plan.unroll * plan.mr * registers)
        constants = sum("(%rip)" in line for line in loads(loop))
        if len(loads(loop)) - constants > named_loads(plan) * iterations:
            wrong.append((kind, f"{len(loads(loop))} loads for {named_loads(plan)}"))
    assert not wrong, f"{len(wrong)} of {len(plans(isa))}: {wrong[:12]}"


@pytest.mark.parametrize("size", [32, 56])
def test_masks_of_packed_windows_leave_accumulators_in_registers(size):
    """Numbers of lanes to compare with would stay in two registers: more than 4 x 6 accumulators leave."""
    machine, layouts = host.machine(), ((0, 2, 3, 1), (2, 3, 1, 0))
    dot = Case.same((1, size, size, 64), (3, 3), 64, layouts=layouts, places_last=True).dot
    for plan in kernel_plans(dot, machine, machine.isa("avx512" if "avx512" in machine.cores else "avx2")):
        assert not [line for line in main_loop(plan) if "(%rsp" in line]
