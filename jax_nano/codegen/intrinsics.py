"""Calls of LLVM's intrinsics, which stand for instructions that no dialect has an operation for."""

from __future__ import annotations

from jax.extend.mlir import ir


def intrinsic(name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """Calls one."""
    attributes = {
        "intrin": ir.StringAttr.get(name),
        **segments(len(operands), 0),
        "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
    }
    return ir.Operation.create("llvm.call_intrinsic", [result], list(operands), attributes).result


def segments(*sizes: int) -> dict[str, ir.Attribute]:
    """How many operands stand for each of an operation's arguments."""
    return {"operandSegmentSizes": ir.DenseI32ArrayAttr.get(sizes)}
