"""The epilogue of a register block: its arrays loaded beside the accumulators, its program run on each register."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.extend.mlir import ir

from jax_nano.codegen.index import Index, Values
from jax_nano.codegen.load_store import load, load_scalar
from jax_nano.codegen.matrix_ref import View
from jax_nano.codegen.nanokernel import Nanokernel
from jax_nano.codegen.registers import broadcast
from jax_nano.codegen.vector.convert import convert
from jax_nano.codegen.vector.evaluate import evaluate
from jax_nano.ir.program import Program


@dataclass(frozen=True)
class Finish:
    """Makes registers of C out of accumulators: program(accumulator, extras...)."""

    program: Program
    nano: Nanokernel
    extras: tuple[View, ...]  # element (i, j) belongs to element (i, j) of the block

    def row(self, i: Index) -> Finish:
        """See micro.Epilogue."""
        return replace(self, extras=tuple(view.block(i) for view in self.extras))

    def __call__(self, acc: Values, places: Sequence[tuple[int, int, int]]) -> Values:
        """See micro.Epilogue. What rows or columns share is loaded once."""
        loaded: dict[tuple[int, int, int], ir.Value] = {}

        def extra(number: int, i: int, j: int, count: int) -> ir.Value:
            view = self.extras[number]
            rows, cols = view.strides
            key = number, i if rows else 0, j if cols else 0
            if key not in loaded:
                at = view.offset(i, j)
                if cols:
                    loaded[key] = load(view.base, at, self.nano.lanes, count)
                else:
                    loaded[key] = broadcast(load_scalar(view.base, at), self.nano.lanes)
            return loaded[key]

        result = []
        for value, (i, j, count) in zip(acc, places, strict=True):
            product = convert(value, self.nano.instruction.acc, self.program.dtype(0), self.nano.native_bf16)
            inputs = [product, *(extra(number, i, j, count) for number in range(len(self.extras)))]
            (made,) = evaluate(self.program, inputs, self.nano.native_bf16)
            result.append(made)
        return result
