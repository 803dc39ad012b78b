"""Calls of LLVM's intrinsics, which stand for instructions that no dialect has an operation for."""

from __future__ import annotations

from typing import Any

from jax.extend.mlir import ir


def intrinsic(name: str, result: ir.Type | None, *operands: ir.Value) -> Any:
    """Calls one; gives its value, where it has a result."""
    attributes = {
        "intrin": ir.StringAttr.get(name),
        **segments(len(operands), 0),
        "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
    }
    call = ir.Operation.create("llvm.call_intrinsic", [result] if result else [], list(operands), attributes)
    return call.result if result else None


def segments(*sizes: int) -> dict[str, ir.Attribute]:
    """How many operands stand for each of an operation's arguments."""
    return {"operandSegmentSizes": ir.DenseI32ArrayAttr.get(sizes)}
