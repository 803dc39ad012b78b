"""Operations name the loop and phase that they belong to: a failure in LLVM or MLIR says where it is."""

from dataclasses import replace

import numpy as np
import pytest
from elementwise_runner import program
from jax.extend.mlir import ir
from jax.interpreters.mlir import make_ir_context
from products import Product, matrix

from jax_nano import _native
from jax_nano.codegen import epilogue, nanokernel, pack
from jax_nano.codegen.intrinsics import intrinsic
from jax_nano.codegen.module import build_module, kernel_name
from jax_nano.ir.dot import Epilogue
from jax_nano.machine import host
from jax_nano.runtime.kernel import processor_for
from jax_nano.schedule.candidates import kernel_plans


def plan(packing, *, fused=False):
    """A plan of a small product of f32 with B packed so."""
    machine = host.machine()
    dot = Product(lhs=matrix(37, 64, "rows", "f32"), rhs=matrix(64, 48, "columns", "f32"), out="f32").dot
    if fused:
        added = program(lambda x: x + 1, np.ones(1, np.float32))
        dot = replace(dot, epilogue=Epilogue(program=added, extras=()))
    packed = next(plan for plan in kernel_plans(dot, machine, machine.isa("avx2")) if plan.rhs == "per_task")
    return replace(packed, rhs=packing)


def compile_(plan, text=None):
    processor = processor_for(plan, host.machine())
    return _native.compile(text or build_module(plan), processor.cpu, processor.features, processor.tune)


def broken(value, *_, **__):
    """The value through an intrinsic that LLVM does not have."""
    return intrinsic("llvm.nonsense", value.type, value)


def error(plan):
    with pytest.raises(RuntimeError, match="nonsense") as found:
        compile_(plan)
    return str(found.value)


def in_order(message, *names):
    """Whether a message names these, each followed by the next."""
    places = [message.find(f'"{name}"') for name in names]
    return -1 not in places and places == sorted(places)


def test_a_failure_in_the_main_loop_names_all_loops_around_it(monkeypatch):
    monkeypatch.setitem(nanokernel.MULTIPLY_ADD, "fma_f32", broken)
    kernel = plan("per_task")
    loops = ("panels of columns (NR)", "blocks of rows (MC)", "blocks of columns", "k blocks (KC)")
    assert in_order(error(kernel), "k loop", "microkernel", *loops, kernel_name(kernel))


@pytest.mark.parametrize("packing, phase", [("per_task", ""), ("per_round", "_pack")])
def test_a_failure_in_packing_names_the_operand_and_the_phase(monkeypatch, packing, phase):
    monkeypatch.setattr(pack, "transpose", lambda rows: [broken(row) for row in rows])
    kernel = plan(packing)
    assert in_order(error(kernel), "panels", "pack B", kernel_name(kernel) + phase)


def test_a_failure_in_the_epilogue_names_it(monkeypatch):
    monkeypatch.setattr(epilogue, "evaluate", lambda _program, inputs, **_: [broken(inputs[0])])
    assert in_order(error(plan("per_task", fused=True)), "epilogue", "microkernel")


def test_a_malformed_operation_is_found_before_lowering(monkeypatch):
    monkeypatch.setitem(nanokernel.MULTIPLY_ADD, "fma_f32", lambda acc, *_: ir.Operation.create(
        "arith.addi", [acc.type], [acc, acc]).result)  # fmt: skip
    with pytest.raises(ir.MLIRError, match='"k loop"\\("microkernel"'):
        build_module(plan("per_task"))


@pytest.mark.parametrize("packing", ["unpacked", "per_task", "per_round"])
def test_names_do_not_change_the_object(packing):
    kernel = plan(packing)
    text = build_module(kernel)
    with make_ir_context() as context:
        context.allow_unregistered_dialects = True
        nameless = str(ir.Module.parse(text).operation.get_asm(print_generic_op_form=True))
    assert "k loop" in text
    assert "k loop" not in nameless
    assert compile_(kernel, text) == compile_(kernel, nameless)
